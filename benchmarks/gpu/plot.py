"""Plot of a run on a GPU host: steps and kernels relative to their floors, and both lanes by policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def plot(result: Path) -> Path | None:
    """Write a PNG next to the result and return its path; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    result_json = json.loads(result.read_text())["result"]
    parts = {name: part["figures"] for name, part in result_json["parts"].items()}
    figure = Figure(figsize=(14, 10), layout="constrained")
    figure.suptitle(result_json["device"]["name"])
    axes = figure.subplots(2, 2)
    steps = {**parts.get("steps", {}), **parts.get("more", {})}
    _bars(axes[0][0], "Steps: time relative to the floor", _over_floor(steps))
    _bars(axes[0][1], "Kernels: time relative to the floor", _over_floor(parts.get("kernels", {})))
    serving = {**parts.get("alone", {}), **parts.get("hybrid", {})}
    _bars(axes[1][0], "Bulk: output tokens/s", _chosen(serving, "be_output_tokens_per_s"))
    _bars(axes[1][1], "Chats: SLO attainment", _chosen(serving, "rt_attainment"))
    path = result.with_suffix(".png")
    figure.savefig(path, dpi=110)
    return path


def _over_floor(figures: dict[str, Any]) -> dict[str, float]:
    return _chosen(figures, "over_floor")


def _chosen(figures: dict[str, Any], key: str) -> dict[str, float]:
    chosen = {name: value.get(key) for name, value in figures.items() if isinstance(value, dict)}
    return {name: value for name, value in chosen.items() if value is not None}


def _bars(axes: Any, title: str, values: dict[str, float]) -> None:
    axes.set_title(title)
    if not values:
        axes.set_axis_off()
        return
    colors = [COLORS[number % len(COLORS)] for number in range(len(values))]
    bars = axes.barh(list(values), list(values.values()), color=colors)
    axes.bar_label(bars, fmt="%.3g", padding=2, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.invert_yaxis()
    axes.set_xmargin(0.15)
