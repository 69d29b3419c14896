"""Every Triton kernel compiles for the supported GPUs, spills no registers and fits into shared memory.

Kernels are compiled in separate processes, where TRITON_INTERPRET is not set. Triton caches them on disk.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forked_python import ForkedPython

pytest.importorskip("triton")

REPOSITORY = Path(__file__).parents[4]
KERNELS = REPOSITORY / "engine" / "kernels" / "triton"


def kernels_in(folder: Path) -> set[str]:
    """ "module.function" of each function that Triton compiles, except those that only other kernels call."""
    compiled: dict[str, str] = {}
    called: set[str] = set()
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                "jit" in ast.unparse(d) for d in node.decorator_list
            ):
                compiled[node.name] = f"{path.stem}.{node.name}"
                called |= {
                    part.func.id
                    for part in ast.walk(node)
                    if isinstance(part, ast.Call) and isinstance(part.func, ast.Name)
                }
    return {name for function, name in compiled.items() if function not in called}


@pytest.fixture(scope="module")
def python() -> Iterator[ForkedPython]:
    """A process that has loaded torch, and Triton as its compiler."""
    with ForkedPython("benchmarks.kernel_resources.resources") as loaded:
        yield loaded


def run_python(python: ForkedPython, *arguments: str) -> tuple[int, str, str]:
    """Its exit status, output and messages."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with python.subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        output, messages = process.communicate()
    return process.returncode, output, messages


@pytest.fixture(scope="module")
def resources(python: ForkedPython) -> list[dict[str, Any]]:
    _, output, messages = run_python(python, "-m", "benchmarks.kernel_resources", "--json")
    assert output, messages
    found: list[dict[str, Any]] = json.loads(output)
    return found


@pytest.mark.slow
def test_every_kernel_is_compiled_for_every_gpu(resources: list[dict[str, Any]]) -> None:
    for capability in (80, 90):
        compiled = {r["kernel"] for r in resources if r["capability"] == capability}
        assert compiled == kernels_in(KERNELS), "a kernel has no case in benchmarks/kernel_resources/cases.py"


@pytest.mark.slow
def test_no_kernel_spills_or_exceeds_shared_memory(resources: list[dict[str, Any]]) -> None:
    limits = {80: 163 * 1024, 90: 227 * 1024}
    too_much = [r for r in resources if r["spill_bytes"] or r["shared_bytes"] > limits[r["capability"]]]
    assert not too_much
    assert all(0 < r["registers"] <= 255 for r in resources)


@pytest.mark.slow
def test_decode_programs_run_at_once_as_their_launcher_assumes(resources: list[dict[str, Any]]) -> None:
    """`programs_at_once` launches no more than run at the same time: the others would wait for a whole share."""
    decode = [
        r for r in resources if r["kernel"] == "decode_attention._attend_single" and r["capability"] == 90
    ]
    assert decode
    for found in decode:
        assert found["blocks_at_once"] >= (2 if "fp8" in found["case"] or "fp32" in found["case"] else 3), (
            found
        )


SPILLING = """
from dataclasses import replace
from benchmarks.kernel_resources import resources
case = next(case for case in resources.CASES if case.name == "attend 8b, chunk, bf16")
launch = resources.record(case, 80)[0]
launch = replace(launch, constants={**launch.constants, "maxnreg": 64})
found = resources.resources_of(case, launch, resources.compile_launch(launch, 80), 80)
print(found.spill_bytes, found.fits)
"""


@pytest.mark.slow
def test_a_spilling_kernel_is_reported(python: ForkedPython) -> None:
    status, output, messages = run_python(python, "-c", SPILLING)
    assert status == 0, messages
    spill_bytes, fits = output.split()
    assert int(spill_bytes) > 0
    assert fits == "False"


def test_functions_that_only_kernels_call_are_not_listed() -> None:
    found = kernels_in(KERNELS)
    assert "layer._rotate_and_store_kernel" in found
    assert "layer._summed" not in found
    assert "fp8.to_fp8_bits" not in found  # called from other modules
