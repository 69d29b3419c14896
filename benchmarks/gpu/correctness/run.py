"""Runs all checks of kernels in several processes, since compiling takes longer than running.

The compiled kernels stay in Triton's cache for the parts that follow. If a check ends its process, it is reported as
failed, and another process continues with the remaining checks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence

import torch

from benchmarks.gpu.correctness.attention import all_checks
from benchmarks.gpu.report import Part

MAX_PROCESSES = 8  # each needs half a gigabyte of the device's memory for its context


def measure_correctness(part: Part, device: str, is_tiny: bool) -> None:
    """Records all errors; checks with too large an error become the part's mismatches."""
    names = list(all_checks(torch.device(device), is_tiny))
    cores = os.cpu_count() or 1
    num_processes = max(1, min(MAX_PROCESSES, cores // 2, len(names)))
    lock = threading.Lock()

    def work(share: list[str]) -> None:
        for name, outcome in outcomes(part, device, is_tiny, share):
            with lock:
                note(part, name, outcome)

    threads = [threading.Thread(target=work, args=(names[i::num_processes],)) for i in range(num_processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = {*part.figures, *part.failed, *part.skipped}
    part.skipped += [name for name in names if name not in known]


def note(part: Part, name: str, outcome: dict[str, float] | str) -> None:
    """Records the error of a check, or the reason why it failed."""
    if isinstance(outcome, str):
        part.fail(name, RuntimeError(outcome))
        return
    part.measure(name, lambda: outcome)
    if not outcome["error"] <= outcome["tolerance"]:
        part.mismatches.append(name)
        print(f"  MISMATCH in {name}: {outcome}", flush=True)
        part.save()


def outcomes(
    part: Part, device: str, is_tiny: bool, names: Sequence[str]
) -> Iterator[tuple[str, dict[str, float] | str]]:
    """Runs the checks until the part's time is over; yields the figures of each, or what went wrong."""
    left = list(names)
    while left and part.left_s > 0:
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu.correctness.run",
            device,
            "tiny" if is_tiny else "full",
            *left,
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        # Ends a process that hangs.
        timer = threading.Timer(max(1.0, part.left_s), process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                done = json.loads(line)
                left.remove(done["name"])
                yield done["name"], done["outcome"]
        code = process.wait()
        timer.cancel()
        if left and part.left_s > 0:
            yield left.pop(0), f"its process ended with code {code}"


def main() -> None:
    """Runs the checks named on the command line and prints one line of JSON for each. The process ends after an error
    of the device, since it cannot compute anything more."""
    device, size, *names = sys.argv[1:]
    torch.set_num_threads(1)
    checks = all_checks(torch.device(device), size == "tiny")
    for name in names:
        outcome: dict[str, float] | str
        try:
            figures = checks[name]()
            # JSON has no NaN; this is larger than any tolerance.
            outcome = {key: value if value == value else 1e9 for key, value in figures.items()}
            if device == "cuda":
                torch.cuda.synchronize()
        except Exception as error:
            traceback.print_exception(error)
            outcome = f"{type(error).__name__}: {error}"[:400]
        print(json.dumps({"name": name, "outcome": outcome}), flush=True)
        if isinstance(outcome, str) and "CUDA error" in outcome:
            sys.exit(1)


if __name__ == "__main__":
    main()
