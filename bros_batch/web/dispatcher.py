"""Sends tasks to the broker off the path of requests, which never wait for Redis."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time

from bros_batch.jobs.tasks import TaskName, dispatch

logger = logging.getLogger(__name__)

MAX_WAITING = 1000
RECORD_INTERVAL_S = 0.2
LAST_TASKS_S = 2.0  # how long a server that stops waits for the tasks of its last requests


class Dispatcher:
    """A thread that dispatches one task after another, however long the broker takes.

    The database knows what has to be done, and the workers' pump and sweep find it there. So a task that is never sent
    costs seconds, while a request that waited for a frozen Redis would cost its client's patience.
    """

    def __init__(self) -> None:
        self._tasks: queue.Queue[tuple[TaskName, tuple[str, ...]] | None] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._asked_to_record_s = -math.inf

    def send(self, name: TaskName, *ids: str) -> None:
        """Have the task dispatched soon. Returns at once."""
        if self._thread is None:
            # A daemon, so that a broker that does not answer cannot keep the process from ending.
            self._thread = threading.Thread(target=self._dispatch_all, name="dispatcher", daemon=True)
            self._thread.start()
        try:
            self._tasks.put_nowait((name, ids))
        except queue.Full:
            logger.warning("the broker does not respond; %s%s is left to the sweep", name, ids)

    def record_soon(self) -> None:
        """Have the results recorded that engines have, because a client waits for one. Workers look for them every
        second anyway, so this is worth a task only now and then."""
        now_s = time.monotonic()
        if now_s - self._asked_to_record_s >= RECORD_INTERVAL_S:
            self._asked_to_record_s = now_s
            self.send("record")

    def close(self) -> None:
        """Dispatch what waits, for up to `LAST_TASKS_S`."""
        if self._thread is None:
            return
        try:
            self._tasks.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(LAST_TASKS_S)

    def _dispatch_all(self) -> None:
        while (task := self._tasks.get()) is not None:
            name, ids = task
            try:
                dispatch(name, *ids)
            except Exception:
                logger.exception("%s%s is left to the sweep", name, ids)
