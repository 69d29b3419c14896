"""An installation from the wheel: its contents, and the demo run from it without a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from bros_batch.up.service_commands import redis_binary
from tests.services import unavailable
from tests.up_process import REAL

ROOT = Path(__file__).parents[2]
PACKAGES = ("bros_batch", "cli", "engine", "migrations")
KERNELS = Path("engine", "kernels", "cpu")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the checkout, with nothing of this test run in its environment, and return its stdout."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("BROS_") and name != "PYTHONPATH"
    }
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network from a copy of the sources, so that no old `build` folder gets into it."""
    directory = tmp_path_factory.mktemp("wheel")
    unneeded = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "bros-*", "results")
    shutil.copytree(ROOT, directory / "source", ignore=unneeded)
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    run(*PIP, "wheel", *offline, "--wheel-dir", directory, directory / "source", cwd=directory)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` directory of a virtual environment that has the wheel, and the dependencies of this one.

    The dependencies come in through a .pth file. Python does not read the .pth files in a directory that was added by
    another one, so an editable installation of the checkout does not come with them.
    """
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    python = venv / "bin" / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=venv.parent)
    (site_packages,) = venv.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # Kernels that the checkout has compiled are valid for the same sources here, and take a minute to compile.
    for compiled in (ROOT / KERNELS / "__pycache__").glob("*.nb[ic]"):
        (site_packages / KERNELS / "__pycache__").mkdir(exist_ok=True)
        shutil.copy2(compiled, site_packages / KERNELS / "__pycache__")
    return python.parent


def test_the_wheel_holds_the_four_packages_and_their_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = "-".join(wheel.stem.split("-")[:2]) + ".dist-info"
    assert {name.split("/")[0] for name in names} == {*PACKAGES, metadata}
    assert f"{metadata}/licenses/LICENSE" in names
    unpackaged = {".pyc", ".so"}  # compiled on the machine that runs them
    sources = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in unpackaged and "__pycache__" not in path.parts
    }
    assert sources - names == set(), "missing from the wheel"


def test_every_package_is_imported_from_the_wheel(installed, tmp_path):
    code = f"import {', '.join(PACKAGES)}; print(*(p.__file__ for p in ({', '.join(PACKAGES)})), sep='\\n')"
    for path in run(installed / "python", "-c", code, cwd=tmp_path).split():
        assert Path(path).is_relative_to(installed.parent), path


@pytest.mark.timeout(600)  # the CPU kernels are compiled for this installation unless the checkout has them
def test_the_demo_runs_from_the_wheel_in_an_empty_folder(installed, tmp_path):
    if redis_binary() is None:
        unavailable("Redis")
    command = ("demo", "--documents", "8", "--json", "--", *REAL)
    report = json.loads(run(installed / "bros-batch", *command, cwd=tmp_path))
    assert (report["documents"], report["failed"]) == (8, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["bros-demo-results"]
