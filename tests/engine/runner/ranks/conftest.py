"""Forks the ranks of all tests from one process, where they would load torch and transformers for five seconds each."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from engine.runner.ranks import rank_group
from tests.forked_python import ForkedPython


@pytest.fixture(scope="session", autouse=True)
def ranks_are_forked() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    with ForkedPython("engine.runner.ranks.rank_process") as python, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_group, "subprocess", python.subprocess)
        yield
