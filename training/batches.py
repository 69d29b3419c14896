"""Batches of training conversations of similar length, prepared by a background thread."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from dataclasses import dataclass
from queue import Queue

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.conversations import Example, encode, training_conversations

# Number of conversations that are grouped into batches at a time; enough that most lengths fill at least one batch.
POOL_CONVERSATIONS = 4096
LONGEST_TOKENS = 640
LENGTH_STEP_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows. No mask is needed: with causal attention, no answer can see the padding."""

    token_ids: Tensor  # [rows, length] int64
    weights: Tensor  # [rows, length] float32, the loss weight of each token as a target; 0 on padding


class BatchStream:
    """An endless stream of batches of about `batch_tokens` tokens.

    `copy_share` and `prompt_weight` can be changed at any time; changes apply from the next pool on.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
        batch_tokens: int,
        copy_share: float,
        prompt_weight: float,
    ) -> None:
        self.copy_share = copy_share
        self.prompt_weight = prompt_weight
        self._tokenizer = tokenizer
        self._seed = seed
        self._batch_tokens = batch_tokens
        self._queue: Queue[Batch] = Queue(maxsize=32)
        threading.Thread(target=self._fill, daemon=True).start()

    def next_batch(self) -> Batch:
        return self._queue.get()

    def _fill(self) -> None:
        rng = random.Random(self._seed)
        while True:
            # A new stream per pool, so that a changed share takes effect. Document seeds stay below 900 million.
            stream = training_conversations(rng.randrange(9_000), self.copy_share)
            pool = [
                encode(next(stream), self._tokenizer, self.prompt_weight) for _ in range(POOL_CONVERSATIONS)
            ]
            for rows in self._group(
                [example for example in pool if len(example.token_ids) <= LONGEST_TOKENS], rng
            ):
                self._queue.put(collate(rows, self._tokenizer.pad_token_id))

    def _group(self, pool: list[Example], rng: random.Random) -> list[list[Example]]:
        """Group examples of equal padded length into full batches; leftovers are dropped."""
        by_length: dict[int, list[Example]] = defaultdict(list)
        for example in pool:
            by_length[padded_length(example)].append(example)
        groups = []
        for length, examples in by_length.items():
            rows = self._batch_tokens // length
            groups += [examples[start : start + rows] for start in range(0, len(examples) - rows + 1, rows)]
        rng.shuffle(groups)
        return groups


def padded_length(example: Example) -> int:
    """Round the length up, so that there are few shapes: matrix libraries compile and keep a kernel per shape."""
    return -(-len(example.token_ids) // LENGTH_STEP_TOKENS) * LENGTH_STEP_TOKENS


def collate(examples: list[Example], pad_token_id: int) -> Batch:
    """Collate the examples into one batch, padded to the padded length of the longest."""
    length = max(padded_length(example) for example in examples)
    token_ids = torch.full((len(examples), length), pad_token_id)
    weights = torch.zeros(len(examples), length)
    for row, example in enumerate(examples):
        token_ids[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
        weights[row, : len(example.weights)] = torch.tensor(example.weights)
    return Batch(token_ids, weights)
