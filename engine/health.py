"""Health check of an engine for containers: `python -m engine.health [URL]` exits with status 0 if it makes progress.

The address is BROS_ENGINE_URL if none is given, and BROS_ENGINE_TOKEN is the secret that an engine on TCP requires.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from engine.wire.client import EngineClient
from engine.wire.engine_errors import EngineGone

TIMEOUT_S = 4.0


async def problem_with(url: str, token: str | None) -> str | None:
    """Why the engine cannot serve, if it cannot."""
    try:
        client = await EngineClient.connect(url, token, TIMEOUT_S)
    except (EngineGone, ValueError) as error:
        return str(error)
    try:
        pulse = await client.pulse(TIMEOUT_S)
    except EngineGone as error:
        return str(error)
    finally:
        client.abort(EngineGone("the check is over"))
    return f"the main loop has made no progress for {pulse.late_s:.0f} s" if pulse.is_stuck else None


def main() -> int:
    """Print the problem, if there is one. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.health",
        description="Check whether an engine makes progress: exit with status 0 if so, else with 1 and the reason.",
    )
    parser.add_argument(
        "url",
        nargs="?",
        default=os.environ.get("BROS_ENGINE_URL"),
        help="the engine's address, unix:///PATH or tcp://HOST:PORT (default: BROS_ENGINE_URL); an engine on TCP "
        "also needs BROS_ENGINE_TOKEN",
    )
    url = parser.parse_args().url
    if not url:
        parser.error("give the engine's address, or set BROS_ENGINE_URL")
    problem = asyncio.run(problem_with(url, os.environ.get("BROS_ENGINE_TOKEN")))
    if problem is not None:
        print(problem, file=sys.stderr)
    return 0 if problem is None else 1


if __name__ == "__main__":
    sys.exit(main())
