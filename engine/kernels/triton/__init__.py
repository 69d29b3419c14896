"""The kernels in Triton, for GPUs. Importing any of them fixes Triton's interpreter, where kernels run in it."""

import engine.kernels.triton.interpreter  # noqa: F401
