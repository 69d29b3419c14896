"""The start of a block is copied from a block that begins alike, and nothing else about the outputs changes."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.core.plan import Restore
from engine.kernels.reference.slots import TorchSlotCopier
from engine.runner.kv.copies import DeviceCopies
from tests.engine.runner.copied_beginnings import QUESTIONS, TEXT, answers
from tests.engine.runner.driver import load_runner
from tests.factories_models import make_model


def test_questions_get_the_same_answers_with_copies(tmp_path: Path) -> None:
    runner = load_runner(make_model("llama", tmp_path), block_size=4)
    computed, num_copied = answers(runner, copies=True)
    assert num_copied == len(TEXT) % 4 * (len(QUESTIONS) - 1)
    assert computed == answers(runner, copies=False)[0]
    assert len(set(map(tuple, computed))) > 1, "the questions make a difference"
    runner.close()


def test_a_block_may_be_copied_to_itself_and_over_another_one_that_was_copied_before() -> None:
    """The known block may have been evicted for the copy, and be filled from its other end."""
    before = torch.arange(16.0).reshape(16, 1, 1)
    for buffer_bytes in (1, 40, 1 << 20):
        k, v = before.clone(), -before
        copies = DeviceCopies(TorchSlotCopier([(k, v)]), torch.device("cpu"), buffer_bytes=buffer_bytes)
        copies.copy([Restore(0, 0, [12, 13], [], [4, 5]), Restore(1, 0, [7, 6, 5, 4], [], [4, 5, 6, 7])])
        expected = [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 4, 5, 14, 15]
        assert k.flatten().tolist() == expected
        assert (-v).flatten().tolist() == expected
