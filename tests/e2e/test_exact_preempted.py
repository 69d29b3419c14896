"""Guarantee: greedy output equals transformers' `generate` when KV is shared, preempted, saved and restored.

500 requests of both lanes run in memory for a few of them, with every combination of the KV memory options. Half of the
combinations use asynchronous scheduling.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.core.kv.cache import KVOptions
from engine.core.scheduler import Scheduler
from engine.core.terms import Checkpoint, Lane, Policy, Preemption
from engine.runner.loading import load_runner
from engine.runner.torch_runner import TorchRunner
from tests.factories import Outputs, Steps, request, scheduler_for
from tests.factories_models import VOCAB_SIZE, generated, make_model, own_model

NUM_REQUESTS = 500
NUM_TOPICS = 8  # prompts of a topic share a prefix

COMBINATIONS = [
    KVOptions(
        sharing,
        preemption,
        checkpoint,
        prefix_cache,
        num_host_slots=0 if checkpoint is Checkpoint.NONE else 300,
    )
    for sharing, preemption, checkpoint, prefix_cache in itertools.product(
        (True, False), Preemption, Checkpoint, (True, False)
    )
]


@dataclass(frozen=True)
class Case:
    prompt: list[int]
    max_tokens: int
    lane: Lane
    expected: list[int]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def cases(model_path) -> list[Case]:
    rng = random.Random(500)
    model = own_model(model_path)
    topics = [[rng.randrange(3, VOCAB_SIZE) for _ in range(40)] for _ in range(NUM_TOPICS)]
    cases = []
    for i in range(NUM_REQUESTS):
        topic = rng.choice(topics)[: rng.choice([0, 0, 8, 19, 40])]
        prompt = topic + [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 25))]
        count = rng.randint(1, 12)
        lane = Lane.RT if i % 4 == 0 else Lane.BE
        cases.append(Case(prompt, count, lane, generated(model, prompt, count)))
    return cases


@pytest.fixture(scope="module")
def runner(model_path) -> TorchRunner:
    config = EngineConfig(
        model=str(model_path),
        served_model_name="tiny",
        listen="unused",
        device="cpu",
        dtype="float32",
        max_model_len=96,
        max_num_seqs=24,
        num_kv_blocks=40,
        block_size=8,
        num_host_slots=300,
    )
    return load_runner(config)


def served(
    scheduler: Scheduler, runner: TorchRunner, cases: list[Case], seed: int, *, is_ahead: bool
) -> list[list[int]]:
    """Serve bulk from the start and chats at random times; a step takes 1 to 60 ms on the scheduler's clock."""
    rng = random.Random(seed)
    outputs = Outputs()
    steps = Steps(scheduler, runner, outputs, ahead=is_ahead)
    now_s = 0.0
    for i, case in enumerate(cases):
        if case.lane is Lane.BE:
            scheduler.add(
                request(case.prompt, max_tokens=case.max_tokens, ignore_eos=False, request_id=f"{seed}.{i}")
            )
    chats = [i for i, case in enumerate(cases) if case.lane is Lane.RT]
    while scheduler.has_work or chats:
        while chats and rng.random() < 0.3:
            i = chats.pop(0)
            case = cases[i]
            scheduler.add(
                request(
                    case.prompt,
                    lane=Lane.RT,
                    max_tokens=case.max_tokens,
                    ignore_eos=False,
                    arrival_s=now_s,
                    request_id=f"{seed}.{i}",
                )
            )
        took_s = rng.choice([0.001, 0.02, 0.06])
        steps.step(now_s, took_s)
        now_s += took_s
    scheduler.check_integrity()
    return [outputs.token_ids[f"{seed}.{i}"] for i in range(len(cases))]


def name(value: object) -> str:
    if isinstance(value, Policy):
        return value.value
    assert isinstance(value, KVOptions)
    switches = (("sharing", value.sharing), ("prefix", value.prefix_cache))
    on = [word for word, is_on in switches if is_on]
    return "-".join([value.preemption.value, f"checkpoint_{value.checkpoint.value}", *on])


@pytest.mark.parametrize(
    ("policy", "options"),
    [(Policy.BROS, options) for options in COMBINATIONS]
    + [(policy, COMBINATIONS[0]) for policy in (Policy.PRIORITY, Policy.FCFS)],
    ids=name,
)
def test_five_hundred_requests_in_scarce_memory_equal_generate(policy, options, runner, cases):
    scheduler = scheduler_for(
        runner.info, max_num_batched_tokens=64, reserved_rt_rows=3, policy=policy, options=options
    )
    number = COMBINATIONS.index(options)
    outputs = served(scheduler, runner, cases, seed=number, is_ahead=number % 2 == 0)
    wrong = [i for i, case in enumerate(cases) if outputs[i] != case.expected]
    assert not wrong, f"{len(wrong)} of {len(cases)} differ, first {wrong[:5]}"
    assert scheduler.allocator.num_truncated_tokens > 0, "the test means nothing unless memory was scarce"
