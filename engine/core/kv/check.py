"""The KV memory's invariants, verified from scratch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from engine.core.extent import NO_NODE, Extent
from engine.core.kv.cache import KVCacheManager
from engine.core.request import Request
from engine.core.terms import Side


def check_kv(kv: KVCacheManager, requests: Iterable[Request]) -> None:
    """`requests` are all that may hold KV. Raises AssertionError."""
    size = kv.block_size
    holders: dict[int, list[tuple[Request, Extent]]] = defaultdict(list)
    for request in requests:
        position = 0
        for i, extent in enumerate(request.extents):
            assert extent.start == position, f"{request}: gap before {extent}"
            assert 0 < extent.length <= extent.limit, f"{request}: {extent} crosses a multiple of {size}"
            assert (extent.node != NO_NODE) == (i < request.num_chunks), f"{request}: {extent} and its chunk"
            assert extent.node == NO_NODE or extent.length == size
            assert extent.length == size or extent.side is Side.of(request.lane), f"{request}: {extent} side"
            holders[extent.block].append((request, extent))
            position = extent.end
        assert request.tail is (request.extents[-1] if request.extents else None)
        assert request.num_computed_tokens <= position, f"{request} has {position} slots"
    known, idle = kv.prefix.blocks()
    free = set(kv.pool.free_blocks)
    assert len(free) == len(kv.pool.free_blocks), "a block is free twice"
    assert not free & idle and not free & holders.keys() and not idle & holders.keys(), (
        "a block is in two hands"
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
        assert kv.pool.room[block] == size - length, (
            f"block {block}: room {kv.pool.room[block]}, counted {size - length}"
        )
        assert kv.pool.holders[block] == len(held)
        assert kv.pool.rt_extent[block] == (Side.LEFT in sides)
        assert block not in known or length == size, f"block {block}: cached, but not full"
        if kv.pool.room[block] > 0 and Side.LEFT not in sides:
            assert block in kv.pool._shareable, f"block {block}: RT could take its middle, and does not know"
    assert all(kv.pool.room[block] == size and not kv.pool.holders[block] for block in free)
    assert all(kv.pool.room[block] == 0 and not kv.pool.holders[block] for block in idle)
    assert used == kv.pool.used_blocks, f"usage says {kv.pool.used_blocks}, counted {used}"
    kv.host.check_integrity()
