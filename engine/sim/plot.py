"""A plot that compares the replays of several policies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.core.terms import SLO, Lane
from engine.sim.outcomes import LaneOutcomes

MAX_POINTS = 2000
BULK_POINTS = 48


def require_matplotlib() -> None:
    """Raise ImportError, which says what to install, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError(
            "a plot needs matplotlib, which is not installed; run pip install 'bros-batch[benchmarks]'"
        ) from None


def plot(path: Path, replays: Mapping[str, Mapping[Lane, LaneOutcomes]], slo: SLO) -> None:
    """Plot the cumulative distribution of chat latencies, with the SLO, and the output rate of bulk over time.

    Each policy is one line. Raises OSError, or ValueError if the suffix of `path` does not name an image format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    ttft, tpot = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    bulk = figure.add_subplot(grid[1, :])
    for name, lanes in replays.items():
        chats = lanes[Lane.RT]
        for axes, values in ((ttft, chats.ttft_s), (tpot, chats.tpot_s)):
            ordered = sorted(values)[:: max(1, len(values) // MAX_POINTS)]
            axes.plot(ordered, [(i + 1) / len(ordered) for i in range(len(ordered))], label=name)
        times, rates = lanes[Lane.BE].timeline.rates(BULK_POINTS)
        bulk.plot(times, rates, label=name)
    for axes, title, slo_s in ((ttft, "TTFT", slo.ttft_s), (tpot, "TPOT", slo.tpot_s)):
        axes.axvline(slo_s, color="black", linestyle=":", label="SLO")
        axes.set(title=f"Chat: {title}", xlabel="seconds", ylabel="share of chats", xscale="log")
    bulk.set(title="Bulk", xlabel="virtual seconds", ylabel="output tokens/s", ylim=(0, None))
    for axes in (ttft, tpot, bulk):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
