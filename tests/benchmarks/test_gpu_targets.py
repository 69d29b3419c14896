"""The targets of the GPU benchmark, for invented results that just reach or just miss them."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.gpu.targets import MIN_CHATS, TARGETS, lines, targets_of


def measured() -> dict[str, Any]:
    """Make a result in which all targets are just reached."""
    served = {"rt_attainment": 0.95, "rt_counted": MIN_CHATS, "rt_tokens_per_s": 100.0}
    figures: dict[str, Any] = {
        "steps": {
            "qwen3-4b as served, 1 rows at 1000": {"over_floor": 1.25},
            "qwen3-4b as served, 32 rows at 1000": {"over_floor": 1.3},
            "qwen3-4b as served, 256 rows at 1000": {"over_floor": 1.45},
            "qwen3-4b as served, prompt of 8192": {"over_floor": 1.35},
            "idle at 1 rows, asynchronous": {"idle_share_of_steps": 0.05},
            "idle at 32 rows, asynchronous": {"idle_share_of_steps": 0.01},
            "idle at 1 rows, synchronous": {"idle_share_of_steps": 0.4},
        },
        "alone": {
            "as many documents as the others get": {"output_tokens_per_s": 900.0},
            "documents alone": {"be_output_tokens_per_s": 1000.0, "be_tokens_per_s": 1100.0},
        },
        "hybrid": {
            "bros, ample memory": {**served, "be_output_tokens_per_s": 900.0, "be_tokens_per_s": 900.0}
        },
        "others": {
            "transformers continuous batching": {
                "output_tokens_per_s": 450.0,
                "documents": 256,
                "of_documents": 256,
            },
            "vllm": {"output_tokens_per_s": 1000.0, "documents": 256, "of_documents": 256},
        },
    }
    parts = {name: {"figures": part} for name, part in figures.items()}
    return {"settings": {"models": ["qwen3-4b", "llama-8b"]}, "parts": parts}


def test_targets_that_are_just_reached_are_reached() -> None:
    rows = targets_of(measured())
    assert [row["state"] for row in rows] == ["reached"] * len(TARGETS)
    assert [row["figure"] for row in rows] == [1.25, 1.3, 1.45, 1.35, 0.05, 2.0, 0.9, 0.95, 0.9, 0.9]


@pytest.mark.parametrize(
    ("part", "name", "key", "value", "changed"),
    [
        ("steps", "qwen3-4b as served, 1 rows at 1000", "over_floor", 1.26, {0}),
        ("steps", "qwen3-4b as served, 32 rows at 1000", "over_floor", 1.31, {1}),
        ("steps", "qwen3-4b as served, 256 rows at 1000", "over_floor", 1.46, {2}),
        ("steps", "qwen3-4b as served, prompt of 8192", "over_floor", 1.36, {3}),
        ("steps", "idle at 32 rows, asynchronous", "idle_share_of_steps", 0.06, {4}),
        ("others", "transformers continuous batching", "output_tokens_per_s", 451.0, {5}),
        ("others", "vllm", "output_tokens_per_s", 1001.0, {6}),
        ("hybrid", "bros, ample memory", "rt_attainment", 0.94, {7}),
        ("hybrid", "bros, ample memory", "be_output_tokens_per_s", 899.0, {8}),
        ("hybrid", "bros, ample memory", "rt_tokens_per_s", 99.0, {9}),
    ],
)
def test_a_missed_target_is_reported(part: str, name: str, key: str, value: float, changed: set[int]) -> None:
    result = measured()
    result["parts"][part]["figures"][name][key] = value
    rows = targets_of(result)
    assert {i for i, row in enumerate(rows) if row["state"] == "not reached"} == changed
    for row, line in zip(rows, lines(rows), strict=True):
        assert line.startswith(row["name"]) and line.endswith(f"  {row['state']}") and row["wanted"] in line


@pytest.mark.parametrize(
    ("part", "name", "key", "value", "unknown"),
    [
        ("hybrid", "bros, ample memory", "rt_counted", MIN_CHATS - 1, {7}),  # too few to judge
        ("others", "vllm", "documents", 255, {6}),  # cut short
        ("others", "vllm", "output_tokens_per_s", 0.0, {6}),
        ("hybrid", "bros, ample memory", "rt_tokens_per_s", 1101.0, {9}),  # more than documents alone
    ],
)
def test_insufficient_measurements_are_not_judged(
    part: str, name: str, key: str, value: float, unknown: set[int]
) -> None:
    result = measured()
    result["parts"][part]["figures"][name][key] = value
    assert {i for i, row in enumerate(targets_of(result)) if row["state"] == "not measured"} == unknown
