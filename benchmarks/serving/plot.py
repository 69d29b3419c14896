"""Plots of serving results: latencies over time and as distributions, bulk tokens over time.

    python -m benchmarks.serving.plot A.json [B.json ...] --out comparison.png

Colors distinguish phases, line styles distinguish results; black lines are the SLOs. Needs matplotlib (the extra
`benchmarks`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot is imported, since there may be no display

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.serving.report import numbers

COLORS = {"rt": "tab:blue", "be": "tab:green", "both": "tab:orange"}
NAMES = {"rt": "chat alone", "be": "bulk alone", "both": "both"}
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "x", "^", "s")
SMOOTH_S = 5  # bulk tokens per second are averaged over this many seconds


def plot(results: Sequence[dict[str, Any]], path: Path) -> Path:
    """Plot one or more `result` objects to a PNG file and return its path."""
    figure, ((ttft, tpot, bulk), (ttft_cdf, tpot_cdf, bars)) = pyplot.subplots(
        2, 3, figsize=(18, 9), layout="constrained"
    )
    figure.suptitle("  |  ".join(_title(result) for result in results))
    for number, result in enumerate(results):
        for phase, values in result["phases"].items():
            name = NAMES[phase] if len(results) == 1 else f"{result['label']}: {NAMES[phase]}"
            look = {"color": COLORS[phase], "label": name}
            if "rt" in values:
                samples = {key: numbers(text) for key, text in values["rt"]["samples"].items()}
                for axes, key in ((ttft, "ttft_ms"), (tpot, "tpot_ms")):
                    axes.plot(samples["due_s"], samples[key], MARKERS[number % 4], markersize=4, **look)
                for axes, key in ((ttft_cdf, "ttft_ms"), (tpot_cdf, "tpot_ms")):
                    _cdf(axes, samples[key], values["rt"]["requests"], linestyle=STYLES[number % 4], **look)
            if "be" in values:
                smooth = _smooth(numbers(values["be"]["samples"]["tokens_each_s"]))
                bulk.plot(range(len(smooth)), smooth, STYLES[number % 4], **look)
    limits = results[0]["limits"]
    for axes, key, title in ((ttft, "ttft_ms", "Time to first token"), (tpot, "tpot_ms", "Time per token")):
        axes.axhline(limits[key], color="black", linewidth=1)
        axes.set(
            title=f"{title} of each chat",
            xlabel="scheduled time, seconds into the window",
            ylabel="ms",
            yscale="log",
        )
    for axes, key, title in (
        (ttft_cdf, "ttft_ms", "Time to first token"),
        (tpot_cdf, "tpot_ms", "Time per token"),
    ):
        axes.axvline(limits[key], color="black", linewidth=1)
        axes.set(
            title=f"{title}, distribution", xlabel="ms", ylabel="share of chats", xscale="log", ylim=(0, 1.01)
        )
    bulk.set(title=f"Bulk output, mean of {SMOOTH_S} s", xlabel="seconds into the window", ylabel="tokens/s")
    bulk.set_ylim(bottom=0)
    _bars(bars, results)
    for axes in (ttft, tpot, ttft_cdf, tpot_cdf, bulk):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return path


def _title(result: dict[str, Any]) -> str:
    version = f" {result['server']}" if result.get("server") else ""
    return f"{result['label']}{version}, {result['model']}, {result['load']['rt_rate']:g} chats/s"


def _cdf(axes: Axes, values: Sequence[float], requests: int, **look: Any) -> None:
    """Plot a distribution over all requests; if some failed, the line ends below 1."""
    shares = [(i + 1) / requests for i in range(len(values))]
    axes.plot(sorted(values), shares, drawstyle="steps-post", **look)


def _smooth(values: Sequence[float]) -> list[float]:
    """Average each value with up to SMOOTH_S - 1 values before it."""
    windows = (values[max(0, i + 1 - SMOOTH_S) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _bars(axes: Axes, results: Sequence[dict[str, Any]]) -> None:
    """Plot bulk throughput, labeled with the share of chats that meet their SLO: what one lane costs the other."""
    labels, heights, colors = [], [], []
    for result in results:
        for phase, values in result["phases"].items():
            if "be" in values:
                share = values["rt"]["attainment"] if "rt" in values else None
                chats = "no chats" if share is None else f"{share:.0%} of chats meet the SLO"
                labels.append(f"{result['label']}\n{NAMES[phase]}\n{chats}")
                heights.append(values["be"]["output_tokens_per_s"])
                colors.append(COLORS[phase])
    drawn = axes.bar(range(len(heights)), heights, color=colors)
    axes.bar_label(drawn, fmt="%.1f")
    axes.set_xticks(range(len(labels)), labels, fontsize="small")
    axes.set(title="Bulk output over the window", ylabel="tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    print(plot([json.loads(path.read_text())["result"] for path in options.results], options.out))


if __name__ == "__main__":
    main()
