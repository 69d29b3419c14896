"""The compiled scheduler and simulator (`BROS_COMPILE=1`, see setup.py) do the same as the plain ones, step by step."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.services import unavailable

ROOT = Path(__file__).parents[1]
# Memory for a third of the load, so that chats preempt bulk.
LOAD = (
    "--rt", "cpu-mini-chat", "--rt-rate", "6", "--be", "cpu-mini", "--kv-tokens", "4800", "--requests", "400", "--json",
)  # fmt: skip

# What mypyc generates is the same; the C compiler takes a fraction of the time. Half of the rest would find warnings.
QUICKLY = {"MYPYC_OPT_LEVEL": "0", "MYPYC_DEBUG_LEVEL": "0", "CFLAGS": "-w"}


def has_compiler() -> bool:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    return shutil.which(compiler) is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def run(directory: Path, *arguments: str) -> str:
    """Run Python with the packages in `directory` and return what it prints."""
    env = {**os.environ, "PYTHONPATH": str(directory), "BROS_COMPILE": "1", **QUICKLY}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_modules_do_the_same(tmp_path: Path) -> None:
    if not has_compiler():
        unavailable("A C compiler, with Python's headers,")
    for name in ("engine", "cli", "bros_batch"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "model")
        )
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    run(tmp_path, "setup.py", "-q", "build_ext", "--inplace")
    where = "import engine.core.scheduler, engine.loop; print(engine.core.scheduler.__file__, engine.loop.__file__)"
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert all(
        each.startswith(str(tmp_path)) and each.endswith(suffix)
        for each in run(tmp_path, "-c", where).split()
    )
    compiled, plain = (
        json.loads(run(directory, "-m", "cli", "simulate", *LOAD)) for directory in (tmp_path, ROOT)
    )
    bros: dict[str, Any] = plain["policies"][0]
    assert bros["truncated_tokens"] > 0, "the test means nothing unless memory was scarce"
    assert compiled == plain
