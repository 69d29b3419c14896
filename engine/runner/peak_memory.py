"""Measures the GPU memory that the largest step needs besides weights and KV."""

from __future__ import annotations

import torch

from engine.config import EngineConfig
from engine.core.terms import SamplingParams
from engine.runner.base import RunnerInfo
from engine.runner.kv.memory import allocate_kv, bytes_per_slot
from engine.runner.model.causal_lm import CausalLM
from engine.runner.ranks.tensor_parallel import Ranks
from engine.runner.torch_runner import TorchRunner
from engine.runner.warm_up import made_up_step

_SAMPLING = SamplingParams(max_tokens=1, top_p=0.9)  # a draw from the whole vocabulary


def largest_step(config: EngineConfig, *, is_gpu: bool) -> tuple[int, int]:
    """The (tokens, rows) of the largest step, in which as many rows as possible draw a token."""
    max_tokens = config.max_step_tokens(is_gpu)
    return max_tokens, min(config.max_rows(is_gpu), max_tokens)


def measure_step_bytes(
    model: CausalLM, config: EngineConfig, kv_dtype: torch.dtype, ranks: Ranks | None
) -> int:
    """Runs a largest step, with the longest chunk that fits and with rows that all draw from the whole vocabulary, and
    returns the memory that it took at its peak."""
    max_tokens, num_rows = largest_step(config, is_gpu=True)
    longest = min(model.max_model_len, max_tokens - num_rows + 1)
    num_slots = num_rows - 1 + longest
    info = RunnerInfo(1, num_slots, num_rows, model.max_model_len, model.vocab_size, "cuda", "")
    plan = made_up_step(info, [(0, 1)] * (num_rows - 1) + [(0, longest)], _SAMPLING)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    caches = allocate_kv(model.layers, num_slots, kv_dtype, model.device)
    runner = TorchRunner(model, caches, info, "", ranks=ranks)
    torch.cuda.reset_peak_memory_stats()
    runner.execute(plan)
    kv_bytes = num_slots * bytes_per_slot(model.layers, kv_dtype)
    needed = torch.cuda.max_memory_allocated() - before - kv_bytes
    del runner, caches
    torch.cuda.empty_cache()
    return needed
