"""Targets for an H200 with a model of 8B parameters, and whether a run reached them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MIN_CHATS = 150  # fewer say little about a share of 95%, and nothing about a 99th percentile
REACHED, MISSED, UNKNOWN = "reached", "not reached", "not measured"

Figures = Mapping[str, Mapping[str, Any]]  # by part, then by name
Find = Callable[[Figures, str], Any]  # also receives the name of the served model


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for one figure. If it was not measured, `find` returns None or raises an error that `row` catches."""

    name: str
    limit: float
    is_most: bool  # whether the limit is a maximum; otherwise it is a minimum
    find: Find

    def row(self, figures: Figures, model: str) -> dict[str, Any]:
        try:
            figure = self.find(figures, model)
        except (KeyError, TypeError, ZeroDivisionError):
            figure = None
        state = UNKNOWN
        if figure is not None:
            is_reached = figure <= self.limit if self.is_most else figure >= self.limit
            state = REACHED if is_reached else MISSED
        wanted = f"at {'most' if self.is_most else 'least'} {self.limit:g}"
        return {"name": self.name, "figure": figure, "wanted": wanted, "state": state}


def targets_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per target for the result of a run, which may still be going on."""
    figures = {name: part["figures"] for name, part in result["parts"].items()}
    model = result.get("settings", {}).get("models", ["llama-8b"])[0]
    return [target.row(figures, model) for target in TARGETS]


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """Format the rows as text."""
    width = max((len(row["name"]) for row in rows), default=0)
    shown = ("-" if row["figure"] is None else f"{row['figure']:.3g}" for row in rows)
    return [
        f"{row['name']:{width}}  {figure:>7}  {row['wanted']:13}  {row['state']}"
        for row, figure in zip(rows, shown, strict=True)
    ]


def _over_floor(title: str) -> Find:
    return lambda figures, model: figures["steps"][f"{model} as served, {title}"]["over_floor"]


def _of_another_engine(name: str) -> Find:
    """Compare output tokens per second on the same documents.

    An engine that had no time for all documents has no rate, since its unfinished documents would not count.
    """

    def find(figures: Figures, model: str) -> float | None:
        ours, theirs = figures["alone"]["as many documents as the others get"], figures["others"][name]
        if theirs["documents"] < theirs["of_documents"]:
            return None
        return float(ours["output_tokens_per_s"] / theirs["output_tokens_per_s"])

    return find


def _attainment(figures: Figures, model: str) -> float | None:
    served = figures["hybrid"]["bros, ample memory"]
    return float(served["rt_attainment"]) if served["rt_counted"] >= MIN_CHATS else None


def _be_of_alone(figures: Figures, model: str) -> float:
    served, alone = figures["hybrid"]["bros, ample memory"], figures["alone"]["documents alone"]
    return float(served["be_output_tokens_per_s"] / alone["be_output_tokens_per_s"])


def _be_of_the_rest(figures: Figures, model: str) -> float | None:
    """Bulk tokens per second relative to what the chats leave; None if they leave nothing."""
    served, alone = figures["hybrid"]["bros, ample memory"], figures["alone"]["documents alone"]
    rest = alone["be_tokens_per_s"] - served["rt_tokens_per_s"]
    return float(served["be_tokens_per_s"] / rest) if rest > 0 else None


def _idle(figures: Figures, model: str) -> float | None:
    """Largest idle share over all numbers of rows, with asynchronous scheduling, without the gaps inside graphs."""
    shares = [
        value["idle_share_of_steps"]
        for name, value in figures["steps"].items()
        if name.startswith("idle at ") and name.endswith(", asynchronous")
    ]
    return max(shares, default=None)


TARGETS = (
    Target("decode step, 1 row at 1000, times the floor", 1.25, True, _over_floor("1 rows at 1000")),
    Target("decode step, 32 rows at 1000, times the floor", 1.3, True, _over_floor("32 rows at 1000")),
    Target("decode step, 256 rows at 1000, times the floor", 1.45, True, _over_floor("256 rows at 1000")),
    Target("prompt of 8192, times the floor", 1.35, True, _over_floor("prompt of 8192")),
    Target("GPU idle in steady decode, share", 0.05, True, _idle),
    Target(
        "documents, times transformers' batching",
        2.0,
        False,
        _of_another_engine("transformers continuous batching"),
    ),
    Target("documents, times vLLM", 0.9, False, _of_another_engine("vllm")),
    Target("chats within 200 ms and 30 ms beside documents, share", 0.95, False, _attainment),
    Target("documents beside chats, of documents alone", 0.9, False, _be_of_alone),
    Target("documents beside chats, of what the chats leave", 0.9, False, _be_of_the_rest),
)
