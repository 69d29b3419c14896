"""Which process of pytest-xdist runs which tests.

A module stays in one process, so that its servers start once; so does a folder whose tests share one `up`. Tests of
whole services wait for much of their time, and the others compute. One half of the processes begins with the former
and the other half with the latter, so that the cores are busy throughout. Both begin with what takes longest.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

SHARES_ONE_UP = ("tests/cli/", "tests/clients/", "tests/fuzz/")
WAITS = (*SHARES_ONE_UP, "tests/e2e/", "tests/bros_batch/web/")
SLOW_TEST = 40  # as many other tests take about as long


def unit_of(nodeid: str) -> str:
    """The module of a test, or its folder: what one process runs."""
    return next((folder for folder in SHARES_ONE_UP if nodeid.startswith(folder)), nodeid.partition("::")[0])


def in_order(items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests by unit: first those that wait, the longest first, and then the others, the longest last."""
    units: dict[str, list[pytest.Item]] = defaultdict(list)
    weights: Counter[str] = Counter()
    for item in items:
        unit = unit_of(item.nodeid)
        units[unit].append(item)
        weights[unit] += SLOW_TEST if item.get_closest_marker("slow") else 1
    by_weight = sorted(units, key=lambda unit: (weights[unit], unit))
    waiting = [unit for unit in reversed(by_weight) if unit.startswith(WAITS)]
    computing = [unit for unit in by_weight if not unit.startswith(WAITS)]
    return [item for unit in (*waiting, *computing) for item in units[unit]]


class Distribution(LoadScopeScheduling):
    """Every other process takes its units from the end of the queue."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        config.option.loadscopereorder = False  # the workers have sorted them
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        if int(node.gateway.id.removeprefix("gw")) % 2:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)
