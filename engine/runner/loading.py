"""From a configuration to a runner: the model, what memory is left for KV, and the runner around both."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.config import EngineConfig
from engine.core.plan import RowStart, StepPlan
from engine.core.terms import SamplingParams
from engine.runner.base import RunnerInfo, UnsupportedModel
from engine.runner.graphs import CudaGraphs
from engine.runner.kv.host import staging_bytes
from engine.runner.kv.memory import (
    allocate_kv,
    bytes_per_slot,
    num_blocks_on_cpu,
    num_blocks_on_gpu,
    num_host_slots,
)
from engine.runner.model.causal_lm import CausalLM
from engine.runner.model.loading import load_model
from engine.runner.ranks.pass_memory import LargestPass, PassMemory
from engine.runner.ranks.tensor_parallel import Ranks
from engine.runner.torch_runner import TorchRunner

KV_DTYPES = {"fp8_e4m3": torch.float8_e4m3fn}
GRAPH_BYTES = 1 << 30  # of the device's memory, for CUDA graphs


def load_runner(
    config: EngineConfig, *, num_threads: int | None = None, ranks: Ranks | None = None
) -> TorchRunner:
    """Loads `config.model`, a path or a hub name, and takes memory for KV. Raises UnsupportedModel.

    `num_threads` None leaves torch's own choice, a thread a core; the attention kernel follows it. With `ranks`, each
    of them loads its part.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    model = load_model(
        config.model,
        device=config.device,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        load_format=config.load_format,
        ranks=ranks,
    )
    return _runner_for(model, config, ranks=ranks)


def _runner_for(model: CausalLM, config: EngineConfig, *, ranks: Ranks | None = None) -> TorchRunner:
    """The runner of a loaded model, with the KV memory that the configuration asks for or the device has left.

    `config.model` is where the tokenizer is found if stop strings need one. With `ranks`, all ranks call this together.
    Raises UnsupportedModel if no memory is left.
    """
    kv_dtype = KV_DTYPES.get(config.kv_cache_dtype, model.dtype)
    if kv_dtype is not model.dtype and model.device.type == "cpu":
        raise UnsupportedModel(f"--kv-cache-dtype {config.kv_cache_dtype} needs a GPU; leave it out on a CPU")
    is_gpu = model.device.type == "cuda"
    has_graphs = is_gpu and not config.enforce_eager and ranks is None
    pass_bytes = 0
    if is_gpu and (config.num_kv_blocks is None or ranks is not None):
        pass_bytes = _profile_bytes(model, config, kv_dtype, ranks)
    info = _info(model, config, kv_dtype, pass_bytes + (GRAPH_BYTES if has_graphs else 0), ranks)
    if ranks is not None:  # one scheduler plans for all of them
        info = replace(
            info, num_blocks=ranks.least(info.num_blocks), num_host_slots=ranks.least(info.num_host_slots)
        )
    caches = allocate_kv(model.layers, info.num_blocks * info.block_size, kv_dtype, model.device)
    if ranks is None:
        runner = TorchRunner(model, caches, info, config.model)
    else:
        memory = PassMemory(ranks, LargestPass(*_largest_step(config, is_gpu), pass_bytes))
        runner = TorchRunner(model, caches, info, config.model, agree=ranks.agree, memory=memory)
    if has_graphs:
        runner.capture_graphs(CudaGraphs(model.device), GRAPH_BYTES)
    return runner


def _info(
    model: CausalLM, config: EngineConfig, kv_dtype: torch.dtype, other_bytes: int, ranks: Ranks | None
) -> RunnerInfo:
    """`other_bytes` of a GPU are wanted for passes and graphs."""
    is_gpu = model.device.type == "cuda"
    block_size, num_blocks = config.block_size, config.num_kv_blocks
    slot_bytes = bytes_per_slot(model.layers, kv_dtype)
    host_slot_bytes = slot_bytes * (1 if ranks is None else ranks.size)  # all ranks share the host
    if num_blocks is None and is_gpu:
        needed = staging_bytes(slot_bytes, 1 << 30) + other_bytes
        num_blocks = num_blocks_on_gpu(slot_bytes, block_size, config.gpu_memory_utilization, needed)
    elif num_blocks is None:
        num_blocks = num_blocks_on_cpu(
            host_slot_bytes, block_size, config.max_rows(is_gpu), model.max_model_len
        )
    if num_blocks < 1:
        raise UnsupportedModel(
            f"{config.model} leaves no room for KV memory on {model.device}: raise --gpu-memory-utilization, or serve "
            "a smaller model"
        )
    host_slots = config.num_host_slots
    if host_slots is None:
        host_slots = num_host_slots(host_slot_bytes, num_blocks * block_size, model.device)
    return RunnerInfo(
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=config.max_rows(is_gpu),
        max_model_len=model.max_model_len,
        vocab_size=model.vocab_size,
        device=torch.cuda.get_device_name(model.device) if is_gpu else model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        num_host_slots=host_slots,
        computes_beside_host=is_gpu,
        max_num_batched_tokens=config.max_step_tokens(is_gpu),
    )


def _largest_step(config: EngineConfig, is_gpu: bool) -> tuple[int, int]:
    """(tokens, rows)."""
    max_tokens = config.max_step_tokens(is_gpu)
    return max_tokens, min(config.max_rows(is_gpu), max_tokens)


def _profile_bytes(model: CausalLM, config: EngineConfig, kv_dtype: torch.dtype, ranks: Ranks | None) -> int:
    """GPU memory that the largest step needs besides weights and KV: measured on one in which every row draws from the
    whole vocabulary, and which has the longest chunk that fits."""
    max_tokens, num_rows = _largest_step(config, is_gpu=True)
    longest = min(model.max_model_len, max_tokens - num_rows + 1)
    counts = [1] * (num_rows - 1) + [longest]
    sampling = SamplingParams(max_tokens=1, top_p=0.9)
    starts = [RowStart(row, str(row), [0] * n, n, [], sampling) for row, n in enumerate(counts)]
    total = sum(counts)
    plan = StepPlan(
        rows=list(range(num_rows)),
        starts=[0] * num_rows,
        counts=counts,
        samples=[True] * num_rows,
        token_ids=[0] * total,
        slots=list(range(total)),
        row_starts=starts,
    )
    info = RunnerInfo(1, total, num_rows, model.max_model_len, model.vocab_size, "cuda", "")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    caches = allocate_kv(model.layers, total, kv_dtype, model.device)
    probe = TorchRunner(model, caches, info, "", agree=None if ranks is None else ranks.agree)
    torch.cuda.reset_peak_memory_stats()
    probe.execute(plan)
    needed = torch.cuda.max_memory_allocated() - before - total * bytes_per_slot(model.layers, kv_dtype)
    del probe, caches
    torch.cuda.empty_cache()
    return needed
