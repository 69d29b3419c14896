"""Configuration of one engine process. Each field is a flag of its command line (`max_num_seqs`: `--max-num-seqs`)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

BE_PREFETCH = 32
# The smallest and the largest slowdown of chats that may be asked for; the wire has the same limits.
SLOWDOWN_RANGE = (0.001, 100.0)


def reserved_rt_rows(max_num_seqs: int) -> int:
    """How many rows of the batch only chat may use: an eighth, at least one, and never all of them."""
    return min(max(1, max_num_seqs // 8), max_num_seqs - 1)


def _flag(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


def _derived_flag(about: str) -> Any:
    return field(metadata={"help": about})


# Numbers that may be 0; all others must be positive.
MAY_BE_ZERO = {
    "be_prefetch",
    "drain_grace_s",
    "num_host_slots",
    "profile_s",
    "simulated_step_s",
    "simulated_token_s",
}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of an engine. Names shared with vLLM have the same meaning there. Times are in seconds.

    Raises ValueError if a value is out of range.
    """

    model: str = _derived_flag("directory or GGUF file of the model, or its name on the Hugging Face Hub")
    served_model_name: str = _derived_flag("name by which clients request the model (default: --model)")
    listen: str = _derived_flag("address of the engine's socket: unix:///path or tcp://host:port")
    redis_url: str | None = _flag(
        None,
        "Redis to pull the items of jobs from; may be given as BROS_REDIS_URL; without it the engine serves only "
        "requests from its socket",
    )
    token: str | None = _flag(
        None, "secret that clients must present, required on TCP; better given as BROS_ENGINE_TOKEN"
    )
    engine_id: str = _flag(
        "engine-0",
        "unique name of this engine, which must not change when it restarts (default: derived from the host and the "
        "address)",
    )
    runner: Literal["torch", "simulated"] = _flag(
        "torch", "what computes the tokens; 'simulated' needs no model and makes them up"
    )
    device: Literal["auto", "cpu", "cuda"] = _flag(
        "auto", "device to compute on; 'auto' uses a GPU if there is one"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _flag(
        "auto", "data type of the weights and the KV cache"
    )
    load_format: Literal["safetensors", "dummy"] = _flag(
        "safetensors",
        "how to load the weights; 'dummy' initializes them randomly, to measure a model of which only the config.json "
        "is available",
    )
    quantization: Literal["none", "fp8"] = _flag(
        "none",
        "how to store the weights of the model's layers; 'fp8' takes half the memory of 16 bits and needs a GPU of "
        "compute capability 8.9 or higher (on a CPU it is emulated, slowly)",
    )
    kv_cache_dtype: Literal["auto", "fp8_e4m3"] = _flag(
        "auto", "data type of the KV cache on a GPU; 'auto' uses that of the weights"
    )
    tensor_parallel_size: int = _flag(1, "number of devices to split every layer over")
    enforce_eager: bool = _flag(False, "do not use CUDA graphs")
    async_scheduling: bool | None = _flag(
        None, "schedule each step while the previous one is being computed (default: on a GPU)"
    )
    forced_tokens: bool = _flag(
        False,
        "append the tokens that a request's grammar leaves no choice about without computing a step for each",
    )
    max_model_len: int | None = _flag(
        None, "maximum number of prompt and output tokens of a request (default: the model's)"
    )
    max_num_seqs: int | None = _flag(
        None, "maximum number of requests computed at the same time (default: 64, or 256 on a GPU)"
    )
    max_num_batched_tokens: int | None = _flag(
        None, "maximum number of tokens computed in one step (default: 512, or 2048 on a GPU)"
    )
    block_size: int = _flag(16, "number of tokens per KV block")
    num_kv_blocks: int | None = _flag(None, "number of KV blocks (default: as many as fit into memory)")
    num_host_slots: int | None = _flag(
        None,
        "number of tokens whose KV is kept in host memory after a preemption (default: as many as fit into memory)",
    )
    policy: Literal["bros", "priority", "fcfs"] = _flag(
        "bros", "how steps are packed; 'priority' and 'fcfs' are baselines for comparison"
    )
    kv_sharing: bool = _flag(True, "let chat use the free slots in the KV blocks of bulk")
    kv_preemption: Literal["truncate", "whole", "none"] = _flag(
        "truncate",
        "what a preempted request gives up: its newest tokens, all of them, or none (chat then waits for memory)",
    )
    kv_checkpoint: Literal["lazy", "none"] = _flag(
        "lazy",
        "when to copy KV to host memory: before it is overwritten, or never",
    )
    prefix_cache: bool = _flag(True, "reuse the KV of prompt prefixes that were computed before")
    be_share: float = _flag(0.05, "share of all tokens that bulk gets even if chat needs them")
    gpu_memory_utilization: float = _flag(0.9, "fraction of the GPU's memory to use")
    max_waiting_rt: int = _flag(
        512, "number of open chat requests, running or waiting, above which new ones are rejected"
    )
    be_prefetch: int = _flag(BE_PREFETCH, "number of items to hold in addition to those that are running")
    profile_s: float = _flag(
        3.0, "seconds to measure steps at the first start with a model; with 0 the engine learns as it serves"
    )
    default_ttft_s: float = _flag(
        0.5, "target for the time to first token, in seconds, of requests without an SLO"
    )
    default_tpot_s: float = _flag(
        0.1, "target for the time per output token, in seconds, of requests without an SLO"
    )
    rt_slowdown: float | None = _flag(
        None,
        "how much slower bulk may make chats without an SLO than they would be without bulk, for example 0.05; "
        "replaces the two targets as the limit for bulk",
    )
    max_ttft_factor: float | None = _flag(
        None,
        "reject every chat request whose predicted time to first token is more than this many times its target "
        "(default: 4 for requests that name an SLO; all others wait)",
    )
    claim_timeout_s: float = _flag(
        60.0, "seconds of silence after which another engine takes over the items of this one"
    )
    max_attempts: int = _flag(
        3, "number of times the engine may die while it computes one item by itself before that item fails"
    )
    stuck_after_s: float = _flag(
        30.0,
        "seconds beyond its prediction after which a step counts as stuck: the engine takes no new work, and ends "
        "after twice as long; the first steps, which compile kernels, get 20 times as long",
    )
    drain_grace_s: float = _flag(30.0, "seconds that open chat requests get to finish at shutdown")
    simulated_step_s: float = _flag(0.0, "seconds that each step takes with --runner simulated")
    simulated_token_s: float = _flag(0.0, "seconds that each token adds to a step with --runner simulated")

    def max_rows(self, is_gpu: bool) -> int:
        """`max_num_seqs`, or the default for the device."""
        return self.max_num_seqs or (256 if is_gpu else 64)

    def max_step_tokens(self, is_gpu: bool) -> int:
        """`max_num_batched_tokens`, or the default for the device: about what keeps the matrix units of a GPU busy."""
        return self.max_num_batched_tokens or (2048 if is_gpu else 512)

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if value < 0 or (value == 0 and option.name not in MAY_BE_ZERO):
                raise ValueError(f"{flag_name(option.name)} is {value}; it must be positive")
        if self.policy == "priority" and self.kv_preemption == "none":
            raise ValueError(
                "--policy priority with --kv-preemption none can run out of memory with no request to preempt; "
                "use --kv-preemption whole"
            )
        if self.quantization != "none" and self.tensor_parallel_size > 1:
            raise ValueError(
                f"--quantization {self.quantization} cannot be combined with --tensor-parallel-size; remove one of them"
            )
        if self.max_num_seqs is not None and self.max_num_seqs < 2:
            raise ValueError(
                "--max-num-seqs is 1; it must be at least 2: one row is reserved for chat, and bulk needs another"
            )
        least, most = SLOWDOWN_RANGE
        if self.rt_slowdown is not None and not least <= self.rt_slowdown <= most:
            raise ValueError(
                f"--rt-slowdown is {self.rt_slowdown:g}; it must be from {least:g} to {most:g}, for example 0.05 for 5%"
            )
        if self.rt_slowdown is not None and self.policy != "bros":
            raise ValueError(f"--rt-slowdown has no effect with --policy {self.policy}; use --policy bros")
        for name in ("be_share", "gpu_memory_utilization"):
            share = getattr(self, name)
            if share > 1:
                raise ValueError(f"{flag_name(name)} is {share:g}; it is a share, at most 1")


def flag_name(field_name: str) -> str:
    """The flag of the command line that sets a field."""
    return "--" + field_name.replace("_", "-")
