"""Trace files: one request per line, as JSON.

    {"arrival_s": 0.25, "lane": "rt", "prompt_tokens": 400, "output_tokens": 60, "ttft_s": 0.5, "tpot_s": 0.1}
    {"arrival_s": 0.25, "lane": "be", "prompt_tokens": 900, "output_tokens": 80, "prefix": "a", "prefix_tokens": 512}

Lines are in order of arrival. `ttft_s`, `tpot_s`, `priority`, `deadline_s` (in seconds since the start, as `arrival_s`)
and `prefix` with `prefix_tokens` are optional. A file is read line by line, so it may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from engine.core.terms import SLO, Lane
from engine.sim.traces.arrival import Arrival

Count = Annotated[int, Meta(ge=1, le=2**24)]
Seconds = Annotated[float, Meta(gt=0)]


class _Line(Struct, forbid_unknown_fields=True):
    arrival_s: Annotated[float, Meta(ge=0)]
    lane: Literal["rt", "be"]
    prompt_tokens: Count
    output_tokens: Count
    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None
    priority: int = 0
    deadline_s: float | None = None
    prefix: str | None = None
    prefix_tokens: Count | None = None


_decode = msgspec.json.Decoder(_Line).decode


class TraceError(ValueError):
    """A line is invalid; the message says which and why."""


@dataclass(frozen=True, slots=True)
class TraceFacts:
    """What must be known about a trace before it is replayed."""

    num_requests: dict[Lane, int]
    most_output_tokens: int
    has_prefixes: bool


def examine(path: Path) -> TraceFacts:
    """Read every line. Raises TraceError if one is invalid or there is none, and OSError if the file cannot be read."""
    counts = dict.fromkeys(Lane, 0)
    most, has_prefixes, last_s = 0, False, 0.0
    for number, line in _lines(path):
        if line.arrival_s < last_s:
            raise TraceError(
                f"{path}, line {number}: it arrives at {line.arrival_s:g} s, before the line above it "
                f"({last_s:g} s); sort the lines by arrival_s"
            )
        last_s = line.arrival_s
        counts[Lane(line.lane)] += 1
        most = max(most, line.output_tokens)
        has_prefixes = has_prefixes or line.prefix is not None
    if not sum(counts.values()):
        raise TraceError(f"{path}: there is no request in this file")
    return TraceFacts(counts, most, has_prefixes)


def arrivals(path: Path, lane: Lane, default_slo: SLO) -> Iterator[Arrival]:
    """Yield the requests of one lane in order. Raises TraceError."""
    for _, line in _lines(path):
        if line.lane != lane.value:
            continue
        slo = None
        if line.ttft_s is not None or line.tpot_s is not None:
            slo = SLO(line.ttft_s or default_slo.ttft_s, line.tpot_s or default_slo.tpot_s)
        yield Arrival(
            line.arrival_s,
            lane,
            line.prompt_tokens,
            line.output_tokens,
            slo if lane is Lane.RT else None,
            line.priority,
            line.deadline_s,
            line.prefix,
            line.prefix_tokens or 0,
        )


def _lines(path: Path) -> Iterator[tuple[int, _Line]]:
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if text.isspace():
                continue
            try:
                line = _decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise TraceError(f"{path}, line {number}: {error}") from None
            if (line.prefix is None) != (line.prefix_tokens is None):
                raise TraceError(f"{path}, line {number}: prefix and prefix_tokens must be given together")
            if line.prefix_tokens is not None and line.prefix_tokens > line.prompt_tokens:
                raise TraceError(
                    f"{path}, line {number}: its prefix of {line.prefix_tokens} tokens is longer than its prompt of "
                    f"{line.prompt_tokens}"
                )
            yield number, line
