"""Tensors that report the device `cuda:0` and compute on the CPU, under the rules of a GPU.

`GpuTensor` wraps a CPU tensor. `FakeGpu` sees every operation on such tensors, including Triton's launches (in its
interpreter), and raises RuntimeError where a GPU would fail or would make the host wait:

- operations and kernels that mix tensors of the host and of the device;
- in the context `no_waiting()`, reads of values (`item`, `tolist`, masks as indices), and copies that are not
  asynchronous: those without `non_blocking`, and those of host memory that is not pinned;
- all copies and waits during a capture;
- host memory that changes while a copy out of it is under way.

Copies to new host memory are complete when the host has waited for an event after them; until then they contain poison.
Do not use this module by itself: `fake_cuda.cuda()` makes a `FakeGpu` and replaces `torch.cuda`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.engine.runner.fake_device import poison

GPU = torch.device("cuda", 0)
# Operations whose result the host needs before it can continue.
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount")


# Methods that look for a CUDA device before they dispatch, and what they dispatch.
_DISPATCHED = {
    torch.Tensor.__invert__: torch.ops.aten.bitwise_not.default,
    torch.Tensor.copy_: torch.ops.aten.copy_.default,
}


class GpuTensor(torch.Tensor):
    """A tensor on the fake GPU. Its values are those of the CPU tensor `inner`."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> GpuTensor:
        tensor: GpuTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=GPU,
        )  # fmt: skip
        tensor.inner = inner
        return tensor

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch's own methods look for a CUDA device before they dispatch.
        if func is torch.Tensor.__getitem__:
            tensor, index = args[0].inner, _plain_index(args[1])
            is_view = not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(index))
            return GpuTensor(tensor[index]) if is_view else gpu().fresh(lambda: tensor[index])
        if func is torch.Tensor.__setitem__:
            target, index, value = args
            if isinstance(value, torch.Tensor) and not isinstance(value, GpuTensor):
                raise RuntimeError("a tensor of the host is assigned to one of the device")
            index = _plain_index(index)
            gpu().do(lambda: target.inner.__setitem__(index, _inner(value)))
            return None
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__):
            gpu().waits("the host reads a tensor of the device")
            return func(args[0].inner, *args[1:], **(kwargs or {}))
        if func in (torch.Tensor.__int__, torch.Tensor.__index__):
            return int(args[0].item())
        if func is torch.Tensor.contiguous and not args[0].is_contiguous():
            func, kwargs = torch.ops.aten.clone.default, {"memory_format": torch.contiguous_format}
        func = _DISPATCHED.get(func, func)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with gpu():
            return func(*args, **(kwargs or {}))


def _plain_index(index: Any) -> Any:
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if isinstance(part, GpuTensor) and part.dtype in (torch.bool, torch.uint8):
            gpu().waits("a mask is an index: the host waits for the number of its elements")
        elif isinstance(part, GpuTensor) or not hasattr(part, "__len__"):
            continue
        else:
            gpu().waits("an index of the host is copied to the device")
    return tree_map_only(GpuTensor, _inner, index)


def _inner(tensor: Any) -> Any:
    return tensor.inner if isinstance(tensor, GpuTensor) else tensor


class FakeGpu(TorchDispatchMode):
    """The fake GPU. There is one at a time, which `fake_cuda.cuda()` makes."""

    def __init__(self) -> None:
        super().__init__()
        self.may_wait = True
        self.num_launches = 0  # of Triton kernels
        self.recorded: list[Callable[[], object]] | None = None  # operations of the capture under way
        self._pinned: dict[int, torch.Tensor] = {}  # by address
        self._registered: list[range] = []
        self.under_way: list[
            Callable[[], None]
        ] = []  # copies to the host, and checks of copies to the device

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        self.may_wait = False
        try:
            yield
        finally:
            self.may_wait = True

    def waits(self, reason: str) -> None:
        if self.recorded is not None:
            raise RuntimeError(f"during a capture, {reason}")
        if not self.may_wait:
            raise RuntimeError(reason)

    def do(self, operation: Callable[[], object]) -> None:
        """Runs an operation that changes existing tensors."""
        operation()
        if self.recorded is not None:
            self.recorded.append(operation)

    def fresh(self, compute: Callable[[], torch.Tensor]) -> GpuTensor:
        """Runs an operation that makes a new tensor."""
        result = compute()
        if self.recorded is not None:
            self.recorded.append(lambda: result.copy_(compute()))
        return GpuTensor(result)

    def launch(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Launches a Triton kernel."""
        for argument in tree_leaves((args[1:], kwargs)):
            if isinstance(argument, torch.Tensor) and not isinstance(argument, GpuTensor):
                raise RuntimeError("a kernel is given a tensor of the host")
        args, kwargs = tree_map_only(GpuTensor, _inner, (args, kwargs))

        def run() -> None:
            with _disable_current_modes(), torch.inference_mode():
                original(*args, **kwargs)

        self.num_launches += 1
        self.do(run)

    def synchronize(self, *_: Any) -> None:
        self.waits("the host waits for the device")
        self.finish(self.under_way)

    def finish(self, copies: list[Callable[[], None]]) -> None:
        with _disable_current_modes(), torch.inference_mode():
            for copy in [copy for copy in copies if copy in self.under_way]:
                self.under_way.remove(copy)
                copy()

    def register(self, address: int, num_bytes: int, _flags: int) -> int:
        """cudaHostRegister"""
        self._registered.append(range(address, address + num_bytes))
        return 0

    # Operations of torch --------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        if name == "is_pinned":
            return self._is_pinned(args[0])
        if name in ("pin_memory", "_pin_memory"):
            return args[0] if self._is_pinned(args[0]) else self._pin(args[0].clone())
        with self:  # composite operations are decomposed, since a device sees only their parts
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        if name == "_to_copy":
            return self._to_copy(func, args[0], kwargs)
        if name == "copy_" and len({type(tensor) is GpuTensor for tensor in args[:2]}) == 2:
            return self._copy(args[0], args[1], len(args) > 2 and args[2])
        target = kwargs.get("device")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if not any(isinstance(tensor, GpuTensor) for tensor in tensors) and (
            target is None or target.type != "cuda"
        ):
            if not kwargs.get("pin_memory"):
                return func(*args, **kwargs)
            return self._pin(func(*args, **{**kwargs, "pin_memory": False}))
        # Scalars of the host are passed with a launch, but not as indices.
        if any(
            not isinstance(tensor, GpuTensor) and (tensor.dim() or name.startswith("index"))
            for tensor in tensors
        ):
            raise RuntimeError(f"{func} mixes tensors of the host and of the device")
        masks = [leaf for leaf in tensors[1:] if leaf.dtype in (torch.bool, torch.uint8)]
        if name in _WAITS or (name in ("index", "index_put", "index_put_") and masks):
            self.waits(f"the host waits for a result of {func}")
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.waits(f"the host waits for how long the result of {func} is")
        return self._compute(func, args, kwargs)

    def _compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, GpuTensor)]
        known = {id(tensor.inner): tensor for tensor in inputs}
        args, kwargs = tree_map_only(GpuTensor, _inner, (args, kwargs))
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")

        def run() -> Any:
            if func is torch.ops.aten.histc.default:  # not implemented for integers on a CPU
                return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
            results = func(*args, **kwargs)
            if func._schema.name.startswith(("aten::empty", "aten::new_empty")):
                poison(results)
            return results

        results = run()
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if self.recorded is not None and not is_view:
            self.recorded.append(lambda: _copy_all(run(), results))

        def on_gpu(tensor: torch.Tensor) -> GpuTensor:
            if id(tensor) in known:
                return known[id(tensor)]
            # torch requires a view to be an inference tensor exactly if its base is one.
            with torch.inference_mode(
                inputs[0].is_inference() if is_view else torch.is_inference_mode_enabled()
            ):
                return GpuTensor(tensor)

        return tree_map_only(torch.Tensor, on_gpu, results)

    def _to_copy(self, func: Any, source: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        target = options.pop("device", None) or source.device
        is_async = options.pop("non_blocking", False)
        if target.type == source.device.type:
            if source.device.type == "cuda":
                return self._compute(func, (source,), options)
            return func(source, **options)
        if target.type == "cuda":
            self._check_copy(source, is_async)
            return GpuTensor(func(source, **options, device=torch.device("cpu")))
        if self.recorded is not None or not is_async:
            self.waits("a copy to the host is not asynchronous")
        through = func(_inner(source), **options)
        if not is_async:
            return through
        result = self._pin(torch.empty_like(through))
        poison(result)
        self.under_way.append(lambda: _copy_all(through, result))
        return result

    def _copy(self, target: torch.Tensor, source: torch.Tensor, is_async: bool) -> torch.Tensor:
        self._check_copy(source if isinstance(target, GpuTensor) else target, is_async)
        _inner(target).copy_(_inner(source))
        return target

    def _check_copy(self, host: torch.Tensor, is_async: bool) -> None:
        """Checks a copy between the tensor `host` and the device, in either direction."""
        if self.recorded is not None or not is_async or not self._is_pinned(host):
            self.waits("a copy between host and device is not asynchronous, or its host memory is not pinned")
        if host.untyped_storage().data_ptr() in self._pinned:
            before = host.clone()

            def check() -> None:
                if not torch.equal(host, before):
                    raise RuntimeError("host memory was changed while it was being copied to the device")

            self.under_way.append(check)

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        address = tensor.untyped_storage().data_ptr()
        return address in self._pinned or any(address in part for part in self._registered)

    def _pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor


def _copy_all(results: Any, targets: Any) -> None:
    for result, target in zip(tree_leaves(results), tree_leaves(targets), strict=True):
        if result is not target:
            target.copy_(result)


_current: list[FakeGpu] = []  # the current one, if any


def gpu() -> FakeGpu:
    return _current[-1]
