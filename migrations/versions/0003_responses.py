"""Stored responses; and an index of jobs without those of responses in the background."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "responses",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("previous_id", sa.String(length=64), nullable=True),
        sa.Column("job_id", sa.String(length=64), nullable=True),
        sa.Column("num_ancestors", sa.Integer(), nullable=False),
        sa.Column("ancestor_bytes", sa.BigInteger(), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("notify_at", sa.Double(), nullable=True),
        sa.Column("num_notified", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", name="uq_responses_job"),
    )
    op.create_index("ix_responses_key", "responses", ["key_id", "created_at"], unique=False)
    op.create_index("ix_responses_expires", "responses", ["expires_at"], unique=False)
    op.create_index(
        "ix_responses_notify",
        "responses",
        ["notify_at"],
        unique=False,
        postgresql_where=sa.text("notify_at IS NOT NULL"),
        sqlite_where=sa.text("notify_at IS NOT NULL"),
    )
    op.drop_index("ix_jobs_created", "jobs")
    op.create_index(
        "ix_jobs_created",
        "jobs",
        ["created_at", "id"],
        unique=False,
        postgresql_where=sa.text("input_file_id <> ''"),
        sqlite_where=sa.text("input_file_id <> ''"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_created", "jobs")
    op.create_index("ix_jobs_created", "jobs", ["created_at", "id"], unique=False)
    for index in ("ix_responses_notify", "ix_responses_expires", "ix_responses_key"):
        op.drop_index(index, "responses")
    op.drop_table("responses")
