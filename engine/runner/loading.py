"""From a configuration to a runner: load the model, size and allocate KV memory, warm up, capture CUDA graphs."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.config import EngineConfig
from engine.runner.base import RunnerInfo, UnsupportedModel
from engine.runner.cuda_graphs import CudaGraphs
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
from engine.runner.peak_memory import largest_step, measure_step_bytes
from engine.runner.ranks.memory_probe import LargestPass, MemoryProbe
from engine.runner.ranks.tensor_parallel import Ranks
from engine.runner.step_sizes import measure_trims
from engine.runner.torch_runner import TorchRunner
from engine.runner.warm_up import warm_up

KV_DTYPES = {"fp8_e4m3": torch.float8_e4m3fn}
GRAPH_BYTES = 2 << 30  # device memory for CUDA graphs


def load_runner(
    config: EngineConfig, *, num_threads: int | None = None, ranks: Ranks | None = None
) -> TorchRunner:
    """Loads `config.model`, a path or a hub name, and allocates KV memory. Raises UnsupportedModel.

    `num_threads` None leaves torch's own choice, one thread per core; our CPU kernels use as many. With `ranks`, each
    rank loads its part of the model.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    model = load_model(
        config.model,
        device=config.device,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        load_format=config.load_format,
        quantization=config.quantization,
        ranks=ranks,
    )
    return runner_for(model, config, ranks=ranks)


def runner_for(model: CausalLM, config: EngineConfig, *, ranks: Ranks | None = None) -> TorchRunner:
    """The runner of a loaded model, with the KV memory that the configuration asks for or that the device has left.

    `config.model` is where the tokenizer is found if stop strings need one. With `ranks`, all ranks call this together.
    Raises UnsupportedModel if no memory is left.
    """
    is_gpu = model.device.type == "cuda"
    kv_dtype = _kv_dtype(model, config)
    has_graphs = is_gpu and not config.enforce_eager and ranks is None
    step_bytes = 0
    if is_gpu and (config.num_kv_blocks is None or ranks is not None):
        step_bytes = measure_step_bytes(model, config, kv_dtype, ranks)
    info = _runner_info(model, config, kv_dtype, step_bytes + (GRAPH_BYTES if has_graphs else 0), ranks)
    caches = allocate_kv(model.layers, info.num_blocks * info.block_size, kv_dtype, model.device)
    memory_probe = None
    if ranks is not None:
        memory_probe = MemoryProbe(ranks, LargestPass(*largest_step(config, is_gpu=is_gpu), step_bytes))
    runner = TorchRunner(
        model,
        caches,
        info,
        config.model,
        ranks=ranks,
        memory_probe=memory_probe,
        force_tokens=config.forced_tokens,
    )
    if is_gpu:
        warm_up(runner)  # before there are graphs, since steps that are replayed would compile nothing
    if has_graphs:
        runner.capture_graphs(CudaGraphs(model.device), GRAPH_BYTES)
    runner.begin_to_load_tokenizer()
    return runner


def _kv_dtype(model: CausalLM, config: EngineConfig) -> torch.dtype:
    kv_dtype = KV_DTYPES.get(config.kv_cache_dtype, model.dtype)
    if kv_dtype is not model.dtype and model.device.type == "cpu":
        raise UnsupportedModel(f"--kv-cache-dtype {config.kv_cache_dtype} needs a GPU; leave it out on a CPU")
    return kv_dtype


def _trims(model: CausalLM, config: EngineConfig) -> tuple[int, ...]:
    if model.device.type != "cuda" or model.fused is None:
        return ()
    # Imported here because Triton is not installed everywhere.
    from engine.runner.model.fused_gpu import GpuDecoder

    assert isinstance(model.fused, GpuDecoder)
    return measure_trims(model.fused.layer_products, config.max_step_tokens(is_gpu=True))


def _runner_info(
    model: CausalLM, config: EngineConfig, kv_dtype: torch.dtype, other_bytes: int, ranks: Ranks | None
) -> RunnerInfo:
    """The runner's capacity, if steps and graphs need `other_bytes` of a GPU."""
    is_gpu = model.device.type == "cuda"
    slot_bytes = bytes_per_slot(model.layers, kv_dtype)
    host_slot_bytes = slot_bytes * (1 if ranks is None else ranks.size)  # all ranks share the host
    num_blocks = config.num_kv_blocks
    if num_blocks is None and is_gpu:
        reserved = staging_bytes(slot_bytes, 1 << 30) + other_bytes
        num_blocks = num_blocks_on_gpu(slot_bytes, config.block_size, config.gpu_memory_utilization, reserved)
    elif num_blocks is None:
        num_blocks = num_blocks_on_cpu(
            host_slot_bytes, config.block_size, config.max_rows(is_gpu), model.max_model_len
        )
    if num_blocks < 1:
        raise UnsupportedModel(
            f"{config.model} leaves no room for KV memory on {model.device}: raise --gpu-memory-utilization, or serve "
            "a smaller model"
        )
    host_slots = config.num_host_slots
    if host_slots is None:
        host_slots = num_host_slots(host_slot_bytes, num_blocks * config.block_size, model.device)
    info = RunnerInfo(
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_rows(is_gpu),
        max_model_len=model.max_model_len,
        vocab_size=model.vocab_size,
        device=torch.cuda.get_device_name(model.device) if is_gpu else model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        num_host_slots=host_slots,
        computes_beside_host=is_gpu,
        max_num_batched_tokens=config.max_step_tokens(is_gpu),
        hidden_size=model.hidden_size,
        quantization=config.quantization,
        trims=_trims(model, config),
    )
    if ranks is None:
        return info
    # One scheduler plans for all ranks, so all have the memory of the one with the least.
    return replace(info, num_blocks=ranks.minimum(num_blocks), num_host_slots=ranks.minimum(host_slots))
