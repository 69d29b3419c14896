"""What requests add to the prefix cache and take from it: full blocks, and the beginnings of others."""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.core.extent import NO_NODE, Extent, Key
from engine.core.kv.pool import BlockPool
from engine.core.request import Request
from engine.core.terms import Lane

# The start of a block is copied from a block that begins alike if that is at least this share of it: a copy of fewer
# tokens saves hardly any time.
MIN_COPIED_SHARE = 0.25


class PrefixReuse:
    """Registers the blocks of requests, and finds those that continue a request."""

    def __init__(self, pool: BlockPool, *, is_enabled: bool) -> None:
        self._pool = pool
        self._prefix = pool.prefix
        self._block_size = pool.block_size
        self._is_enabled = is_enabled
        self.least_copied_tokens = max(1, math.ceil(MIN_COPIED_SHARE * pool.block_size))

    def commit(self, request: Request) -> None:
        """Register the request's full blocks of computed tokens in the prefix cache."""
        if not self._is_enabled:
            return
        extents, size, ids = request.extents, self._block_size, request.token_ids
        num_known = min(request.num_computed_tokens, request.num_known_tokens)
        first = last = request.num_cached_extents
        while (
            last < len(extents) and extents[last].length == size and extents[last].start + size <= num_known
        ):
            last += 1
        if first < last:
            parent = extents[first - 1].node if first else NO_NODE
            chunks = extents[first:last]
            self._prefix.insert(parent, ids[chunks[0].start : chunks[-1].end], chunks)
            request.num_cached_extents = last

    def commit_end(self, request: Request) -> None:
        """Register the block that a request which ends has begun and not filled, for others to copy what begins alike:
        of the first question about a document, this is often the block in which the document ends. Only a chat is
        continued, so a block with nothing but output of bulk is of no use to others."""
        tail, first = request.tail, request.num_cached_extents
        if not self._is_enabled or tail is None or first != len(request.extents) - 1:
            return
        if request.lane is Lane.BE and tail.start >= request.num_prompt_tokens:
            return
        begins_block = tail.start % self._block_size == 0
        is_worth_it = tail.length >= self.least_copied_tokens
        is_known = tail.end <= min(request.num_computed_tokens, request.num_known_tokens)
        if begins_block and is_worth_it and is_known and self._pool.is_alone(tail):
            parent = request.extents[first - 1].node if first else NO_NODE
            self._prefix.insert_beginning(parent, request.token_ids[tail.start : tail.end], tail)

    def match(self, request: Request) -> int:
        """Take over cached blocks that continue what the request has computed, except its last token. Returns how many
        tokens they hold."""
        extents, size, start = request.extents, self._block_size, request.num_computed_tokens
        if not self._is_enabled or request.num_cached_extents < len(extents) or start % size:
            return 0
        parent = extents[-1].node if extents else NO_NODE
        at_most = None if request.reading is None else request.reading.num_skippable_tokens
        found = self._prefix.find(parent, request.token_ids, start, size, at_most)
        if found:
            self.join(request, found)
        return len(found) * size

    def join(self, request: Request, found: Sequence[Extent]) -> None:
        """Let the request hold these cached blocks, which continue what it has computed."""
        for extent in found:
            self._pool.join(extent)
        request.extents += found
        request.tail = found[-1]
        request.num_cached_extents = len(request.extents)
        request.num_computed_tokens += len(found) * self._block_size

    def claim(self, request: Request) -> Key | None:
        """The key of the block that the request's latest slots begin to fill or go on to fill, if it will be known by
        that key; None otherwise."""
        extents, first, size = request.extents, request.num_cached_extents, self._block_size
        if not self._is_enabled or first == len(extents):
            return None
        extent = extents[first]
        is_whole = extent.length == size or (
            extent is request.tail and extent.length + self._pool.room[extent.block] >= size
        )
        end = extent.start + size
        if extent.start != first * size or not is_whole or end > len(request.token_ids):
            return None
        return self._key(request, first)

    def next_key(self, request: Request) -> Key | None:
        """The key of the block that the request would fill next, if it could take it over from another request instead;
        None otherwise."""
        extents, first, size = request.extents, request.num_cached_extents, self._block_size
        start = first * size
        at_most = None if request.reading is None else request.reading.num_skippable_tokens
        end = len(request.token_ids) - 1 if at_most is None else at_most
        if not self._is_enabled or start + size > end:
            return None
        if len(extents) > first and (extents[first] is not request.tail or extents[first].start != start):
            return None
        return self._key(request, first)

    def _key(self, request: Request, first: int) -> Key:
        start = first * self._block_size
        parent = request.extents[first - 1].node if first else NO_NODE
        return parent, tuple(request.token_ids[start : start + self._block_size])
