"""The result file of a run on a GPU host, which is complete after each measurement, even if the run is cut short.

A run has parts, and each part has a share of the time. A part always finishes a measurement that it began. Measurements
without enough time are listed as skipped, and failures as failed; neither stops the run.
"""

from __future__ import annotations

import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.targets import lines, targets_of
from benchmarks.machine import machine


class Part:
    """One part of a run. `figures` are its measurements by name; `mismatches` are wrong results."""

    def __init__(
        self, name: str, end_s: float, write: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self.name = name
        self.figures: dict[str, Any] = {}
        self.skipped: list[str] = []
        self.failed: dict[str, str] = {}
        self.mismatches: list[str] = []
        self.started_s = clock()
        self.elapsed_s = 0.0
        self._end_s = end_s
        self._write = write
        self._clock = clock

    @property
    def left_s(self) -> float:
        """Remaining time of this part in seconds; negative when it is over."""
        return self._end_s - self._clock()

    def measure(self, name: str, work: Callable[[], Any], *, needs_s: float = 0.0) -> Any:
        """Run `work`, record its result under `name` and return it.

        Returns None, and leaves all other results intact, if it fails or if less than `needs_s` of the time is left.
        """
        if self.left_s <= needs_s:
            self.skipped.append(name)
            return None
        try:
            value = work()
        except Exception as error:
            self.fail(name, error)
            return None
        self.figures[name] = value
        print(f"  {name:44} {brief(value)}", flush=True)
        for key, values in value.items() if isinstance(value, Mapping) else ():
            if isinstance(values, list):
                print(*table_of(key, values), sep="\n", flush=True)
        self.save()
        return value

    def fail(self, name: str, error: BaseException) -> None:
        """Record an error and print it."""
        self.failed[name] = f"{type(error).__name__}: {error}"[:500]
        print(f"  {name:44} FAILED", flush=True)
        traceback.print_exception(error)
        self.save()

    def save(self) -> None:
        self.elapsed_s = self._clock() - self.started_s
        self._write()

    def as_json(self) -> dict[str, Any]:
        names = ("elapsed_s", "figures", "skipped", "failed", "mismatches")
        return {name: getattr(self, name) for name in names}


class Run:
    """All parts of a run, in a file that the processes of the run open one after another."""

    def __init__(
        self,
        path: Path,
        shares: Mapping[str, float],
        end_s: float,
        clock: Callable[[], float] = time.monotonic,  # the same clock in all processes of a machine
    ) -> None:
        """Continue the file at `path` if it exists.

        `shares` lists the parts in order, each with its weight against the parts after it when the time until `end_s`
        is divided. Time that a part does not need goes to the later ones.
        """
        self.path = path
        self._shares = dict(shares)
        self._clock = clock
        self._end_s = end_s
        self._document: dict[str, Any] = {"benchmark": "gpu", "machine": machine(), "result": {"parts": {}}}
        if path.exists():
            self._document = json.loads(path.read_text())
        self.result: dict[str, Any] = self._document["result"]
        self.log = Log(self.result.setdefault("log", []), self.result.setdefault("warnings", []))
        self._parts: dict[str, Part] = {}
        self.write()

    def end_of(self, names: Sequence[str]) -> float:
        """Return when these parts, which come next, should end. Ceilings that were not chosen get no time for more than
        the rates that floors need."""
        ordered = list(self._shares)
        if names[0] not in ordered:
            return self._clock()
        ahead = ordered[ordered.index(names[0]) :]
        now_s = self._clock()
        share = sum(self._shares[name] for name in names) / sum(self._shares[name] for name in ahead)
        return now_s + max(0.0, self._end_s - now_s) * share

    def part(self, name: str) -> Part:
        """Return a part by name. Its time begins with the first call."""
        if name not in self._parts:
            part = self._parts[name] = Part(name, self.end_of([name]), self.write, self._clock)
            print(f"{name} (at most {part.left_s:.0f} s)", flush=True)
        return self._parts[name]

    @property
    def is_sound(self) -> bool:
        """Whether nothing failed and no result was wrong."""
        return not any(part["failed"] or part["mismatches"] for part in self.result["parts"].values())

    def write(self) -> None:
        """Write everything so far, atomically."""
        self.result["parts"].update({name: part.as_json() for name, part in self._parts.items()})
        self.result["is_sound"] = self.is_sound
        self.result["targets"] = targets_of(self.result)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(rounded(self._document), indent=2) + "\n")
        temporary.replace(self.path)

    def note_failure(self, part: str, name: str, reason: str) -> None:
        """Record a failure for a part whose process has ended."""
        nothing = Part(part, 0.0, self.write, self._clock).as_json()
        self.result["parts"].setdefault(part, nothing)["failed"][name] = reason
        self.write()

    def note_skipped(self, parts: Sequence[str]) -> None:
        """Record parts that were not started because the time is over."""
        for part in parts:
            nothing = Part(part, 0.0, self.write, self._clock)
            self.result["parts"][part] = {**nothing.as_json(), "skipped": ["all of it"]}
        self.write()

    def summary(self) -> str:
        """Return the last lines of the output: warnings, problems and targets."""
        found = [f"warning: {message.partition(chr(10))[0]}" for message in self.result["warnings"]]
        for name, part in self.result["parts"].items():
            problems = {"FAILED": "failed", "MISMATCH": "mismatches", "skipped": "skipped"}
            found += [
                f"{word} in {name}: {', '.join(part[key])}" for word, key in problems.items() if part[key]
            ]
        return "\n".join(
            [
                *found,
                *lines(self.result["targets"]),
                "sound" if self.is_sound else "NOT SOUND: see above",
                str(self.path),
            ]
        )


class Log(logging.Handler):
    """A log handler for the logger `engine` that prints all messages and keeps them in the result.

    They matter for reading the figures: which product is used for which number of tokens, how many graphs there are, or
    why a model cannot run on the engine's own kernels.
    """

    def __init__(self, messages: list[str], warnings: list[str]) -> None:
        super().__init__(logging.INFO)
        self._messages = messages
        self._warnings = warnings

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)  # with the traceback of an error
        print(f"  {record.levelname.lower()}: {text}", flush=True)
        is_warning = record.levelno >= logging.WARNING
        (self._warnings if is_warning else self._messages).append(
            text if len(text) < 8000 else text[:2000] + " ... " + text[-6000:]
        )


def rounded(value: Any) -> Any:
    """Round to five digits, more than a measurement has. Values that are not finite (nan, inf) become null."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value


def table_of(name: str, values: list[Any]) -> list[str]:
    """Format a list as a line, or as one for each element that has figures of its own."""
    if any(isinstance(value, Mapping) for value in values):
        return [f"    {brief(value)}" for value in values]
    return [f"    {name:14} {' '.join(f'{brief(value):>6}' for value in values)}"]


def brief(value: Any) -> str:
    """Format a figure, or the figures of a mapping, on one line."""
    if isinstance(value, Mapping):
        return "  ".join(
            f"{key} {brief(inner)}" for key, inner in value.items() if not isinstance(inner, list)
        )
    return f"{value:.4g}" if isinstance(value, float) else str(value)
