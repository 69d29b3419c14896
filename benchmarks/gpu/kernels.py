"""Times of every Triton kernel, compared with the least time that the device could take.

That floor is the time to move the kernel's bytes, or to execute its operations, at the rates measured on the same
device. If torch can compute the same, its time is measured too; for attention it gets contiguous K and V, which no
serving engine has. Operands come from memory, not from a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.correctness.cases import AttentionCase, Heads, make_inputs
from benchmarks.gpu.correctness.layers import EPSILON, FP8, SIZES, TINY_SIZES, Maker
from benchmarks.gpu.models import dtype_for
from benchmarks.gpu.report import Part
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.timing import Stopwatch


@dataclass(frozen=True, slots=True)
class Timed:
    """A kernel call on its data, the bytes that it moves, the operations that it executes, and the same by torch."""

    work: Callable[[], object]
    num_bytes: float
    num_flops: float = 0.0
    by_torch: Callable[[], object] | None = None


Make = Callable[[], Timed]


def measure_kernels(part: Part, watch: Stopwatch, ceilings: Ceilings, scale: Scale) -> None:
    """Times all kernels at the sizes of an 8B model's layer."""
    for name, make in KernelBench(watch, bool(scale.shape)).all():
        part.measure(name, lambda m=make: time_against_floor(watch, ceilings, m()))  # type: ignore[misc]


def time_against_floor(watch: Stopwatch, ceilings: Ceilings, timed: Timed) -> dict[str, float | str]:
    seconds = watch.seconds(timed.work)
    floor_s = ceilings.floor_s(timed.num_bytes, timed.num_flops)
    figures: dict[str, float | str] = {
        "us": seconds * 1e6,
        "floor_us": floor_s * 1e6,
        "over_floor": seconds / floor_s,
    }
    if timed.by_torch is not None:
        try:
            figures["torch_us"] = watch.seconds(timed.by_torch) * 1e6
        except Exception as error:  # this version of torch may not support it
            figures["torch"] = str(error).partition("\n")[0][:200]
    return figures


class KernelBench:
    """Creates the timed calls. Each call's data is created on demand, so that memory holds one case at a time."""

    def __init__(self, watch: Stopwatch, is_tiny: bool) -> None:
        device = self._device = watch.device
        self._watch = watch
        self._is_tiny = is_tiny
        self._dtype = dtype_for(device)
        self._sizes = TINY_SIZES if is_tiny else SIZES
        self._heads = Heads.of(self._sizes.num_heads, self._sizes.num_kv_heads, self._sizes.size)
        self._maker = Maker(device, self._dtype, self._sizes)

    def all(self) -> Iterator[tuple[str, Make]]:
        """All calls by name, starting with those on which a step spends most time."""
        rows = [(3, 20)] if self._is_tiny else [(1, 8000), (32, 1000), (256, 1000), (32, 8000)]
        for num_rows, context in rows:
            name = f"attention, {num_rows} rows at {context}"
            yield name, lambda n=num_rows, c=context: self.singles(n, c, self._dtype)  # type: ignore[misc]
            yield f"{name}, fp8", lambda n=num_rows, c=context: self.singles(n, c, FP8)  # type: ignore[misc]
        for start, count in [(3, 20)] if self._is_tiny else [(0, 2048), (6144, 2048)]:
            yield f"attention, chunk of {count} at {start}", lambda s=start, n=count: self.chunk(s, n)  # type: ignore[misc]
        for count in (5,) if self._is_tiny else (1, 16, 64):
            yield f"product, {count} tokens", lambda n=count: self.product(n)  # type: ignore[misc]
        for count in (2,) if self._is_tiny else (1, 256, 2048):
            yield f"norm, {count} tokens", lambda n=count: self.norm(n)  # type: ignore[misc]
            yield f"activation, {count} tokens", lambda n=count: self.activation(n)  # type: ignore[misc]
            yield f"rotation, {count} tokens", lambda n=count: self.rotation(n)  # type: ignore[misc]
            yield f"store, {count} tokens", lambda n=count: self.store(n)  # type: ignore[misc]
        count = 5 if self._is_tiny else 2048
        yield f"gather {count} slots of all layers", lambda: self.copies(count, to_staging=True)
        yield f"scatter {count} slots of all layers", lambda: self.copies(count, to_staging=False)
        for count in (2,) if self._is_tiny else (1, 32, 256):
            yield f"draw for {count} rows, top_p", lambda n=count: self.draw(n)  # type: ignore[misc]

    def singles(self, num_rows: int, context: int, cache_dtype: torch.dtype) -> Timed:
        """Rows of one token, each with `context` tokens in the cache, including the row's own."""
        heads = self._heads
        case = AttentionCase("", [(context - 1, 1)] * num_rows, heads, self._dtype, cache_dtype)
        work = self._attention(case)
        q = self._maker.noise(num_rows, heads.query, 1, heads.size)
        k, v = (self._maker.noise(num_rows, heads.kv, context, heads.size) for _ in range(2))
        num_bytes = num_rows * context * heads.kv * (heads.size + heads.size_v) * cache_dtype.itemsize
        by_torch = None
        if cache_dtype is self._dtype:
            by_torch = lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True)  # noqa: E731
        return Timed(work, num_bytes, 0.0, by_torch)

    def chunk(self, start: int, count: int) -> Timed:
        """A chunk of one row's prompt, of which `start` tokens are already computed."""
        heads, end = self._heads, start + count
        work = self._attention(AttentionCase("", [(start, count)], heads, self._dtype))
        q = self._maker.noise(1, heads.query, count, heads.size)
        k, v = (self._maker.noise(1, heads.kv, end, heads.size) for _ in range(2))
        mask = causal_lower_right(count, end)
        pairs = count * start + count * (count + 1) / 2
        return Timed(
            work,
            end * heads.kv * 2 * heads.size * self._dtype.itemsize,
            4 * heads.query * heads.size * pairs,
            lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True),
        )

    def _attention(self, case: AttentionCase) -> Callable[[], object]:
        from engine.kernels.triton.attention import attend_stored
        from engine.kernels.triton.slots import store_kv

        inputs = make_inputs(case, self._device)
        store_kv(inputs.k, inputs.v, inputs.k_cache, inputs.v_cache, inputs.layout.slot_mapping)
        out = torch.empty_like(inputs.q)
        return lambda: attend_stored(
            inputs.q, inputs.k_cache, inputs.v_cache, inputs.layout, inputs.options, out
        )

    def product(self, count: int) -> Timed:
        """The gate and up projection, a layer's largest product, with the fastest tiling."""
        from engine.kernels.triton.linear import TILINGS, Tiling, linear_few

        sizes = self._sizes
        x, weight = self._maker.noise(count, sizes.hidden), self._maker.noise(2 * sizes.inner, sizes.hidden)

        def tiled(tiling: Tiling) -> Callable[[], object]:
            return lambda: linear_few(x, weight, None, tiling, self._maker.processors)

        best = min(TILINGS, key=lambda tiling: self._watch.seconds(tiled(tiling), max_s=0.05))
        return Timed(tiled(best), weight.nbytes, 2 * count * weight.numel(), lambda: linear(x, weight))

    def norm(self, count: int) -> Timed:
        from engine.kernels.triton.layer import add_rms_norm

        hidden = self._sizes.hidden
        x, residual, weight = (
            self._maker.noise(count, hidden),
            self._maker.noise(count, hidden),
            self._maker.noise(hidden),
        )
        out = torch.empty_like(x)

        def by_torch() -> torch.Tensor:
            return rms_norm(residual + x, (hidden,), weight, EPSILON)

        return Timed(
            lambda: add_rms_norm(x, residual, weight, EPSILON, out),
            4 * x.nbytes + weight.nbytes,
            0.0,
            by_torch,
        )

    def activation(self, count: int) -> Timed:
        from engine.kernels.triton.layer import silu_gated

        gate_up = self._maker.noise(count, 2 * self._sizes.inner)
        out = torch.empty(count, self._sizes.inner, dtype=self._dtype, device=self._device)
        gate, partner = gate_up.chunk(2, dim=-1)
        return Timed(
            lambda: silu_gated(gate_up, out), gate_up.nbytes + out.nbytes, 0.0, lambda: silu(gate) * partner
        )

    def rotation(self, count: int) -> Timed:
        """The rotation, including the store of K and V."""
        from engine.kernels.triton.layer import rotate_and_store

        sizes, device = self._sizes, self._device
        qkv = self._maker.noise(count, (sizes.num_heads + 2 * sizes.num_kv_heads) * sizes.size)
        cos, sin = (torch.rand(count, sizes.size // 2, device=device) for _ in range(2))
        positions, slots = torch.arange(count, device=device), torch.randperm(count, device=device)
        k_cache, v_cache = (self._maker.empty(count, sizes.num_kv_heads, sizes.size) for _ in range(2))
        q = self._maker.empty(count, sizes.num_heads, sizes.size)
        return Timed(
            lambda: rotate_and_store(
                qkv, positions, cos, sin, None, None, EPSILON, slots, k_cache, v_cache, q
            ),
            2 * qkv.nbytes + cos.nbytes + sin.nbytes,
        )

    def store(self, count: int) -> Timed:
        from engine.kernels.triton.slots import store_kv

        shape = (count, self._sizes.num_kv_heads, self._sizes.size)
        k, v = self._maker.noise(*shape), self._maker.noise(*shape)
        k_cache, v_cache = torch.empty_like(k), torch.empty_like(v)
        slots = torch.randperm(count, device=self._device)

        def by_torch() -> None:
            k_cache.index_copy_(0, slots, k)
            v_cache.index_copy_(0, slots, v)

        return Timed(lambda: store_kv(k, v, k_cache, v_cache, slots), 4 * k.nbytes, 0.0, by_torch)

    def copies(self, count: int, *, to_staging: bool) -> Timed:
        """Copies to or from the buffer that crosses to host memory in one piece."""
        from engine.kernels.triton.slots import TritonSlotCopier

        num_layers, num_slots = (2, 20) if self._is_tiny else (32, 4 * count)
        shape = (num_slots, self._sizes.num_kv_heads, self._sizes.size)
        caches = [(self._maker.noise(*shape), self._maker.noise(*shape)) for _ in range(num_layers)]
        copier, slots = TritonSlotCopier(caches), torch.randperm(num_slots, device=self._device)[:count]
        staging = copier.gather(slots)
        if to_staging:
            return Timed(lambda: copier.gather(slots, staging), 2 * staging.nbytes)
        return Timed(lambda: copier.scatter(slots, staging), 2 * staging.nbytes)

    def draw(self, count: int) -> Timed:
        """Draws at temperature 0.7 and top_p 0.95; the floor is the time to read the logits once."""
        from engine.kernels.triton import sampling as triton_sampling

        logits = self._maker.noise(count, self._sizes.vocab) * 3
        numbers = torch.tensor([[0.7], [0.95], [0.0], [0.0], [0.5]], dtype=torch.float64).repeat(1, count)
        numbers = numbers.to(self._device)

        def by_torch() -> torch.Tensor:
            """The most common implementation: a sort, a cumulative sum and a draw."""
            ordered, index = (logits.float() / 0.7).sort(descending=True)
            shares = ordered.softmax(dim=-1)
            shares[shares.cumsum(dim=-1) - shares > 0.95] = 0
            return index.gather(1, shares.multinomial(1))

        return Timed(lambda: triton_sampling.draw(logits, numbers), logits.nbytes, 0.0, by_torch)
