"""The GPU benchmark, end to end on a CPU at a tiny scale, with the Triton kernels in their interpreter.

The measured times are meaningless here; the tests check that every measurement is made and correct.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.gpu.__main__ import main, measure_apart
from benchmarks.gpu.ceilings import Ceilings, ceilings_of
from benchmarks.gpu.correctness.layers import worst_error
from benchmarks.gpu.correctness.run import note
from benchmarks.gpu.idle import union
from benchmarks.gpu.models import SHAPES, make_model
from benchmarks.gpu.report import Run, rounded
from benchmarks.gpu.scale import FULL, MODELS, SHARES, TINY
from benchmarks.gpu.serving import SEED, WARM_UP_MOST_S, WARM_UP_SHARE, window_s
from benchmarks.gpu.targets import MIN_CHATS, TARGETS
from benchmarks.gpu.timing import Stopwatch
from engine.core.terms import Lane
from engine.sim.traces.synthetic import open_arrivals

MINUTES = 20.0  # a maximum; it takes one minute on an idle machine


def numbers(value: Any) -> Iterator[float]:
    """Yield all numbers in a nested value."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


@pytest.mark.slow
@pytest.mark.timeout(MINUTES * 60 + 60)
def test_everything_is_measured_and_sound(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--minutes", str(MINUTES)]
    command += ["--models", "llama-8b,qwen3-4b", "--out", str(tmp_path)]
    # A GPU host has none of these, and nothing can be installed there.
    absent = (
        "llguidance",
        "msgspec",
        "redis",
        "celery",
        "sqlalchemy",
        "fastapi",
        "starlette",
        "pydantic",
        "gguf",
    )
    startup = tmp_path / "startup"
    startup.mkdir()
    (startup / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({absent!r})\n")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(startup), os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    (path,) = tmp_path.glob("*.json")
    document = json.loads(path.read_text())
    assert document["machine"]["packages"]["torch"] == torch.__version__
    result = document["result"]
    assert result["is_sound"] and result["warnings"] == []
    parts = result["parts"]
    assert list(parts) == list(SHARES)
    for name, part in parts.items():
        assert part["skipped"] == [] and part["failed"] == {} and part["mismatches"] == [], name
        assert part["figures"], name
        assert all(math.isfinite(number) and number >= 0 for number in numbers(part["figures"])), name

    assert len(parts["correctness"]["figures"]) >= 12
    for name, figures in parts["kernels"]["figures"].items():
        assert figures["us"] > 0 and figures["floor_us"] > 0, name
    steps = parts["steps"]["figures"] | parts["more"]["figures"]
    for model in ("llama-8b", "qwen3-4b"):
        assert steps[f"{model} as served, 4 rows at 60"]["step_ms"] > 0
        assert steps[f"{model} as served, prompt of 96"]["tokens_per_s"] > 0
        mixed = steps[f"{model} as served, 3 rows at 20 and a chunk of 17"]
        assert 0 < mixed["launch_ms"] <= mixed["step_ms"] * 2
    products = parts["ceilings"]["figures"]["products by tokens"]
    assert len(products["tokens"]) == len(products["share_of_peak"]) > 1
    assert "share_of_peak " in ran.stdout  # lists are printed too, in case that the file is lost
    for mode in ("synchronous", "asynchronous"):
        idle = steps[f"idle at 4 rows, {mode}"]
        assert idle["steps"] > 5
        assert 0 <= idle["idle_share"] < 1 and 0 < idle["idle_share_between_kernels"] < 1
        assert 0 <= idle["idle_share_of_steps"] < 1 and idle["kernels_ms"] > 0
    assert parts["alone"]["figures"]["documents alone"]["be_output_tokens_per_s"] > 0
    assert parts["alone"]["figures"]["chats alone"]["rt_requests"] > 0
    served = parts["hybrid"]["figures"]
    assert {name.partition(",")[0] for name in served} == {"bros", "fcfs", "priority"}
    for name, figures in served.items():
        assert figures["rt_failed"] == figures["be_failed"] == 0, name
        assert figures["tokens_per_s"] > 0, name
        lanes_tokens_per_s = figures["be_tokens_per_s"] + figures["rt_tokens_per_s"]
        assert lanes_tokens_per_s == pytest.approx(figures["tokens_per_s"], rel=0.01), name
    # All engines process the same documents and generate the same numbers of tokens.
    theirs = parts["others"]["figures"]["transformers continuous batching"]
    ours = parts["alone"]["figures"]["as many documents as the others get"]
    drawn = [figures["output_tokens_per_s"] * figures["seconds"] for figures in (ours, theirs)]
    assert drawn[0] == pytest.approx(drawn[1], rel=0.01)
    assert parts["steps"]["figures"]["tokens that graphs draw as eager steps do"]["share"] == 1
    assert path.with_suffix(".png").stat().st_size > 1000
    assert [row["name"] for row in result["targets"]] == [target.name for target in TARGETS]
    assert all(row["name"] in ran.stdout for row in result["targets"])


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make_run(directory: Path, clock: Clock) -> Run:
    return Run(directory / "run.json", {"first": 1, "second": 3}, 40.0, clock)


def written(run: Run) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(run.path.read_text())["result"]["parts"]
    return parts


def test_a_part_finishes_what_it_began_and_lists_what_it_skipped(tmp_path: Path) -> None:
    clock = Clock()
    run = make_run(tmp_path, clock)
    part = run.part("first")
    assert part.left_s == 10.0  # a quarter

    def slow() -> float:
        clock.now_s += 12.0
        return 1.5

    assert part.measure("slow", slow) == 1.5
    assert part.measure("late", slow) is None
    # A run that is cut short at this point keeps this result.
    assert written(run)["first"]["figures"] == {"slow": 1.5}
    part = run.part("second")
    assert part.left_s == 28.0
    assert part.measure("too long", slow, needs_s=30.0) is None
    assert part.measure("slow", slow, needs_s=12.0) == 1.5
    assert clock.now_s == 24.0
    assert written(run)["second"]["skipped"] == ["too long"]
    assert written(run)["first"]["skipped"] == ["late"]
    assert run.is_sound


def test_time_that_a_part_does_not_need_goes_to_the_next(tmp_path: Path) -> None:
    run = make_run(tmp_path, Clock())
    run.part("first").measure("quick", lambda: 1)
    assert run.part("second").left_s == 40.0


def test_ceilings_that_were_not_chosen_are_measured_for_the_floors(tmp_path: Path) -> None:
    """As in `--parts correctness,hybrid`: only the rates, which take a second on a GPU."""
    run = make_run(tmp_path, Clock())
    scale = dataclasses.replace(TINY, copy_bytes=1 << 16, product_size=16)
    ceilings = ceilings_of(run, Stopwatch(torch.device("cpu")), scale)
    assert ceilings.bytes_per_s > 0 and ceilings.flops_per_s > 0
    part = written(run)["ceilings"]
    assert {"copy", "read", "product"} <= set(part["figures"]) and len(part["skipped"]) == 3
    assert run.part("first").left_s == 10.0 and run.is_sound


def test_floors_are_known_without_float8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> float:
        raise RuntimeError("no float8 product on this GPU")

    monkeypatch.setattr("benchmarks.gpu.ceilings._fp8_product_s", fails)
    run = make_run(tmp_path, Clock())
    scale = dataclasses.replace(TINY, copy_bytes=1 << 16, product_size=16)
    ceilings = ceilings_of(run, Stopwatch(torch.device("cpu")), scale)
    assert ceilings.fp8_flops_per_s is None and ceilings.floor_s(1.0, 1.0, 1.0) > 0
    assert list(written(run)["ceilings"]["failed"]) == ["product in float8"]
    again = ceilings_of(run, Stopwatch(torch.device("cpu")), scale)
    assert again.bytes_per_s == pytest.approx(ceilings.bytes_per_s, rel=1e-3)


def test_another_process_continues_the_file(tmp_path: Path) -> None:
    run = make_run(tmp_path, Clock())
    run.part("first").measure("quick", lambda: 1)
    run.log.handle(logging.LogRecord("engine", logging.WARNING, "", 0, "slow kernels", None, None))
    run.write()
    other = make_run(tmp_path, Clock())
    other.part("second").measure("quick", lambda: 2)
    assert {name: part["figures"]["quick"] for name, part in written(other).items()} == {
        "first": 1,
        "second": 2,
    }
    assert other.result["warnings"] == ["slow kernels"]


def test_a_failure_is_recorded_and_the_run_continues(tmp_path: Path) -> None:
    run = make_run(tmp_path, Clock())
    part = run.part("first")

    def broken() -> float:
        raise RuntimeError("no such kernel")

    assert part.measure("broken", broken) is None
    assert part.measure("whole", lambda: 2.0) == 2.0
    assert written(run)["first"]["failed"] == {"broken": "RuntimeError: no such kernel"}
    assert not run.is_sound
    assert "FAILED in first: broken" in run.summary()


@pytest.mark.parametrize("error", [0.03, float("inf"), float("nan")])
def test_an_error_above_its_tolerance_makes_a_run_unsound(tmp_path: Path, error: float) -> None:
    run = make_run(tmp_path, Clock())
    note(run.part("first"), "norm", {"error": 0.01, "tolerance": 0.02})
    assert run.is_sound
    note(run.part("first"), "attention", {"error": error, "tolerance": 0.02})
    assert not run.is_sound
    assert "MISMATCH in first: attention" in run.summary()


def test_one_wrong_token_among_many_is_detected() -> None:
    expected = torch.randn(1000, 4, 16)
    out = expected.clone()
    assert worst_error(out, expected) == 0
    out[700] *= 1.1
    assert worst_error(out, expected) == pytest.approx(0.1, rel=1e-3)
    out[3, 2, 1] = torch.nan
    assert math.isnan(worst_error(out, expected))


def test_parts_without_time_are_skipped_without_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "gpu",
        "--device",
        "cpu",
        "--tiny",
        "--minutes",
        "0",
        "--out",
        str(tmp_path),
        "--parts",
        "steps,more",
    ]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr("benchmarks.gpu.__main__.measure_apart", None)  # not to be called
    assert main() == 0  # nothing is wrong
    (path,) = tmp_path.glob("*.json")
    parts = json.loads(path.read_text())["result"]["parts"]
    assert {name: part["skipped"] for name, part in parts.items()} == {
        "steps": ["all of it"],
        "more": ["all of it"],
    }
    assert "skipped in more: all of it" in capsys.readouterr().out


@pytest.mark.slow
def test_a_crashed_process_is_recorded_and_another_one_continues(tmp_path: Path) -> None:
    path, shares, end_s = tmp_path / "run.json", {"ceilings": 1.0, "more": 1.0}, time.monotonic() + 100
    arguments = argparse.Namespace(device="nonsense", models=["llama-8b"], tiny=True, quantization="none")
    run = measure_apart(path, shares, end_s, ["ceilings", "more"], arguments)
    assert run.result["parts"]["ceilings"]["failed"] == {"process": "its process ended with code 1"}
    assert "more" not in run.result["parts"] and not run.is_sound
    arguments.device = "cpu"
    run = measure_apart(path, shares, end_s, ["ceilings"], arguments)
    assert run.result["parts"]["ceilings"]["figures"]["copy"]["gb_per_s"] > 0


def test_a_hanging_process_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.__main__.GRACE_S", 0.1)  # importing torch takes longer
    arguments = argparse.Namespace(device="cpu", models=["llama-8b"], tiny=True, quantization="none")
    run = measure_apart(tmp_path / "run.json", {"ceilings": 1.0}, time.monotonic(), ["ceilings"], arguments)
    assert "after its time was over" in run.result["parts"]["ceilings"]["failed"]["process"]


def test_a_process_ends_with_its_parent_even_if_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--minutes", "5"]
    parent = psutil.Popen([*command, "--out", str(tmp_path)], stdout=subprocess.DEVNULL)
    try:
        while not (
            children := [child for child in parent.children() if "benchmarks.gpu.parts" in _command(child)]
        ):
            assert parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE
            time.sleep(0.05)
        parent.kill()
        gone, alive = psutil.wait_procs(children, timeout=60)
        assert gone and not alive
    finally:
        parent.kill()
        parent.wait()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


def test_floors_of_float8_weights_are_lower(tmp_path: Path) -> None:
    """Half of the bytes of all layers, and products at the rate that was measured in float8."""
    model, ceilings = make_model("llama-8b", tmp_path, FULL), Ceilings(4e12, 800e12, 1500e12)
    both = [model.step_bytes(itemsize, 2, 2, 1, 1000) for itemsize in (2, 1)]
    assert both[0] - both[1] == model.layer_params
    assert ceilings.floor_s(*both[:1], 1e9) / ceilings.floor_s(*both[1:], 0, 1e9) == pytest.approx(
        1.86, abs=0.01
    )
    flops = model.layer_flops(8192)
    assert ceilings.floor_s(0, 0, flops) == pytest.approx(flops / 1500e12)
    assert Ceilings(4e12, 800e12).floor_s(0, 0, flops) == pytest.approx(flops / 800e12)  # not measured


def test_overlapping_intervals_are_covered_once() -> None:
    assert union([]) == 0
    assert union([(5, 7), (0, 2), (1, 3), (1, 2), (3, 4)]) == 6


def test_short_gaps_are_bridged_and_long_ones_are_not() -> None:
    assert union([(0, 2), (3, 4), (9, 10)], 1.0) == 5
    assert union([(0, 2), (3, 4), (9, 10)], 5.0) == 10


@pytest.mark.parametrize("measured_s", [0.5, 15.0, 31.0])
def test_the_requested_part_of_a_run_counts(measured_s: float) -> None:
    seconds = window_s(measured_s)
    assert seconds - min(WARM_UP_SHARE * seconds, WARM_UP_MOST_S) == pytest.approx(measured_s)


def test_enough_chats_arrive_to_judge_their_target() -> None:
    arrivals = islice(open_arrivals(FULL.chats, Lane.RT, FULL.chats_per_s, SEED), 1000)
    end_s = window_s(FULL.num_chats / FULL.chats_per_s)
    counted = [arrival for arrival in arrivals if WARM_UP_MOST_S <= arrival.arrival_s < end_s - 5]
    assert len(counted) > 0.85 * MIN_CHATS  # chats of the last 5 s may still be running


def test_targets_are_in_the_file_from_the_start(tmp_path: Path) -> None:
    run = make_run(tmp_path, Clock())
    rows = json.loads(run.path.read_text())["result"]["targets"]
    assert [row["state"] for row in rows] == ["not measured"] * len(TARGETS)
    assert "decode step, 1 row at 1000" in run.summary()


def test_models_have_the_sizes_that_their_names_say(tmp_path: Path) -> None:
    published = {"llama-8b": 8_030_261_248, "qwen3-4b": 4_022_468_096, "llama-1b": 1_235_814_400}
    assert set(published) == set(MODELS) == set(SHAPES)
    for name in MODELS:
        model = make_model(name, tmp_path, FULL)
        with torch.device("meta"):
            parameters = dict(AutoModelForCausalLM.from_config(model.config).named_parameters())
        assert sum(parameter.numel() for parameter in parameters.values()) == published[name]
        # The basis of the floors: every matrix once, with a tied embedding as the output matrix.
        is_tied = model.config.tie_word_embeddings
        matrices = [
            weight
            for key, weight in parameters.items()
            if weight.dim() == 2 and (is_tied or "embed" not in key)
        ]
        assert model.layer_params + model.head_params == sum(weight.numel() for weight in matrices), name


def test_figures_are_rounded_and_nan_becomes_null() -> None:
    assert rounded({"a": 1 / 3, "b": [float("nan"), 12345678.9], 3: (True, "x", None)}) == {
        "a": 0.33333,
        "b": [None, 12346000.0],
        "3": [True, "x", None],
    }
