"""Proof at load that a model computes through our attention what it computes through its own."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from engine.kernels.dispatch import attention_op
from engine.kernels.layout import StepLayout
from engine.runner.kv.memory import allocate_kv
from engine.runner.model.attention import (
    DISCOVERY,
    IMPLEMENTATION,
    Discovery,
    LayerShape,
    PackedStep,
    UnsupportedAttention,
    attention_step,
)
from engine.runner.model.causal_lm import CausalLM

# Two sequences and how their tokens are split among steps: prompt chunks and single tokens, packed in both orders.
_LENGTHS = (24, 11)
_STEPS = (((0, 9), (1, 6)), ((1, 1), (0, 10)), ((0, 1), (1, 1)), ((0, 1), (1, 3)), ((0, 3),))
# Largest error of a position's logits, relative to their spread, that rounding explains. A wrong context changes
# logits by about their spread itself. In 16 bits the median position counts, as a router may tip over at one.
_TOLERANCE = {torch.float32: 5e-3, torch.float16: 0.1, torch.bfloat16: 0.3}


def discover_layers(model: PreTrainedModel) -> dict[int, LayerShape]:
    """The shape of every attention layer, learnt from a short forward pass. Raises ValueError with the reason."""
    token_ids = _sequences(model.config.get_text_config().vocab_size, model.device)[0]
    discovery = Discovery()
    model.set_attn_implementation(DISCOVERY)
    try:
        with torch.inference_mode(), attention_step(discovery):
            model(input_ids=token_ids[None], position_ids=_positions(token_ids), use_cache=False)
    except UnsupportedAttention as error:
        raise ValueError(str(error)) from error
    finally:
        model.set_attn_implementation(IMPLEMENTATION)
    if not discovery.layers:
        raise ValueError(
            "its attention cannot be replaced (it has none, or predates transformers' AttentionInterface)"
        )
    return discovery.layers


def own_logits(loaded: CausalLM) -> list[torch.Tensor]:
    """Logits [n, V] float32 of two short sequences by the model's own eager attention, each sequence by itself."""
    model = loaded.model
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            return [
                model(input_ids=tokens[None], position_ids=_positions(tokens), use_cache=False)
                .logits[0]
                .float()
                for tokens in _check_sequences(loaded)
            ]
    finally:
        model.set_attn_implementation(IMPLEMENTATION)


def check_packed(loaded: CausalLM, expected: list[torch.Tensor]) -> None:
    """The same sequences through packed steps and scattered slots, every position compared with `own_logits`. Raises
    ValueError with the reason where they differ."""
    computed = _packed_logits(loaded, _check_sequences(loaded))
    errors = []
    for ours, theirs in zip(computed, expected, strict=True):
        spread = theirs.std(dim=-1).clamp_min(1e-6)
        errors.append((ours - theirs).abs().amax(dim=-1) / spread)
    per_position = torch.cat(errors)
    error = per_position.max() if loaded.dtype is torch.float32 else per_position.median()
    if not error <= _TOLERANCE[loaded.dtype]:
        raise ValueError(
            f"through the engine's attention its logits differ from its own by {error:.2g} of their spread (it "
            "keeps state between tokens, or its attention has something that the engine lacks)"
        )


def _check_sequences(loaded: CausalLM) -> list[torch.Tensor]:
    return [tokens[: loaded.max_model_len] for tokens in _sequences(loaded.vocab_size, loaded.device)]


def _packed_logits(loaded: CausalLM, sequences: list[torch.Tensor]) -> list[torch.Tensor]:
    device = loaded.device
    longest = max(len(tokens) for tokens in sequences)
    num_slots = 2 * longest
    caches = allocate_kv(loaded.layers, num_slots, loaded.dtype, device)
    # Row 0 in even slots upwards, row 1 in odd slots downwards.
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


def _sequences(vocab_size: int, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocab_size, (length,), generator=generator).to(device) for length in _LENGTHS]


def _positions(token_ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(token_ids), device=token_ids.device)[None]
