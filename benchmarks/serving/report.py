"""Reports of the serving benchmark: the figures of a phase, and a table of several results."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.serving.client import Answer
from benchmarks.serving.phase import LANES, Observed

MOST_ERRORS = 8  # error messages listed in a result


@dataclass(frozen=True, slots=True)
class Limits:
    """The SLO of a chat: time to first token, and time per output token after it."""

    ttft_ms: float = 150.0
    tpot_ms: float = 35.0

    def met_by(self, answer: Answer) -> bool:
        return self.ttft_met_by(answer) and self.tpot_met_by(answer)

    def ttft_met_by(self, answer: Answer) -> bool:
        return answer.error is None and answer.ttft_s * 1e3 <= self.ttft_ms

    def tpot_met_by(self, answer: Answer) -> bool:
        return answer.error is None and answer.tpot_s * 1e3 <= self.tpot_ms


def report(windows: Sequence[Observed], limits: Limits) -> dict[str, Any]:
    """Return the figures of a phase, observed in one window or in several, which are joined into one long window.

    Latencies cover complete answers only; a failed request misses every limit.
    """
    window_s = sum(window.window_s for window in windows)
    result: dict[str, Any] = {
        "window_s": round(window_s, 3),
        "cpu_s": _sums(window.cpu_s for window in windows),
        "counters": _sums(window.counters for window in windows),
        "counted_s": round(sum(window.counted_s for window in windows), 3),
    }
    if (error := windows[-1].cost_model_error) is not None:
        result["cost_model_error"] = round(error, 4)
    if "rt" in LANES[windows[0].phase]:
        result["rt"] = _of_chats(windows, limits)
    if "be" in LANES[windows[0].phase]:
        result["be"] = _of_documents(windows, window_s)
    return result


def beside_each_other(found: dict[str, Any]) -> dict[str, Any]:
    """From a report of a load with both lanes: the tokens that steps computed of each, and how chats fared."""
    tokens = {lane: found["counters"].get(f"bros_step_tokens_total.{lane}", 0.0) for lane in LANES["both"]}
    return {
        "be_tokens_per_s": tokens["be"] / found["counted_s"],
        "rt_tokens_per_s": tokens["rt"] / found["counted_s"],
        "rt": {key: found["rt"][key] for key in ("requests", "attainment", "ttft_ms", "tpot_ms", "errors")},
        "be_errors": found["be"]["errors"],
    }


def _sums(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sum the values of each name over all windows, without those that are 0."""
    total: collections.Counter[str] = collections.Counter()
    for each in values:
        total.update(each)
    return {name: round(value, 3) for name, value in sorted(total.items()) if value}


def _of_chats(windows: Sequence[Observed], limits: Limits) -> dict[str, Any]:
    chats = [answer for window in windows for answer in window.chats]
    answered = [answer for answer in chats if answer.error is None]
    gaps_s = [
        later - earlier
        for answer in answered
        for earlier, later in zip(answer.arrivals_s, answer.arrivals_s[1:], strict=False)
    ]
    # As if each window directly followed the one before.
    ends_s = itertools.accumulate(window.window_s for window in windows)
    due_s = [
        answer.due_s - window.end_s + end_s
        for window, end_s in zip(windows, ends_s, strict=True)
        for answer in window.chats
        if answer.error is None
    ]
    return {
        "requests": len(chats),
        "answered": len(answered),
        "errors": _errors(chats),
        "prompt_tokens": sum(len(answer.ask.token_ids) for answer in chats),
        "output_tokens": sum(answer.ask.num_tokens for answer in answered),
        "attainment": _share(sum(map(limits.met_by, chats)), len(chats)),
        "attainment_ttft": _share(sum(map(limits.ttft_met_by, chats)), len(chats)),
        "attainment_tpot": _share(sum(map(limits.tpot_met_by, chats)), len(chats)),
        "ttft_ms": percentiles([answer.ttft_s * 1e3 for answer in answered]),
        "tpot_ms": percentiles([answer.tpot_s * 1e3 for answer in answered]),
        "gap_ms": percentiles([gap_s * 1e3 for gap_s in gaps_s]),
        "e2e_ms": percentiles([answer.e2e_s * 1e3 for answer in answered]),
        # Delay of this program against its own schedule. It is part of the times above.
        "sent_late_ms": percentiles(
            [(answer.sent_s - answer.due_s) * 1e3 for answer in chats if answer.sent_s is not None]
        ),
        "samples": {
            "due_s": series(due_s, 3),
            "ttft_ms": series([answer.ttft_s * 1e3 for answer in answered], 2),
            "tpot_ms": series([answer.tpot_s * 1e3 for answer in answered], 2),
        },
    }


def _of_documents(windows: Sequence[Observed], window_s: float) -> dict[str, Any]:
    streamed = [(window, each) for window in windows for each in window.documents if each.arrivals_s]
    begun = [each for window, each in streamed if window.contains(each.arrivals_s[0])]
    ended = [each for window, each in streamed if not each.error and window.contains(each.arrivals_s[-1])]
    tokens = [
        sum(each.tokens_between(window.start_s, window.end_s) for each in window.documents)
        for window in windows
    ]
    # Documents that were still open at the end of a phase were cancelled by this program.
    failed = [each for window in windows for each in window.documents if each.error != "unfinished"]
    return {
        "documents": len(ended),
        "errors": _errors(failed),
        "output_tokens": round(sum(tokens), 1),
        "output_tokens_per_s": round(sum(tokens) / window_s, 2),
        "output_tokens_per_s_of_windows": [
            round(count / window.window_s, 2) for count, window in zip(tokens, windows, strict=True)
        ],
        # Prompts of documents whose first token came in the window: roughly the prompts computed in it.
        "prompt_tokens_per_s": round(sum(len(each.ask.token_ids) for each in begun) / window_s, 2),
        "e2e_s": percentiles([answer.e2e_s for answer in ended]),
        "tokens_per_piece": round(sum(each.tokens_per_piece for each in ended) / max(len(ended), 1), 3),
        "samples": {
            "tokens_each_s": series([count for window in windows for count in _tokens_each_s(window)], 1)
        },
    }


def _tokens_each_s(window: Observed) -> list[float]:
    """Return the bulk tokens of each whole second of the window."""
    counts = [0.0] * int(window.window_s)
    for answer in window.documents:
        for arrival_s in answer.arrivals_s:
            second = int(arrival_s - window.start_s)
            if arrival_s >= window.start_s and second < len(counts):
                counts[second] += answer.tokens_per_piece
    return counts


def _errors(answers: Sequence[Answer]) -> dict[str, int]:
    """Count each error. The rarer of many are counted together, since messages may contain unique numbers."""
    errors = collections.Counter(answer.error for answer in answers if answer.error is not None)
    common = dict(errors.most_common(MOST_ERRORS))
    rest = errors.total() - sum(common.values())
    return {**common, "others": rest} if rest else common


def _share(count: int, of: int) -> float | None:
    return round(count / of, 4) if of else None


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return the mean and interpolated percentiles; empty if there are no values."""
    if not values:
        return {}
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

    found = {"mean": sum(ordered) / len(ordered), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99)}
    return {name: round(value, 3) for name, value in found.items()}


def series(values: Sequence[float], digits: int) -> str:
    """Write numbers as one string, so that they take one line of a result file; `numbers` reads them."""
    return " ".join(f"{value:.{digits}f}" for value in values)


def numbers(text: str) -> list[float]:
    """Read the numbers that `series` wrote."""
    return [float(word) for word in text.split()]


# Side by side --------------------------------------------------------------------------------------------------------

# Path in the result of a phase, and its title in the table.
ROWS = (
    ("rt.requests", "chats"),
    ("rt.answered", "answered"),
    ("rt.attainment", "SLO attainment"),
    ("rt.attainment_ttft", "TTFT attainment"),
    ("rt.attainment_tpot", "TPOT attainment"),
    ("rt.ttft_ms.p50", "TTFT p50 ms"),
    ("rt.ttft_ms.p90", "TTFT p90 ms"),
    ("rt.ttft_ms.p99", "TTFT p99 ms"),
    ("rt.tpot_ms.p50", "TPOT p50 ms"),
    ("rt.tpot_ms.p90", "TPOT p90 ms"),
    ("rt.tpot_ms.p99", "TPOT p99 ms"),
    ("rt.gap_ms.p99", "gap between tokens p99 ms"),
    ("rt.e2e_ms.p50", "whole chat p50 ms"),
    ("be.output_tokens_per_s", "bulk output tokens/s"),
    ("be.prompt_tokens_per_s", "bulk prompt tokens/s"),
    ("be.documents", "documents finished"),
    ("be.e2e_s.p50", "document p50 s"),
    ("be.errors", "bulk errors"),
    ("cpu_s.server", "CPU s, server"),
    ("cpu_s.client", "CPU s, this client"),
    ("cpu_s.others", "CPU s, others"),
)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Format `result` objects of the JSON files as a table with one column per result."""
    width = max(12, *(len(str(result["label"])) + 2 for result in results))
    lines = [" " * 28 + "".join(f"{result['label']:>{width}}" for result in results)]
    for phase in LANES:
        phases = [result["phases"].get(phase) for result in results]
        if not any(phases):
            continue
        lines.append(f"-- {phase}")
        for path, name in ROWS:
            cells = [_cell(each, path) for each in phases]
            if any(cells):
                lines.append(f"{name:28}" + "".join(f"{cell or '-':>{width}}" for cell in cells))
    return "\n".join(lines)


def _cell(phase: dict[str, Any] | None, path: str) -> str:
    value: Any = phase
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, dict):
        return str(sum(value.values())) if value else ""
    return "" if value is None else f"{value:g}" if isinstance(value, int) else f"{value:.2f}"
