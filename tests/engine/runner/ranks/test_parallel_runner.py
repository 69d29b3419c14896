"""A model split over two processes draws the tokens of one process, and no process survives the death of another."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoConfig

from engine.__main__ import make_runner
from engine.config import EngineConfig
from engine.core.plan import StepPlan
from engine.core.terms import FinishReason, SamplingParams
from engine.runner.base import ModelRunner, RunnerRestarted, UnsupportedModel
from engine.runner.ranks import rank_group
from engine.runner.ranks.parallel_runner import ParallelRunner
from engine.runner.ranks.tensor_parallel import Ranks, split_among, why_not_splittable
from tests.engine.runner.driver import Driver
from tests.engine.runner.ranks.short_rank import Shortage
from tests.engine.runner.test_exact import generate
from tests.factories import Outputs, Steps, request, scheduler_for
from tests.factories_models import VOCAB_SIZE, make_model, own_model

pytest.importorskip("accelerate", reason="transformers splits models only where accelerate is installed")

LENGTHS = (1, 2, 5, 15, 16, 17, 31, 40, 3, 63, 64, 8)  # of prompts; KV blocks are 8 tokens, steps at most 32
NUM_OUTPUT = 12
DEADLINE_S = 120.0  # for something that takes less than two seconds on an idle machine


def config_for(model: Path, size: int = 2, **settings: Any) -> EngineConfig:
    defaults = {
        "device": "cpu",
        "max_num_seqs": 6,
        "max_num_batched_tokens": 32,
        "num_kv_blocks": 24,
        "block_size": 8,
    }
    return EngineConfig(
        model=str(model),
        served_model_name="tiny",
        listen="unix:///unused",
        tensor_parallel_size=size,
        **{**defaults, **settings},
    )


def processes_of(runner: ModelRunner) -> list[psutil.Process]:
    assert isinstance(runner, ParallelRunner)
    return [psutil.Process(rank.process.pid) for rank in runner._group.ranks]


def rank_processes(parent: int | None = None) -> list[psutil.Process]:
    children = psutil.Process(parent).children(recursive=True)
    return [child for child in children if "engine.runner.ranks.rank_process" in " ".join(child.cmdline())]


@contextmanager
def running(config: EngineConfig) -> Iterator[ModelRunner]:
    """A runner; checks that none of its processes is left afterwards."""
    runner = make_runner(config)
    ranks = processes_of(runner)
    try:
        assert len(ranks) == config.tensor_parallel_size
        assert all(rank in rank_processes() for rank in ranks)
        yield runner
    finally:
        runner.close()
    assert isinstance(runner, ParallelRunner)
    assert not any(rank.is_running() for rank in ranks)
    assert all(rank.process.poll() is not None for rank in runner._group.ranks), (
        "including those of a restart"
    )


def prompts(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]


def outputs_of(runner: ModelRunner, seed: int, *, ahead: bool) -> list[list[int]]:
    """Greedy outputs for `prompts(seed)`, all requested at once; memory suffices for a third of them."""
    scheduler = scheduler_for(runner.info)
    outputs = Outputs()
    requests = [request(prompt, max_tokens=NUM_OUTPUT) for prompt in prompts(seed)]
    for one in requests:
        scheduler.add(one)
    Steps(scheduler, runner, outputs, ahead=ahead).run_to_end()
    return [outputs.token_ids[one.request_id] for one in requests]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def pair(llama: Path) -> Iterator[ModelRunner]:
    """The llama model, split over two ranks."""
    with running(config_for(llama)) as runner:
        yield runner


def check_greedy(runner: ModelRunner, path: Path) -> None:
    reference = own_model(path)
    expected = [generate(reference, prompt, NUM_OUTPUT) for prompt in prompts(1)]
    assert len({tuple(output) for output in expected}) > len(expected) // 2, (
        "the outputs must differ between prompts"
    )
    assert outputs_of(runner, 1, ahead=False) == expected
    assert (
        outputs_of(runner, 1, ahead=True) == expected
    )  # with tokens that only the device knows, on each rank


@pytest.mark.slow
def test_llama_on_two_ranks_equals_generate_and_one_process(pair: ModelRunner, llama: Path) -> None:
    check_greedy(pair, llama)
    alone = make_runner(config_for(llama, size=1))
    assert outputs_of(alone, 2, ahead=True) == outputs_of(pair, 2, ahead=True)


@pytest.mark.slow
def test_ranks_that_draw_at_random_continue_with_the_same_tokens(pair: ModelRunner, llama: Path) -> None:
    """A rank that continued with another token than rank 0 drew would make all later logits wrong."""
    sampling = SamplingParams(max_tokens=24, temperature=1.0, ignore_eos=True, logprobs=1)
    logprobs: dict[str, list[float]] = {}

    class Noting(Outputs):
        def hear(self, events: Any) -> None:
            for event in events:
                if getattr(event, "logprobs", None) is not None:
                    logprobs.setdefault(event.request_id, []).append(event.logprobs.logprob)
            super().hear(events)

    scheduler, outputs = scheduler_for(pair.info), Noting()
    requests = [request(prompt, sampling=sampling) for prompt in prompts(3)[:4]]
    for one in requests:
        scheduler.add(one)
    Steps(scheduler, pair, outputs, ahead=True).run_to_end()
    reference = own_model(llama)
    drawn = []
    for one, prompt in zip(requests, prompts(3), strict=False):
        tokens = outputs.token_ids[one.request_id]
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + tokens])).logits[0].log_softmax(dim=-1)
        expected = [float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(tokens)]
        assert logprobs[one.request_id] == pytest.approx(expected, abs=1e-3)
        drawn += [int(logits[len(prompt) + i - 1].argmax()) != token for i, token in enumerate(tokens)]
    assert any(drawn), "the test means nothing if the likeliest token is always drawn"


@pytest.mark.slow
def test_a_request_that_cannot_be_computed_fails_alone(pair: ModelRunner, llama: Path) -> None:
    scheduler, outputs = scheduler_for(pair.info), Outputs()
    bad = SamplingParams(max_tokens=4, temperature=0.0, logit_bias=((VOCAB_SIZE, 1.0),))
    good, failing = request(prompts(4)[3], max_tokens=NUM_OUTPUT), request([5, 6], sampling=bad)
    for one in (failing, good):
        scheduler.add(one)
    Steps(scheduler, pair, outputs, ahead=True).run_to_end()
    assert outputs.finished[failing.request_id].reason is FinishReason.ERROR
    assert outputs.token_ids[good.request_id] == generate(own_model(llama), prompts(4)[3], NUM_OUTPUT)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others_and_the_step(pair: ModelRunner) -> None:
    """They are restarted: see `test_restarts`."""
    ranks = processes_of(pair)
    driver = Driver(pair)  # type: ignore[arg-type]
    sequence = driver.add([5, 6, 7])
    driver.step([(sequence, 3)])
    ranks[1].send_signal(signal.SIGKILL)
    with pytest.raises(RunnerRestarted, match="rank 1 of 2 was killed by SIGKILL"):
        driver.step([(sequence, 1)])
    assert not any(rank.is_running() for rank in ranks)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen3", tmp_path_factory.mktemp("parallel"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def qwen3_pair(qwen3: Path) -> Iterator[ModelRunner]:
    """The qwen3 model, split over two ranks that choose their number of KV blocks themselves."""
    with running(config_for(qwen3, num_kv_blocks=None, max_model_len=96)) as runner:
        yield runner


@pytest.mark.slow
def test_qwen3_on_two_ranks_equals_generate(qwen3_pair: ModelRunner, qwen3: Path) -> None:
    assert qwen3_pair.info.num_blocks == 6 * 96 // 8
    check_greedy(qwen3_pair, qwen3)


@pytest.mark.slow
def test_ranks_that_do_not_answer_are_ended_after_a_while(
    qwen3_pair: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are restarted."""
    monkeypatch.setattr(rank_group, "_STEP_LIMIT_S", 0.5)
    ranks = processes_of(qwen3_pair)
    ranks[1].suspend()
    with pytest.raises(RunnerRestarted, match=r"have not answered for 0\.5 s"):
        qwen3_pair.execute(StepPlan([0], [0], [1], [True], [5], [0]))
    assert not any(rank.is_running() for rank in ranks)


@pytest.mark.slow
def test_all_ranks_halve_a_step_if_one_lacks_memory(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortage = Shortage(str(tmp_path), most_tokens=10)
    shortage.tell(monkeypatch.setenv)
    monkeypatch.setattr(rank_group, "_PROGRAM", "tests.engine.runner.ranks.short_rank")
    # With so many rows, the memory for logits does not matter here.
    runner = make_runner(config_for(llama, max_num_seqs=32))
    try:
        check_greedy(runner, llama)
    finally:
        runner.close()
    assert 1 < max(shortage.passes(0)) <= 10, "steps have up to 32 tokens"
    assert shortage.passes(0) == shortage.passes(1)


@pytest.mark.slow
def test_ranks_end_when_the_engine_is_killed(llama: Path, tmp_path: Path) -> None:
    """The engine dies in the middle of a step: one rank waits for the other, which waits for a plan."""
    program = (
        "import sys, pickle, time\n"
        "from engine.runner.ranks import rank_group\n"
        "from engine.runner.ranks.parallel_runner import ParallelRunner\n"
        "from tests import forked_python\n"
        "if sys.platform == 'linux':\n"  # as in conftest.py: the engine itself is forked there, and has loaded all
        "    rank_group.subprocess = forked_python.subprocess_by(forked_python.fork)\n"
        "runner = ParallelRunner(pickle.loads(bytes.fromhex(sys.argv[1])))\n"
        "plan = pickle.loads(bytes.fromhex(sys.argv[2]))\n"
        "runner._group.ranks[0].tell(pickle.dumps(plan))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    plan = StepPlan([0], [0], [1], [True], [5], [0])
    arguments = [pickle.dumps(value).hex() for value in (config_for(llama), plan)]
    engine = rank_group.subprocess.Popen(  # see conftest.py
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[4],
        env=os.environ | {"TMPDIR": str(tmp_path)},  # the killed engine cannot remove its files
    )
    assert engine.stdout is not None
    with engine.stdout:
        assert engine.stdout.readline() == b"ready\n"
        ranks = rank_processes(engine.pid)
        assert len(ranks) == 2
        engine.kill()
        engine.wait()
    _, alive = psutil.wait_procs(ranks, DEADLINE_S)
    assert not alive


@pytest.mark.slow
def test_a_model_that_cannot_be_split_raises_an_error_with_name_and_reason(tmp_path: Path) -> None:
    path = make_model("gemma", tmp_path)
    others = rank_processes()
    with pytest.raises(
        UnsupportedModel, match=r"gemma \(gemma\) cannot be split among 2 .* num_key_value_heads, 1,"
    ):
        make_runner(config_for(path))
    assert rank_processes() == others


@pytest.mark.parametrize(
    ("family", "size", "fields", "reason"),
    [
        ("llama", 2, {}, None),
        ("llama", 2, {"intermediate_size": 11007}, "intermediate_size, 11007,"),
        ("llama", 2, {"vocab_size": 321}, "vocab_size, 321, is not a multiple of 2"),
        (
            "qwen3_moe",
            16,
            {"num_key_value_heads": 16, "moe_intermediate_size": 24},
            "moe_intermediate_size, 24",
        ),
        ("gpt2", 2, {}, "no plan for splitting this architecture"),
    ],
)
def test_which_models_can_be_split(
    family: str, size: int, fields: dict[str, int], reason: str | None
) -> None:
    found = why_not_splittable(AutoConfig.for_model(family, **fields), size)
    assert found is None if reason is None else reason in (found or "")


def test_ranks_on_a_cpu_ignore_the_gpus_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch._C, "_get_accelerator", lambda *_: gpu)
    with split_among(Ranks(0, 2, cpu)) as options:
        assert options["distributed_config"].tp_size == 2
        assert torch._C._get_accelerator() == cpu
    with split_among(None) as options:
        assert options == {}
        assert torch._C._get_accelerator() == gpu
