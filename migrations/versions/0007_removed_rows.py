"""When the rows of a job were removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("rows_removed_at", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "rows_removed_at")
