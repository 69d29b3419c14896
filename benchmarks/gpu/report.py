"""What a run on a GPU host writes: a file that is whole after each measurement, so that a run cut short keeps them.

A run has parts, and each gets a share of the time. A part always finishes a measurement that it began; what it has no
time for is listed as skipped, and what fails as failed, and the run goes on.
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
    """One part of a run. `figures` are what it measured, by name; `mismatches` what computes wrong."""

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
        """Time that this part may still take; negative when it is over."""
        return self._end_s - self._clock()

    def measure(self, name: str, work: Callable[[], Any], *, needs_s: float = 0.0) -> Any:
        """What `work` returns, noted under `name`; None if it failed, or if there is no time for it (it is expected to
        take `needs_s`). Nothing else is lost then."""
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
        self.save()
        return value

    def fail(self, name: str, error: BaseException) -> None:
        """Note an error and say it aloud."""
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
        clock: Callable[[], float] = time.monotonic,  # the same in all processes of a machine
    ) -> None:
        """Goes on with the file at `path` if there is one. `shares`: the parts in their order, and what share of the
        time until `end_s` each gets beside those after it: time that one does not need goes to the others."""
        self.path = path
        self._shares = dict(shares)
        self._clock = clock
        self._end_s = end_s
        self._document: dict[str, Any] = {"benchmark": "gpu", "machine": machine(), "result": {"parts": {}}}
        if path.exists():
            self._document = json.loads(path.read_text())
        self.result: dict[str, Any] = self._document["result"]
        self.warnings = Warnings(self.result.setdefault("warnings", []))
        self._parts: dict[str, Part] = {}
        self.write()

    def end_of(self, names: Sequence[str]) -> float:
        """When these parts, the next ones, should be through."""
        everything = list(self._shares)
        ahead = everything[everything.index(names[0]) :]
        now_s = self._clock()
        share = sum(self._shares[name] for name in names) / sum(self._shares[name] for name in ahead)
        return now_s + max(0.0, self._end_s - now_s) * share

    def part(self, name: str) -> Part:
        """The part of that name; its time runs from when it is first asked for."""
        if name not in self._parts:
            part = self._parts[name] = Part(name, self.end_of([name]), self.write, self._clock)
            print(f"{name} (at most {part.left_s:.0f} s)", flush=True)
        return self._parts[name]

    @property
    def is_sound(self) -> bool:
        """Nothing failed, and nothing computed wrong."""
        return not any(part["failed"] or part["mismatches"] for part in self.result["parts"].values())

    def write(self) -> None:
        """Everything so far; never half of a file."""
        self.result["parts"].update({name: part.as_json() for name, part in self._parts.items()})
        self.result["is_sound"] = self.is_sound
        self.result["targets"] = targets_of(self.result)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(rounded(self._document), indent=2) + "\n")
        temporary.replace(self.path)

    def note_failure(self, part: str, name: str, reason: str) -> None:
        """Of a part that cannot say so itself any more."""
        nothing = Part(part, 0.0, self.write, self._clock).as_json()
        self.result["parts"].setdefault(part, nothing)["failed"][name] = reason
        self.write()

    def note_skipped(self, parts: Sequence[str]) -> None:
        """They were not begun, for the time is over."""
        for part in parts:
            nothing = Part(part, 0.0, self.write, self._clock)
            self.result["parts"][part] = {**nothing.as_json(), "skipped": ["all of it"]}
        self.write()

    def summary(self) -> str:
        """What a person must see last."""
        found = [f"warning: {message}" for message in self.result["warnings"]]
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


class Warnings(logging.Handler):
    """Keeps what the engine warns of, such as a model that it cannot run by its own kernels: figures must be read with
    it. To be added to the logger `engine`."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage()[:500])


def rounded(value: Any) -> Any:
    """Five digits are more than a measurement has. What is no number (nan, inf) is written as null."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value


def brief(value: Any) -> str:
    """A figure, or those of a mapping, on one line."""
    if isinstance(value, Mapping):
        return "  ".join(
            f"{key} {brief(inner)}" for key, inner in value.items() if not isinstance(inner, list)
        )
    return f"{value:.4g}" if isinstance(value, float) else str(value)
