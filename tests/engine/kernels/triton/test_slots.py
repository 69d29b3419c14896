"""Storing K and V and copying slots in Triton against the reference, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from engine.kernels import dispatch
from engine.kernels.cpu.slots import CpuSlotCopier
from engine.kernels.reference import slots as reference
from engine.kernels.reference.slots import TorchSlotCopier
from engine.kernels.triton import slots as triton_slots
from engine.kernels.triton.slots import TritonSlotCopier
from engine.runner.kv.memory import LayerCache
from tests.engine.kernels.steps import as_bits

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP8 = torch.float8_e4m3fn
NUM_SLOTS = 40
Caches = list[tuple[torch.Tensor, torch.Tensor]]


def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)


def some_slots(seed: int, count: int) -> torch.Tensor:
    return torch.randperm(NUM_SLOTS, generator=torch.Generator().manual_seed(seed))[:count].to(DEVICE)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, FP8),
        (torch.float16, FP8),
        (torch.float32, FP8),
    ],
)
@pytest.mark.parametrize(("heads", "size", "size_v"), [(2, 16, 16), (3, 24, 40), (1, 256, 128), (40, 64, 64)])
def test_store(dtype: torch.dtype, cache_dtype: torch.dtype, heads: int, size: int, size_v: int) -> None:
    k, v = noise(0, 5, heads, size, dtype=dtype), noise(1, 5, heads, size_v, dtype=dtype)
    slots = some_slots(0, 5)
    slots[2] = -1
    caches = [torch.full((NUM_SLOTS, heads, s), torch.nan).to(cache_dtype).to(DEVICE) for s in (size, size_v)]
    expected = [cache.clone() for cache in caches]
    triton_slots.store_kv(k, v, *caches, slots)
    reference.store_kv(k, v, *expected, slots)
    for cache, expected_cache in zip(caches, expected, strict=True):
        assert torch.equal(as_bits(cache), as_bits(expected_cache))
    assert torch.isfinite(caches[0][slots[0]].float()).all()


def test_store_of_heads_that_are_not_contiguous() -> None:
    """K and V as they lie in one product's output, and as a transposed view."""
    qkv = noise(0, 7, 6, 16)
    k, v = qkv[:, 2:4], qkv[:, 4:].transpose(1, 2).contiguous().transpose(1, 2)
    caches = [torch.zeros(NUM_SLOTS, 2, 16, device=DEVICE) for _ in range(2)]
    slots = some_slots(1, 7)
    triton_slots.store_kv(k, v, *caches, slots)
    assert torch.equal(caches[0][slots], k)
    assert torch.equal(caches[1][slots], v)


def test_store_of_nothing() -> None:
    cache = noise(0, NUM_SLOTS, 2, 16)
    none = torch.empty(0, 2, 16, device=DEVICE)
    triton_slots.store_kv(none, none, cache, cache, torch.empty(0, dtype=torch.int64, device=DEVICE))
    assert torch.equal(cache, noise(0, NUM_SLOTS, 2, 16))


def test_float8_rounds_to_even_and_saturates() -> None:
    """All numbers of float8 e4m3, the middles between neighbors, numbers beside those, and numbers out of range."""
    finite = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    finite = finite[finite.isfinite()].sort().values
    middles = (finite[1:] + finite[:-1]) / 2
    special = torch.tensor(
        [449.0, 464.0, 1e30, torch.inf, -torch.inf, -1e5, 0.0, -0.0, 2**-10, 2**-11, torch.nan]
    )
    numbers = torch.cat([finite, middles, middles * (1 + 1e-6), middles * (1 - 1e-6), special])
    k = numbers[: len(numbers) // 16 * 16].view(-1, 1, 16).to(DEVICE)
    assert k.numel() == len(numbers) // 16 * 16 > len(numbers) - 16
    k = torch.cat([k, numbers[-16:].view(1, 1, 16).to(DEVICE)])
    slots = torch.arange(len(k), device=DEVICE)
    caches = [torch.zeros(len(k), 1, 16, dtype=FP8, device=DEVICE) for _ in range(2)]
    triton_slots.store_kv(k, k, *caches, slots)
    expected = k.clamp(-448, 448).to(FP8)
    is_nan = k.isnan()
    assert torch.equal(as_bits(caches[0])[~is_nan], as_bits(expected)[~is_nan])
    assert caches[0].float()[is_nan].isnan().all()


def layers(shapes: list[tuple[int, int, int]], dtype: torch.dtype, seed: int = 0) -> Caches:
    """K and V of layers of (Hkv, D, Dv)."""
    return [
        (
            noise(seed + i, NUM_SLOTS, heads, size, dtype=dtype),
            noise(seed + i + 100, NUM_SLOTS, heads, size_v, dtype=dtype),
        )
        for i, (heads, size, size_v) in enumerate(shapes)
    ]


# Slots of multiples of 16, 8, 4 and 1 bytes; equal and unequal layers; more bytes than one program copies.
SHAPES = [
    ([(2, 16, 16)] * 3, torch.float32),
    ([(1, 8, 8), (2, 16, 24)], torch.bfloat16),
    ([(1, 4, 12)], torch.bfloat16),
    ([(1, 6, 10), (3, 2, 2)], torch.float16),
    ([(1, 5, 8), (1, 7, 3)], FP8),
    ([(9, 128, 64), (2, 16, 16)], torch.bfloat16),
]


@pytest.mark.parametrize(("shapes", "dtype"), SHAPES)
@pytest.mark.parametrize("count", [1, 4, 11])
def test_gather_and_scatter(shapes: list[tuple[int, int, int]], dtype: torch.dtype, count: int) -> None:
    caches = layers(shapes, dtype)
    expected_caches = [(k.clone(), v.clone()) for k, v in caches]
    copier, reference_copier = TritonSlotCopier(caches), TorchSlotCopier(expected_caches)
    assert copier.bytes_per_slot == reference_copier.bytes_per_slot
    source, target = some_slots(1, count), some_slots(2, count)
    if count > 4:
        source[3] = target[5] = -1
    poison = torch.full((count, copier.bytes_per_slot), 0xEE, dtype=torch.uint8, device=DEVICE)
    staging, expected = copier.gather(source, poison.clone()), reference_copier.gather(source, poison.clone())
    assert torch.equal(staging, expected)
    copier.scatter(target, staging)
    reference_copier.scatter(target, staging)
    for pair, expected_pair in zip(caches, expected_caches, strict=True):
        for cache, expected_cache in zip(pair, expected_pair, strict=True):
            assert torch.equal(as_bits(cache), as_bits(expected_cache))


def test_a_staged_slot_is_layer_after_layer_k_then_v() -> None:
    caches = layers([(1, 4, 8), (2, 4, 4)], torch.float32)
    slots = some_slots(3, 6)
    row = torch.cat([cache[slots].flatten(1) for pair in caches for cache in pair], dim=1)
    for copier in (TritonSlotCopier(caches), TorchSlotCopier(caches)):
        assert torch.equal(copier.gather(slots).view(torch.float32), row)


def test_staging_may_be_part_of_a_larger_buffer() -> None:
    caches = layers([(1, 3, 5)], torch.bfloat16)
    copier, slots = TritonSlotCopier(caches), some_slots(4, 3)
    buffer = torch.zeros(9, copier.bytes_per_slot, dtype=torch.uint8, device=DEVICE)
    copier.gather(slots, buffer[5:8])
    assert torch.equal(buffer[5:8], TorchSlotCopier(caches).gather(slots))
    assert not buffer[:5].any()
    assert not buffer[8:].any()


@pytest.mark.parametrize("kind", [TritonSlotCopier, TorchSlotCopier])
def test_a_wrong_staging_buffer_is_rejected(kind: type[TorchSlotCopier | TritonSlotCopier]) -> None:
    copier = kind(layers([(1, 8, 8)], torch.float32))
    slots = some_slots(5, 2)
    for wrong in (
        torch.empty(3, copier.bytes_per_slot, dtype=torch.uint8, device=DEVICE),
        torch.empty(2, copier.bytes_per_slot, dtype=torch.int8, device=DEVICE),
        torch.empty(2, 2 * copier.bytes_per_slot, dtype=torch.uint8, device=DEVICE)[:, ::2],
    ):
        with pytest.raises(ValueError, match="contiguous uint8 buffer"):
            copier.gather(slots, wrong)
    with pytest.raises(ValueError, match="vector of int64"):
        copier.scatter(slots.int(), torch.empty(2, copier.bytes_per_slot, dtype=torch.uint8, device=DEVICE))


def test_caches_that_are_views_are_rejected() -> None:
    k = noise(0, NUM_SLOTS, 2, 8)
    with pytest.raises(ValueError, match="contiguous"):
        TritonSlotCopier([(k[:, :1], k)])


def test_bad_stores_are_rejected() -> None:
    k, cache, slots = noise(0, 3, 2, 8), noise(1, NUM_SLOTS, 2, 8), some_slots(6, 3)
    with pytest.raises(ValueError, match="do not fit caches"):
        triton_slots.store_kv(k[..., :4], k, cache, cache, slots)
    with pytest.raises(ValueError, match="for 2 slots"):
        triton_slots.store_kv(k, k, cache, cache, slots[:2])
    with pytest.raises(ValueError, match="cannot be written"):
        triton_slots.store_kv(k, k, cache.int(), cache.int(), slots)


def test_no_layers_make_no_copies() -> None:
    slots = some_slots(7, 2)
    for copier in (TritonSlotCopier([]), TorchSlotCopier([])):
        assert copier.gather(slots).shape == (2, 0)
        copier.scatter(slots, copier.gather(slots))


def test_a_device_gets_the_copier_that_runs_on_it() -> None:
    caches = {0: LayerCache(noise(0, NUM_SLOTS, 2, 8), noise(1, NUM_SLOTS, 2, 8), None)}
    kind = TritonSlotCopier if DEVICE == "cuda" else CpuSlotCopier
    assert isinstance(dispatch.slot_copier(caches), kind)
    assert isinstance(dispatch.slot_copier(caches, "triton"), TritonSlotCopier)
    assert isinstance(dispatch.slot_copier(caches, "reference"), TorchSlotCopier)
    assert isinstance(dispatch.slot_copier({}), TorchSlotCopier)
