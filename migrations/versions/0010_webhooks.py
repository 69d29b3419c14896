"""Webhooks of jobs: whom a job tells of its end, and the calls that are to be made.

The calls for responses in the background, which had columns of their own, become calls like any other.
"""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

ENDED = ("failed", "completed", "expired", "cancelled")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("notify_url", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("notify_key_id", sa.String(64), nullable=True))
    op.add_column("api_keys", sa.Column("notify_url", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("notify_secret", sa.Text(), nullable=True))
    op.create_table(
        "webhook_calls",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False, server_default=""),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("host", sa.String(length=300), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=True),
        sa.Column("event", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("num_failed", sa.Integer(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_webhook_calls_due", "webhook_calls", ["due_at"], unique=False)
    _keep_waiting_responses()
    op.drop_index("ix_responses_notify", "responses")
    op.drop_column("responses", "notify_at")
    op.drop_column("responses", "num_notified")


def downgrade() -> None:
    op.add_column("responses", sa.Column("notify_at", sa.Double(), nullable=True))
    op.add_column("responses", sa.Column("num_notified", sa.Integer(), nullable=False, server_default="0"))
    op.create_index(
        "ix_responses_notify",
        "responses",
        ["notify_at"],
        unique=False,
        postgresql_where=sa.text("notify_at IS NOT NULL"),
        sqlite_where=sa.text("notify_at IS NOT NULL"),
    )
    op.drop_index("ix_webhook_calls_due", "webhook_calls")
    op.drop_table("webhook_calls")
    for table, name in (
        ("api_keys", "notify_secret"), ("api_keys", "notify_url"),
        ("jobs", "notify_key_id"), ("jobs", "notify_url"),
    ):  # fmt: skip
        op.drop_column(table, name)


def _keep_waiting_responses() -> None:
    """Let the jobs of responses of which the webhook was to be told do so, at once if they have ended."""
    connection = op.get_bind()
    waiting = sa.text(
        "SELECT r.id, r.notify_at, r.num_notified, j.id AS job_id, j.status, j.owner, j.finalizing_at, j.created_at "
        "FROM responses AS r JOIN jobs AS j ON j.id = r.job_id WHERE r.notify_at IS NOT NULL"
    )
    call = sa.text(
        "INSERT INTO webhook_calls (id, job_id, owner, url, host, event, created_at, due_at, num_failed) "
        "VALUES (:id, :job_id, :owner, '', '', :event, :created_at, :due_at, :num_failed)"
    )
    for row in connection.execute(waiting).all():
        connection.execute(sa.text("UPDATE jobs SET notify_url = '' WHERE id = :id"), {"id": row.job_id})
        if row.status in ENDED:
            values = {
                "id": f"evt_{hashlib.sha256(row.id.encode()).hexdigest()[:24]}",
                "job_id": row.job_id,
                "owner": row.owner,
                "event": row.status,
                "created_at": row.finalizing_at or row.created_at,
                "due_at": row.notify_at,
                "num_failed": row.num_notified,
            }
            connection.execute(call, values)
