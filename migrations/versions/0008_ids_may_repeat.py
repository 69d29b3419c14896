"""Two items of a job may have the same id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

NAME = "uq_items_custom_id"
LAST_ID = sa.text("SELECT seq FROM sqlite_sequence WHERE name = 'items'")
KEEP_LAST_ID = sa.text("UPDATE sqlite_sequence SET seq = max(seq, :last) WHERE name = 'items'")
# As ids were made before that had been given already.
WITH_LINE = sa.text(
    "UPDATE items SET custom_id = custom_id || '\\:line-' || line_no WHERE EXISTS (SELECT 1 FROM items AS other WHERE "
    "other.job_id = items.job_id AND other.custom_id = items.custom_id AND other.line_no < items.line_no)"
)


def upgrade() -> None:
    with items_table() as items:
        items.drop_constraint(NAME, type_="unique")


def downgrade() -> None:
    op.execute(WITH_LINE)
    with items_table() as items:
        items.create_unique_constraint(NAME, ["job_id", "custom_id"])


@contextmanager
def items_table() -> Iterator[BatchOperations]:
    """The table to change. SQLite copies it, and then must still never use an id that it had given to an item."""
    connection = op.get_bind()
    is_sqlite = connection.dialect.name == "sqlite"
    last_id = connection.scalar(LAST_ID) if is_sqlite else None
    with op.batch_alter_table("items", table_kwargs={"sqlite_autoincrement": True}) as items:
        yield items
    if last_id is not None:
        connection.execute(KEEP_LAST_ID, {"last": last_id})
