"""Draws the next token of every sampling row of a step at once. What no row asks for costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.core.terms import TokenLogprobs
from engine.kernels.cpu import sampling as cpu_sampling
from engine.runner.sampling.rows import IntArray, SamplingRows, TokenCounts
from engine.runner.streams import send

# Tensors in a transfer begin at multiples of so many bytes: what the widest load wants.
_ALIGNMENT = 16


class Drawn:
    """What a step drew. It holds whatever it needs of the rows, which may have other holders when it is collected."""

    def __init__(
        self,
        token_ids: torch.Tensor,  # [n] int64
        penalised: list[tuple[int, TokenCounts]],  # by index into n, who is told of the token
        logprobs: _Logprobs | None,
    ) -> None:
        self.token_ids = token_ids  # on the device, there when the device comes to it
        self._penalised = penalised
        self._asked = logprobs
        self._result: tuple[list[int], dict[int, TokenLogprobs]] | None = None
        words = token_ids if logprobs is None else torch.cat([token_ids, logprobs.words(token_ids)])
        # On CUDA into pinned memory, which torch gives to nobody else until the copy is done.
        self._words = words.to("cpu", non_blocking=True)
        self._done: torch.cuda.Event | None = None
        if words.is_cuda:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def collect(self) -> tuple[list[int], dict[int, TokenLogprobs]]:
        """The n tokens drawn, and by index into n the log-probabilities where asked for. Those are of the model's raw
        logits, before penalties, bias and temperature. Waits for the device."""
        if self._result is not None:
            return self._result
        if self._done is not None:
            self._done.synchronize()
        words, num_tokens = self._words.numpy(), len(self.token_ids)
        token_ids = words[:num_tokens].tolist()
        for i, counts in self._penalised:
            counts.append(token_ids[i])
        logprobs = {} if self._asked is None else self._asked.read(words[num_tokens:])
        self._result = (token_ids, logprobs)
        return self._result


class _Logprobs:
    """Log-probabilities of m rows' likeliest tokens, taken before their logits change."""

    def __init__(
        self,
        logits: torch.Tensor,  # [n, V]
        asked: npt.NDArray[np.intp],  # [m] which of the n
        where: torch.Tensor,  # [m] int64, `asked` on the device
        wanted: list[int],  # [m] how many each asks for
    ) -> None:
        self._indices, self._where, self._wanted = asked.tolist(), where, wanted
        self._raw = logits.index_select(0, where).float()
        self._norm = self._raw.logsumexp(dim=-1, keepdim=True)
        self._top = self._raw.topk(min(max(wanted), logits.shape[1]), dim=-1)

    def words(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[m + 2 m w] int64, to travel with the tokens: the bits, as float64, of the drawn tokens' log-probabilities
        and of the w likeliest, and the ids of these."""
        drawn = self._raw.gather(1, token_ids[self._where][:, None])
        values = (torch.cat([drawn, self._top.values], dim=1) - self._norm).double().view(torch.int64)
        return torch.cat([values, self._top.indices], dim=1).flatten()

    def read(self, words: npt.NDArray[np.int64]) -> dict[int, TokenLogprobs]:
        """By index into n, what `words` says once it is on the host."""
        table = words.reshape(len(self._indices), -1)
        num_values = (table.shape[1] + 1) // 2
        values = np.ascontiguousarray(table[:, :num_values]).view(np.float64).tolist()
        token_ids = table[:, num_values:].tolist()
        return {
            i: TokenLogprobs(own[0], tuple(zip(ids[:wanted], own[1:], strict=False)))
            for i, own, ids, wanted in zip(self._indices, values, token_ids, self._wanted, strict=True)
        }


class Sampler:
    """Samples by `SamplingRows`' parameters on the device that the logits are on, and never waits for it.

    Order, as transformers has it: logit_bias, penalties, min_tokens, temperature, top_k, top_p, min_p. top_k and
    top_p keep every token as likely as the last one kept, so that ties do not depend on how a sort breaks them.
    """

    def __init__(self, rows: SamplingRows, agree: Callable[[torch.Tensor], None] | None = None) -> None:
        """`agree`, where several ranks compute together, makes the drawn ids [n] those of the first, in place."""
        self._rows = rows
        self._agree = agree

    def needs_host_tokens(self, rows: IntArray) -> bool:
        """Whether to draw for these rows (slot-table rows [n]), all their earlier draws must have been collected."""
        return bool(self._rows.is_penalised[rows].any())

    @torch.inference_mode()
    def draw(
        self,
        logits: torch.Tensor,  # [n, V], may be changed
        rows: IntArray,  # [n] slot-table rows
        num_outputs: IntArray,  # [n] output tokens each has so far, those not yet collected among them
    ) -> Drawn:
        """Launches the draw; one transfer to the device where some row needs its numbers there."""
        table = self._rows
        parts, numbers = self._gather(rows, num_outputs, logits.shape[1])
        asked = np.flatnonzero(table.num_logprobs[rows] >= 0)
        if len(asked):
            parts["asked"] = asked
        if numbers is not None and logits.is_cuda:
            parts["numbers"] = numbers
        sent = _send_together(parts, logits.device)
        logprobs = None
        if len(asked):
            logprobs = _Logprobs(logits, asked, sent["asked"], table.num_logprobs[rows[asked]].tolist())
        logits = _change(logits, sent)
        if numbers is None:
            token_ids = logits.argmax(dim=-1)
        elif logits.is_cuda:
            from engine.kernels.triton import sampling as triton_sampling  # triton is not everywhere

            token_ids = triton_sampling.draw(logits, sent["numbers"])
        else:
            token_ids = cpu_sampling.draw(logits, numbers)
        if self._agree is not None:
            self._agree(token_ids)
        penalised = [
            (i, table.token_counts(int(rows[i]))) for i in np.flatnonzero(table.is_penalised[rows]).tolist()
        ]
        return Drawn(token_ids, penalised, logprobs)

    def _gather(
        self, rows: IntArray, num_outputs: IntArray, vocab_size: int
    ) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.float64] | None]:
        """What the rows ask for as arrays: changes of logits, and the numbers to draw by (None: all are greedy)."""
        table, parts = self._rows, dict[str, npt.NDArray[Any]]()
        if table.is_biased[rows].any() and (bias := table.biases(rows)):
            parts["biased"], parts["bias"] = bias.positions(vocab_size), bias.values
        if penalties := table.penalties(rows):
            parts["penalised"] = penalties.positions(vocab_size)
            parts["repetition"], parts["subtract"] = penalties.repetition, penalties.subtract
        if (num_outputs < table.min_tokens[rows]).any() and (barred := table.barred(rows, num_outputs)):
            parts["barred"] = barred.positions(vocab_size)
        is_greedy = not table.temperature[rows].any()
        return parts, None if is_greedy else table.numbers(rows, num_outputs)


def _change(
    logits: torch.Tensor,  # [n, V]
    sent: Mapping[str, torch.Tensor],  # `Sampler._gather`'s arrays
) -> torch.Tensor:  # [n, V]
    """Bias, penalties and min_tokens: changes to a few logits of the rows that have them."""
    if not sent.keys() & {"biased", "penalised", "barred"}:
        return logits
    logits = logits.float().contiguous()
    flat = logits.view(-1)
    if "biased" in sent:
        flat.index_add_(0, sent["biased"], sent["bias"])
    if "penalised" in sent:
        values, repetition = flat[sent["penalised"]], sent["repetition"]
        values = torch.where(values > 0, values / repetition, values * repetition)
        flat.index_copy_(0, sent["penalised"], values - sent["subtract"])
    if "barred" in sent:
        flat.index_fill_(0, sent["barred"], -torch.inf)
    return logits


def _send_together(parts: Mapping[str, npt.NDArray[Any]], device: torch.device) -> dict[str, torch.Tensor]:
    """The arrays on the device, in one transfer that nothing waits for."""
    if device.type == "cpu" or not parts:
        return {name: torch.from_numpy(part) for name, part in parts.items()}
    offsets, total = [], 0
    for part in parts.values():
        offsets.append(total)
        total += -(-part.nbytes // _ALIGNMENT) * _ALIGNMENT
    # Torch keeps pinned memory for the next step once the copy out of it is done, and no sooner.
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
