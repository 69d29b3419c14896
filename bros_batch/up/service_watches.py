"""The watch of each service of `up`, with what it asks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bros_batch.heartbeat import heartbeat_path
from bros_batch.settings import Settings
from bros_batch.up.child import Child
from bros_batch.up.probes import Probe, WebProbe, engine_answers
from bros_batch.up.watch import PROBE_TIMEOUT_S, FileBeat, Watch

POOL_LIMIT_S = 240.0  # the time limit of a task


def service_watches(
    settings: Settings,
    children: Mapping[str, Child],
    web: WebProbe,
    redis: Probe,
    announce: Callable[[str], None],
) -> list[Watch]:
    """Return the watches of all services. `settings` have every URL filled in."""
    limit_s = settings.restart_after_s

    async def engine() -> bool:
        return await engine_answers(settings.engine_url, settings.engine_token, PROBE_TIMEOUT_S)

    def others_answer() -> bool:
        return not web.problems.keys() & {"web", "redis", "database"}

    beat_file = FileBeat(heartbeat_path(settings, "beat"))

    async def beat() -> bool:
        await web.is_ready()  # for what it says of the others
        return await beat_file()

    watches = [
        Watch(children["engine"], engine, limit_s, announce),
        Watch(children["web"], web.is_healthy, limit_s, announce),
    ]
    if "redis" in children:
        watches.append(Watch(children["redis"], redis, limit_s, announce))
    # Beat and the worker rest when Redis or the database is away, and between the ticks of the pump.
    limit_s = max(limit_s, 3 * settings.pump_interval_s)
    beat_watch = Watch(children["beat"], beat, limit_s, announce, others_answer)
    worker_file, pool_file = (FileBeat(heartbeat_path(settings, name)) for name in ("worker", "pool"))
    worker_watch = Watch(children["worker"], worker_file, limit_s, announce, others_answer)
    # The main process ends tasks that take too long. Its pool hangs as a whole if no task begins or ends nevertheless,
    # although beat sends one every second.
    pool_watch = Watch(
        children["worker"],
        pool_file,
        POOL_LIMIT_S + limit_s,
        announce,
        lambda: others_answer() and not beat_watch.silent_s,
    )
    return [*watches, beat_watch, worker_watch, pool_watch]
