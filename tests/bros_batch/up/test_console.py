"""Guarantee: a process with an unblocked console goes on and ends, whatever becomes of what it writes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys, threading
from bros_batch.up.console import unblocked_output

with unblocked_output():
    for i in range(300):
        print("line", i, file=sys.stderr)
    logging.getLogger("asyncio").error("nobody asked for this")
    thread = threading.Thread(target=print, args=("from a thread",), kwargs={"file": sys.stderr})
    thread.start()
    thread.join()
    print("done")
"""


def full_pipe() -> tuple[int, int]:
    unread, console = os.pipe()
    os.set_blocking(console, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(console, bytes(1))
    os.set_blocking(console, True)
    return unread, console


def closed_pipe() -> tuple[int, int]:
    unread, console = os.pipe()
    os.close(unread)
    return os.open(os.devnull, os.O_RDONLY), console


@pytest.mark.parametrize("make", [full_pipe, closed_pipe])
def test_a_console_that_takes_nothing_holds_nothing_up(make):
    unread, console = make()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=console, text=True, timeout=100
    )
    os.close(console)
    os.close(unread)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_everything_is_written_in_order_to_a_console_that_is_read():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100)
    lines = [f"line {i}" for i in range(300)]
    assert done.stderr.splitlines() == [*lines, "nobody asked for this", "from a thread"]
    assert (done.returncode, done.stdout) == (0, "done\n")
