"""Tasks of the I/O thread that run until the engine drains: whatever ends one, it is reported and started again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

log = logging.getLogger("engine.pull")

RECONNECT_FIRST_S = 0.1
RECONNECT_LAST_S = 5.0


async def keep_running(worker: Callable[[], Awaitable[None]]) -> None:
    """Run `worker` until this task is cancelled. When the worker ends, start it again after a pause, which grows while
    the worker keeps ending soon."""
    pause_s = RECONNECT_FIRST_S
    reported = ""
    while True:
        started_s = time.monotonic()
        try:
            await worker()
        except ResponseError as error:
            if "NOGROUP" in str(error):
                log.info("the consumer group is gone (Redis has lost its data); creating it again")
            else:
                log.error("%s failed: %s; trying again in %.1f s", worker.__name__, error, pause_s)
        except (RedisConnectionError, OSError) as error:
            log.warning("Redis cannot be reached (%s); trying again in %.1f s", error, pause_s)
        except RedisError as error:
            log.error("%s failed: %s; trying again in %.1f s", worker.__name__, error, pause_s)
        except Exception as error:
            # A bug. Without this task the engine would look alive and do nothing, so it goes on; the traceback is
            # logged once and not at each attempt.
            is_new = repr(error) != reported
            reported = repr(error)
            log.error(
                "%s failed: %r; trying again in %.1f s", worker.__name__, error, pause_s, exc_info=is_new
            )
        if time.monotonic() - started_s > RECONNECT_LAST_S:
            pause_s = RECONNECT_FIRST_S
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, RECONNECT_LAST_S)
