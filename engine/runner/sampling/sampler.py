"""Draws the next token of every sampling row of a step at once. Options that no row uses cost nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.core.terms import TokenLogprobs
from engine.kernels.cpu import masks as cpu_masks
from engine.kernels.cpu import sampling as cpu_sampling
from engine.runner.sampling.grammars import Masks
from engine.runner.sampling.table import IntArray, SamplingTable, TokenCounts
from engine.runner.streams import send

# The tensors of one transfer begin at multiples of this many bytes, which suits the widest load.
_ALIGNMENT = 16


class PendingDraw:
    """Tokens that the device draws, to be collected later.

    It keeps everything it needs of the rows, which other requests may hold by the time it is collected.
    """

    def __init__(
        self,
        token_ids: torch.Tensor,  # [n] int64
        penalized: list[tuple[int, TokenCounts]],  # index into n, and the counts to which its token is added
        logprobs: _Logprobs | None,
    ) -> None:
        self.token_ids = token_ids  # on the device, which may not have computed them yet
        self._penalized = penalized
        self._logprobs = logprobs
        self._result: tuple[list[int], dict[int, TokenLogprobs]] | None = None
        words = token_ids if logprobs is None else torch.cat([token_ids, logprobs.words(token_ids)])
        # On CUDA this goes to pinned memory, which torch does not reuse until the copy is done.
        self._words = words.to("cpu", non_blocking=True)
        self._done: torch.cuda.Event | None = None
        if words.is_cuda:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    @property
    def uncounted(self) -> list[TokenCounts]:
        """The counts to which a token will be added when it is collected."""
        return [counts for _, counts in self._penalized] if self._result is None else []

    def collect(self) -> tuple[list[int], dict[int, TokenLogprobs]]:
        """Waits for the device, and returns the n tokens and, by index into n, the log-probabilities that were
        requested. These are of the model's raw logits, before penalties, bias and temperature, but of the tokens only
        that a grammar allows."""
        if self._result is not None:
            return self._result
        if self._done is not None:
            self._done.synchronize()
        words, num_tokens = self._words.numpy(), len(self.token_ids)
        token_ids = words[:num_tokens].tolist()
        for i, counts in self._penalized:
            counts.append(token_ids[i])
        logprobs = {} if self._logprobs is None else self._logprobs.read(words[num_tokens:])
        self._result = (token_ids, logprobs)
        return self._result


class _Logprobs:
    """The log-probabilities that m rows request, computed before their logits change."""

    def __init__(
        self,
        logits: torch.Tensor,  # [n, V]
        index: npt.NDArray[np.intp],  # [m] indices into n
        index_on_device: torch.Tensor,  # [m] int64
        counts: list[int],  # [m] how many of its likeliest tokens each row requests
    ) -> None:
        self._index, self._index_on_device, self._counts = index.tolist(), index_on_device, counts
        self._raw = logits.index_select(0, index_on_device).float()
        self._norm = self._raw.logsumexp(dim=-1, keepdim=True)
        self._top = self._raw.topk(min(max(counts), logits.shape[1]), dim=-1)

    def words(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[m + 2 m w] int64, to be copied together with the tokens: the log-probabilities of the drawn tokens and of
        the w likeliest ones, as the bits of float64, and the ids of the latter."""
        drawn = self._raw.gather(1, token_ids[self._index_on_device][:, None])
        values = (torch.cat([drawn, self._top.values], dim=1) - self._norm).double().view(torch.int64)
        return torch.cat([values, self._top.indices], dim=1).flatten()

    def read(self, words: npt.NDArray[np.int64]) -> dict[int, TokenLogprobs]:
        """Decodes `words` on the host, by index into n."""
        table = words.reshape(len(self._index), -1)
        num_values = (table.shape[1] + 1) // 2
        values = np.ascontiguousarray(table[:, :num_values]).view(np.float64).tolist()
        token_ids = table[:, num_values:].tolist()
        return {
            i: TokenLogprobs(own[0], _possible(ids[:count], own[1:]))
            for i, own, ids, count in zip(self._index, values, token_ids, self._counts, strict=True)
        }


def _possible(token_ids: list[int], values: list[float]) -> tuple[tuple[int, float], ...]:
    """The tokens with their log-probabilities, without those that cannot be drawn."""
    return tuple(pair for pair in zip(token_ids, values, strict=False) if pair[1] > -math.inf)


@dataclass(frozen=True, slots=True)
class EarlierDraws:
    """What the previous step drew and the host may not know: at most one token of each row."""

    draws: Sequence[PendingDraw]
    drawn: torch.Tensor  # [max_rows] int64, on the device: the token that each slot-table row drew last

    def uncounted(self) -> set[TokenCounts]:
        return {counts for draw in self.draws for counts in draw.uncounted}


class Sampler:
    """Samples on the device of the logits, with the parameters of a `SamplingTable`, and never waits for the device.

    A grammar's mask comes first, and log-probabilities are those of what it allows. Then the order is that of
    transformers: logit_bias, penalties, min_tokens, temperature, top_k, top_p, min_p. top_k and
    top_p keep every token that is as likely as the last one kept, so that ties do not depend on the sort.
    """

    def __init__(self, table: SamplingTable, broadcast: Callable[[torch.Tensor], None] | None = None) -> None:
        """`broadcast`, if several ranks compute together, replaces the drawn ids [n] by those of rank 0, in place."""
        self._table = table
        self._broadcast = broadcast

    @torch.inference_mode()
    def draw(
        self,
        logits: torch.Tensor,  # [n, V], may be overwritten
        rows: IntArray,  # [n] slot-table rows
        num_outputs: IntArray,  # [n] output tokens that each has, including those not yet collected
        masks: Masks | None = None,  # of the rows that have a grammar
        earlier: EarlierDraws | None = None,  # if not all earlier tokens have been collected
    ) -> PendingDraw:
        """Launches the draw, after at most one transfer to the device. Waits for `masks` first."""
        table = self._table
        parts, parameters = self._gather(rows, num_outputs, logits.shape[1], earlier)
        with_logprobs = np.flatnonzero(table.num_logprobs[rows] >= 0)
        if len(with_logprobs):
            parts["with_logprobs"] = with_logprobs
        if parameters is not None and logits.is_cuda:
            parts["parameters"] = parameters
        if masks is not None:
            parts["masked"], parts["words"] = masks.index, masks.words()
        sent = _send_together(parts, logits.device)
        if masks is not None:
            _apply_masks(logits, sent["masked"], sent["words"])
        logprobs = None
        if len(with_logprobs):
            counts = table.num_logprobs[rows[with_logprobs]].tolist()
            logprobs = _Logprobs(logits, with_logprobs, sent["with_logprobs"], counts)
        logits = _change(logits, sent, earlier)
        if parameters is None:
            token_ids = cpu_sampling.likeliest(logits) if logits.is_cpu else logits.argmax(dim=-1)
        elif logits.is_cuda:
            # Imported here because Triton is not installed everywhere.
            from engine.kernels.triton import sampling as triton_sampling

            token_ids = triton_sampling.draw(logits, sent["parameters"])
        else:
            token_ids = cpu_sampling.draw(logits, parameters)
        if self._broadcast is not None:
            self._broadcast(token_ids)
        penalized = [
            (i, table.token_counts(int(rows[i]))) for i in np.flatnonzero(table.is_penalized[rows]).tolist()
        ]
        return PendingDraw(token_ids, penalized, logprobs)

    def _gather(
        self, rows: IntArray, num_outputs: IntArray, vocab_size: int, earlier: EarlierDraws | None
    ) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.float64] | None]:
        """The changes to the logits as arrays, and the parameters of the draw (None: all rows are greedy)."""
        table, parts = self._table, dict[str, npt.NDArray[Any]]()
        if table.is_biased[rows].any() and (bias := table.biases(rows)):
            parts["biased"], parts["bias"] = bias.positions(vocab_size), bias.values
        if penalties := table.penalties(rows, set if earlier is None else earlier.uncounted):
            parts["penalized"] = penalties.positions(vocab_size)
            parts["repetition"], parts["subtract"] = penalties.repetition, penalties.subtract
            if late := penalties.late:
                parts["late"], parts["late_rows"] = late.index, late.rows
                parts["late_repetition"], parts["late_subtract"] = late.repetition, late.subtract
                parts["late_owner"], parts["late_added"] = late.owner, late.added
        if (num_outputs < table.min_tokens[rows]).any() and (banned := table.banned(rows, num_outputs)):
            parts["banned"] = banned.positions(vocab_size)
        is_greedy = not table.temperature[rows].any()
        return parts, None if is_greedy else table.draw_parameters(rows, num_outputs)


def _apply_masks(
    logits: torch.Tensor,  # [n, V], changed
    rows: torch.Tensor,  # [m] indices into n
    words: torch.Tensor,  # [m, W]
) -> None:
    if logits.is_cuda:
        # Imported here because Triton is not installed everywhere.
        from engine.kernels.triton import masks as triton_masks

        triton_masks.apply_masks(logits, rows, words)
    else:
        cpu_masks.apply_masks(logits, rows, words)


def _change(
    logits: torch.Tensor,  # [n, V]
    sent: Mapping[str, torch.Tensor],  # the arrays of `Sampler._gather`
    earlier: EarlierDraws | None,
) -> torch.Tensor:  # [n, V]
    """Applies bias, penalties and min_tokens to the few logits that they concern."""
    if not sent.keys() & {"biased", "penalized", "banned"}:
        return logits
    logits = logits.float().contiguous()
    flat = logits.view(-1)
    if "biased" in sent:
        flat.index_add_(0, sent["biased"], sent["bias"])
    if "late" in sent and earlier is not None:
        drawn = earlier.drawn[sent["late_rows"]]
        _penalize_late(flat, sent, sent["late"] * logits.shape[1] + drawn)
    elif "penalized" in sent:
        at = sent["penalized"]
        flat.index_copy_(0, at, _penalized(flat[at], sent["repetition"], sent["subtract"]))
    if "banned" in sent:
        flat.index_fill_(0, sent["banned"], -torch.inf)
    return logits


def _penalized(values: torch.Tensor, repetition: torch.Tensor, subtract: torch.Tensor) -> torch.Tensor:
    return torch.where(values > 0, values / repetition, values * repetition) - subtract


def _penalize_late(
    flat: torch.Tensor,  # [n V], changed
    sent: Mapping[str, torch.Tensor],  # `Penalties` of E entries and `LatePenalties` of p rows
    late_at: torch.Tensor,  # [p] where the logits of their last tokens are
) -> None:
    """Applies penalties that include the last token of rows whose host does not know it.

    That token is one of the row's entries, which then counts it once more, or it has none.
    """
    at, owner = sent["penalized"], sent["late_owner"]
    late_values = _penalized(flat[late_at], sent["late_repetition"], sent["late_subtract"])
    is_late = torch.cat([late_at, late_at.new_full((1,), -1)])[owner] == at  # [E]
    subtract = sent["subtract"] + sent["late_added"] * is_late
    flat.index_copy_(0, at, _penalized(flat[at], sent["repetition"], subtract))
    num_entries = flat.new_zeros(len(late_at) + 1).index_add_(0, owner, is_late.to(flat.dtype))[
        :-1
    ]  # [p] 0 or 1
    flat.index_copy_(0, late_at, torch.where(num_entries > 0, flat[late_at], late_values))


def _send_together(parts: Mapping[str, npt.NDArray[Any]], device: torch.device) -> dict[str, torch.Tensor]:
    """Sends the arrays to the device in one asynchronous transfer."""
    if device.type == "cpu" or not parts:
        return {name: torch.from_numpy(part) for name, part in parts.items()}
    offsets, total = [], 0
    for part in parts.values():
        offsets.append(total)
        total += -(-part.nbytes // _ALIGNMENT) * _ALIGNMENT
    # torch reuses this pinned memory for a later step, but not before the copy out of it is done.
    staging = torch.empty(total, dtype=torch.uint8, pin_memory=device.type == "cuda")
    host = staging.numpy()
    for offset, part in zip(offsets, parts.values(), strict=True):
        host[offset : offset + part.nbytes] = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
    sent = send(staging, device)
    tensors = {}
    for offset, (name, part) in zip(offsets, parts.items(), strict=True):
        dtype = torch.from_numpy(part).dtype
        tensors[name] = sent[offset : offset + part.nbytes].view(dtype).view(part.shape)
    return tensors
