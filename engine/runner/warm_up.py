"""Runs everything once that a step may need, so that no request waits until a kernel is compiled.

Triton compiles a kernel when it is launched for the first time with its constants and dtypes, which takes from half a
second to four, and all requests wait meanwhile. Steps of made-up requests launch all of these variants at load. They
compute from whatever the KV slots contain, since a request may name slots of tokens that were computed before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import torch

from engine.core.plan import Restore, RowStart, SlotCopy, StepPlan
from engine.core.terms import SamplingParams
from engine.kernels.layout import CHUNK_TILE_TOKENS
from engine.runner.base import ModelRunner, RunnerInfo

log = logging.getLogger("engine.runner")

_GREEDY = SamplingParams(max_tokens=1, temperature=0.0)
_ONE_TOKEN = ((0, 1.0),)
# One for each way through the sampler: what changes the logits makes them float32, and each draw exists for both.
_SAMPLINGS = (
    _GREEDY,
    SamplingParams(max_tokens=1, top_p=0.9, top_k=20, min_p=0.01),
    SamplingParams(max_tokens=1, logit_bias=_ONE_TOKEN, repetition_penalty=1.1, min_tokens=1, top_p=0.9),
    SamplingParams(max_tokens=1, temperature=0.0, logit_bias=_ONE_TOKEN, logprobs=1),
    SamplingParams(max_tokens=1, logprobs=1),
    SamplingParams(max_tokens=0, score_token_ids=(0,)),
    SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1),
    SamplingParams(max_tokens=0, pooling="mean"),
)


def warm_up(runner: ModelRunner) -> None:
    """Runs a few steps on an idle runner, which is afterwards as it was, except for what KV memory contains."""
    started_s = time.perf_counter()
    for plan in _plans(runner.info):
        runner.execute(plan)
    if torch.cuda.is_available():
        _warm_up_masks(runner.info)
        torch.cuda.synchronize()
    log.info("all kernels were run once, in %.1f s", time.perf_counter() - started_s)


def _plans(info: RunnerInfo) -> Iterator[StepPlan]:
    num_slots, longest = info.num_blocks * info.block_size, info.max_model_len - 1
    chunk = max(1, min(2 * CHUNK_TILE_TOKENS, num_slots, longest, info.max_num_batched_tokens))
    for sampling in _SAMPLINGS:
        if info.hidden_size or not sampling.asks_about_prompt:
            yield made_up_step(info, [(0, min(2, chunk))], sampling)
    # Rows of one token and chunks, each alone and beside the other, after short and long contexts.
    for context in (0, longest - chunk):
        yield made_up_step(info, [(context, 1)])
        yield made_up_step(info, [(context, chunk)])
        if info.max_num_seqs > 1 and info.max_num_batched_tokens > chunk:
            yield made_up_step(info, [(context, 1), (context, chunk)])
    if min(chunk, longest) > 1:  # few queries after a long context, which is divided the soonest
        yield made_up_step(info, [(longest - 2, 2)])
    start = RowStart(0, "warm-up", [0, 0], 2, [], _GREEDY)
    yield StepPlan([], [], [], [], [], [], row_starts=[start], restores=[Restore(0, 0, [0], [], [0])])
    if info.num_host_slots:
        yield StepPlan([], [], [], [], [], [], copies_out=[SlotCopy([0], [0])])
        yield StepPlan([], [], [], [], [], [], row_starts=[start], restores=[Restore(0, 0, [0], [0])])


def made_up_step(
    info: RunnerInfo, parts: Sequence[tuple[int, int]], sampling: SamplingParams = _GREEDY
) -> StepPlan:
    """A step in which row i computes `count` tokens after `context` others, for `parts[i] = (context, count)`."""
    num_slots = info.num_blocks * info.block_size
    counts = [count for _, count in parts]
    return StepPlan(
        rows=list(range(len(parts))),
        starts=[context for context, _ in parts],
        counts=counts,
        samples=[sampling.max_tokens > 0] * len(parts),
        token_ids=[0] * sum(counts),
        slots=[slot % num_slots for slot in range(sum(counts))],
        row_starts=[
            RowStart(row, str(row), [0] * (context + count), context + count, [0] * context, sampling)
            for row, (context, count) in enumerate(parts)
        ],
    )


def _warm_up_masks(info: RunnerInfo) -> None:
    """Runs the kernel of grammars. A step with a grammar would need one that was compiled by other threads."""
    # Imported here because Triton is not installed everywhere.
    from engine.kernels.triton.masks import apply_masks

    device = torch.device("cuda")
    words = torch.full((1, -(-info.vocab_size // 32)), -1, dtype=torch.int32, device=device)
    for dtype in {torch.float32, getattr(torch, info.dtype)}:
        logits = torch.zeros((1, info.vocab_size), dtype=dtype, device=device)
        apply_masks(logits, torch.zeros(1, dtype=torch.int64, device=device), words)
