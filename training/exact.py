"""Shares of exact answers, without generating them.

An answer is exact if every token of it is the most likely one after the true answer so far. This is equivalent to an
exact greedy generation, and needs only one forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from training.batches import collate
from training.conversations import Example, encode
from training.held_out import Case, assistant

BATCH_ROWS = 32


@torch.no_grad()
def exact_shares(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, cases: Sequence[Case], autocast: bool = False
) -> dict[str, float]:
    """Return the share of exact answers of each kind; with `autocast`, products are computed in bfloat16."""
    right: Counter[str] = Counter()
    count = Counter(case.kind for case in cases)
    examples = []
    for case in cases:
        example = encode([*case.chat, assistant(case.answer)], tokenizer)
        # Only the last answer counts: earlier ones are part of the prompt.
        length = len(encode(case.chat, tokenizer).token_ids)
        examples.append((case.kind, Example(example.token_ids, [0.0] * length + example.weights[length:])))
    examples.sort(key=lambda item: len(item[1].token_ids))
    for start in range(0, len(examples), BATCH_ROWS):
        part = examples[start : start + BATCH_ROWS]
        batch = collate([example for _, example in part], tokenizer.pad_token_id)
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            guesses = model(input_ids=batch.token_ids, use_cache=False).logits[:, :-1].argmax(-1)
        wrong = (guesses != batch.token_ids[:, 1:]) & (batch.weights[:, 1:] == 1.0)
        for (kind, _), is_wrong in zip(part, wrong.any(1).tolist(), strict=True):
            right[kind] += not is_wrong
    return {kind: right[kind] / count[kind] for kind in count}
