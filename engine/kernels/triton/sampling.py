"""Draws tokens on a GPU in one launch: finds the tokens of each row that top_k, top_p and min_p keep, and draws one.

A token's weight is exp((its logit - the largest) / temperature) as an integer, in units of 2**-44 for the vocabularies
of today's models. Sums of integers do not depend on their order, so every pass over a row sees exactly the same masses,
and the token drawn does not depend on how the row is divided.

A token's key is the bits of (the largest logit - its own), a float of at least 0, whose bits have the same order as its
values: the likeliest tokens have the smallest keys. A row then keeps the tokens with keys up to `high`, which is found
in passes over the row:

    each pass counts and weighs the tokens up to four pivots, which narrow (low, high]: the tokens up to `low` are not
    enough for top_k or top_p, the tokens up to `high` are. After two or three passes, no more than `num_candidates`
    tokens are left up to `high`. One more pass collects them, and the search continues in registers.

If a row is so flat that it keeps more tokens than that, passes continue until `high` is found.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.triton.sampling_threshold import (
    COLDEST,
    HOTTEST,
    LARGEST_KEY,
    LOG2_E,
    count_up_to,
    cut_by_four,
    distances_of,
    find_largest,
    keys_of,
    load_finite,
    search_candidates,
    search_row,
    weights_of,
)

# Elements that a pass reads at a time: four per thread, which leaves registers for eight sums of each.
_BLOCK = 2048
# A longer block for passes that end each block with a sum over all threads, so that there are few such sums.
_TILE = 8192
# Tokens that are searched in registers, four per thread. A top_p of 0.95 usually keeps tens of tokens.
_CANDIDATES = 2048
# One program computes a row, and rows are long: as many threads as one multiprocessor has registers for.
_NUM_WARPS = 16
# The sum of weights is less than 2**62: one bit is the sign, and one is a margin.
_MASS_BITS = 62


@triton.jit
def _share(mass, part):
    """The smallest mass that is at least `part` (float64, 0 to 1) of `mass`."""
    return tl.minimum(tl.maximum((part * mass.to(tl.float64)).to(tl.int64), 1), mass)


@triton.jit
def _target(total, uniform):
    """The largest mass that may lie before the token to draw. In float64 the product may round up to the total."""
    return tl.minimum((uniform * total.to(tl.float64)).to(tl.int64), total - 1)


@triton.jit
def _draw_from_row(
    logits,
    top,
    rate,
    high,
    uniform,
    ONE: tl.constexpr,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    """The token at the share `uniform` of the mass of all tokens with keys up to `high`."""
    numbers, inside = tl.arange(0, TILES), tl.arange(0, TILE)
    masses = tl.zeros([TILES], tl.int64)
    for tile in tl.range(0, tl.cdiv(SIZE, TILE)):
        distances = distances_of(logits, tile * TILE + inside, top, SIZE)
        weights = tl.where(keys_of(distances) <= high, weights_of(distances, rate, ONE), 0)
        masses = tl.where(numbers == tile, tl.sum(weights, axis=0), masses)
    target = _target(tl.sum(masses, axis=0), uniform)
    tile = tl.sum((tl.cumsum(masses, axis=0) <= target).to(tl.int32), axis=0)
    target -= tl.sum(tl.where(numbers < tile, masses, 0), axis=0)
    distances = distances_of(logits, tile * TILE + inside, top, SIZE)
    weights = tl.where(keys_of(distances) <= high, weights_of(distances, rate, ONE), 0)
    return tile * TILE + tl.sum((tl.cumsum(weights, axis=0) <= target).to(tl.int32), axis=0)


@triton.jit
def _collect(logits, top, high, candidates, SIZE: tl.constexpr, TILE: tl.constexpr):
    """Writes the tokens with keys up to `high` to `candidates`, in the order of the vocabulary."""
    found = 0
    for start in tl.range(0, SIZE, TILE):
        columns = start + tl.arange(0, TILE)
        is_in = (keys_of(distances_of(logits, columns, top, SIZE)) <= high).to(tl.int32)
        places = found + tl.cumsum(is_in, axis=0) - 1
        tl.store(candidates + places, columns, mask=is_in > 0)
        found += tl.sum(is_in, axis=0)


@triton.jit
def _draw_from_candidates(
    logits,
    candidates,  # [n_high] the tokens with keys up to `high`, of mass `m_high`
    top,
    rate,
    high,
    n_high,
    m_high,
    count,  # of tokens that top_k has yet to keep, or 0
    mass,  # that top_p has to keep, or 0 if it is a share of what top_k keeps
    top_p,
    limit,
    uniform,
    ONE: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """The token at the share `uniform` of the mass of the tokens that are kept."""
    places = tl.arange(0, CANDIDATES)
    tokens = tl.load(candidates + places, mask=places < n_high, other=0)
    distances = tl.where(places < n_high, top - load_finite(logits, tokens, tokens + 1), float("inf"))
    keys, weights = keys_of(distances), weights_of(distances, rate, ONE)
    if count > 0:
        high, m_high = search_candidates(keys, weights, high, n_high, m_high, count, mass)
    if top_p < 1:
        mass = tl.where(mass > 0, mass, _share(m_high, top_p))
        high, m_high = search_candidates(keys, weights, high, n_high, m_high, count * 0, mass)
    weights = tl.where(keys <= tl.minimum(high, limit), weights, 0)
    target = _target(tl.sum(weights, axis=0), uniform)
    place = tl.sum((tl.cumsum(weights, axis=0) <= target).to(tl.int32), axis=0)
    return tl.sum(tl.where(places == place, tokens, 0), axis=0)


@triton.jit
def _draw_kernel(
    logits_ptr,  # [n, SIZE], rows `stride` apart
    numbers_ptr,  # [5, n] float64 temperature, top_p, top_k, min_p, uniform
    candidates_ptr,  # [n, CANDIDATES] int32, scratch
    tokens_ptr,  # [n] int64, written
    stride,
    ONE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,  # of a row, rounded up to a power of two
    CANDIDATES: tl.constexpr,
):
    # Grid: (n,)
    row, num_rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    logits = logits_ptr + row * stride
    temperature = tl.load(numbers_ptr + row).to(tl.float32)
    top, token = find_largest(logits, SIZE, BLOCK)
    if temperature > 0:
        temperature = tl.minimum(tl.maximum(temperature, COLDEST), HOTTEST)
        top_p = tl.load(numbers_ptr + num_rows + row)
        top_k = tl.load(numbers_ptr + 2 * num_rows + row).to(tl.int32)
        min_p = tl.load(numbers_ptr + 3 * num_rows + row).to(tl.float32)
        uniform = tl.load(numbers_ptr + 4 * num_rows + row)
        rate = LOG2_E / temperature
        distance = -tl.log(tl.where(min_p > 0, min_p, 1.0)) * temperature
        limit = tl.where(min_p > 0, keys_of(tl.maximum(distance, 0.0)), LARGEST_KEY)
        has_top_k = (top_k > 0) & (top_k < SIZE)
        if has_top_k | (top_p < 1):
            # Tokens more than 32 temperatures below the likeliest have no weight: exp(-32) is less than 2**-46.
            high = keys_of(temperature * 32)
            pivots = (keys_of(temperature * 4), keys_of(temperature * 8), keys_of(temperature * 16), high)
            counts, masses = count_up_to(logits, top, rate, pivots, ONE, SIZE, BLOCK)
            n_high, m_high = counts[3], masses[3]
            count = tl.where(has_top_k & (top_k < n_high), top_k, 0)
            mass = m_high * 0
            if count > 0:  # finds the tokens that top_k keeps, or a few candidates that include them
                bracket = (high * 0 - 1, n_high * 0, high, n_high, m_high)
                bracket = cut_by_four(bracket, pivots, counts, masses, count, mass)
                high, n_high, m_high = search_row(
                    logits, top, rate, bracket, count, mass, ONE, SIZE, BLOCK, CANDIDATES
                )
            if (n_high > CANDIDATES) & (top_p < 1):  # the same for what top_p keeps of those
                count, mass = count * 0, _share(m_high, top_p)
                bracket = (high * 0 - 1, n_high * 0, high, n_high, m_high)
                bracket = cut_by_four(bracket, pivots, counts, masses, count, mass)
                high, n_high, m_high = search_row(
                    logits, top, rate, bracket, count, mass, ONE, SIZE, BLOCK, CANDIDATES
                )
            if n_high <= CANDIDATES:
                candidates = candidates_ptr + row * CANDIDATES
                _collect(logits, top, high, candidates, SIZE, TILE)
                tl.debug_barrier()  # threads read what other threads wrote
                token = _draw_from_candidates(
                    logits,
                    candidates,
                    top,
                    rate,
                    high,
                    n_high,
                    m_high,
                    count,
                    mass,
                    top_p,
                    limit,
                    uniform,
                    ONE,
                    CANDIDATES,
                )
            else:
                high = tl.minimum(high, limit)
                token = _draw_from_row(logits, top, rate, high, uniform, ONE, SIZE, TILE, TILES)
        else:
            token = _draw_from_row(logits, top, rate, limit, uniform, ONE, SIZE, TILE, TILES)
    tl.store(tokens_ptr + row, token.to(tl.int64))


def draw(
    logits: torch.Tensor,  # [n, V] on a GPU
    numbers: torch.Tensor,  # [5, n] float64, on the same device: temperature, top_p, top_k, min_p, uniform
    *,
    block: int = _BLOCK,
    tile: int = _TILE,
    num_candidates: int = _CANDIDATES,
) -> torch.Tensor:  # [n] int64, on the same device
    """`engine.kernels.reference.sampling.draw`, without waiting for the GPU. A row's token depends only on the row's
    own logits and numbers. The sizes (powers of two) decide how a row is divided; they do not change any token."""
    (num_rows, vocab_size), device = logits.shape, logits.device
    if numbers.shape != (5, num_rows) or numbers.dtype != torch.float64 or not numbers.is_contiguous():
        raise ValueError(
            f"numbers must be float64 [5, {num_rows}], not {numbers.dtype} {list(numbers.shape)}"
        )
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    tokens = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows:
        candidates = torch.empty((num_rows, num_candidates), dtype=torch.int32, device=device)
        _draw_kernel[(num_rows,)](
            logits,
            numbers,
            candidates,
            tokens,
            logits.stride(0),
            ONE=2.0 ** (_MASS_BITS - (vocab_size - 1).bit_length()),
            SIZE=vocab_size,
            BLOCK=block,
            TILE=tile,
            TILES=triton.next_power_of_2(triton.cdiv(vocab_size, tile)),
            CANDIDATES=num_candidates,
            num_warps=_NUM_WARPS,
        )
    return tokens
