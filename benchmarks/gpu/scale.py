"""Sizes of the measurements: for a GPU, and tiny ones that run the same code on any machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.sim.traces.lengths import Uniform
from engine.sim.traces.workloads import WORKLOADS, Workload

# The parts of a run in order, and the weight of each in the time: about what it needs on an H200.
SHARES = {
    "ceilings": 4.0,
    "correctness": 12.0,
    "steps": 27.0,
    "alone": 10.0,
    "hybrid": 26.0,
    "kernels": 8.0,
    "others": 10.0,
    "more": 7.0,
}
MODELS = ("llama-8b", "qwen3-4b", "llama-1b")  # shapes in `benchmarks.gpu.models`


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of all measurements, in tokens unless named otherwise."""

    copy_bytes: int
    product_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_kv_blocks: int | None  # None: as many as fit
    num_host_slots: int
    decodes: tuple[tuple[int, int], ...]  # rows, context of each
    mixed: tuple[
        tuple[int, int, int], ...
    ]  # rows with one token each, context of each, length of one more row's chunk
    prefill: int
    product_tokens: tuple[int, ...]  # numbers of tokens whose products are timed
    step_s: float  # approximate time for all runs of a step
    idle_rows: tuple[int, ...]  # concurrent decode rows while idle time is measured
    idle_load: Workload
    profile_s: float  # time to profile steps for the engine's cost model
    documents: Workload
    chats: Workload
    chats_per_s: float
    num_documents: int  # for the comparison of engines
    num_chats: int  # measured chats where SLO attainment is judged
    serve_s: tuple[float, float]  # minimum and maximum duration of a serving run
    shape: dict[str, int] = field(default_factory=dict)  # overrides the shapes of the models


FULL = Scale(
    copy_bytes=4 << 30,
    product_size=8192,
    max_num_seqs=256,
    max_num_batched_tokens=2048,
    max_model_len=131072,
    num_kv_blocks=None,
    num_host_slots=32768,
    # Those with a target come first; the last is about what fits into 141 GB beside 8B parameters.
    decodes=((1, 1000), (256, 1000), (32, 1000), (1, 8000), (32, 8000), (80, 8000)),
    mixed=((8, 1000, 100), (64, 1000, 448), (224, 800, 1824)),
    prefill=8192,
    product_tokens=tuple(range(256, 2049, 64)),
    step_s=1.0,
    idle_rows=(1, 32, 224),
    idle_load=Workload("steady decoding", Uniform(256, 256), Uniform(300, 300), "this benchmark"),
    profile_s=3.0,
    documents=WORKLOADS["bros-best-effort"],
    chats=WORKLOADS["azure-2023-conv"],
    chats_per_s=5.53,  # the trace's own
    num_documents=256,
    num_chats=170,  # 31 s
    serve_s=(22.0, 45.0),
)
TINY = Scale(
    copy_bytes=1 << 22,
    product_size=128,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    max_model_len=512,
    num_kv_blocks=128,
    num_host_slots=512,
    decodes=((1, 20), (4, 60)),
    mixed=((3, 20, 17),),
    prefill=96,
    product_tokens=(16, 32),
    step_s=0.1,
    idle_rows=(4,),
    idle_load=Workload("tiny steady decoding", Uniform(16, 16), Uniform(24, 24), "this benchmark"),
    profile_s=0.3,
    documents=Workload("tiny documents", Uniform(24, 96), Uniform(4, 16), "this benchmark"),
    chats=Workload("tiny chats", Uniform(8, 40), Uniform(3, 8), "this benchmark"),
    chats_per_s=6.0,
    num_documents=6,
    num_chats=7,
    serve_s=(1.5, 2.0),
    shape={
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
)
