"""The prefix cache finds blocks of KV by the tokens they hold and all tokens before them.

It is a tree. A node is one full block; its key is its parent's node and its own token ids, compared exactly, so two
different prefixes are never confused. A block that no request holds stays until its memory is needed. So does a block
that a request had begun when it ended: it is no node, since nothing follows it, but its tokens can be copied.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from engine.core.extent import NO_NODE, Extent, Key
from engine.core.terms import Side


class PrefixCache:
    """Known blocks by their tokens and all tokens before them, and the order in which idle ones are evicted.

    The last `protected_blocks` idle blocks of a lane are evicted only if the other lane has no more than that either.
    A sweep of documents therefore cannot flush the prefixes of the chats.
    """

    def __init__(self, protected_blocks: int) -> None:
        self._protected_blocks = protected_blocks
        self._found: dict[Key, Extent] = {}
        # By parent: the block that was registered last, full or not, of which another one may have the beginning.
        self._newest: dict[int, Extent] = {}
        # The idle blocks of each lane, the longest idle first.
        self._chats: OrderedDict[Extent, None] = OrderedDict()
        self._bulk: OrderedDict[Extent, None] = OrderedDict()
        self._last_node = NO_NODE
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    @property
    def num_idle_blocks(self) -> int:
        """Number of known blocks that no request holds: their memory is available immediately."""
        return len(self._chats) + len(self._bulk)

    def find(
        self, parent: int, token_ids: Sequence[int], start: int, block_size: int, at_most: int | None = None
    ) -> list[Extent]:
        """The chain of full blocks after `parent` that holds the tokens from `start` on, at most the first `at_most` of
        all tokens. At least the last token is left out, because it must be computed."""
        found = self.follow(parent, token_ids, start, block_size, at_most)
        self.num_queried_tokens += len(token_ids) - start
        self.num_hit_tokens += len(found) * block_size
        return found

    def follow(
        self, parent: int, token_ids: Sequence[int], start: int, block_size: int, at_most: int | None = None
    ) -> list[Extent]:
        """The same as `find`, without counting."""
        found: list[Extent] = []
        position = start
        end = len(token_ids) - 1 if at_most is None else min(at_most, len(token_ids) - 1)
        while position + block_size <= end:
            extent = self._found.get((parent, tuple(token_ids[position : position + block_size])))
            if extent is None:
                break
            found.append(extent)
            parent = extent.node
            position += block_size
        return found

    def beginning(self, parent: int, token_ids: list[int], at_least: int) -> range | None:
        """The slots of a block after `parent` that begins with the same tokens as these, as far as it does; None if
        there are not `at_least` so many. Only the newest block after a parent is looked at: questions about a document
        come together."""
        extent = self._newest.get(parent)
        if extent is None:
            return None
        assert extent.key is not None, "a block that is not known any more is not the newest"
        known = extent.key[1]
        num_both = min(len(token_ids), len(known))
        if num_both < at_least or tuple(token_ids[:at_least]) != known[:at_least]:  # as a rule
            return None
        length = at_least
        while length < num_both and token_ids[length] == known[length]:
            length += 1
        return extent.slots(0, length)

    def knows(self, key: Key) -> bool:
        """Whether there is a block with this parent and these tokens."""
        return key in self._found

    def insert(self, parent: int, token_ids: Sequence[int], extents: Sequence[Extent]) -> None:
        """Register computed full blocks, which hold these tokens after the parent. A block whose content is known from
        another block gets that block's node."""
        found, ids = self._found, tuple(token_ids)
        first = 0
        for extent in extents:
            last = first + extent.length
            key = (parent, ids[first:last])
            known = found.setdefault(key, extent)
            if known is extent:
                extent.key = key
                self._newest[parent] = extent
                self._last_node += 1
                extent.node = self._last_node
            else:
                extent.node = known.node
            parent = extent.node
            first = last

    def insert_beginning(self, parent: int, token_ids: Sequence[int], extent: Extent) -> None:
        """Register a block that is not full, which holds these tokens after the parent and is about to become idle."""
        key = (parent, tuple(token_ids))
        if key not in self._found:
            extent.key = key
            self._found[key] = self._newest[parent] = extent

    def forget(self, extent: Extent) -> None:
        """Drop a block whose content is about to change."""
        key = extent.key
        if key is not None:
            del self._found[key]
            if self._newest.get(key[0]) is extent:
                del self._newest[key[0]]
            extent.key = None

    def keep(self, extents: Sequence[Extent]) -> None:
        """Mark known blocks as idle, in this order."""
        left, chats, bulk = Side.LEFT, self._chats, self._bulk
        for extent in extents:
            if extent.side is left:
                chats[extent] = None
            else:
                bulk[extent] = None

    def take(self, extent: Extent) -> None:
        """Mark an idle block as in use."""
        idle = self._chats if extent.side is Side.LEFT else self._bulk
        del idle[extent]

    def evict(self, num_blocks: int) -> list[int]:
        """Forget up to `num_blocks` idle blocks, the longest idle first, and return them."""
        found, newest = self._found, self._newest
        chats, bulk, protected = self._chats, self._bulk, self._protected_blocks
        blocks: list[int] = []
        while len(blocks) < num_blocks and (chats or bulk):
            is_from_chats = chats and (not bulk or len(chats) > protected >= len(bulk))
            extent, _ = (chats if is_from_chats else bulk).popitem(last=False)
            key = extent.key
            assert key is not None, "an idle block is known"
            del found[key]  # as in `forget`, without the call
            if newest.get(key[0]) is extent:
                del newest[key[0]]
            extent.key = None
            blocks.append(extent.block)
        return blocks

    def blocks(self) -> tuple[set[int], set[int]]:
        """(all known blocks, the idle ones among them), for checks."""
        assert all(
            extent.key is not None and extent.key[0] == parent and self._found[extent.key] is extent
            for parent, extent in self._newest.items()
        ), "the newest block after a parent is not known"
        known = {extent.block for extent in self._found.values()}
        return known, {extent.block for idle in (self._chats, self._bulk) for extent in idle}
