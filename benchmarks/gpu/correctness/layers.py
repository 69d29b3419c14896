"""Checks of all kernels but attention: norm, activation, rotation, products of few tokens, slots, draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from engine.kernels.reference import layer as reference
from engine.kernels.reference.slots import TorchSlotCopier
from engine.kernels.triton.gpu import Processors, processors_of

EPSILON = 1e-6
FP8 = torch.float8_e4m3fn
# The largest error of a token that rounding explains, by the output's dtype. In bfloat16, with a spacing of 1/256, it
# is the rounding of operands and output; in float32 it is that of a GPU's tf32, with 10 bits of mantissa. float8 e4m3
# has 3 bits of mantissa, and a value between two numbers may be rounded to either.
TOLERANCE = {torch.float32: 3e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2, FP8: 0.1}

Check = Callable[[], dict[str, float]]


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """The sizes of a model's layer, and the number of tokens of the step."""

    num_tokens: int
    hidden: int
    inner: int
    num_heads: int
    num_kv_heads: int
    size: int
    vocab: int


SIZES = LayerSizes(333, 4096, 14336, 32, 8, 128, 128256)
TINY_SIZES = LayerSizes(3, 48, 80, 4, 2, 16, 700)


def layer_checks(device: torch.device, is_tiny: bool) -> dict[str, Check]:
    """All checks by name; each creates its own data."""
    sizes = TINY_SIZES if is_tiny else SIZES
    checks: dict[str, Check] = {}
    for dtype in [torch.float32] if is_tiny else [torch.bfloat16, torch.float16, torch.float32]:
        word, make = str(dtype).removeprefix("torch."), Maker(device, dtype, sizes)
        checks |= {
            f"norm: {word}": make.norm,
            f"norm of parts, some tokens: {word}": make.norm_of_parts,
            f"activation: {word}": make.activation,
            f"rotation: {word}": lambda m=make, d=dtype: m.rotation(d, has_norms=False),  # type: ignore[misc]
            f"rotation: {word}, norms": lambda m=make, d=dtype: m.rotation(d, has_norms=True),  # type: ignore[misc]
            f"rotation: {word}, fp8": lambda m=make: m.rotation(FP8, has_norms=False),  # type: ignore[misc]
            f"copies of slots: {word}": make.copies,
        }
        # The engine does not use it for float32, of which 64 tokens do not fit into any GPU's shared memory.
        counts = (1, 5) if dtype is torch.float32 else (1, 5, 64)
        for count in (3,) if is_tiny else counts:
            checks[f"product of {count} tokens: {word}"] = lambda m=make, n=count: m.product(n)  # type: ignore[misc]
    if device.type == "cpu" or torch.cuda.get_device_capability(device) >= (9, 0):
        make = Maker(device, torch.float32 if is_tiny else torch.bfloat16, sizes)
        for count in (3,) if is_tiny else (1, 64, sizes.num_tokens):
            checks[f"product of {count} tokens: fp8"] = lambda m=make, n=count: m.fp8_product(n)  # type: ignore[misc]
    checks["draws"] = lambda: check_draws(device, sizes.vocab, 8 if is_tiny else 256)
    return checks


class Maker:
    """Creates random data of one dtype and checks the kernels with it."""

    def __init__(self, device: torch.device, dtype: torch.dtype, sizes: LayerSizes) -> None:
        self._device = device
        self._dtype = dtype
        self._sizes = sizes
        self._generator = torch.Generator(device).manual_seed(0)

    def noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator, device=self._device).to(self._dtype)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor of NaN, which shows elements that are not written."""
        return torch.full(shape, torch.nan, device=self._device).to(dtype or self._dtype)

    def norm(self) -> dict[str, float]:
        from engine.kernels.triton.layer import add_rms_norm

        n, hidden = self._sizes.num_tokens, self._sizes.hidden
        x, residual, weight = self.noise(n, hidden), self.noise(n, hidden), self.noise(hidden)
        total = x + residual
        expected = reference.rms_norm(total, weight, EPSILON)
        out = self.empty(n, hidden)
        add_rms_norm(x, residual, weight, EPSILON, out)
        if not torch.equal(residual, total):
            raise AssertionError("the residual is not the sum")
        return self._error(out, expected)

    def norm_of_parts(self) -> dict[str, float]:
        """Adds up a product's parts, then computes the norm of every second token, as at the end of a model."""
        from engine.kernels.triton.layer import add_rms_norm

        n, hidden = self._sizes.num_tokens, self._sizes.hidden
        parts = torch.randn(3, n, hidden, generator=self._generator, device=self._device)
        residual, weight = self.noise(n, hidden), self.noise(hidden)
        picked = torch.arange(0, n, 2, device=self._device)
        total = parts.sum(dim=0).to(self._dtype) + residual
        out = self.empty(len(picked), hidden)
        add_rms_norm(parts, residual, weight, EPSILON, out, picked=picked)
        return self._error(out, reference.rms_norm(total[picked], weight, EPSILON))

    def activation(self) -> dict[str, float]:
        from engine.kernels.triton.layer import silu_gated

        n, inner = self._sizes.num_tokens, self._sizes.inner
        gate_up, out = self.noise(n, 2 * inner), self.empty(n, inner)
        silu_gated(gate_up, out)
        return self._error(out, reference.silu_gated(*gate_up.chunk(2, dim=-1)))

    def rotation(self, cache_dtype: torch.dtype, *, has_norms: bool) -> dict[str, float]:
        from engine.kernels.triton.layer import rotate_and_store

        s = self._sizes
        n, num_slots, longest = s.num_tokens, 2 * s.num_tokens + 5, 4 * s.num_tokens
        qkv = self.noise(n, (s.num_heads + 2 * s.num_kv_heads) * s.size)
        angles = torch.rand(longest, s.size // 2, generator=self._generator, device=self._device) * 6
        cos, sin = angles.cos(), angles.sin()
        positions = self._permutation(longest)[:n]
        slots = self._permutation(num_slots)[:n]
        q_norm, k_norm = (self.noise(s.size), self.noise(s.size)) if has_norms else (None, None)
        shape = (num_slots, s.num_kv_heads, s.size)
        ours = self.empty(*shape, dtype=cache_dtype), self.empty(*shape, dtype=cache_dtype)
        expected_caches = ours[0].clone(), ours[1].clone()
        arguments = qkv, positions, cos, sin, q_norm, k_norm, EPSILON, slots
        expected = reference.rotate_and_store(*arguments, *expected_caches)
        q = self.empty(n, s.num_heads, s.size)
        rotate_and_store(*arguments, *ours, q)
        figures = self._error(q, expected)
        unwritten = torch.ones(num_slots, dtype=torch.bool, device=self._device)
        unwritten[slots] = False
        for cache, expected_cache in zip(ours, expected_caches, strict=True):
            stored = worst_error(cache.float()[slots], expected_cache.float()[slots])
            figures["error"] = max(figures["error"], stored) if stored == stored else stored
            if not cache.float()[unwritten].isnan().all():
                raise AssertionError("a slot was written that does not belong to the step")
        figures["tolerance"] = max(figures["tolerance"], TOLERANCE[cache_dtype])
        return figures

    def product(self, num_tokens: int) -> dict[str, float]:
        from engine.kernels.triton.linear import TILINGS, linear_few

        x, weight = (
            self.noise(num_tokens, self._sizes.hidden),
            self.noise(self._sizes.inner, self._sizes.hidden),
        )
        bias = self.noise(self._sizes.inner)
        expected = x.float() @ weight.float().T + bias.float()
        worst: dict[str, float] = {"error": 0.0}
        for tiling in TILINGS:
            out = linear_few(x, weight, bias, tiling, self.processors)
            out = out.sum(dim=0).to(self._dtype) if out.dim() == 3 else out
            figures = self._error(out, expected)
            if not figures["error"] <= worst["error"]:
                worst = figures
        return worst

    def fp8_product(self, num_tokens: int) -> dict[str, float]:
        """Compares torch's float8 product, and our own of few tokens, with the emulation."""
        from engine.kernels.reference.fp8_linear import quantize_rows, scaled_product
        from engine.kernels.triton.linear import MAX_TOKENS, TILINGS, Scales, linear_few
        from engine.kernels.triton.quantize import quantize_tokens
        from engine.runner.model.linear_fp8 import fp8_linear

        x, matrix = (
            self.noise(num_tokens, self._sizes.hidden),
            self.noise(self._sizes.inner, self._sizes.hidden),
        )
        bias = self.noise(self._sizes.inner)
        weight, scales = quantize_rows(matrix)
        scales = scales[:, 0].contiguous()
        expected = scaled_product(*quantize_rows(x), weight, scales, bias, torch.float32)
        outs = [fp8_linear(x, weight, scales, bias)]
        tokens, token_scales = quantize_tokens(x)
        for tiling in TILINGS if num_tokens <= MAX_TOKENS else ():
            given = Scales(token_scales, scales, self._dtype)
            out = linear_few(tokens, weight, bias, tiling, self.processors, given)
            outs.append(out.sum(dim=0).to(self._dtype) if out.dim() == 3 else out)
        errors = [self._error(out, expected) for out in outs]
        wrong = [
            figures for figures in errors if not figures["error"] <= figures["tolerance"]
        ]  # NaN is wrong too
        return wrong[0] if wrong else max(errors, key=lambda figures: figures["error"])

    def copies(self) -> dict[str, float]:
        """Copies slots of layers of different sizes out, and back to other slots."""
        from engine.kernels.triton.slots import TritonSlotCopier

        num_slots, count = 4 * self._sizes.num_tokens, self._sizes.num_tokens
        shapes = [(2, self._sizes.size), (self._sizes.num_kv_heads, self._sizes.size), (1, 24)]
        caches = [(self.noise(num_slots, *shape), self.noise(num_slots, *shape)) for shape in shapes]
        source, target = self._permutation(num_slots)[:count], self._permutation(num_slots)[:count]
        expected_caches = [(k.clone(), v.clone()) for k, v in caches]
        copier, expected_copier = TritonSlotCopier(caches), TorchSlotCopier(expected_caches)
        staging, expected = copier.gather(source), expected_copier.gather(source)
        copier.scatter(target, staging)
        expected_copier.scatter(target, expected)
        is_same = torch.equal(staging, expected) and all(
            torch.equal(ours, theirs)
            for pair, other in zip(caches, expected_caches, strict=True)
            for ours, theirs in zip(pair, other, strict=True)
        )
        return {"error": 0.0 if is_same else float("inf"), "tolerance": 0.0}

    @property
    def processors(self) -> Processors:
        return processors_of(self._device)

    def _permutation(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self._generator, device=self._device)

    def _error(self, out: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
        return {"error": worst_error(out, expected), "tolerance": TOLERANCE[out.dtype]}


def check_draws(device: torch.device, vocab_size: int, num_rows: int) -> dict[str, float]:
    """The share of rows, with random parameters, that draw another token than the reference. Rounding may move a
    boundary of the cumulative distribution past a uniform number close to it: 1 row in 100 may differ."""
    from engine.kernels.reference import sampling as reference_sampling
    from engine.kernels.triton import sampling as triton_sampling

    rng = np.random.default_rng(0)
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(0)).to(device) * 3
    numbers = np.stack(
        [
            rng.choice([0.0, 0.3, 1.0, 1.7], num_rows),
            rng.choice([1.0, 0.95, 0.5], num_rows),
            rng.choice([0, 1, 40, vocab_size // 2], num_rows),
            rng.choice([0.0, 0.05], num_rows),
            rng.random(num_rows),
        ]
    )
    on_device = torch.from_numpy(numbers).to(device)
    expected = reference_sampling.draw(logits, on_device)
    drawn = triton_sampling.draw(logits, on_device)
    return {"error": float((drawn.cpu() != expected.cpu()).float().mean()), "tolerance": 0.01}


def worst_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """The worst token's error: the norm of the difference divided by that of `expected`; NaN if the output has one.
    Both are [T, ...]."""
    ours, theirs = out.float().flatten(1), expected.float().flatten(1)
    return float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1).clamp_min(1e-6)).max())
