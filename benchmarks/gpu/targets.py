"""What a run is to show on an H200 with a model of 8B parameters, and whether it did: a row for each target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MIN_CHATS = 150  # fewer say little of a share of 95%, and nothing of a 99th percentile
REACHED, MISSED, UNKNOWN = "reached", "not reached", "not measured"

Figures = Mapping[str, Mapping[str, Any]]  # by part, then by name
Find = Callable[[Figures, str], Any]  # given the name of the model that is served too


@dataclass(frozen=True, slots=True)
class Target:
    """`find` gives the figure; where it was not measured, None or KeyError, TypeError or ZeroDivisionError."""

    name: str
    limit: float
    is_most: bool  # the figure may be no more than the limit; otherwise no less
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
    """A row each, of a run's result at any time."""
    figures = {name: part["figures"] for name, part in result["parts"].items()}
    model = result.get("settings", {}).get("models", ["llama-8b"])[0]
    return [target.row(figures, model) for target in TARGETS]


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows for a person."""
    width = max((len(row["name"]) for row in rows), default=0)
    shown = ("-" if row["figure"] is None else f"{row['figure']:.3g}" for row in rows)
    return [
        f"{row['name']:{width}}  {figure:>7}  {row['wanted']:13}  {row['state']}"
        for row, figure in zip(rows, shown, strict=True)
    ]


def _over_floor(title: str) -> Find:
    return lambda figures, model: figures["steps"][f"{model} as served, {title}"]["over_floor"]


def _of_another_engine(name: str) -> Find:
    """Output tokens a second of the same documents. One that was not given the time for all of them has no rate: what
    it was in the middle of would count for nothing."""

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
    """Tokens a second. None where the chats alone were more than the documents were alone: then nothing is left."""
    served, alone = figures["hybrid"]["bros, ample memory"], figures["alone"]["documents alone"]
    rest = alone["be_tokens_per_s"] - served["rt_tokens_per_s"]
    return float(served["be_tokens_per_s"] / rest) if rest > 0 else None


def _idle(figures: Figures, model: str) -> float | None:
    """The most, of all numbers of rows, as served: decided ahead. Not the gaps between a graph's kernels."""
    shares = [
        value["idle_share_of_steps"]
        for name, value in figures["steps"].items()
        if name.startswith("idle at ") and name.endswith(", ahead")
    ]
    return max(shares, default=None)


TARGETS = (
    Target("decode step, 1 row at 1000, times the floor", 1.25, True, _over_floor("1 rows at 1000")),
    Target("decode step, 256 rows at 1000, times the floor", 1.4, True, _over_floor("256 rows at 1000")),
    Target("prompt of 8192, times the floor", 1.4, True, _over_floor("prompt of 8192")),
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
