"""Carries out step plans with a transformers model: one packed forward pass and one draw a step.

    launch   copies out, row starts, restores -> one vector to the device -> forward pass -> draw -> ids on their way
    result   the ids are there: which of them end their requests

Between the two the host does not wait for the device, so one step may be launched while another is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from engine.core.plan import RowStart, StepPlan, StepResult
from engine.core.terms import TokenLogprobs
from engine.kernels.dispatch import attention_op
from engine.runner.base import RunnerInfo
from engine.runner.graphs import DecodeGraphs, GraphBackend, GraphSizes
from engine.runner.kv.host import HostKV
from engine.runner.kv.memory import LayerCache
from engine.runner.model.attention import PackedStep
from engine.runner.model.causal_lm import CausalLM
from engine.runner.ranks.pass_memory import PassMemory
from engine.runner.sampling.rows import SamplingRows
from engine.runner.sampling.sampler import Drawn, Sampler
from engine.runner.sampling.stop import StepRules, StopRules
from engine.runner.step_inputs import Int64Array, StepArrays, StepTensors, pack
from engine.runner.streams import send, streams_of

log = logging.getLogger("engine.runner")


@dataclass(frozen=True, slots=True)
class _Draw:
    """What (part of) a step drew, on its way from the device."""

    index: Int64Array  # [n] rows of the plan
    num_outputs: Int64Array  # [n] output tokens each has with this one
    drawn: Drawn
    rules: StepRules


@dataclass(slots=True)
class TorchStep:
    """A step under way."""

    num_rows: int
    failed: dict[int, str]
    draws: list[_Draw] = field(default_factory=list)
    _result: StepResult | None = None

    def result(self) -> StepResult:
        """Waits for the device, the first time."""
        if self._result is None:
            sampled, stopped = [-1] * self.num_rows, [False] * self.num_rows
            logprobs: dict[int, TokenLogprobs] = {}
            for draw in self.draws:
                token_ids, found = draw.drawn.collect()
                ends = draw.rules.ends(token_ids, draw.num_outputs)
                index = draw.index.tolist()
                for i, token_id, end in zip(index, token_ids, ends, strict=True):
                    sampled[i], stopped[i] = token_id, end
                logprobs.update({index[j]: value for j, value in found.items()})
            self._result = StepResult(sampled, stopped, logprobs, self.failed)
        return self._result


class TorchRunner:
    """A `ModelRunner` on torch; used from one thread. `engine.runner.loading` makes them.

    `agree`, where several ranks compute together, makes the drawn ids [n] those of the first rank, in place. Passes for
    which `memory` does not suffice are not begun.
    """

    def __init__(
        self,
        model: CausalLM,
        caches: Mapping[int, LayerCache],
        info: RunnerInfo,
        tokenizer: str,
        *,
        agree: Callable[[torch.Tensor], None] | None = None,
        memory: PassMemory | None = None,
    ) -> None:
        self._model = model
        self._caches = caches
        self._info = info
        self._host_kv = HostKV(caches, info.num_host_slots, model.device, streams_of(model.device))
        self._op = attention_op(model.device)
        # One row more than requests can have: it takes what padding writes.
        self._slot_table = torch.zeros(
            (info.max_num_seqs + 1, info.max_model_len), dtype=torch.int32, device=model.device
        )
        self._drawn = torch.zeros(
            info.max_num_seqs + 1, dtype=torch.int64, device=model.device
        )  # by row, the last
        self._sampling = SamplingRows(info.max_num_seqs, model.eos_token_ids)
        self._sampler = Sampler(self._sampling, agree)
        self._stop = StopRules(info.max_num_seqs, model.eos_token_ids, tokenizer)
        self._is_one_of_many = agree is not None
        self._memory = memory
        self._num_prompt_tokens = np.zeros(info.max_num_seqs, dtype=np.int64)
        self._refused: dict[int, str] = {}  # by row: why its request cannot be computed
        self._last: TorchStep | None = None
        self._graphs: DecodeGraphs | None = None
        self._most_tokens = 1 << 62  # of a forward pass: less once memory ran out in one

    def capture_graphs(self, backend: GraphBackend, budget_bytes: int) -> None:
        """From here on, steps of rows with one token each are replayed. Before the first step; takes `budget_bytes` of
        the device's memory at most."""
        sizes = GraphSizes.up_to(self._info.max_num_seqs)
        self._graphs = DecodeGraphs(self._forward_tensors, self._slot_table, sizes, budget_bytes, backend)

    def limit_passes(self, most_tokens: int) -> None:
        """From here on, steps of more tokens are computed in parts."""
        self._most_tokens = most_tokens

    @property
    def info(self) -> RunnerInfo:
        return self._info

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._model.eos_token_ids

    def launch(self, plan: StepPlan) -> TorchStep:
        if plan.copies_out:
            # In one go, for each takes a staging buffer. Of copies to the same host slot the last is the one to keep.
            saved = {
                host_slot: slot
                for copy in plan.copies_out
                for slot, host_slot in zip(copy.device_slots, copy.host_slots, strict=True)
            }
            self._host_kv.save(list(saved.values()), list(saved))
        for start in plan.row_starts:
            self._start_row(start)
        for restore in plan.restores:
            if restore.host_slots:
                self._host_kv.restore(restore.host_slots, restore.device_slots)
        self._edit_slot_table(plan)
        step = TorchStep(len(plan.rows), {})
        if plan.rows:
            arrays = StepArrays.of(plan)
            step.failed = self._find_failed(arrays)
            arrays.samples[list(step.failed)] = False
            if self._last is not None and self._sampler.needs_host_tokens(arrays.rows[arrays.samples]):
                self._last.result()
            self._compute(arrays, step)
            self._last = step
        return step

    def execute(self, plan: StepPlan) -> StepResult:
        return self.launch(plan).result()

    def close(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        self._host_kv.close()
        self._caches = {}
        self._slot_table, self._drawn = torch.empty(0), torch.empty(0)
        self._last = None
        if self._graphs is not None:
            self._graphs.close()
            self._graphs = None
        del self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # Parts of a step ------------------------------------------------------------------------------------

    def _start_row(self, start: RowStart) -> None:
        row = start.row
        self._num_prompt_tokens[row] = start.num_prompt_tokens
        self._refused.pop(row, None)
        reason = self._refusal(start)
        if reason is None:
            try:
                self._sampling.start(start)
                self._stop.start(start)
            except ValueError as error:
                reason = str(error)
        if reason is not None:
            self._refused[row] = reason

    def _refusal(self, start: RowStart) -> str | None:
        vocab_size = self._info.vocab_size
        token_ids = np.array(start.token_ids)
        bad = token_ids[(token_ids < 0) | (token_ids >= vocab_size)]
        if len(bad):
            return f"token id {bad[0]} is outside of the model's vocabulary of {vocab_size}"
        for token_id, _ in start.sampling.logit_bias:
            if not 0 <= token_id < vocab_size:
                return (
                    f"logit_bias names token id {token_id}, outside of the model's vocabulary of {vocab_size}"
                )
        return None

    def _edit_slot_table(self, plan: StepPlan) -> None:
        """Where the computed tokens of rows lie that were given to requests, or that tokens came back to."""
        edits = [(start.row, 0, start.slots) for start in plan.row_starts if start.slots]
        edits += [(restore.row, restore.start, restore.device_slots) for restore in plan.restores]
        if not edits:
            return
        rows, starts, slots = zip(*edits, strict=True)
        counts = [len(part) for part in slots]
        packed = np.empty((3, sum(counts)), dtype=np.int64)
        packed[0] = np.repeat(rows, counts)
        packed[1] = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])
        packed[2] = np.concatenate(slots)
        on_rows, positions, values = send(torch.from_numpy(packed), self._model.device)
        self._slot_table[on_rows, positions] = values.int()

    def _find_failed(self, step: StepArrays) -> dict[int, str]:
        """Rows of the plan whose requests end here, by index, and why. Token ids that the model cannot look up are
        replaced in place; all others are computed as they are, for their K and V may be shared as a prefix."""
        if not self._refused:
            return {}
        step.token_ids[(step.token_ids < -1) | (step.token_ids >= self._info.vocab_size)] = 0
        return {i: self._refused[row] for i, row in enumerate(step.rows.tolist()) if row in self._refused}

    def _compute(self, arrays: StepArrays, step: TorchStep) -> None:
        """Launches the forward pass and the draw, or, where memory does not suffice, those of one half and of the
        other. Raises torch.OutOfMemoryError when a single token is too much, or a pass was begun that other ranks have
        begun too."""
        num_tokens = len(arrays.token_ids)
        if num_tokens <= self._most_tokens:
            if self._has_memory_for(arrays):
                try:
                    self._compute_whole(arrays, step)
                    return
                except torch.OutOfMemoryError:
                    if num_tokens < 2 or self._is_one_of_many:
                        raise
            self._most_tokens = num_tokens // 2
            log.warning(
                "out of memory in a step of %d tokens: from now on steps of more than %d are computed in parts",
                num_tokens, self._most_tokens,
            )  # fmt: skip
            # Outside of `except`: what the error holds of the failed pass is let go first.
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()
        for half in arrays.halves():
            self._compute(half, step)

    def _has_memory_for(self, arrays: StepArrays) -> bool:
        """False only where the pass can be halved."""
        num_tokens = len(arrays.token_ids)
        if self._memory is None or num_tokens < 2:
            return True
        return self._memory.suffices(num_tokens, int(np.count_nonzero(arrays.samples)))

    def _compute_whole(self, arrays: StepArrays, step: TorchStep) -> None:
        drawing = np.flatnonzero(arrays.samples)
        logits, wanted_rows = self._forward(arrays, drawing)
        if not len(drawing):
            return
        rows = arrays.rows[drawing]
        num_outputs = arrays.ends[drawing] - self._num_prompt_tokens[rows]
        drawn = self._sampler.draw(logits, rows, num_outputs)
        self._drawn[wanted_rows] = drawn.token_ids
        step.draws.append(_Draw(arrays.index[drawing], num_outputs + 1, drawn, self._stop.rules_of(rows)))

    def _forward(
        self, arrays: StepArrays, drawing: npt.NDArray[np.intp]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [n, V] at the last token of each row in `drawing`, and those rows [n] on the device."""
        size = self._graphs.size_for(arrays, len(drawing)) if self._graphs is not None else None
        is_gpu = self._model.device.type == "cuda"
        inputs = pack(arrays, drawing, self._info.max_num_seqs, pinned=is_gpu, size=size or 0)
        if size is not None and self._graphs is not None:
            return self._graphs.run(inputs)
        vector = send(inputs.vector, self._model.device)
        tensors = StepTensors.of(vector, inputs.sizes, self._slot_table, inputs.host, inputs.longest)
        return self._forward_tensors(tensors), tensors.wanted_rows

    @torch.inference_mode()
    def _forward_tensors(self, step: StepTensors) -> torch.Tensor:
        """[W, V] logits. All of it is work for the device that a CUDA graph can hold."""
        token_ids = torch.where(step.token_ids < 0, self._drawn[step.token_rows], step.token_ids)
        self._slot_table[step.token_rows, step.positions] = step.layout.slot_mapping.int()
        packed = PackedStep(step.layout, self._caches, self._op)
        return self._model.forward(token_ids, step.positions, packed, step.wanted)
