"""Compiles the launches of a case ahead of time and reads what each kernel takes of a multiprocessor.

A case runs one of the engine's own launchers on tensors of a real model's shapes; its launches are caught and compiled
instead of run. So what is compiled is what a GPU would get: the same constants, the same number of warps.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any
from unittest import mock

os.environ.pop(
    "TRITON_INTERPRET", None
)  # before triton is imported: an interpreted kernel cannot be compiled

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from benchmarks.kernel_resources.cases import CASES, Case

CAPABILITIES = (80, 90)
# A block's most, of the 164 and 228 KiB that a multiprocessor has (CUDA C++ programming guide, table of technical
# specifications per compute capability).
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
# Of the GPUs that the figures are for: A100, and H100 or H200. Launchers cut work up by it.
_PROCESSORS = {80: 108, 90: 132}


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a kernel as its launcher asked for it."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resources:
    """`spill_bytes` a thread: registers that went to local memory."""

    case: str
    kernel: str
    capability: int
    grid: tuple[int, ...]
    num_warps: int
    registers: int
    spill_bytes: int
    shared_bytes: int

    @property
    def fits(self) -> bool:
        return self.spill_bytes == 0 and self.shared_bytes <= SHARED_BYTES[self.capability]


def record(case: Case, capability: int) -> list[Launch]:
    """The launches of a case, none of which is carried out."""
    launches: list[Launch] = []

    def caught(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        launches.append(Launch(kernel, grid, arguments, constants))

    with _launchers_see(capability), mock.patch.object(JITFunction, "run", caught):
        case.launch()
    if not launches:
        raise RuntimeError(f"{case.name} launches nothing: it compiles no kernel")
    return launches


@contextmanager
def _launchers_see(capability: int) -> Iterator[None]:
    """Where launchers ask about the GPU, they are told of the one that is compiled for."""
    answers = {
        "num_processors": lambda device: _PROCESSORS[capability],
        "capability": lambda device: divmod(capability, 10),
    }
    modules = [sys.modules[name] for name in sys.modules if name.startswith("engine.kernels.triton.")]
    patches = [
        mock.patch.object(module, name, answer)
        for module in modules
        for name, answer in answers.items()
        if hasattr(module, name)
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def compile_case(case: Case, capability: int) -> list[Resources]:
    """Each kernel that the case launches, compiled for a compute capability such as 90. Raises what Triton raises."""
    found = {}
    for launch in record(case, capability):
        compiled = compile_launch(launch, capability)
        resources = resources_of(case, launch, compiled, capability)
        found[compiled.hash] = resources  # the same kernel may be launched again
    return list(found.values())


def compile_launch(launch: Launch, capability: int) -> Any:
    """The compiled kernel, by the steps that a launch on a GPU takes."""
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    kernel = launch.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    constants = {**launch.constants, "debug": False}
    bound, specialization, _ = bind(*launch.arguments, **constants)
    options, signature, constexprs, attributes = kernel._pack_args(
        backend, constants, bound, specialization, None
    )
    source = ASTSource(kernel, signature, constexprs, attributes)
    return triton.compile(source, target=target, options=options.__dict__)


def resources_of(case: Case, launch: Launch, compiled: Any, capability: int) -> Resources:
    used = _ptxas_report(compiled.asm["cubin"])
    return Resources(
        case=case.name,
        kernel=f"{launch.kernel.module.rpartition('.')[2]}.{launch.kernel.fn.__name__}",
        capability=capability,
        grid=launch.grid,
        num_warps=compiled.metadata.num_warps,
        registers=used["REG"],
        # What a kernel of Triton's keeps on a stack is what did not fit into registers.
        spill_bytes=max(used["STACK"], used["LOCAL"]),
        shared_bytes=compiled.metadata.shared,
    )


def _ptxas_report(cubin: bytes) -> dict[str, int]:
    """REG, STACK and LOCAL of a cubin, as the assembler left them in it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True)
    text = report.stdout + report.stderr
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def measure(cases: Sequence[Case], capabilities: Sequence[int], num_processes: int = 2) -> list[Resources]:
    """All cases for all capabilities, compiled side by side in processes of their own."""
    names = [(case.name, capability) for case in cases for capability in capabilities]
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        return [resources for found in pool.map(_compile_named, names) for resources in found]


def _compile_named(job: tuple[str, int]) -> list[Resources]:
    name, capability = job
    return compile_case(next(case for case in CASES if case.name == name), capability)
