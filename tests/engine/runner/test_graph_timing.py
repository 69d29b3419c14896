"""What a GPU takes is timed as replays of a graph, here of a fake GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from engine.runner.graph_timing import replayed_s
from tests.engine.runner.fake_cuda import cuda
from tests.engine.runner.fake_gpu import GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU")
def test_replays_are_timed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.runner.cuda_graphs._WARM_UPS", 1)
    with cuda() as gpu:
        x = torch.zeros(1, device=GPU)
        num_calls = 0

        def work() -> None:
            nonlocal num_calls
            num_calls += 1
            x.add_(1)

        assert replayed_s(work, num_replays=3) > 0
        assert num_calls == 2  # to compile, and to capture
        assert gpu.recorded is None
        assert (
            x.inner.item() == num_calls + 4
        )  # a fake GPU computes while it captures; the first replay does not count


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU")
def test_work_that_cannot_be_captured_is_an_error() -> None:
    with cuda(), pytest.raises(RuntimeError):
        replayed_s(lambda: torch.zeros(1, device=GPU).item())
