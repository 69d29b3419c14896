"""Configuration of one engine process, as its command line gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Names shared with vLLM mean the same here. Times in seconds.

    `listen` is the RT lane's address, `unix:///path` or `tcp://host:port` (which needs `token`).
    `simulated_*` are what a step, and a token in it, cost the simulated runner.
    `redis_url` None runs without a BE lane. `num_kv_blocks` None sizes KV memory from what the device has free.
    """

    model: str
    served_model_name: str
    listen: str
    redis_url: str | None = None
    token: str | None = None
    engine_id: str = "engine-0"
    runner: Literal["torch", "simulated"] = "torch"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    block_size: int = 16
    num_kv_blocks: int | None = None
    gpu_memory_utilization: float = 0.9
    max_waiting_rt: int = 512
    be_prefetch: int = 32
    default_ttft_s: float = 0.5
    default_tpot_s: float = 0.1
    claim_timeout_s: float = 60.0
    max_deliveries: int = 3
    drain_grace_s: float = 30.0
    simulated_step_s: float = 0.0
    simulated_token_s: float = 0.0
