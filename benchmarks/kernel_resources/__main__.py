"""Prints the resources that each Triton kernel takes of a multiprocessor, by compiling it without a GPU.

    python -m benchmarks.kernel_resources [--capability 80 90] [--case TEXT] [--json] [--out FILE.md]

"blocks" is how many blocks of a kernel a multiprocessor runs at the same time, and "occupancy" the share of its warps
that they are. Kernels that mostly wait for memory need few warps if each keeps enough reads under way.
benchmarks/results/kernel_resources.md is the table for compute capability 9.0.

A kernel that spills registers, or needs more shared memory than a multiprocessor has, makes the exit status 1 and fails
tests/engine/kernels/triton/test_compiles.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from benchmarks.kernel_resources.cases import CASES
from benchmarks.kernel_resources.resources import CAPABILITIES, Resources, measure


def table(found: Sequence[Resources]) -> str:
    """A Markdown table with one row per kernel and case."""
    lines = [
        "| case | kernel | sm | grid | warps | registers | spills, bytes | shared, KiB | blocks | occupancy |",
        "| --- | --- | --: | --- | --: | --: | --: | --: | --: | --: |",
    ]
    lines += [
        f"| {r.case} | {r.kernel} | {r.capability} | {' x '.join(map(str, r.grid))} | {r.num_warps} | {r.registers} "
        f"| {r.spill_bytes}{'' if r.fits else ' **too much**'} | {r.shared_bytes / 1024:.1f} "
        f"| {r.blocks_at_once} | {r.occupancy:.0%} |"
        for r in found
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--capability", type=int, nargs="+", choices=CAPABILITIES, default=CAPABILITIES)
    parser.add_argument("--case", default="", help="only cases with this text in their names")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of the table")
    parser.add_argument("--out", type=Path, help="also write the table to this file, with a heading")
    arguments = parser.parse_args()
    cases = [case for case in CASES if arguments.case in case.name]
    found = measure(cases, arguments.capability)
    if arguments.json:
        print(json.dumps([asdict(r) | {"blocks_at_once": r.blocks_at_once} for r in found]))
    else:
        print(table(found))
    if arguments.out is not None:
        command = " ".join(["python -m benchmarks.kernel_resources", *sys.argv[1:]])
        heading = (
            f"# Resources of the Triton kernels\n\nMade by `{command}`, with triton {version('triton')}.\n\n"
        )
        arguments.out.write_text(heading + table(found) + "\n")
    if not all(resources.fits for resources in found):
        sys.exit("a kernel spills registers or needs more shared memory than a multiprocessor has")


if __name__ == "__main__":
    main()
