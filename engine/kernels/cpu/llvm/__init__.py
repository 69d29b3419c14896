"""Inner loops that numba cannot express, emitted as LLVM instructions."""
