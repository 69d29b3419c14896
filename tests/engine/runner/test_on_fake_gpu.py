"""The whole GPU runner on a fake GPU: it does not mix tensors of host and device, waits for nothing before a result is
requested, and draws the same tokens as the runner on a CPU.

Kernels run in Triton's interpreter. A fake cannot show how compiled kernels and real streams behave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.config import EngineConfig
from engine.core.plan import RowStart, StepPlan, StepResult
from engine.core.terms import SamplingParams
from engine.core.trim import trimmed
from engine.runner import forward_pass, loading, step_sizes
from engine.runner.cuda_graphs import CudaGraphs
from engine.runner.graph_timing import replayed_s
from engine.runner.model.loading import load_model
from engine.runner.sampling.sampler import Sampler
from engine.runner.torch_runner import TorchRunner
from engine.runner.warm_up import warm_up
from tests.engine.runner.copied_beginnings import answers
from tests.engine.runner.driver import GREEDY, Driver, load_runner
from tests.factories_models import make_model

pytest.importorskip("triton")
from engine.kernels.triton.interpreter import INTERPRETED
from tests.engine.runner import fake_cuda
from tests.engine.runner.fake_cuda import cuda
from tests.engine.runner.fake_gpu import GPU, FakeGpu

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or not INTERPRETED, reason="a GPU, or kernels that are compiled"
)

# Small, for the interpreter; two layers, since the last one is computed differently.
TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SETTINGS: dict[str, Any] = {
    "max_num_seqs": 4, "max_num_batched_tokens": 64, "num_kv_blocks": 8, "num_host_slots": 16, "max_model_len": 64,
    "dtype": "float32",
}  # fmt: skip
PROMPT, OTHER = [5, 9, 200, 31, 77, 8, 120], [8, 120, 33]
EVERY_OPTION = [
    GREEDY,
    SamplingParams(max_tokens=99, seed=1, ignore_eos=True, temperature=0.8, top_p=0.9, top_k=20, min_p=0.01),
    SamplingParams(
        max_tokens=99, temperature=0.0, min_tokens=4, logprobs=2, repetition_penalty=1.3, presence_penalty=0.5,
        frequency_penalty=0.5, logit_bias=((7, 2.0), (9, -50.0)), stop_token_ids=(11,),
    ),
    SamplingParams(max_tokens=99, seed=2, ignore_eos=True, temperature=1.5, logprobs=0),
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns the path of a tiny model of a family, the same each time."""
    directory, paths = tmp_path_factory.mktemp("models"), dict[str, Path]()

    def path_of(family: str) -> Path:
        if family not in paths:
            paths[family] = make_model(family, directory, **TINY)
        return paths[family]

    return path_of


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with cuda() as fake:
        yield fake


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the warm-up at load, which takes most of a test's time in the interpreter. One test makes it itself."""
    monkeypatch.setattr(loading, "warm_up", lambda runner: None)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the check at load that models compute the same. One test makes sure that the check runs here."""
    monkeypatch.setattr("engine.runner.model.loading.check_packed", lambda *_: None)


class WaitingForNothing:
    """A runner whose launches raise an error if the host waits."""

    def __init__(self, runner: TorchRunner, gpu: FakeGpu) -> None:
        self._runner, self._gpu, self.info = runner, gpu, runner.info

    def launch(self, plan: StepPlan) -> Any:
        with self._gpu.no_waiting():
            return self._runner.launch(plan)

    def execute(self, plan: StepPlan) -> StepResult:
        return self.launch(plan).result()


def outputs(runner: Any) -> tuple[list[list[int]], list[list[Any]]]:
    """Tokens and log-probabilities of requests that use every option: chunks beside single tokens, a preemption whose
    K and V are restored from the host, and one that starts again with a prefix."""
    driver = Driver(runner, seed=4)
    requests = [
        driver.add(prompt, sampling, row)
        for row, (prompt, sampling) in enumerate(
            zip((PROMPT, OTHER, PROMPT[2:], OTHER[1:]), EVERY_OPTION, strict=True)
        )
    ]
    driver.step([(requests[0], 4), (requests[1], 3), (requests[2], 3), (requests[3], 1)])
    driver.step([(requests[2], 2), (requests[0], 3), (requests[3], 1), (requests[1], 1)])
    host_slots = [4, 5, 9, 8]
    driver.save(requests[0], 3, host_slots)
    driver.truncate(requests[1], 2)
    driver.restore(requests[0], host_slots)
    driver.step([(requests[0], 1), (requests[1], 3), (requests[3], 1)])
    driver.step([(request, 1) for request in requests])
    logprobs = [
        [(own.logprob, [token for token, _ in own.top]) for own in request.logprobs] for request in requests
    ]
    return [request.output for request in requests], logprobs


def assert_same(computed: Any, expected: Any) -> None:
    assert computed[0] == expected[0]
    for ours, theirs in zip(computed[1], expected[1], strict=True):
        assert [top for _, top in ours] == [top for _, top in theirs]
        np.testing.assert_allclose([own for own, _ in ours], [own for own, _ in theirs], atol=1e-3)


@pytest.mark.parametrize(("family", "is_fused"), [("llama", True), ("gpt2", False)])
def test_it_draws_the_same_as_a_cpu(
    family: str, is_fused: bool, models: Callable[[str], Path], gpu: FakeGpu
) -> None:
    path = models(family)
    runner = load_runner(path, device="cuda", enforce_eager=True, **SETTINGS)
    assert (runner._model.fused is not None) == is_fused
    assert runner._forward.slot_table.device == GPU and runner.info.device == "no GPU"
    before = gpu.num_launches
    computed = outputs(WaitingForNothing(runner, gpu))
    assert gpu.num_launches > before
    assert_same(computed, outputs(load_runner(path, device="cpu", **SETTINGS)))
    assert [len(tokens) for tokens in computed[0]] == [3, 4, 2, 3]
    assert [len(logprobs) for logprobs in computed[1]] == [0, 0, 2, 3]
    runner.close()


@pytest.mark.usefixtures("unchecked")
def test_it_copies_beginnings_of_blocks_without_waiting(models: Callable[[str], Path], gpu: FakeGpu) -> None:
    settings = {**SETTINGS, "block_size": 4, "num_kv_blocks": 40, "num_host_slots": 0}
    runner = load_runner(models("llama"), device="cuda", enforce_eager=True, **settings)
    computed, num_copied = answers(WaitingForNothing(runner, gpu), copies=True)
    assert num_copied
    on_cpu = load_runner(models("llama"), device="cpu", **settings)
    assert computed == answers(on_cpu, copies=False)[0]
    runner.close()


@pytest.mark.usefixtures("unchecked")
def test_no_request_launches_a_variant_that_the_warm_up_did_not(
    models: Callable[[str], Path], gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that none waits for a compiler, not even with a given number of KV blocks, where no step is measured."""
    variants = set[tuple[Any, ...]]()
    launch = gpu.launch

    def noted(call: Any, executor: Any, *arguments: Any, **constants: Any) -> Any:
        dtypes = [argument.dtype for argument in arguments if isinstance(argument, torch.Tensor)]
        variants.add((executor.fn.__name__, *dtypes, *sorted(constants.items())))
        return launch(call, executor, *arguments, **constants)

    monkeypatch.setattr(gpu, "launch", noted)
    runner = load_runner(
        models("llama"), device="cuda", enforce_eager=True, **SETTINGS | {"dtype": "bfloat16"}
    )
    warm_up(runner)
    at_load = set(variants)
    assert {name for name, *_ in at_load} >= {"_copy_slots", "_draw_kernel", "_mask_kernel"}
    outputs(runner)
    assert variants == at_load
    runner.close()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_draws_the_same_with_graphs(
    family: str, models: Callable[[str], Path], gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.runner.cuda_graphs._WARM_UPS", 1)
    path = models(family)
    settings = {**SETTINGS, "max_num_seqs": 2, "max_model_len": 16, "max_num_batched_tokens": 16}
    runner = load_runner(path, device="cuda", **settings)
    assert [(shape.tokens, shape.tiles > 0) for shape in runner.graph_shapes] == [
        (1, False),
        (2, False),
        (16, True),
    ]
    drawn = []
    for ours in (WaitingForNothing(runner, gpu), load_runner(path, device="cpu", **settings)):
        driver = Driver(ours)
        pair = [driver.add(PROMPT, EVERY_OPTION[1], 1), driver.add(OTHER, GREEDY, 0)]
        before = gpu.num_launches
        driver.step([(pair[0], len(PROMPT) - 1), (pair[1], len(OTHER))])  # two chunks
        driver.step([(pair[0], 1), (pair[1], 1)])
        driver.truncate(pair[1], 1)
        driver.step([(pair[1], 3), (pair[0], 1)])  # a chunk and a token
        for chosen in (pair, pair[:1], pair):
            driver.step([(request, 1) for request in chosen])
        # A replay launches all kernels at once; the draw is not part of it.
        assert gpu.num_launches - before == (5 if isinstance(ours, WaitingForNothing) else 0)
        with (
            monkeypatch.context() as patch
        ):  # the step is computed without its graph, and its graph is not used again
            patch.setattr(fake_cuda._Graph, "replay", _fails)
            result = driver.step([(request, 1) for request in pair])
        assert result.num_graph_failures == isinstance(ours, WaitingForNothing)
        drawn.append([request.output for request in pair])
    assert drawn[0] == drawn[1]
    assert [shape.tokens for shape in runner.graph_shapes] == [1, 16]
    runner.close()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("fails", [False, True])
def test_the_sizes_of_steps_are_measured_at_load(
    fails: bool,
    models: Callable[[str], Path],
    gpu: FakeGpu,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By replays of the products of a layer, here of a GPU that takes twice as long for more than 448 tokens."""
    monkeypatch.setattr("engine.runner.cuda_graphs._WARM_UPS", 1)
    timed: list[int] = []

    def seconds(work: Callable[[], None]) -> float:
        if fails and timed:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        elapsed_s = replayed_s(work)
        timed.append(256 + 64 * len(timed))
        assert elapsed_s > 0
        return 2.0 if timed[-1] > 448 else 1.0

    monkeypatch.setattr(step_sizes, "replayed_s", seconds)
    settings = {**SETTINGS, "max_num_batched_tokens": 640, "enforce_eager": True}
    with caplog.at_level("INFO", "engine.runner"):
        runner = load_runner(models("llama"), device="cuda", **settings)
    trims = runner.info.trims
    if fails:
        assert trims == () and "no step is trimmed" in caplog.text
    else:
        assert timed == list(range(256, 641, 64))
        assert [trimmed(trims, n) for n in (200, 448, 449, 512, 513)] == [200, 448, 448, 448, 513]
        assert "449 to 512 tokens to 448" in caplog.text
    runner.close()


def _fails(_graph: Any) -> None:
    raise RuntimeError("CUDA error: unspecified launch failure")


@pytest.mark.usefixtures("unchecked")
def test_a_step_begins_before_the_previous_one_ends(models: Callable[[str], Path], gpu: FakeGpu) -> None:
    """Its tokens are known only to the device; the host reads them after they have arrived. Penalties count them."""
    path = models("llama")
    settings = {**SETTINGS, "enforce_eager": True}
    expected = Driver(load_runner(path, device="cpu", **settings))
    asked = [(2, PROMPT, GREEDY), (0, OTHER, EVERY_OPTION[1]), (1, OTHER, EVERY_OPTION[2])]
    requests = [expected.add(prompt, sampling, row) for row, prompt, sampling in asked]
    expected.step([(request, len(request.token_ids)) for request in requests])
    for _ in range(2):
        expected.step([(request, 1) for request in requests])

    runner = WaitingForNothing(load_runner(path, device="cuda", **settings), gpu)
    rows = [row for row, *_ in asked]
    starts = [RowStart(row, str(row), prompt, len(prompt), [], sampling) for row, prompt, sampling in asked]
    counts = [len(prompt) for _, prompt, _ in asked]
    tokens = [token for _, prompt, _ in asked for token in prompt]
    slots = list(range(40, 40 - sum(counts), -1))
    pending = [runner.launch(StepPlan(rows, [0] * 3, counts, [True] * 3, tokens, slots, row_starts=starts))]
    drawn = []
    for step in range(2):
        ends = [count + step for count in counts]
        slots = [50 + 3 * step + i for i in range(3)]
        pending.append(runner.launch(StepPlan(rows, ends, [1] * 3, [True] * 3, [-1] * 3, slots)))
        assert gpu.under_way
        drawn.append(pending.pop(0).result().sampled)
    drawn.append(pending.pop().result().sampled)
    assert [list(tokens) for tokens in zip(*drawn, strict=True)] == [request.output for request in requests]


@pytest.mark.usefixtures("unchecked")
def test_a_rotation_that_depends_on_the_longest_sequence(tmp_path: Path, gpu: FakeGpu) -> None:
    longrope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    factors = {"short_factor": [1.5] * 8, "long_factor": [4.0] * 8}
    path = make_model("llama", tmp_path, **TINY, rope_parameters={**longrope, **factors})
    drawn = []
    for device in ("cuda", "cpu"):
        runner: Any = load_runner(path, device=device, enforce_eager=True, **SETTINGS)
        driver = Driver(WaitingForNothing(runner, gpu) if device == "cuda" else runner)
        request = driver.add(PROMPT)
        driver.step([(request, len(PROMPT))])
        driver.step([(request, 1)])
        drawn.append(request.output)
    assert drawn[0] == drawn[1]


@pytest.mark.usefixtures("unchecked")
def test_a_16_bit_model_with_sinks_windows_and_an_8_bit_cache(
    models: Callable[[str], Path], gpu: FakeGpu
) -> None:
    settings = {**SETTINGS, "dtype": "bfloat16", "kv_cache_dtype": "fp8_e4m3", "enforce_eager": True}
    runner = load_runner(models("gpt_oss"), device="cuda", **settings)
    assert {cache.k.dtype for cache in runner._forward._caches.values()} == {torch.float8_e4m3fn}
    driver = Driver(WaitingForNothing(runner, gpu))
    request = driver.add([*PROMPT, *OTHER], EVERY_OPTION[2])
    driver.step([(request, 6)])
    driver.step([(request, 4)])
    driver.step([(request, 1)])
    assert len(request.output) == 2
    assert all(np.isfinite(own.logprob) for own in request.logprobs)


@pytest.mark.usefixtures("unchecked")
def test_kv_memory_is_what_the_largest_step_leaves(models: Callable[[str], Path]) -> None:
    with cuda(memory_bytes=400_000_000):
        settings = {**SETTINGS, "max_num_batched_tokens": 12, "num_kv_blocks": None, "num_host_slots": 0}
        runner = load_runner(models("llama"), device="cuda", enforce_eager=True, **settings)
        slot_bytes = 4 * sum(
            cache.k[0].numel() + cache.v[0].numel() for cache in runner._forward._caches.values()
        )
        # A tenth stays free, the step took a tenth at its peak, including its own KV, and there are buffers for host
        # KV.
        left = 400_000_000 * 8 // 10 + 1000 + 12 * slot_bytes - 2 * 8 * (16 << 20) // slot_bytes * slot_bytes
        assert abs(runner.info.num_blocks - left // (16 * slot_bytes)) <= 1


class OnlyRank:
    """Ranks of which there is only one."""

    device = GPU
    size, number = 1, 0

    def minimum(self, value: int) -> int:
        return value

    def broadcast(self, values: torch.Tensor) -> None:
        pass


@pytest.mark.usefixtures("unchecked")
def test_a_rank_tries_to_allocate_what_the_largest_step_took(
    models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number of KV blocks does not matter. A pass of a quarter of the tokens takes a quarter of that memory."""
    allocated: list[int] = []
    empty = torch.empty

    def noted_empty(*size: Any, **options: Any) -> torch.Tensor:
        if options.get("dtype") is torch.uint8:
            allocated.append(size[0])
        return empty(*size, **options)

    ranks: Any = OnlyRank()
    settings = {**SETTINGS, "max_num_batched_tokens": 12, "num_host_slots": 0, "enforce_eager": True}
    path = models("llama")
    with cuda(memory_bytes=400_000_000):
        config = EngineConfig(
            model=str(path), served_model_name="tiny", listen="unix:///unused", device="cuda", **settings
        )
        model = load_model(config.model, device="cuda", dtype="float32", max_model_len=64)
        runner = loading.runner_for(model, config, ranks=ranks)
        slot_bytes = 4 * sum(
            cache.k[0].numel() + cache.v[0].numel() for cache in runner._forward._caches.values()
        )
        at_peak = 400_000_000 // 10 - 1000 - 12 * slot_bytes
        monkeypatch.setattr(torch, "empty", noted_empty)
        driver = Driver(runner)
        request = driver.add(OTHER)
        for num_tokens in (3, 1):
            driver.step([(request, num_tokens)])
        assert allocated == [at_peak // 4], "once, since passes of one token are smaller"
    expected = Driver(load_runner(path, device="cpu", **settings))
    own = expected.add(OTHER)
    expected.run(2)
    assert request.output == own.output


# The fake GPU notices errors: otherwise the tests above would prove nothing ---------------------------


def numbers() -> torch.Tensor:
    return torch.arange(6.0, device=GPU)


def to_gpu_twice(values: torch.Tensor) -> None:
    values.to(GPU, non_blocking=True)
    values += 1
    torch.cuda.Event().record().synchronize()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda: numbers() + torch.ones(6), "mixes"),
        (lambda: numbers()[torch.tensor([1, 2])], "index of the host"),
        (lambda: numbers().index_select(0, torch.tensor([1])), "mixes"),
        (lambda: numbers()[numbers() > 2], "mask"),
        (lambda: numbers().cpu(), "not asynchronous"),
        (lambda: numbers().sum().item(), "waits"),
        (lambda: bool(numbers().any()), "waits"),
        (lambda: numbers().tolist(), "reads"),
        (lambda: torch.ones(3).to(GPU, non_blocking=True), "not pinned"),
        (lambda: torch.ones(3).pin_memory().to(GPU), "not asynchronous"),
        (lambda: torch.tensor([1, 2], device=GPU), "copied"),
        (lambda: torch.cuda.synchronize(), "waits"),
    ],
)
def test_errors_on_a_gpu_are_errors_here(wrong: Callable[[], Any], reason: str, gpu: FakeGpu) -> None:
    with gpu.no_waiting(), pytest.raises(RuntimeError, match=reason):
        wrong()


def test_host_memory_is_read_late_and_written_late(gpu: FakeGpu) -> None:
    with pytest.raises(RuntimeError, match="changed while"):
        to_gpu_twice(torch.ones(3).pin_memory())
    found = numbers().to("cpu", non_blocking=True)
    assert found.isnan().all()
    torch.cuda.Event().record().synchronize()
    assert found.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_capture_contains_no_copies_and_no_waits(gpu: FakeGpu) -> None:
    pinned, graphs = torch.ones(6).pin_memory(), CudaGraphs(GPU)
    for wrong in (lambda: numbers().to("cpu", non_blocking=True), lambda: pinned.to(GPU, non_blocking=True)):
        with pytest.raises(RuntimeError, match="during a capture"):
            graphs.capture(wrong)
    total = numbers()
    graph = graphs.capture(lambda: total.add_(total * 2))
    graph.replay()
    assert total.tolist() == [9.0 * i for i in range(6)]  # the fake also computes during a capture


def test_kernels_take_no_tensors_of_the_host(gpu: FakeGpu) -> None:
    from engine.kernels.triton.layer import silu_gated

    with pytest.raises(RuntimeError, match="a kernel is given a tensor of the host"):
        silu_gated(torch.ones(1, 8, device=GPU), torch.empty(1, 4))


@pytest.mark.usefixtures("unchecked")
def test_a_launch_that_waits_is_noticed(
    models: Callable[[str], Path], gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = WaitingForNothing(
        load_runner(models("llama"), device="cuda", enforce_eager=True, **SETTINGS), gpu
    )
    driver, draw = Driver(runner), Sampler.draw
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "draw", lambda self, logits, *rest: draw(self, logits.cpu(), *rest))
        with pytest.raises(RuntimeError, match="not asynchronous"):
            driver.step([(driver.add(OTHER), 3)])
    with monkeypatch.context() as patch:
        patch.setattr(forward_pass, "send", lambda values, device: values.clone().to(GPU))
        with pytest.raises(RuntimeError, match="not asynchronous"):
            driver.step([(driver.add(OTHER), 3)])
    driver.step([(driver.add(OTHER), 3)])
