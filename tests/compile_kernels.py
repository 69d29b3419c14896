"""Compiles the kernels for CPUs into the checkout's cache, before several test processes would each compile them.

python -m tests.compile_kernels float32
"""

from __future__ import annotations

import sys

import torch

from bros_batch.settings import DEMO_MODEL_DIR
from tests.engine.runner.driver import load_runner


def main() -> None:
    """Loads the demo model in a dtype, which compiles what its steps call."""
    torch.set_num_threads(1)
    load_runner(DEMO_MODEL_DIR, dtype=sys.argv[1]).close()


if __name__ == "__main__":
    main()
