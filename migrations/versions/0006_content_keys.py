"""Answers by content key, which items have taken them, and what jobs saved by that."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "content_keys",
        sa.Column("key", sa.LargeBinary(length=16), nullable=False),
        sa.Column("item_id", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("choices", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_content_keys_item", "content_keys", ["item_id"], unique=False)
    op.add_column("items", sa.Column("source_id", sa.BigInteger(), nullable=True))
    waiting = sa.text("status = 'pending' AND source_id IS NOT NULL")
    op.create_index(
        "ix_items_waiting",
        "items",
        ["source_id"],
        unique=False,
        postgresql_where=waiting,
        sqlite_where=waiting,
    )
    op.add_column("jobs", sa.Column("reused", sa.Integer(), server_default="0", nullable=False))
    for name in ("reused_prompt_tokens", "reused_output_tokens"):
        op.add_column("jobs", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("fresh", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    for name in ("fresh", "reused_output_tokens", "reused_prompt_tokens", "reused"):
        op.drop_column("jobs", name)
    op.drop_index("ix_items_waiting", "items")
    op.drop_column("items", "source_id")
    op.drop_index("ix_content_keys_item", "content_keys")
    op.drop_table("content_keys")
