"""Questions about one text that ends within a block, so that the end of the text is copied for all but the first."""

from __future__ import annotations

from engine.core.kv.cache import KVOptions
from engine.core.plan import StepPlan
from engine.core.terms import SamplingParams
from engine.runner.base import ModelRunner, PendingStep
from tests.factories import Outputs, Steps, request, scheduler_for

TEXT = [5, 9, 200, 31, 77, 8, 120, 33, 64, 17, 250, 90, 12, 41]
QUESTIONS = ([7, 100, 3, 55, 61], [30, 31, 44, 9, 11], [8, 8, 19, 150, 6], [99, 20, 21, 22, 23])
SAMPLING = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, logprobs=0)


class Noted:
    """A runner whose plans are noted."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.info = runner.info
        self.num_copied_tokens = 0

    def launch(self, plan: StepPlan) -> PendingStep:
        self.num_copied_tokens += sum(len(restore.known_slots) for restore in plan.restores)
        return self._runner.launch(plan)


def answers(runner: ModelRunner, *, copies: bool) -> tuple[list[list[int]], int]:
    """The outputs for all questions, and how many tokens were copied for them. Without `copies`, each request computes
    its whole prompt."""
    options = KVOptions(prefix_cache=copies, num_host_slots=runner.info.num_host_slots)
    scheduler = scheduler_for(runner.info, options=options)
    outputs = Outputs()
    requests = [request(TEXT + question, sampling=SAMPLING) for question in QUESTIONS]
    for one in requests:
        scheduler.add(one)
    noted = Noted(runner)
    Steps(scheduler, noted, outputs, ahead=True).run_to_end()  # type: ignore[arg-type]
    scheduler.check_integrity()
    return [outputs.token_ids[one.request_id] for one in requests], noted.num_copied_tokens
