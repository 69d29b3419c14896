"""Configuration of one engine process. Each field is a flag of its command line (`max_num_seqs`: `--max-num-seqs`)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal


def _flag(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Names shared with vLLM mean the same here. Times in seconds. Raises ValueError for a value out of range."""

    model: str = field(metadata={"help": "directory or hub name of the model"})
    served_model_name: str = field(metadata={"help": "the name clients use (the model's)"})
    listen: str = field(metadata={"help": "the fast lane's address: unix:///path or tcp://host:port"})
    redis_url: str | None = _flag(None, "where bulk work comes from; without it there is no bulk lane")
    token: str | None = _flag(None, "secret of TCP clients; better given as BROS_ENGINE_TOKEN")
    engine_id: str = _flag("engine-0", "name of this engine, unique and the same after a restart")
    runner: Literal["torch", "simulated"] = _flag("torch", "simulated computes no model")
    device: Literal["auto", "cpu", "cuda"] = _flag("auto", "where to compute")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _flag("auto", "of weights and KV")
    load_format: Literal["safetensors", "dummy"] = _flag(
        "safetensors", "dummy draws random weights, to measure a model of which there is only the config.json"
    )
    kv_cache_dtype: Literal["auto", "fp8_e4m3"] = _flag("auto", "of KV on a GPU; auto is the weights'")
    tensor_parallel_size: int = _flag(1, "devices that each hold a part of every layer")
    enforce_eager: bool = _flag(False, "no CUDA graphs")
    async_scheduling: bool | None = _flag(
        None, "decide on a step while the one before it is computed (on a GPU)"
    )
    max_model_len: int | None = _flag(None, "tokens of prompt and output together (the model's)")
    max_num_seqs: int | None = _flag(None, "requests computed at once (64; 256 on a GPU)")
    max_num_batched_tokens: int | None = _flag(None, "tokens computed in a step (512; 2048 on a GPU)")
    block_size: int = _flag(16, "tokens in a KV block")
    num_kv_blocks: int | None = _flag(None, "KV blocks (what memory allows)")
    num_host_slots: int | None = _flag(
        None, "tokens whose KV is kept in host memory when preempted (what memory allows)"
    )
    policy: Literal["bros", "priority", "fcfs"] = _flag(
        "bros", "how steps are packed; the others are baselines"
    )
    kv_sharing: bool = _flag(True, "chat may use the free middle of bulk's KV blocks")
    kv_preemption: Literal["truncate", "whole", "none"] = _flag(
        "truncate", "what bulk loses when chat needs memory"
    )
    kv_checkpoint: Literal["lazy", "eager", "none"] = _flag("lazy", "when lost KV is copied to host memory")
    prefix_cache: bool = _flag(True, "find the KV of known prefixes again")
    be_share: float = _flag(0.05, "share of all tokens that bulk gets whatever chat needs")
    gpu_memory_utilization: float = _flag(0.9, "share of the GPU's memory to use")
    max_waiting_rt: int = _flag(512, "open fast-lane requests beyond which new ones are refused")
    be_prefetch: int = _flag(32, "bulk items held beside those that run")
    profile_s: float = _flag(
        3.0, "time to measure steps at the first start with a model; 0 learns as it serves"
    )
    default_ttft_s: float = _flag(0.5, "time to first token of requests that name none")
    default_tpot_s: float = _flag(0.1, "time per output token of requests that name none")
    max_ttft_factor: float = _flag(
        4.0,
        "a fast-lane request is refused when its first token is predicted to take this many times its promise",
    )
    claim_timeout_s: float = _flag(60.0, "silence after which an engine's bulk items are taken over")
    max_deliveries: int = _flag(3, "engines that may die over a bulk item before it fails")
    drain_grace_s: float = _flag(30.0, "time that open fast-lane requests get at shutdown")
    simulated_step_s: float = _flag(0.0, "what a step costs the simulated runner")
    simulated_token_s: float = _flag(0.0, "what each token of a step adds to that")

    def max_rows(self, is_gpu: bool) -> int:
        """`max_num_seqs`, or what suits the device."""
        return self.max_num_seqs or (256 if is_gpu else 64)

    def max_step_tokens(self, is_gpu: bool) -> int:
        """`max_num_batched_tokens`, or what suits the device: on a GPU, about what keeps its matrix units busy."""
        return self.max_num_batched_tokens or (2048 if is_gpu else 512)

    def __post_init__(self) -> None:
        may_be_zero = {
            "be_prefetch",
            "drain_grace_s",
            "num_host_slots",
            "profile_s",
            "simulated_step_s",
            "simulated_token_s",
        }
        for option in fields(self):
            value = getattr(self, option.name)
            if (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and (value < 0 or (value == 0 and option.name not in may_be_zero))
            ):
                raise ValueError(f"{_flag_name(option.name)} is {value}; it must be positive")
        if self.policy == "priority" and self.kv_preemption == "none":
            raise ValueError(
                "--policy priority with --kv-preemption none can run out of memory with nobody to take it from; "
                "use --kv-preemption whole"
            )
        if self.max_num_seqs is not None and self.max_num_seqs < 2:
            raise ValueError(
                "--max-num-seqs is 1; it must be at least 2: a row of the fast lane's own, and one more"
            )
        if self.be_share > 1:
            raise ValueError(f"--be-share is {self.be_share:g}; it is a share, at most 1")
        if self.gpu_memory_utilization > 1:
            raise ValueError(
                f"--gpu-memory-utilization is {self.gpu_memory_utilization:g}; it is a share, at most 1"
            )


def _flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")
