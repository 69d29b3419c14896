"""A `torch.cuda` without a GPU: `cuda()` replaces the parts of it that the engine uses, on top of a `FakeGpu`.

Use it to run the whole GPU runner on a CPU: kernels run in Triton's interpreter, and CUDA graphs record operations and
launches in order to repeat them. For tests of nothing but the order of streams, use `fake_device`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from triton.runtime.interpreter import GridExecutor

from engine.kernels.triton.gpu import capability, processors_of
from tests.engine.runner.fake_gpu import GPU, FakeGpu, GpuTensor, _current, gpu


class _Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self._copies: list[Callable[[], None]] = []

    def record(self, *_: Any) -> _Event:
        self._copies = list(gpu().under_way)
        self._recorded_s = time.perf_counter()
        return self

    def query(self) -> bool:
        return not any(copy in gpu().under_way for copy in self._copies)

    def elapsed_time(self, end: _Event) -> float:
        return 1e3 * (end._recorded_s - self._recorded_s)

    def synchronize(self) -> None:
        gpu().waits("the host waits for an event")
        gpu().finish(self._copies)


class _Stream:
    """A stream whose work runs at once; `fake_device` is for the order of streams."""

    device_index = 0

    def __init__(self, device: torch.device = GPU) -> None:
        assert device == GPU

    def record_event(self) -> _Event:
        return _Event().record()

    def wait_event(self, event: _Event) -> None:
        pass

    def wait_stream(self, stream: _Stream) -> None:
        pass


class _Graph:
    def __init__(self) -> None:
        self._operations: list[Callable[[], object]] | None = None

    def replay(self) -> None:
        assert self._operations, "nothing was captured, or the graph was released"
        with _disable_current_modes(), torch.inference_mode():
            for operation in self._operations:
                operation()

    def reset(self) -> None:
        self._operations = None

    @staticmethod
    @contextmanager
    def capture(graph: _Graph, **_: Any) -> Iterator[None]:
        operations: list[Callable[[], object]] = []
        gpu().recorded = operations
        try:
            yield
        finally:
            gpu().recorded = None
        graph._operations = operations


class _Factories(TorchFunctionMode):
    """Intercepts `torch.tensor`, which looks for a CUDA device before it dispatches anything."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if (
            func in (torch.tensor, torch.as_tensor)
            and torch.device(kwargs.get("device") or "cpu").type == "cuda"
        ):
            gpu().waits("numbers of the host are copied to the device")
            return GpuTensor(func(*args, **{**kwargs, "device": None}))
        return func(*args, **kwargs)


@contextmanager
def cuda(memory_bytes: int = 8 << 30) -> Iterator[FakeGpu]:
    """In this context torch has one CUDA device with this much free memory."""
    fake_gpu = FakeGpu()
    _current.append(fake_gpu)
    own_call = GridExecutor.__call__
    caches = (capability, processors_of)
    fakes: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "no GPU",
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: SimpleNamespace(
            multi_processor_count=4, shared_memory_per_multiprocessor=228 * 1024
        ),
        "synchronize": fake_gpu.synchronize,
        "empty_cache": lambda: None,
        "mem_get_info": lambda *_: (memory_bytes, memory_bytes),
        "memory_allocated": lambda *_: 1000,
        "max_memory_allocated": lambda *_: memory_bytes // 10,
        "reset_peak_memory_stats": lambda *_: None,
        "cudart": lambda: SimpleNamespace(
            cudaHostRegister=gpu().register, cudaHostUnregister=lambda address: 0
        ),
        "Event": _Event,
        "Stream": _Stream,
        "current_stream": lambda *_: _Stream(),
        "set_stream": lambda stream: None,
        "stream": lambda stream: nullcontext(),
        "graph_pool_handle": lambda: (0, 0),
        "CUDAGraph": _Graph,
        "graph": _Graph.capture,
    }
    try:
        for cache in caches:
            cache.cache_clear()
        # Parameters that are moved to the device become new tensors, rather than the same ones with other data.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        with ExitStack() as stack:
            for name, fake in fakes.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, fake))
            stack.enter_context(mock.patch.object(torch._C, "_cuda_endAllocateToPool", print, create=True))
            stack.enter_context(
                mock.patch.object(
                    GridExecutor, "__call__", lambda *args, **kw: gpu().launch(own_call, *args, **kw)
                )
            )
            stack.enter_context(_Factories())
            stack.enter_context(fake_gpu)
            yield fake_gpu
    finally:
        _current.pop()
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        for cache in caches:
            cache.cache_clear()
