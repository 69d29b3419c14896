"""The loop one step ahead of the device: when it makes its decisions, and that the tokens stay the same."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from engine.core.events import FinishedEvent, TokenEvent
from engine.core.plan import StepPlan
from engine.core.scheduler import Scheduler
from engine.core.terms import Lane, SamplingParams
from engine.loop import EngineLoop
from engine.loop_messages import Add, Stop
from engine.runner.simulated import SimulatedRunner
from tests.engine.runner.driver import load_runner
from tests.factories import Outputs, Steps, request, runner_info, scheduler_for
from tests.factories_models import VOCAB_SIZE, make_model, make_tokenizer

STEP_S = 0.02


class Device:
    """A simulated runner whose steps take `STEP_S` on a clock that only waiting advances, and launching, which takes
    `launch_s`; the device begins after a tenth of that."""

    def __init__(self, launch_s: float = 0.0) -> None:
        self.launch_s = launch_s
        self.now_s = 0.0
        self.busy_until_s = 0.0
        self.runner = SimulatedRunner(runner_info(max_num_seqs=8, num_blocks=200))
        self.info = self.runner.info
        self.launches: list[
            tuple[float, float, set[int]]
        ] = []  # time, how long the device had been idle, prompt lengths

    def launch(self, plan):
        idle_s = max(0.0, self.now_s - self.busy_until_s) if self.launches else 0.0
        prompts = {start.num_prompt_tokens for start in plan.row_starts}
        self.launches.append((self.now_s, idle_s, prompts))
        begins_s = max(self.now_s + self.launch_s / 10, self.busy_until_s)
        self.now_s += self.launch_s
        self.busy_until_s = max(begins_s + STEP_S, self.now_s)
        return Step(self, self.busy_until_s, self.runner.launch(plan))


class Step:
    def __init__(self, device: Device, through_s: float, pending) -> None:
        self.device, self.through_s, self.pending = device, through_s, pending
        self.prepared_s, self.is_replayed = device.launch_s / 10, False

    def result(self):
        self.device.now_s = max(self.device.now_s, self.through_s)
        return self.pending.result()


def drive(device: Device, arrivals: list[tuple[float, Add]], *, ahead: bool):
    """Runs the loop with requests that arrive at these times. Returns its events, and when each was sent."""
    received: list[tuple[float, object]] = []
    arrivals = sorted(arrivals, key=lambda arrival: arrival[0])
    num_open = len(arrivals)

    def receive(timeout_s):
        if not num_open:
            return [Stop()]
        if arrivals and (timeout_s is None or arrivals[0][0] <= device.now_s + timeout_s):
            due_s, message = arrivals.pop(0)
            device.now_s = max(device.now_s, due_s)
            return [message]
        device.now_s += max(timeout_s, 1e-6)  # a clock has a finite resolution
        return []

    def send(events):
        nonlocal num_open
        received.extend((device.now_s, event) for event in events)
        num_open -= sum(isinstance(event, FinishedEvent) for event in events)

    scheduler = scheduler_for(device.info, max_num_batched_tokens=64)
    EngineLoop(scheduler, device, receive, send, lambda: device.now_s, ahead=ahead).run()
    scheduler.check_integrity()
    assert not scheduler.has_work
    return received


@pytest.mark.parametrize("ahead", [False, True])
def test_only_decisions_made_ahead_keep_the_device_from_waiting(ahead):
    device = Device()
    received = drive(device, [(0.0, Add(request([7] * 5, max_tokens=40, request_id="r")))], ahead=ahead)
    tokens = [event.token_id for _, event in received if isinstance(event, TokenEvent)]
    assert tokens == device.runner.continuation([7] * 5, SamplingParams(max_tokens=40, ignore_eos=True))
    early = [
        through - at for (at, _, _), through in zip(device.launches[9:], _ends(device)[8:], strict=False)
    ]
    if ahead:
        assert all(0 < lead < STEP_S / 2 for lead in early), (
            "launched before the last one is through, but not sooner"
        )
    else:
        assert all(lead <= 0 for lead in early)


def test_only_what_the_device_may_wait_for_is_counted_twice():
    """Launching takes almost a whole step, most of it while the device computes what was launched before."""
    device = Device(launch_s=STEP_S * 0.7)
    drive(device, [(0.0, Add(request([7] * 5, max_tokens=60, request_id="r")))], ahead=True)
    late = device.launches[40:]
    assert not any(idle_s for _, idle_s, _ in late)
    periods_s = [after[0] - before[0] for before, after in pairwise(late)]
    assert all(period_s == pytest.approx(STEP_S, rel=0.05) for period_s in periods_s)
    # A tenth twice, the rest once, and the margin of 1 ms: not twice the whole, which is more than a step.
    ends = _ends(device)[39:]
    assert all(end_s - at_s < 0.85 * STEP_S for (at_s, _, _), end_s in zip(late, ends, strict=False))


def _ends(device: Device) -> list[float]:
    ends, end_s = [], 0.0
    for at_s, _, _ in device.launches:
        end_s = max(at_s, end_s) + STEP_S
        ends.append(end_s)
    return ends


def test_a_chat_that_arrives_during_a_step_is_in_the_next_one():
    device = Device()
    bulk = [(0.0, Add(request([9] * 4, max_tokens=60, request_id="bulk")))]
    arrives_s = 30.4 * STEP_S
    chat = (
        arrives_s,
        Add(request([9] * 11, lane=Lane.RT, max_tokens=3, arrival_s=arrives_s, request_id="chat")),
    )
    drive(device, [*bulk, chat], ahead=True)
    launched_s, idle_s, _ = next(launch for launch in device.launches if 11 in launch[2])
    assert arrives_s < launched_s < 31 * STEP_S and idle_s == 0.0


def test_tokens_are_sent_when_their_own_step_ends():
    device = Device()
    received = drive(device, [(0.0, Add(request([7] * 5, max_tokens=30, request_id="r")))], ahead=True)
    sent_s = [at_s for at_s, event in received if isinstance(event, TokenEvent)]
    assert sent_s == pytest.approx(_ends(device)[:30])


def test_the_loop_does_not_sleep_while_a_result_may_bring_work(monkeypatch):
    """For example, when the only request to plan waits for its last token."""
    device, num_calls = Device(), 0
    schedule = Scheduler.schedule

    def sometimes(self, now_s):
        nonlocal num_calls
        num_calls += 1
        if self._under_way and num_calls % 3 == 0:
            return StepPlan([], [], [], [], [], [])
        return schedule(self, now_s)

    monkeypatch.setattr(Scheduler, "schedule", sometimes)
    received = drive(device, [(0.0, Add(request([7] * 5, max_tokens=20, request_id="r")))], ahead=True)
    assert sum(isinstance(event, TokenEvent) for _, event in received) == 20


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    path = make_model("llama", tmp_path_factory.mktemp("ahead"))
    make_tokenizer(path)
    return load_runner(path, num_kv_blocks=12, max_model_len=128, num_host_slots=64)


def test_every_way_to_sample_gives_the_same_tokens_ahead(runner):
    """Penalties need the tokens drawn before, stop strings need the text so far, and rows pass to other requests while
    steps are under way. Memory suffices for a third of the requests."""
    rng = random.Random(4)
    kinds = [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.7, "frequency_penalty": 0.3},
        {"temperature": 1.0, "seed": 11},
        {"temperature": 0.8, "seed": 12, "top_p": 0.7, "presence_penalty": 0.8},
        {"temperature": 1.0, "seed": 13, "stop": ("a", "e", "Q")},
        {"temperature": 1.0, "seed": 14, "stop_token_ids": tuple(range(100, 140)), "min_tokens": 4},
        {"temperature": 1.0, "seed": 15, "logprobs": 2, "top_k": 30},
    ]
    asked = []
    for i in range(21):
        prompt = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 30))]
        sampling = SamplingParams(
            max_tokens=rng.randint(1, 20), ignore_eos=i % 2 == 0, **kinds[i % len(kinds)]
        )
        asked.append((prompt, sampling, Lane.RT if i % 3 == 0 else Lane.BE))
    received = []
    for is_ahead in (False, True):
        scheduler, outputs = scheduler_for(runner.info, max_num_batched_tokens=48), Outputs()
        for i, (prompt, sampling, lane) in enumerate(asked):
            scheduler.add(request(prompt, lane=lane, sampling=sampling, request_id=f"{i}"))
        Steps(scheduler, runner, outputs, ahead=is_ahead).run_to_end()
        assert scheduler.allocator.num_truncated_tokens > 0, "memory was scarce"
        received.append((outputs.token_ids, {key: event.reason for key, event in outputs.finished.items()}))
    assert received[0] == received[1]
