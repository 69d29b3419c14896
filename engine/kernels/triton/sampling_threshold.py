"""Searches of a row of logits on a GPU: for its largest, and for the largest key that top_k and top_p keep.

Keys and weights are described in `sampling`. A bracket is (low, n_low, high, n_high, m_high): `n_low` tokens have keys
up to `low`, which are too few; `n_high` tokens, of mass `m_high`, have keys up to `high`, which are enough.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# Logits and temperatures beyond these bounds count as the bounds, so that everything computed from them is finite.
_EXTREME = tl.constexpr(1e30)
COLDEST, HOTTEST = tl.constexpr(1e-7), tl.constexpr(1e20)
# The bits of the largest float. Every token of the row has a smaller key; elements beyond the row's end have inf's.
LARGEST_KEY = tl.constexpr(0x7F7FFFFF)


@triton.jit
def load_finite(logits, columns, size):
    """The row's logits at `columns` as finite float32. NaN, and elements beyond its end, count as the smallest."""
    x = tl.load(logits + columns, mask=columns < size, other=-float("inf")).to(tl.float32)
    return tl.minimum(tl.where(x > -_EXTREME, x, -_EXTREME), _EXTREME)


@triton.jit
def distances_of(logits, columns, top, size):
    """The logits' distances below the largest one, `top`; inf beyond the row's end."""
    return tl.where(columns < size, top - load_finite(logits, columns, size), float("inf"))


@triton.jit
def keys_of(distances):
    """The bits of distances, as integers, which have the same order."""
    return distances.to(tl.int32, bitcast=True)


@triton.jit
def weights_of(distances, rate, ONE: tl.constexpr):
    """exp(-distance / temperature) in units of 1 / ONE; `rate` is log2(e) / temperature."""
    return (tl.exp2(-distances * rate) * ONE).to(tl.int64)


@triton.jit
def find_largest(logits, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The row's largest logit, and the first token that has it."""
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    owner = tl.arange(0, BLOCK)
    for start in tl.range(0, SIZE, BLOCK, loop_unroll_factor=4):
        columns = start + tl.arange(0, BLOCK)
        x = load_finite(logits, columns, SIZE)
        owner = tl.where(x > best, columns, owner)
        best = tl.maximum(x, best)
    top = tl.max(best, axis=0)
    return top, tl.min(tl.where(best == top, owner, SIZE - 1), axis=0)


@triton.jit
def count_up_to(logits, top, rate, pivots, ONE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The number of tokens with keys up to each of four pivots, and their masses."""
    p0, p1, p2, p3 = pivots
    n0, m0 = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int64)
    n1, m1 = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int64)
    n2, m2 = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int64)
    n3, m3 = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int64)
    for start in tl.range(0, SIZE, BLOCK, loop_unroll_factor=2):
        distances = distances_of(logits, start + tl.arange(0, BLOCK), top, SIZE)
        keys, weights = keys_of(distances), weights_of(distances, rate, ONE)
        n0 += (keys <= p0).to(tl.int32)
        n1 += (keys <= p1).to(tl.int32)
        n2 += (keys <= p2).to(tl.int32)
        n3 += (keys <= p3).to(tl.int32)
        m0 += tl.where(keys <= p0, weights, 0)
        m1 += tl.where(keys <= p1, weights, 0)
        m2 += tl.where(keys <= p2, weights, 0)
        m3 += tl.where(keys <= p3, weights, 0)
    counts = (tl.sum(n0, axis=0), tl.sum(n1, axis=0), tl.sum(n2, axis=0), tl.sum(n3, axis=0))
    masses = (tl.sum(m0, axis=0), tl.sum(m1, axis=0), tl.sum(m2, axis=0), tl.sum(m3, axis=0))
    return counts, masses


@triton.jit
def _cut(bracket, pivot, n, m, count, mass):
    """Cuts a bracket at a pivot, up to which lie `n` tokens of mass `m`; `count` tokens of mass `mass` are enough."""
    low, n_low, high, n_high, m_high = bracket
    is_enough = (n >= count) & (m >= mass)
    is_high, is_low = is_enough & (pivot < high), (n < count) | (m < mass)
    is_low = is_low & (pivot > low)
    low, n_low = tl.where(is_low, pivot, low), tl.where(is_low, n, n_low)
    high, n_high = tl.where(is_high, pivot, high), tl.where(is_high, n, n_high)
    return low, n_low, high, n_high, tl.where(is_high, m, m_high)


@triton.jit
def cut_by_four(bracket, pivots, counts, masses, count, mass):
    """Cuts a bracket at each of four pivots."""
    bracket = _cut(bracket, pivots[0], counts[0], masses[0], count, mass)
    bracket = _cut(bracket, pivots[1], counts[1], masses[1], count, mass)
    bracket = _cut(bracket, pivots[2], counts[2], masses[2], count, mass)
    return _cut(bracket, pivots[3], counts[3], masses[3], count, mass)


@triton.jit
def search_row(
    logits,
    top,
    rate,
    bracket,
    count,
    mass,
    ONE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """Narrows the bracket by passes over the row until at most CANDIDATES tokens are left up to `high`, or only those
    that are needed. Pivots at the quarters converge fast for usual rows; the middle key limits the passes to 31."""
    low, n_low, high, n_high, m_high = bracket
    while (n_high > CANDIDATES) & (n_high - n_low > 1) & (high - low > 1):
        bottom = tl.maximum(low, 0).to(tl.float32, bitcast=True)
        quarter = (high.to(tl.float32, bitcast=True) - bottom) * 0.25
        p0 = tl.minimum(tl.maximum(keys_of(bottom + quarter), low + 1), high - 1)
        p1 = tl.minimum(tl.maximum(keys_of(bottom + quarter * 2), low + 1), high - 1)
        p2 = tl.minimum(tl.maximum(keys_of(bottom + quarter * 3), low + 1), high - 1)
        pivots = (p0, p1, p2, low + (high - low) // 2)
        counts, masses = count_up_to(logits, top, rate, pivots, ONE, SIZE, BLOCK)
        bracket = (low, n_low, high, n_high, m_high)
        low, n_low, high, n_high, m_high = cut_by_four(bracket, pivots, counts, masses, count, mass)
    return high, n_high, m_high


@triton.jit
def search_candidates(keys, weights, high, n_high, m_high, count, mass):
    """Narrows a bracket of candidates in registers to the end. `count` and `mass` are at most those up to `high`."""
    low, n_low = high * 0 - 1, n_high * 0
    while (n_high - n_low > 1) & (high - low > 1):
        pivot = low + (high - low) // 2
        n = tl.sum((keys <= pivot).to(tl.int32), axis=0)
        m = tl.sum(tl.where(keys <= pivot, weights, 0), axis=0)
        low, n_low, high, n_high, m_high = _cut((low, n_low, high, n_high, m_high), pivot, n, m, count, mass)
    return high, m_high
