"""Each of two ranks copies the beginnings of blocks in its own part of the KV memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.runner.copied_beginnings import answers
from tests.engine.runner.driver import load_runner
from tests.engine.runner.ranks.test_parallel_runner import config_for, running
from tests.factories_models import make_model

pytest.importorskip("accelerate", reason="transformers splits models only where accelerate is installed")


def test_two_ranks_draw_the_same_with_copies(tmp_path: Path) -> None:
    path = make_model("llama", tmp_path)
    with running(config_for(path, block_size=4)) as pair:
        computed, num_copied = answers(pair, copies=True)
    assert num_copied
    assert computed == answers(load_runner(path, block_size=4), copies=False)[0]
