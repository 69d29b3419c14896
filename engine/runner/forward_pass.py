"""The forward pass of a step: its numbers go to the device as one vector, and the model computes logits from them.

It is launched kernel by kernel, or replayed as a CUDA graph where one holds the step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

from engine.core.plan import StepPlan
from engine.kernels.dispatch import attention_op, programs_at_once
from engine.runner.base import RunnerInfo
from engine.runner.graphs import GraphBackend, StepGraphs, step_shapes
from engine.runner.kv.memory import LayerCache
from engine.runner.model.attention import PackedStep
from engine.runner.model.causal_lm import CausalLM
from engine.runner.prompt_reader import PendingReadings, PromptReader
from engine.runner.step_arrays import Int64Array, Reading, StepArrays, StepSizes
from engine.runner.step_inputs import StepInputs, StepTensors, pack
from engine.runner.streams import send


class ForwardPass:
    """Computes steps with a model and its caches. Used from one thread."""

    def __init__(self, model: CausalLM, caches: Mapping[int, LayerCache], info: RunnerInfo) -> None:
        self._model = model
        self._caches = caches
        self._info = info
        self._op = attention_op(model.device)
        num_heads = next(iter(model.layers.values())).num_heads
        self._num_programs, self._num_tile_programs = programs_at_once(num_heads, model.dtype, caches)
        # One row more than requests can have: padding writes to it.
        self.slot_table = torch.zeros(
            (info.max_num_seqs + 1, info.max_model_len), dtype=torch.int32, device=model.device
        )
        # By row: the token that it drew last.
        self.drawn = torch.zeros(info.max_num_seqs + 1, dtype=torch.int64, device=model.device)
        self._graphs: StepGraphs | None = None
        self.begin_step()

    def begin_step(self) -> None:
        """Forgets what is known of the newest step."""
        self.begun_s = time.perf_counter()  # when its last pass began to be launched, or was replayed
        self.is_replayed = False
        self.num_graph_failures = 0

    def capture_graphs(self, backend: GraphBackend, budget_bytes: int) -> None:
        """Captures CUDA graphs of small steps, which are replayed from now on.

        Takes at most `budget_bytes` of device memory. No step may be under way.
        """
        info = self._info
        shapes = step_shapes(info.max_num_seqs, info.max_num_batched_tokens)
        self._graphs = StepGraphs(self.compute, self.slot_table, shapes, budget_bytes, backend)

    @property
    def graph_shapes(self) -> tuple[StepSizes, ...]:
        """The sizes for which CUDA graphs were captured."""
        return () if self._graphs is None else self._graphs.shapes

    def close(self) -> None:
        """Releases the device's memory. The device must have finished all passes."""
        if self._graphs is not None:
            self._graphs.close()
            self._graphs = None
        self._caches = {}
        self.slot_table, self.drawn = torch.empty(0), torch.empty(0)
        del self._model

    def enter_slots(self, plan: StepPlan) -> None:
        """Enters the slots of tokens that are already computed: those of rows that start, and those restored."""
        edits = [(start.row, 0, start.slots) for start in plan.row_starts if start.slots]
        edits += [(restore.row, restore.start, restore.device_slots) for restore in plan.restores]
        if not edits:
            return
        rows, starts, slots = zip(*edits, strict=True)
        counts = np.array([len(part) for part in slots])
        packed = np.empty((3, counts.sum()), dtype=np.int64)
        packed[0] = np.repeat(rows, counts)
        packed[1] = np.arange(packed.shape[1]) + np.repeat(starts - np.cumsum(counts) + counts, counts)
        packed[2] = np.fromiter(chain.from_iterable(slots), np.int64, packed.shape[1])
        on_rows, positions, values = send(torch.from_numpy(packed), self._model.device)
        self.slot_table[on_rows, positions] = values.int()

    def logits(self, arrays: StepArrays, drawing: npt.NDArray[np.intp]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns logits [n, V] at the last token of each row in `drawing`, and those rows [n] on the device."""
        size = self._graphs.size_for(arrays, len(drawing)) if self._graphs is not None else None
        if size is not None and self._graphs is not None:
            found = self._graphs.run(self._pack(arrays, drawing, padded=size))
            if found is not None:
                self.begun_s, self.is_replayed = time.perf_counter(), True
                return found
            self.num_graph_failures += 1
        tensors = self._sent(self._pack(arrays, drawing))
        self.begun_s = time.perf_counter()
        return self.compute(tensors), tensors.wanted_rows

    def _pack(
        self,
        arrays: StepArrays,
        drawing: npt.NDArray[np.intp],
        padded: StepSizes | None = None,
        read: Int64Array | None = None,
    ) -> StepInputs:
        return pack(
            arrays,
            drawing,
            self._info.max_num_seqs,
            pinned=self._model.device.type == "cuda",
            padded=padded,
            read=read,
            num_programs=self._num_programs,
            num_tile_programs=self._num_tile_programs,
        )

    def _sent(self, inputs: StepInputs) -> StepTensors:
        vector = send(inputs.vector, self._model.device)
        return StepTensors.of(vector, inputs.sizes, self.slot_table, inputs.host)

    @torch.inference_mode()
    def logits_and_readings(
        self, arrays: StepArrays, drawing: npt.NDArray[np.intp], readings: list[Reading], reader: PromptReader
    ) -> tuple[torch.Tensor, torch.Tensor, PendingReadings]:
        """The same as `logits`, and the readings that it launches too. It never uses a graph."""
        device = self._model.device
        read = np.concatenate([np.arange(r.token, r.token + r.end - r.first) for r in readings])
        tensors = self._sent(self._pack(arrays, drawing, read=read))
        hidden = self._model.hidden(*self._packed(tensors), tensors.wanted)
        # Where the drawing rows and the tokens to read are among those that are wanted, which are in order.
        place = np.empty(len(drawing) + len(read), dtype=np.int64)
        place[np.argsort(np.concatenate([arrays.last_tokens[drawing], read]))] = np.arange(len(place))
        places = send(torch.from_numpy(place), device)
        pending = reader.read(hidden[places[len(drawing) :]], readings, self._model.logits)
        if not len(drawing):  # there are only questions about prompts
            return hidden[:0], tensors.wanted_rows[:0], pending
        drawn = places[: len(drawing)]
        # Last, because a model may reuse the memory of logits.
        return self._model.logits(hidden[drawn]), tensors.wanted_rows[drawn], pending

    @torch.inference_mode()
    def compute(self, step: StepTensors) -> torch.Tensor:
        """Returns logits [W, V]. All of it is work for the device that a CUDA graph can capture."""
        return self._model.forward(*self._packed(step), step.wanted)

    def _packed(self, step: StepTensors) -> tuple[torch.Tensor, torch.Tensor, PackedStep]:
        """Token ids, positions and attention of a step, whose slots are entered into the slot table."""
        token_ids = torch.where(step.token_ids < 0, self.drawn[step.token_rows], step.token_ids)
        self.slot_table[step.token_rows, step.positions] = step.layout.slot_mapping.int()
        return token_ids, step.positions, PackedStep(step.layout, self._caches, self._op)
