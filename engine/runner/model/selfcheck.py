"""The check at load that a model computes the same through our attention as through its own."""

from __future__ import annotations

import torch

from engine.kernels.dispatch import attention_op
from engine.kernels.layout import StepLayout
from engine.runner.kv.memory import allocate_kv
from engine.runner.model.attention import IMPLEMENTATION, PackedStep
from engine.runner.model.causal_lm import CausalLM
from engine.runner.model.linear_fp8 import Fp8Linear

# Two sequences, and how their tokens are split among steps: chunks and single tokens, packed in both orders.
_LENGTHS = (24, 11)
_STEPS = (((0, 9), (1, 6)), ((1, 1), (0, 10)), ((0, 1), (1, 1)), ((0, 1), (1, 3)), ((0, 3),))
# The largest error of a position's logits, relative to their spread, that rounding explains. A wrong context changes
# logits by about as much as they spread. In 16 bits the median over positions counts, since a router may choose another
# expert at one of them.
_TOLERANCE = {torch.float32: 5e-3, torch.float16: 0.1, torch.bfloat16: 0.3}


def own_logits(loaded: CausalLM) -> list[torch.Tensor]:
    """Logits [n, V] float32 of two short sequences by the model's own eager attention, each sequence by itself."""
    model = loaded.model
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            return [
                model(
                    input_ids=tokens[None],
                    position_ids=torch.arange(len(tokens), device=tokens.device)[None],
                    use_cache=False,
                )
                .logits[0]
                .float()
                for tokens in _sequences(loaded)
            ]
    finally:
        model.set_attn_implementation(IMPLEMENTATION)


def check_packed(loaded: CausalLM, expected: list[torch.Tensor]) -> None:
    """Computes the same sequences in packed steps with scattered slots, and compares every position with `own_logits`.

    Raises ValueError with the reason if they differ.
    """
    computed = _packed_logits(loaded, _sequences(loaded))
    errors = []
    for ours, theirs in zip(computed, expected, strict=True):
        spread = theirs.std(dim=-1).clamp_min(1e-6)
        errors.append((ours - theirs).abs().amax(dim=-1) / spread)
    per_position = torch.cat(errors)
    rounding = _rounding_of(loaded)
    error = per_position.max() if rounding is torch.float32 else per_position.median()
    if not error <= _TOLERANCE[rounding]:
        raise ValueError(
            f"through the engine's attention its logits differ from its own by {error:.2g} of their spread (it "
            "keeps state between tokens, or its attention has a feature that the engine lacks)"
        )


def check_hidden(loaded: CausalLM, expected: list[torch.Tensor]) -> None:
    """Computes the last of the sequences in one step, first its hidden states and then their logits, and compares them
    with `own_logits`. Raises ValueError if they differ."""
    tokens, logits = _sequences(loaded)[-1], expected[-1]
    positions = torch.arange(len(tokens), device=loaded.device)
    caches = allocate_kv(loaded.layers, len(tokens), loaded.dtype, loaded.device)
    layout = StepLayout.build(positions[None].int(), positions, (0,), (0,), (len(tokens),))
    packed = PackedStep(layout, caches, attention_op(loaded.device))
    computed = loaded.logits(loaded.hidden(tokens, positions, packed, positions)).float()
    error = ((computed - logits).abs().amax(dim=-1) / logits.std(dim=-1).clamp_min(1e-6)).median()
    if not error <= _TOLERANCE[_rounding_of(loaded)]:
        raise ValueError(
            f"its head computes other logits from its hidden states, by {error:.2g} of their spread"
        )


def _rounding_of(loaded: CausalLM) -> torch.dtype:
    """The dtype whose tolerance applies. In fp8, a difference in the last bit of an input can become one of 6%."""
    is_fp8 = any(isinstance(module, Fp8Linear) for module in loaded.model.modules())
    return torch.bfloat16 if is_fp8 else loaded.dtype


def _packed_logits(loaded: CausalLM, sequences: list[torch.Tensor]) -> list[torch.Tensor]:
    device = loaded.device
    longest = max(len(tokens) for tokens in sequences)
    num_slots = 2 * longest
    caches = allocate_kv(loaded.layers, num_slots, loaded.dtype, device)
    # Row 0 has the even slots in ascending order, row 1 the odd ones in descending order.
    even = torch.arange(0, num_slots, 2, dtype=torch.int32, device=device)
    slot_table = torch.stack([even, even.flip(0) + 1])
    done = [0] * len(sequences)
    logits: list[list[torch.Tensor]] = [[] for _ in sequences]
    for step in _STEPS:
        parts = [(row, done[row], min(count, len(sequences[row]) - done[row])) for row, count in step]
        parts = [part for part in parts if part[2] > 0]
        if not parts:
            continue
        rows, starts, counts = zip(*parts, strict=True)
        token_ids = torch.cat([sequences[row][start : start + count] for row, start, count in parts])
        slots = torch.cat([slot_table[row, start : start + count] for row, start, count in parts]).long()
        positions = torch.cat([torch.arange(start, start + count) for _, start, count in parts]).to(device)
        packed = PackedStep(
            StepLayout.build(slot_table, slots, rows, starts, counts), caches, attention_op(device)
        )
        everywhere = torch.arange(len(token_ids), device=device)
        out = loaded.forward(token_ids, positions, packed, everywhere).float().clone()
        for (row, _, count), part in zip(parts, torch.split(out, list(counts)), strict=True):
            logits[row].append(part)
            done[row] += count
    return [torch.cat(parts) for parts in logits]


def _sequences(loaded: CausalLM) -> list[torch.Tensor]:
    """Random token ids [n], the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(loaded.vocab_size, (length,), generator=generator) for length in _LENGTHS]
    return [tokens[: loaded.max_model_len].to(loaded.device) for tokens in drawn]
