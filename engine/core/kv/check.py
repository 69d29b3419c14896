"""The invariants of KV memory, verified from scratch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from engine.core.extent import NO_NODE, Extent
from engine.core.kv.cache import KVCacheManager
from engine.core.request import Request
from engine.core.terms import Side


def check_kv(kv: KVCacheManager, requests: Iterable[Request]) -> None:
    """Verify the KV memory, given all requests that may hold some of it. Raises AssertionError."""
    size, pool = kv.block_size, kv.pool
    holders: dict[int, list[tuple[Request, Extent]]] = defaultdict(list)
    for request in requests:
        position = 0
        for i, extent in enumerate(request.extents):
            assert extent.start == position, f"{request}: gap before {extent}"
            assert 0 < extent.length <= extent.limit, f"{request}: {extent} crosses a multiple of {size}"
            assert (extent.node != NO_NODE) == (i < request.num_cached_extents), (
                f"{request}: {extent} and its place in the prefix cache"
            )
            assert extent.node == NO_NODE or extent.length == size
            assert extent.length == size or extent.side is Side.of(request.lane), f"{request}: {extent} side"
            holders[extent.block].append((request, extent))
            position = extent.end
        assert request.tail is (request.extents[-1] if request.extents else None)
        assert request.num_computed_tokens <= position, f"{request} has {position} slots"
    known, idle = kv.prefix.blocks()
    free = set(pool.free_blocks)
    assert len(free) == len(pool.free_blocks), "a block is free twice"
    assert not free & idle and not free & holders.keys() and not idle & holders.keys(), (
        "a block is both free and held, or idle as well"
    )
    assert len(free) + len(idle) + len(holders) == kv.num_blocks, "a block is lost"
    assert known.isdisjoint(free) and idle <= known
    used = dict.fromkeys(Side, 0)
    for block, held in holders.items():
        sides = {extent.side for _, extent in held}
        for side in sides:
            used[side] += 1
        if len(held) > len(sides):  # several requests on one side: a prefix they share
            assert all(extent.length == size for _, extent in held), f"block {block}: {held}"
        length = sum(max(e.length for _, e in held if e.side is side) for side in sides)
        assert length <= size, f"block {block}: its sides overlap: {held}"
        room = pool.room[block]
        assert room == size - length, f"block {block}: room is {room}, counted {size - length}"
        assert pool.num_extents[block] == len(held)
        assert pool.has_left[block] == (Side.LEFT in sides)
        assert block not in known or length == size, f"block {block}: cached, but not full"
        growing = {extent.side: request for request, extent in held if extent.length < size}
        if room > 0 or growing:
            pool.sharing.check_integrity(block, growing.get(Side.LEFT), growing.get(Side.RIGHT))
    assert all(pool.room[block] == size and not pool.num_extents[block] for block in free)
    assert all(pool.room[block] == 0 and not pool.num_extents[block] for block in idle)
    assert used == pool.used_blocks, f"usage is {pool.used_blocks}, counted {used}"
    kv.host.check_integrity()
