"""The log of each job, the history of pace, and an index for lists of jobs with one status."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BIG_INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "job_events",
        sa.Column("id", BIG_INTEGER, nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_job_events_job", "job_events", ["job_id", "id"], unique=False)
    op.create_table(
        "pace_minutes",
        sa.Column("id", sa.String(length=192), nullable=False),
        sa.Column("series", sa.String(length=160), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("numbers", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_pace_minutes_series", "pace_minutes", ["series", "at"], unique=False)
    op.create_index("ix_pace_minutes_at", "pace_minutes", ["at"], unique=False)
    op.create_index(
        "ix_jobs_listed",
        "jobs",
        ["status", "created_at", "id"],
        unique=False,
        postgresql_where=sa.text("input_file_id <> ''"),
        sqlite_where=sa.text("input_file_id <> ''"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_listed", "jobs")
    for index, table in (
        ("ix_pace_minutes_at", "pace_minutes"),
        ("ix_pace_minutes_series", "pace_minutes"),
        ("ix_job_events_job", "job_events"),
    ):
        op.drop_index(index, table)
    op.drop_table("pace_minutes")
    op.drop_table("job_events")
