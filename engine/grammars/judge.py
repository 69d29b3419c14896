"""A judge: a process that finds out whether a grammar can be compiled, within a time limit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

from engine.core.terms import Grammar
from engine.grammars.judge_process import COMPILE_LIMIT_S

log = logging.getLogger("engine.grammars")

_PROGRAM = "engine.grammars.judge_process"
# Far more than it may take by itself (`COMPILE_LIMIT_S`), because the machine may be busy.
LIMIT_S = 60.0
START_LIMIT_S = 60.0  # in addition, for a process that has to load its tokenizer first


class Judge:
    """Judges one grammar after the other, from one thread. Its process is started for the first of them."""

    def __init__(self, vocabulary: Path, limit_s: float = LIMIT_S) -> None:
        self._vocabulary = vocabulary
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None

    def problem_with(self, grammar: Grammar) -> str | None:
        """Why the grammar cannot be used, or None. Raises OSError if no process can be started."""
        limit_s = self._limit_s
        if self._process is None or self._process.poll() is not None:
            self._start()
            limit_s += START_LIMIT_S
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(dataclasses.asdict(grammar)).encode() + b"\n")
            process.stdin.flush()
            answer = self._answer(process, time.monotonic() + limit_s)
        except BrokenPipeError:
            answer = b""
        except TimeoutError:
            self.close()
            return f"it takes more than {self._limit_s:g} s to compile"
        if not answer.endswith(b"\n"):
            self.close()
            status = process.returncode
            if status == -signal.SIGPROF:
                return f"it takes more than {COMPILE_LIMIT_S:g} s to compile"
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            log.warning("a grammar ended the process that compiled it (%s)", how)
            return f"it is too complex: its compiler ended ({how})"
        problem: str | None = json.loads(answer)
        return problem

    @staticmethod
    def _answer(process: subprocess.Popen[bytes], end_s: float) -> bytes:
        """One line, or less if the process ends. Raises TimeoutError."""
        assert process.stdout is not None
        answer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if not selector.select(max(0.0, end_s - time.monotonic())):
                    raise TimeoutError
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    break
                answer += part
        return answer

    def _start(self) -> None:
        self.close()
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM, str(self._vocabulary)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is meant for the engine, which closes its judges
        )

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self._process = None
