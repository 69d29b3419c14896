"""The page of GPU results, and that a run which is killed keeps what it has."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.page import main, page


def test_without_a_run_the_page_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["page", "--results", str(tmp_path)])
    main()
    assert "python -m benchmarks.gpu --minutes 4.5" in (tmp_path / "gpu.md").read_text()


def test_a_killed_run_keeps_what_it_measured_and_the_page_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "gpu-cpu-20260101-000000.json"
    command = [sys.executable, "-m", "benchmarks.gpu.parts", str(path), "--end", str(time.monotonic() + 100)]
    command += ["--now", "ceilings,steps", "--all", "ceilings,steps", "--device", "cpu", "--tiny"]
    process = subprocess.Popen([*command, "--models", "llama-8b"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("steps ("):  # the first part has ended, the second has begun
            break
    assert process.poll() is None, printed
    process.kill()
    process.wait()
    process.stdout.close()
    document = json.loads(path.read_text())
    document["result"]["settings"] = {
        "parts": ["ceilings", "steps", "hybrid"],
        "minutes": 4.5,
        "models": ["m"],
    }
    text = page({path.name: document})
    assert document["result"]["parts"]["ceilings"]["figures"]["copy"]["gb_per_s"] > 0
    assert "| copy | gb_per_s " in text
    assert "| decode step, 1 row at 1000, times the floor |  | at most 1.25 | not measured |" in text
    assert "The run ended before these parts:" in text and "hybrid." in text


def test_failures_cuts_and_targets_are_on_the_page() -> None:
    part = {
        "figures": {"a step": {"step_ms": 2.0, "over_floor": 1.21}},
        "skipped": ["another step"],
        "failed": {"a third": "RuntimeError: no"},
        "mismatches": ["graphs draw other tokens"],
        "elapsed_s": 3.2,
    }
    target = {"name": "decode", "figure": 1.2134, "wanted": "at most 1.25", "state": "reached"}
    document = {
        "machine": {"packages": {"torch": "2.0"}},
        "result": {
            "device": {"name": "H200"},
            "parts": {"steps": part},
            "targets": [target],
            "is_sound": False,
        },
    }
    older, newer = "gpu-h200-20260101-000000.json", "gpu-a100-20260102-000000.json"
    text = page({older: document, newer: document})
    assert text.index(newer) < text.index(older)
    for line in (
        "| decode | 1.21 | at most 1.25 | reached |",
        "| a step | step_ms 2  over_floor 1.21 |",
        "Cut for lack of time: another step.",
        "Failed: a third: RuntimeError: no",
        "Wrong: graphs draw other tokens.",
        "NOT SOUND",
    ):
        assert line in text
