"""The picture of KV memory: chat grows from the left of each cell, bulk from the right, as in each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bros_batch.web.formats import number, percent

# A cell's width in steps; the style sheet has a class for each, since the page's policy allows no inline styles.
STEPS = 20
# The key in the engine's stats, the letter of the cell's class, the class in the legend, and the name for readers.
KINDS = (
    ("left", "l", "rt", "chat"),
    ("right", "r", "be", "bulk"),
    ("cached", "c", "cached", "prefix cache"),
)


@dataclass(frozen=True, slots=True)
class MemoryPicture:
    """`cells` are the classes of each cell, such as `l5 r10`; `shares` have a class, a name and a percentage."""

    cells: Sequence[str]
    shares: Sequence[tuple[str, str, str]]
    scale: str

    @property
    def spoken(self) -> str:
        """The picture in words, for screen readers."""
        return ", ".join(f"{title} {share}" for _, title, share in self.shares)


def memory_picture(memory: Mapping[str, Any], num_blocks: int) -> MemoryPicture:
    """The picture of what the engine reports as `memory` (`engine.core.kv.view.Occupancy`)."""
    size, blocks_per_cell = int(memory["block_size"]), int(memory["blocks_per_cell"])
    columns: dict[str, Sequence[int]] = {kind: memory[kind] for kind, *_ in KINDS}
    cells = []
    for cell in range(len(columns["left"])):
        room = size * min(blocks_per_cell, num_blocks - cell * blocks_per_cell)
        cells.append(
            " ".join(
                f"{letter}{max(1, round(STEPS * columns[kind][cell] / room))}"
                for kind, letter, *_ in KINDS
                if columns[kind][cell]
            )
        )
    num_slots = size * num_blocks
    held = [(css, title, sum(columns[kind]) / num_slots) for kind, _, css, title in KINDS]
    held.append(("free", "free", 1 - sum(share for _, _, share in held)))
    cell_is = f"{number(blocks_per_cell)} blocks" if blocks_per_cell > 1 else "one block"
    return MemoryPicture(
        cells,
        [(css, title, percent(share)) for css, title, share in held],
        f"Each cell is {cell_is} of {size} tokens; there are {number(num_blocks)} blocks.",
    )
