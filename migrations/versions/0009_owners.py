"""Owners of keys, jobs, files and responses, and the limits of keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

HAS_FILE = sa.text("input_file_id <> ''")
OWNED = ("jobs", "files", "responses", "api_keys")
KEY_COLUMNS = ("requests_per_minute", "tokens_per_minute", "max_queued_items", "max_jobs")


def upgrade() -> None:
    # What exists already belongs to the owner without a name: the one of keys that have none.
    for table in OWNED:
        op.add_column(table, sa.Column("owner", sa.String(64), nullable=False, server_default=""))
    op.add_column("api_keys", sa.Column("weight", sa.Double(), nullable=False, server_default="1"))
    for name in KEY_COLUMNS:
        op.add_column("api_keys", sa.Column(name, sa.Integer(), nullable=True))
    for name, columns in (
        ("ix_jobs_owner", ["owner", "created_at", "id"]),
        ("ix_jobs_owner_listed", ["owner", "status", "created_at", "id"]),
    ):
        op.create_index(name, "jobs", columns, unique=False, postgresql_where=HAS_FILE, sqlite_where=HAS_FILE)
    op.create_index("ix_files_owner", "files", ["owner", "created_at", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_files_owner", "files")
    for name in ("ix_jobs_owner_listed", "ix_jobs_owner"):
        op.drop_index(name, "jobs")
    for name in (*KEY_COLUMNS, "weight"):
        op.drop_column("api_keys", name)
    for table in OWNED:
        op.drop_column(table, "owner")
