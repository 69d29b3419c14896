"""Draws the next token of every sampling row of a step at once. What no row asks for costs nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from engine.core.types import TokenLogprobs
from engine.runner.sampling_rows import IntArray, SamplingRows

# How many of the likeliest tokens are looked at first for top_p: enough for most rows, and far from a sort of them all.
_CANDIDATES = 256


class Sampler:
    """Samples by `SamplingRows`' parameters on the device that the logits are on.

    Order, as transformers has it: logit_bias, penalties, min_tokens, temperature, top_k, top_p, min_p. top_k and
    top_p keep every token as likely as the last one kept, so that ties do not depend on how a sort breaks them.
    """

    def __init__(self, rows: SamplingRows) -> None:
        self._rows = rows

    @torch.inference_mode()
    def draw(
        self,
        logits: torch.Tensor,  # [n, V], may be changed
        rows: IntArray,  # [n] slot-table rows
        num_outputs: IntArray,  # [n] output tokens each has so far
    ) -> tuple[list[int], dict[int, TokenLogprobs]]:
        """The n tokens drawn, and by index into n the log-probabilities where asked for. Those are of the model's raw
        logits, before penalties, bias and temperature."""
        table = self._rows
        asked = np.flatnonzero(table.num_logprobs[rows] >= 0)
        raw = logits[torch.from_numpy(asked).to(logits.device)].float() if len(asked) else None
        logits = self._adjust(logits, rows, num_outputs)
        tokens = self._choose(logits, rows, num_outputs)
        token_ids = tokens.tolist()
        for i in np.flatnonzero(table.is_penalised[rows]).tolist():
            table.append(int(rows[i]), token_ids[i])
        if raw is None:
            return token_ids, {}
        return token_ids, self._logprobs(raw, asked, [token_ids[i] for i in asked], rows)

    def _adjust(self, logits: torch.Tensor, rows: IntArray, num_outputs: IntArray) -> torch.Tensor:
        """Bias, penalties and min_tokens: changes to a few logits of the rows that have them."""
        table = self._rows
        is_biased, is_penalised = table.is_biased[rows].any(), table.is_penalised[rows].any()
        is_barred = (num_outputs < table.min_tokens[rows]).any()
        if not (is_biased or is_penalised or is_barred):
            return logits
        logits = logits.float()
        device = logits.device
        if is_biased and (bias := table.biases(rows)):
            where = (torch.from_numpy(bias.index).to(device), torch.from_numpy(bias.token_ids).to(device))
            logits[where] += torch.from_numpy(bias.values).to(device)
        if is_penalised:
            self._penalise(logits, rows)
        if is_barred and (barred := table.barred(rows, num_outputs)):
            where = (torch.from_numpy(barred.index).to(device), torch.from_numpy(barred.token_ids).to(device))
            logits[where] = torch.from_numpy(barred.values).to(device)
        return logits

    def _penalise(self, logits: torch.Tensor, rows: IntArray) -> None:
        table = self._rows
        picked = np.flatnonzero(table.is_penalised[rows])
        counts = [table.token_counts(int(row)) for row in rows[picked]]
        lengths = [len(count.token_ids) for count in counts]
        index = np.repeat(picked, lengths)
        output_counts = np.concatenate([count.output_counts for count in counts])
        owners = rows[index]
        subtract = table.frequency[owners] * output_counts + table.presence[owners] * (output_counts > 0)
        device = logits.device
        token_ids = torch.from_numpy(np.concatenate([count.token_ids for count in counts])).to(device)
        where = (torch.from_numpy(index).to(device), token_ids)
        repetition = torch.from_numpy(table.repetition[owners]).to(device)
        values = logits[where]
        values = torch.where(values > 0, values / repetition, values * repetition)
        logits[where] = values - torch.from_numpy(subtract).to(device)

    def _choose(
        self, logits: torch.Tensor, rows: IntArray, num_outputs: IntArray
    ) -> torch.Tensor:  # [n] int64
        is_random = self._rows.temperature[rows] > 0
        if not is_random.any():
            return logits.argmax(dim=-1)
        if is_random.all():
            return self._draw_random(logits.float(), rows, num_outputs)
        picked = np.flatnonzero(is_random)
        where = torch.from_numpy(picked).to(logits.device)
        tokens = logits.argmax(dim=-1)
        tokens[where] = self._draw_random(logits[where].float(), rows[picked], num_outputs[picked])
        return tokens

    def _draw_random(self, logits: torch.Tensor, rows: IntArray, num_outputs: IntArray) -> torch.Tensor:
        """Inverse CDF in the order of the vocabulary, with one uniform number a row."""
        table, device = self._rows, logits.device
        # The likeliest token at 0: nothing overflows, however low the temperature, and min_p is a threshold.
        logits = logits - logits.amax(dim=-1, keepdim=True)
        temperature = table.temperature[rows]
        if (temperature != 1).any():
            logits = logits / torch.from_numpy(temperature).to(device)[:, None]
        threshold = self._threshold(logits, rows)
        if threshold is not None:
            logits = logits.masked_fill(logits < threshold[:, None], -torch.inf)
        cumulative = logits.exp().cumsum(dim=-1, dtype=torch.float64)
        uniform = torch.from_numpy(table.uniforms(rows, num_outputs)).to(device)
        target = uniform * cumulative[:, -1]
        # The first token whose cumulative weight exceeds the target; one of weight 0 never does so first.
        tokens = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
        return tokens.clamp_(max=logits.shape[1] - 1)

    def _threshold(self, logits: torch.Tensor, rows: IntArray) -> torch.Tensor | None:
        """[n] the least scaled logit each row may draw, or None where no row limits them."""
        table, device = self._rows, logits.device
        threshold = None
        min_p = table.min_p[rows]
        if (min_p > 0).any():
            with np.errstate(divide="ignore"):
                threshold = torch.from_numpy(np.log(min_p)).to(device)
        vocab_size = logits.shape[1]
        top_k, top_p = table.top_k[rows], table.top_p[rows]
        top_k = np.where((top_k == 0) | (top_k > vocab_size), vocab_size, top_k)
        picked = np.flatnonzero((top_k < vocab_size) | (top_p < 1))
        if not len(picked):
            return threshold
        if len(picked) == len(rows):
            limit = top_k_top_p_threshold(logits, top_k, top_p)
        else:
            where = torch.from_numpy(picked).to(device)
            limit = torch.full((len(rows),), -torch.inf, device=device)
            limit[where] = top_k_top_p_threshold(logits[where], top_k[picked], top_p[picked])
        return limit if threshold is None else torch.maximum(threshold, limit)

    def _logprobs(
        self, raw: torch.Tensor, asked: npt.NDArray[np.intp], token_ids: list[int], rows: IntArray
    ) -> dict[int, TokenLogprobs]:
        """`raw` [m, V] float32 are the logits of the rows at `asked`, `token_ids` [m] what they drew."""
        wanted = self._rows.num_logprobs[rows[asked]].tolist()
        logprobs = raw.log_softmax(dim=-1)
        drawn = logprobs.gather(1, torch.tensor(token_ids, device=raw.device)[:, None])[:, 0].tolist()
        top = logprobs.topk(min(max(wanted), raw.shape[1]), dim=-1)
        values, ids = top.values.tolist(), top.indices.tolist()
        return {
            int(i): TokenLogprobs(drawn[j], tuple(zip(ids[j][: wanted[j]], values[j], strict=False)))
            for j, i in enumerate(asked)
        }


def top_k_top_p_threshold(
    logits: torch.Tensor,  # [n, V] float32, scaled, at most 0
    top_k: IntArray,  # [n], V: off
    top_p: npt.NDArray[np.float64],  # [n], 1: off
    num_candidates: int = _CANDIDATES,
) -> torch.Tensor:  # [n]
    """The least logit that top_k, and then top_p over what it leaves, keep in each row.

    Looks at a row's `num_candidates` likeliest tokens, and at more of them only for the rows where those do not
    reach top_p. The threshold does not depend on how many that were, nor on the other rows.
    """
    vocab_size, device = logits.shape[1], logits.device
    limited_k = top_k[top_k < vocab_size]
    num_candidates = min(max(num_candidates if (top_p < 1).any() else 1, *limited_k, 1), vocab_size)
    values = logits.topk(num_candidates, dim=-1).values  # [n, c], descending
    k = torch.from_numpy(np.minimum(top_k, num_candidates)).to(device)
    threshold = values.gather(1, k[:, None] - 1)[:, 0]
    threshold = threshold.masked_fill(torch.from_numpy(top_k == vocab_size).to(device), -torch.inf)
    if not (top_p < 1).any():
        return threshold
    kept = logits.masked_fill(logits < threshold[:, None], -torch.inf)
    p = torch.from_numpy(top_p).to(device)
    needed = p * kept.exp().sum(dim=-1, dtype=torch.float64)
    candidates = values.masked_fill(values < threshold[:, None], -torch.inf)
    cumulative = candidates.exp().cumsum(dim=-1, dtype=torch.float64)
    cut = (cumulative < needed[:, None]).sum(dim=-1)  # index of the token that reaches top_p
    nucleus = values.gather(1, cut.clamp(max=num_candidates - 1)[:, None])[:, 0]
    threshold = torch.maximum(threshold, nucleus.masked_fill(p >= 1, -torch.inf))
    short = torch.nonzero((cut >= num_candidates) & (p < 1))[:, 0]
    if num_candidates < vocab_size and len(short):
        i = short.cpu().numpy()
        threshold[short] = top_k_top_p_threshold(logits[short], top_k[i], top_p[i], 16 * num_candidates)
    return threshold
