"""Streams and CUDA graphs without a GPU: work runs late and in any order that the streams allow, on real CPU tensors.

`FakeDevice` is a `Streams`. Torch operations in the context `on(stream)` are recorded, not run. Their results have the
right shapes and contain poison until the device runs them, in an order that is drawn from a seed among those that the
streams and the waits between them allow. `FakeGraphs` is a `GraphBackend`. It records each operation once, with the
tensors that it reads and writes, and replays it without running Python again.

Use `FakeDevice` to find missing waits between streams, and `FakeGraphs` to test graphs without kernels. To run the
whole GPU runner, use `fake_cuda`, whose streams run at once.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from engine.runner.streams import Event, Stream

# The contents of uninitialized memory. Used as an index, they are out of range everywhere.
_POISON = {torch.bool: True, torch.uint8: 0xA5, torch.int32: 2**30, torch.int64: 2**40}


def poison(tensor: torch.Tensor) -> None:
    tensor.fill_(_POISON.get(tensor.dtype, float("nan") if tensor.is_floating_point() else 99))


@dataclass(eq=False)
class Operation:
    """A torch operation that was recorded."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fresh: list[torch.Tensor]  # those of its results that are new tensors
    follows: frozenset[Operation] = frozenset()
    is_done: bool = False

    @property
    def inputs(self) -> list[torch.Tensor]:
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, torch.Tensor)]

    def run(self) -> None:
        with _disable_current_modes(), torch.inference_mode():
            results = tree_leaves(self.function(*self.args, **self.kwargs))
            for ours, result in zip(self.fresh, results, strict=False):
                ours.copy_(result)
        self.is_done = True


class Recorder(TorchDispatchMode):
    """Passes operations to `submit` instead of running them. Views are made at once, since they read no data.
    Operations that would make the host wait for data raise RuntimeError."""

    def __init__(self, submit: Callable[[Operation], None]) -> None:
        super().__init__()
        self._submit = submit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # composite operations are decomposed, since a device sees only their parts
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host waits for a value on the device")
        aliases = [result.alias_info for result in func._schema.returns]
        changed = [
            args[i] if i < len(args) else kwargs[argument.name]
            for i, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if not changed and any(alias is not None for alias in aliases):
            return func(*args, **kwargs)
        if changed:
            assert all(alias is not None for alias in aliases), f"{func} both changes and returns"
            self._submit(Operation(func, args, kwargs, []))
            return changed[0]
        on_meta = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        shapes = func(*on_meta[0], **{**on_meta[1], **({"device": "meta"} if "device" in kwargs else {})})
        results = tree_map_only(
            torch.Tensor,
            lambda like: torch.empty_strided(like.shape, like.stride(), dtype=like.dtype),
            shapes,
        )
        fresh = [leaf for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)]
        for tensor in fresh:
            poison(tensor)
        if func is torch.ops.aten.empty.memory_format:
            # Earlier work of the stream may still write to new memory: this operation stands for that work.
            self._submit(Operation(poison, (fresh[0],), {}, []))
        else:
            self._submit(Operation(func, args, kwargs, fresh))
        return results


@dataclass(eq=False)
class FakeEvent:
    device: FakeDevice
    follows: frozenset[Operation]

    def has_passed(self) -> bool:
        self.device.advance()
        return all(operation.is_done for operation in self.follows)

    def synchronize(self) -> None:
        while not all(operation.is_done for operation in self.follows):
            self.device.step()


@dataclass
class FakeDevice:
    """A `Streams` that runs `pace` operations on average whenever it is given one.

    `copy_share` is how often the COPY stream goes first if both could run. 0 and 1 hold one stream back for as long as
    the waits allow.
    """

    seed: int
    pace: float = 0.5
    copy_share: float = 0.5
    order: list[Stream] = field(default_factory=list)  # the stream of each operation run so far

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._queues: dict[Stream, deque[Operation]] = {stream: deque() for stream in Stream}
        self._follows: dict[Stream, frozenset[Operation]] = {stream: frozenset() for stream in Stream}
        self._owners: dict[
            int, tuple[Stream, torch.Tensor]
        ] = {}  # by storage: the stream that its memory belongs to

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        with Recorder(lambda operation: self._submit(stream, operation)):
            yield

    def record(self, stream: Stream) -> FakeEvent:
        return FakeEvent(self, self._follows[stream])

    def wait(self, stream: Stream, event: Event) -> None:
        assert isinstance(event, FakeEvent)
        self._follows[stream] |= event.follows

    def _submit(self, stream: Stream, operation: Operation) -> None:
        for tensor in operation.inputs:
            owner = self._owners.get(tensor.untyped_storage().data_ptr(), (stream, tensor))[0]
            assert owner is stream, f"{stream} uses memory that {owner} may reuse at any time"
        for tensor in operation.fresh:
            self._owners[tensor.untyped_storage().data_ptr()] = (stream, tensor)
        operation.follows = self._follows[stream]
        self._follows[stream] = frozenset({operation})
        self._queues[stream].append(operation)
        self.advance()

    def advance(self) -> None:
        """Lets time pass: runs a random number of operations."""
        while self._random.random() < self.pace / (1 + self.pace) and any(self._queues.values()):
            self.step()

    def step(self) -> None:
        """Runs one operation."""
        ready = [
            stream
            for stream, queue in self._queues.items()
            if queue and all(before.is_done for before in queue[0].follows)
        ]
        assert ready, "nothing can run: the streams wait for each other, or no operation is left"
        first = Stream.COPY if self._random.random() < self.copy_share else Stream.MAIN
        stream = first if first in ready else ready[0]
        self._queues[stream].popleft().run()
        self.order.append(stream)

    @property
    def is_idle(self) -> bool:
        return not any(self._queues.values())

    def finish(self) -> None:
        """Runs all operations."""
        while any(self._queues.values()):
            self.step()


class FakeGraph:
    def __init__(self, operations: list[Operation], backend: FakeGraphs) -> None:
        self.operations = operations
        self._backend = backend

    def replay(self) -> None:
        self._backend.reuse_memory()
        for operation in self.operations:
            operation.run()
        self._backend.num_replays += 1

    def release(self) -> None:
        self._backend.graphs.remove(self)

    @property
    def fresh_bytes(self) -> int:
        return sum(tensor.nbytes for operation in self.operations for tensor in operation.fresh)


class FakeGraphs:
    """A `GraphBackend`. Its memory is that of the largest graph's intermediates, shared by all, and `graph_bytes` per
    graph."""

    def __init__(self, graph_bytes: int = 1000) -> None:
        self.graphs: list[FakeGraph] = []
        self.num_replays = 0
        self._graph_bytes = graph_bytes

    @torch.inference_mode()
    def reuse_memory(self) -> None:
        """Destroys the intermediates of all graphs, since they share memory."""
        for graph in self.graphs:
            for operation in graph.operations:
                for tensor in operation.fresh:
                    poison(tensor)

    def warm_up(self, function: Callable[[], object]) -> None:
        with torch.inference_mode():
            function()

    def capture(self, function: Callable[[], object]) -> FakeGraph:
        operations: list[Operation] = []
        with torch.inference_mode(), Recorder(operations.append):
            function()
        graph = FakeGraph(operations, self)
        self.graphs.append(graph)
        return graph

    def bytes_taken(self) -> int:
        shared = max((graph.fresh_bytes for graph in self.graphs), default=0)
        return shared + self._graph_bytes * len(self.graphs)
