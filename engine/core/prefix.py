"""The prefix cache: blocks of KV found again by the tokens they hold and all tokens before them.

A tree. A node is one full block; its key is its parent's node and its own token ids, compared exactly, so two different
prefixes are never taken for one another. A block that no request holds stays until its memory is wanted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from engine.core.blocks import NO_NODE
from engine.core.types import Side

Key = tuple[int, tuple[int, ...]]


class PrefixCache:
    """`protected_blocks` of each lane's unreferenced blocks are evicted only when the other lane has none left over
    its own: a sweep of documents cannot flush the chats' prefixes."""

    def __init__(self, protected_blocks: int) -> None:
        self._protected_blocks = protected_blocks
        self._found: dict[Key, tuple[int, int, Side]] = {}  # node, block, side its tokens grow from
        self._key_of: dict[int, Key] = {}  # by block
        self._idle: dict[Side, OrderedDict[int, None]] = {side: OrderedDict() for side in Side}
        self._last_node = NO_NODE
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    @property
    def num_idle_blocks(self) -> int:
        """Blocks that nobody holds: memory that is there for the taking."""
        return len(self._idle[Side.LEFT]) + len(self._idle[Side.RIGHT])

    def find(self, parent: int, token_ids: Sequence[int]) -> tuple[int, int, Side] | None:
        """(node, block, side) of the block that holds these tokens after that parent."""
        return self._found.get((parent, tuple(token_ids)))

    def insert(self, parent: int, token_ids: Sequence[int], block: int, side: Side) -> int:
        """Make a computed block known. Returns its node, or that of the block which has the same content already."""
        key = (parent, tuple(token_ids))
        known = self._found.get(key)
        if known is not None:
            return known[0]
        self._last_node += 1
        self._found[key] = (self._last_node, block, side)
        self._key_of[block] = key
        return self._last_node

    def forget(self, block: int) -> None:
        """The block's content is about to change."""
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._found[key]

    def release(self, block: int, side: Side) -> bool:
        """Nobody holds the block any more. True if it is worth keeping; else it is free."""
        if block not in self._key_of:
            return False
        self._idle[side][block] = None
        return True

    def take(self, block: int, side: Side) -> None:
        """An idle block is held again."""
        del self._idle[side][block]

    def evict(self) -> int | None:
        """Gives up the idle block least recently held and returns it, or None."""
        chats, bulk = self._idle[Side.LEFT], self._idle[Side.RIGHT]
        if chats and (not bulk or (len(chats) > self._protected_blocks >= len(bulk))):
            oldest = chats
        elif bulk:
            oldest = bulk
        else:
            return None
        block, _ = oldest.popitem(last=False)
        self.forget(block)
        return block

    def blocks(self) -> tuple[set[int], set[int]]:
        """(all known blocks, the idle ones), for checks."""
        return set(self._key_of), {block for idle in self._idle.values() for block in idle}
