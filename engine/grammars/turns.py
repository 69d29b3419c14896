"""Who is next: what waits for a turn, that of chats before that of bulk, and the owners of each alternately."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from engine.grammars.contract import Asker

T = TypeVar("T", bound=Hashable)


class FairQueue(Generic[T]):
    """Values that wait. However many one asker has, the others wait for one of them at a time.

    A value may wait on behalf of several askers, and leaves with the first of them whose turn it is.
    """

    def __init__(self) -> None:
        # Of chats, and of bulk: the askers in the order of their turns, each with its values in order.
        self._lanes: tuple[OrderedDict[Asker, OrderedDict[T, None]], ...] = (OrderedDict(), OrderedDict())

    def __bool__(self) -> bool:
        return any(self._lanes)

    def num_of(self, asker: Asker) -> int:
        """How many values wait on behalf of this asker."""
        return len(self._lanes[asker.is_bulk].get(asker, ()))

    def add(self, value: T, asker: Asker) -> None:
        self._lanes[asker.is_bulk].setdefault(asker, OrderedDict())[value] = None

    def pop(self) -> T:
        """Take out the next value. There is one."""
        askers = next(filter(None, self._lanes))
        asker, values = askers.popitem(last=False)
        value, _ = values.popitem(last=False)
        if values:
            askers[asker] = values  # behind the others
        for others in self._lanes:
            for other in [each for each, own in others.items() if value in own]:
                del others[other][value]
                if not others[other]:
                    del others[other]
        return value

    def clear(self) -> None:
        for askers in self._lanes:
            askers.clear()
