"""The prefix cache: blocks of KV found again by the tokens they hold and all tokens before them.

A tree. A node is one full block; its key is its parent's node and its own token ids, compared exactly, so two different
prefixes are never taken for one another. A block that no request holds stays until its memory is wanted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from engine.core.extent import NO_NODE, Extent, Key
from engine.core.terms import Side


class PrefixCache:
    """`protected_blocks` of each lane's unreferenced blocks are evicted only when the other lane has none left over
    its own: a sweep of documents cannot flush the chats' prefixes."""

    def __init__(self, protected_blocks: int) -> None:
        self._protected_blocks = protected_blocks
        self._found: dict[Key, Extent] = {}
        # Of each lane, those that nobody holds, the longest idle first.
        self._chats: OrderedDict[Extent, None] = OrderedDict()
        self._bulk: OrderedDict[Extent, None] = OrderedDict()
        self._last_node = NO_NODE
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    @property
    def num_idle_blocks(self) -> int:
        """Blocks that nobody holds: memory that is there for the taking."""
        return len(self._chats) + len(self._bulk)

    def find(self, parent: int, token_ids: Sequence[int]) -> Extent | None:
        """The full block that holds these tokens after that parent."""
        return self._found.get((parent, tuple(token_ids)))

    def insert(self, parent: int, token_ids: Sequence[int], extents: Sequence[Extent]) -> None:
        """Make computed blocks known, which hold these tokens after that parent, one chunk each. One whose content
        another block has already gets that one's node."""
        found, ids = self._found, tuple(token_ids)
        first = 0
        for extent in extents:
            last = first + extent.length
            key = (parent, ids[first:last])
            known = found.setdefault(key, extent)
            if known is extent:
                extent.key = key
                self._last_node += 1
                extent.node = self._last_node
            else:
                extent.node = known.node
            parent = extent.node
            first = last

    def forget(self, extent: Extent) -> None:
        """The block's content is about to change."""
        if extent.key is not None:
            del self._found[extent.key]
            extent.key = None

    def keep(self, extent: Extent) -> None:
        """Nobody holds a known block any more."""
        idle = self._chats if extent.side is Side.LEFT else self._bulk
        idle[extent] = None

    def take(self, extent: Extent) -> None:
        """An idle block is held again."""
        idle = self._chats if extent.side is Side.LEFT else self._bulk
        del idle[extent]

    def evict(self, num_blocks: int) -> list[int]:
        """Gives up the idle blocks least recently held, as many as are wanted and there are, and returns them."""
        chats, bulk, protected = self._chats, self._bulk, self._protected_blocks
        blocks: list[int] = []
        while len(blocks) < num_blocks and (chats or bulk):
            is_chats_turn = chats and (not bulk or len(chats) > protected >= len(bulk))
            extent, _ = (chats if is_chats_turn else bulk).popitem(last=False)
            self.forget(extent)
            blocks.append(extent.block)
        return blocks

    def blocks(self) -> tuple[set[int], set[int]]:
        """(all known blocks, the idle ones), for checks."""
        known = {extent.block for extent in self._found.values()}
        return known, {extent.block for idle in (self._chats, self._bulk) for extent in idle}
