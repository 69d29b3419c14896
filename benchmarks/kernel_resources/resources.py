"""Compiles the launches of a case ahead of time and reads the resources that each kernel takes of a multiprocessor.

A case calls one of the engine's own launchers with tensors of a real model's shapes. Its launches are intercepted and
compiled instead of run, so they are compiled as for a GPU: with the same constants and the same number of warps.
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

# Before triton is imported: an interpreted kernel cannot be compiled.
os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from benchmarks.kernel_resources.cases import CASES, Case
from engine.kernels.triton.gpu import Processors

CAPABILITIES = (80, 90)
# The most that a block may use of the 164 and 228 KiB of a multiprocessor (CUDA C++ programming guide, table of
# technical specifications per compute capability).
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
# Multiprocessors of an A100, and of an H100 or H200. Launchers divide their work by this number.
_PROCESSORS = {80: Processors(108, 164 * 1024), 90: Processors(132, 228 * 1024)}


# The same table: registers (taken in units of 256 by a warp), warps and blocks of a multiprocessor, and the shared
# memory that CUDA takes of it for each block.
REGISTERS, REGISTER_UNIT, MOST_WARPS, MOST_BLOCKS, RESERVED_BYTES = 65536, 256, 64, 32, 1024


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a kernel, as its launcher requested it."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resources:
    """What a kernel takes of a multiprocessor. `spill_bytes`: bytes per thread that did not fit into registers."""

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

    @property
    def blocks_at_once(self) -> int:
        """How many blocks of this kernel a multiprocessor runs at the same time."""
        warp_registers = -(-32 * self.registers // REGISTER_UNIT) * REGISTER_UNIT
        total_bytes = SHARED_BYTES[self.capability] + RESERVED_BYTES
        return min(
            REGISTERS // (warp_registers * self.num_warps),
            total_bytes // (self.shared_bytes + RESERVED_BYTES),
            MOST_WARPS // self.num_warps,
            MOST_BLOCKS,
        )

    @property
    def occupancy(self) -> float:
        """The share of a multiprocessor's warps that this kernel can use."""
        return self.blocks_at_once * self.num_warps / MOST_WARPS


def record(case: Case, capability: int) -> list[Launch]:
    """The launches of a case, none of which is executed."""
    launches: list[Launch] = []

    def caught(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        launches.append(Launch(kernel, grid, arguments, constants))

    with _launchers_see(capability), mock.patch.object(JITFunction, "run", caught):
        case.launch()
    if not launches:
        raise RuntimeError(f"case {case.name!r} launches no kernel")
    return launches


@contextmanager
def _launchers_see(capability: int) -> Iterator[None]:
    """Makes launchers see the properties of the GPU that is compiled for."""
    answers = {
        "processors_of": lambda device: _PROCESSORS[capability],
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
    """Compiles each kernel that the case launches for a compute capability such as 90. Raises what Triton raises."""
    found = {}
    for launch in record(case, capability):
        compiled = compile_launch(launch, capability)
        resources = resources_of(case, launch, compiled, capability)
        found[compiled.hash] = resources  # the same kernel may be launched again
    return list(found.values())


def compile_launch(launch: Launch, capability: int) -> Any:
    """Compiles a kernel by the same steps as a launch on a GPU."""
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
        # Triton's kernels only use the stack for values that do not fit into registers.
        spill_bytes=max(used["STACK"], used["LOCAL"]),
        shared_bytes=compiled.metadata.shared,
    )


def _ptxas_report(cubin: bytes) -> dict[str, int]:
    """REG, STACK and LOCAL of a cubin, as the assembler recorded them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True)
    text = report.stdout + report.stderr
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def measure(cases: Sequence[Case], capabilities: Sequence[int], num_processes: int = 2) -> list[Resources]:
    """Compiles all cases for all capabilities in parallel processes."""
    names = [
        (case.name, capability)
        for case in cases
        for capability in capabilities
        if capability >= case.least_capability
    ]
    # Forked, since torch and triton take seconds to load.
    with ProcessPoolExecutor(num_processes, mp_context=get_context("fork")) as pool:
        return [resources for found in pool.map(_compile_named, names) for resources in found]


def _compile_named(job: tuple[str, int]) -> list[Resources]:
    name, capability = job
    return compile_case(next(case for case in CASES if case.name == name), capability)
