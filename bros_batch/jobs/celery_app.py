"""The Celery application: `celery -A bros_batch.jobs.tasks worker` and `celery -A bros_batch.jobs.celery_app beat`.

The broker carries ids only, and it may lose them: the sweep finds the work that waits in the database. So there is no
result backend, and a message that a dead worker held is delivered again after a short time. Beat knows tasks by their
names only, so it starts without what they import.
"""

from __future__ import annotations

from typing import Any

import billiard.pool
from celery import Celery
from celery.signals import heartbeat_sent, task_postrun, task_prerun

from bros_batch.heartbeat import touch_heartbeat
from bros_batch.settings import Settings, get_settings

QUEUE = "bros"
SOFT_TIME_LIMIT_S = 180
# A worker that was away must not find an hour of ticks in the queue. The worker compares this with its own clock, so it
# is much longer than the clocks of two hosts differ.
TICK_EXPIRES_S = 60.0

# A pool process that ends waits up to 30 s for the main process to read its last message, and at a shutdown the main
# process has sometimes stopped reading already. An unread message only means that a task runs again.
billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 20  # times 0.1 s


def broker_url(settings: Settings) -> str:
    """The URL of our Redis as Celery spells it: `redis+socket:///path` for `unix:///path`."""
    url = settings.resolved_redis_url
    return "redis+socket://" + url.removeprefix("unix://") if url.startswith("unix://") else url


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's configuration."""
    return {
        "broker_url": broker_url(settings),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A Redis that accepts no writes, because the disk is full, must not end the worker.
        "broker_channel_error_retry": True,
        "broker_transport_options": {
            "visibility_timeout": settings.visibility_timeout_s,
            "socket_connect_timeout": 5,
            "socket_timeout": 30,
            "health_check_interval": 15,
            # A process that dispatches a task must not wait long for a broker that is away; worker and beat wait
            # without limit (broker_connection_max_retries).
            "max_retries": 1,
            "interval_start": 0,
            "connect_retries_timeout": 1,
        },
        "task_default_queue": QUEUE,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        # A run takes seconds. These end one that code holds which cannot be interrupted otherwise (`cpu_limit`); the
        # sweep then finds what it had begun. Far more than a busy machine needs.
        "task_soft_time_limit": SOFT_TIME_LIMIT_S,
        "task_time_limit": SOFT_TIME_LIMIT_S + 60,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_send_task_events": False,
        "enable_utc": True,
        "beat_schedule": {
            "pump": {
                "task": "bros.pump",
                "schedule": settings.pump_interval_s,
                "options": {"expires": TICK_EXPIRES_S},
            },
            "sweep": {
                "task": "bros.sweep",
                "schedule": settings.sweep_interval_s,
                "options": {"expires": TICK_EXPIRES_S},
            },
        },
        "beat_scheduler": "bros_batch.jobs.ticker:Ticker",
    }


app = Celery("bros_batch")
app.conf.update(configuration(get_settings()))


@task_prerun.connect
@task_postrun.connect
def _show_life_of_pool(**_signal: Any) -> None:
    touch_heartbeat("pool")


@heartbeat_sent.connect
def _show_life_of_worker(**_signal: Any) -> None:
    touch_heartbeat("worker")
