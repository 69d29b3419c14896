"""Reads what requests ask about their prompts from the hidden states of a step: scores, log-probabilities, embeddings.

Logits of every position of a long chunk would take gigabytes, so they are computed in slices, and only what was asked
for is kept of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from engine.core.plan import RowStart
from engine.core.reading import RowReading
from engine.runner.step_arrays import Int64Array, Reading
from engine.runner.streams import send

SLICE_BYTES = 64 * 1024 * 1024  # of float32 logits

Logits = Callable[[torch.Tensor], torch.Tensor]  # from hidden states [n, H] to logits [n, V]


class PendingReadings:
    """What the device reads for some rows of a plan, to be collected later."""

    def __init__(self, index: list[int]) -> None:
        self.index = index  # of the rows in the plan
        self._values: dict[str, torch.Tensor] = {}
        self._logprob_counts: list[
            tuple[int, int, int]
        ] = []  # plan's row, number of positions, number of tokens each
        self._score_counts: list[tuple[int, int]] = []  # plan's row, number of tokens
        self._vectors: list[int] = []  # plan's row
        self._done: torch.cuda.Event | None = None

    def collect(self) -> dict[int, RowReading]:
        """Waits for the device, and returns what it read, by row of the plan."""
        if self._done is not None:
            self._done.synchronize()
        readings = {i: RowReading() for i in self.index}
        values = {name: tensor.numpy() for name, tensor in self._values.items()}
        first = 0
        for i, num_positions, count in self._logprob_counts:
            part = slice(first, first + num_positions)
            likeliest, ids = values["likeliest"][part, :count], values["likeliest_ids"][part, :count]
            rows = np.empty((num_positions, 1 + 2 * likeliest.shape[1]), dtype="<f4")
            rows[:, 0], rows[:, 2::2] = values["own"][part], likeliest
            rows.view("<i4")[:, 1::2] = ids
            readings[i].logprobs = [rows.tobytes()]
            first += num_positions
        for row, (i, count) in enumerate(self._score_counts):
            readings[i].scores = tuple(values["scores"][row, :count].tolist())
        for row, i in enumerate(self._vectors):
            readings[i].hidden = [values["vectors"][row].astype("<f4").tobytes()]
        return readings

    def _send(self, tensors: dict[str, torch.Tensor]) -> None:
        # On CUDA this goes to pinned memory, which torch does not reuse until the copies are done.
        self._values = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()


@dataclass(frozen=True, slots=True)
class _Positions:
    """Positions whose logits are wanted: indices into the hidden states, and the tokens whose log-probabilities are
    wanted at each, padded with token 0."""

    index: Int64Array  # [n]
    token_ids: Int64Array  # [n, k]


class PromptReader:
    """Knows what the requests in slot-table rows ask about their prompts."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._starts: dict[int, RowStart] = {}
        self._prompts: dict[
            int, Int64Array
        ] = {}  # of the rows that ask for log-probabilities of their prompts

    def start(self, start: RowStart) -> None:
        """Row `start.row` is this request's from now on. Raises ValueError if it asks for a token that does not
        exist."""
        row, sampling = start.row, start.sampling
        self._starts.pop(row, None)
        self._prompts.pop(row, None)
        if not sampling.asks_about_prompt:
            return
        for token_id in sampling.score_token_ids:
            if not 0 <= token_id < self._vocab_size:
                raise ValueError(
                    f"score_token_ids names {token_id}, outside of the model's vocabulary of {self._vocab_size}"
                )
        self._starts[row] = start
        if sampling.prompt_logprobs is not None:
            self._prompts[row] = np.array(start.token_ids[: start.num_prompt_tokens])

    @torch.inference_mode()
    def read(self, hidden: torch.Tensor, readings: list[Reading], logits: Logits) -> PendingReadings:
        """Launches the reading of `hidden` [n, H], the hidden states at the positions of `readings` one after another.
        Calls `logits` for slices of them."""
        pending = PendingReadings([reading.index for reading in readings])
        device = hidden.device
        following: list[_Positions] = []
        scored: list[tuple[int, tuple[int, ...]]] = []
        vectors: list[torch.Tensor] = []
        offset, most_likeliest = 0, 0
        for reading in readings:
            start = self._starts[reading.row]
            sampling = start.sampling
            end = offset + reading.end - reading.first
            reads_last = reading.end == start.num_prompt_tokens
            if sampling.prompt_logprobs is not None:
                targets = self._prompts[reading.row][reading.first + 1 : reading.end + 1]
                following.append(_Positions(np.arange(offset, offset + len(targets)), targets[:, None]))
                pending._logprob_counts.append((reading.index, len(targets), sampling.prompt_logprobs))
                most_likeliest = max(most_likeliest, sampling.prompt_logprobs)
            if sampling.score_token_ids and reads_last:
                scored.append((end - 1, sampling.score_token_ids))
                pending._score_counts.append((reading.index, len(sampling.score_token_ids)))
            if sampling.pooling == "mean":
                vectors.append(hidden[offset:end].float().sum(0))
            elif sampling.pooling == "last" and reads_last:
                vectors.append(hidden[end - 1].float())
            if sampling.pooling == "mean" or (sampling.pooling == "last" and reads_last):
                pending._vectors.append(reading.index)
            offset = end
        found: dict[str, torch.Tensor] = {}
        if following:
            own, found["likeliest"], found["likeliest_ids"] = self._logprobs(
                hidden, _joined(following), logits, min(most_likeliest, self._vocab_size), device
            )
            found["own"] = own[:, 0]
        if scored:
            found["scores"], _, _ = self._logprobs(hidden, _scored_positions(scored), logits, 0, device)
        if vectors:
            found["vectors"] = torch.stack(vectors)
        pending._send(found)
        return pending

    def _logprobs(
        self,
        hidden: torch.Tensor,  # [.., H]
        positions: _Positions,  # n of them with k tokens each
        logits: Logits,
        num_likeliest: int,
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [n, k], and values and ids [n, num_likeliest]
        """The log-probabilities in float32 of the positions' own tokens and of the likeliest ones."""
        index = send(torch.from_numpy(positions.index), device)
        token_ids = send(torch.from_numpy(positions.token_ids), device)
        size = max(1, SLICE_BYTES // (4 * self._vocab_size))
        parts = []
        for first in range(0, len(index), size):
            part = slice(first, first + size)
            raw = logits(hidden[index[part]]).float()
            norm = raw.logsumexp(dim=-1, keepdim=True)
            asked = raw.gather(1, token_ids[part]) - norm
            if num_likeliest:
                likeliest = raw.topk(num_likeliest, dim=-1)
                parts.append((asked, likeliest.values - norm, likeliest.indices))
            else:
                parts.append((asked, norm[:, :0], token_ids[part, :0]))
        if not parts:  # the only position is the last, whose next token is not part of the prompt
            nothing = torch.empty((0, num_likeliest), device=device)
            return torch.empty((0, 1), device=device), nothing, nothing.long()
        own, values, ids = zip(*parts, strict=True)
        return torch.cat(own), torch.cat(values), torch.cat(ids)


def _joined(positions: list[_Positions]) -> _Positions:
    """All positions as one."""
    return _Positions(
        np.concatenate([each.index for each in positions]),
        np.concatenate([each.token_ids for each in positions]),
    )


def _scored_positions(scored: list[tuple[int, tuple[int, ...]]]) -> _Positions:
    """Positions with their tokens, of which not all need have equally many."""
    width = max(len(token_ids) for _, token_ids in scored)
    padded = [[*token_ids, *[0] * (width - len(token_ids))] for _, token_ids in scored]
    return _Positions(np.array([index for index, _ in scored]), np.array(padded))
