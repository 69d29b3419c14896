"""KV memory as it lies there: RT grows from the left of each cell, BE from the right, as in each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bros_batch.web.dashboard.chart import percent
from bros_batch.web.dashboard.fragments import number

# What is there is seen, however little.
LEAST_SHOWN_PERCENT = 4
KINDS = (("left", "rt", "real-time"), ("right", "be", "best-effort"), ("cached", "cached", "kept prefixes"))


def memory_picture(memory: Mapping[str, Any], num_blocks: int) -> str:
    """The picture and its legend. `memory` is what the engine gives (`engine.core.kv.view.Occupancy`)."""
    size, step = int(memory["block_size"]), int(memory["blocks_a_cell"])
    columns: dict[str, Sequence[int]] = {kind: memory[kind] for kind, _, _ in KINDS}
    num_cells = len(columns["left"])
    cells = []
    for cell in range(num_cells):
        room = size * min(step, num_blocks - cell * step)
        style = "".join(
            f"--{kind[0]}:{max(LEAST_SHOWN_PERCENT, round(100 * columns[kind][cell] / room))}%;"
            for kind, _, _ in KINDS
            if columns[kind][cell]
        )
        cells.append(f'<i style="{style}"></i>' if style else "<i></i>")
    num_slots = size * num_blocks
    shares = [(css, title, sum(columns[kind]) / num_slots) for kind, css, title in KINDS]
    shares.append(("free", "free", 1 - sum(share for _, _, share in shares)))
    spoken = ", ".join(f"{title} {percent(share)}" for _, title, share in shares)
    legend = "".join(
        f'<li class="{css}">{title} <b>{percent(share)}</b></li>' for css, title, share in shares
    )
    what = f"A cell is {number(step)} blocks" if step > 1 else "A cell is a block"
    return (
        f'<div class="cells" role="img" aria-label="KV memory: {spoken}">{"".join(cells)}</div>'
        f'<ul class="legend">{legend}</ul>'
        f'<p class="note">{what} of {size} tokens; {number(num_blocks)} blocks in all.</p>'
    )
