"""Carries out step plans with a transformers model: one packed forward pass and one draw per step.

An error in either is put down to a row: the rows are computed again, in halves and then one by one, and only those that
raise an error by themselves fail. That is exact, because a pass only writes what a repetition writes again.

    launch   copies out, row starts, restores -> one vector to the device -> forward pass -> draw -> ids on their way
    result   the ids have arrived -> which of them end their requests

Between the two the host does not wait for the device, so a step may be launched while another is computed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from engine.core.plan import Restore, RowStart, StepPlan, StepResult
from engine.grammars.store import Grammars
from engine.grammars.tokenizer import Vocabulary
from engine.kernels.cpu.masks import compile_ahead as compile_cpu_masks
from engine.kernels.dispatch import slot_copier
from engine.runner.base import RunnerInfo
from engine.runner.forward_pass import ForwardPass
from engine.runner.graphs import GraphBackend
from engine.runner.kv.copies import DeviceCopies
from engine.runner.kv.host import HostKV
from engine.runner.kv.memory import LayerCache
from engine.runner.model.causal_lm import CausalLM
from engine.runner.pass_limit import PassLimit
from engine.runner.prompt_reader import PromptReader
from engine.runner.ranks.memory_probe import MemoryProbe
from engine.runner.ranks.tensor_parallel import Ranks
from engine.runner.row_failure import row_failure
from engine.runner.sampling.grammars import GrammarTable, Masks, StepGrammars
from engine.runner.sampling.sampler import Sampler
from engine.runner.sampling.stop import StopTable
from engine.runner.sampling.table import SamplingTable
from engine.runner.step_inputs import (
    StepArrays,
    StepSizes,
)
from engine.runner.step_outputs import DrawnRows, TorchStep
from engine.runner.streams import streams_of

log = logging.getLogger("engine.runner")

Constraints = tuple[StepGrammars | None, Masks | None]


class TorchRunner:
    """A `ModelRunner` on torch, used from one thread; `engine.runner.loading` makes them.

    With `ranks`, several processes compute together and all draw the tokens of the first. A forward pass begins only if
    `memory_probe` finds enough memory for it.
    """

    def __init__(
        self,
        model: CausalLM,
        caches: Mapping[int, LayerCache],
        info: RunnerInfo,
        tokenizer: str,
        *,
        ranks: Ranks | None = None,
        memory_probe: MemoryProbe | None = None,
        force_tokens: bool = True,
    ) -> None:
        """With `force_tokens`, tokens that a grammar leaves no choice about are appended without being drawn."""
        device = model.device
        self._model = model
        self._info = info
        copier = slot_copier(caches)
        self._host_kv = HostKV(caches, info.num_host_slots, device, streams_of(device), copier=copier)
        self._device_copies = DeviceCopies(copier, device)
        self._forward = ForwardPass(model, caches, info)
        self._sampling = SamplingTable(info.max_num_seqs + 1, model.eos_token_ids)
        self._sampler = Sampler(self._sampling, None if ranks is None else ranks.broadcast)
        self._stop = StopTable(info.max_num_seqs, model.eos_token_ids, tokenizer)
        self.grammars = Grammars(self._vocabulary, info.vocab_size)
        self._grammar_table = GrammarTable(
            info.max_num_seqs, model.eos_token_ids, self.grammars, force=force_tokens
        )
        self._reader = PromptReader(info.vocab_size)
        self._ranks = ranks
        self._has_peers = ranks is not None
        self._memory_probe = memory_probe
        self._num_prompt_tokens = np.zeros(info.max_num_seqs, dtype=np.int64)
        self._errors: dict[int, str] = {}  # by row: why its request cannot be computed
        self._last: TorchStep | None = None
        self._limit = PassLimit()
        self._num_passes = 0  # the same on all ranks

    def capture_graphs(self, backend: GraphBackend, budget_bytes: int) -> None:
        """Captures CUDA graphs of small steps, which are replayed from now on.

        Takes at most `budget_bytes` of device memory. No step may be under way.
        """
        self._forward.capture_graphs(backend, budget_bytes)

    def limit_passes(self, max_tokens: int) -> None:
        """From now on, computes steps of more tokens in parts."""
        self._limit = PassLimit(max_tokens)

    @property
    def info(self) -> RunnerInfo:
        return self._info

    @property
    def is_fused(self) -> bool:
        """Whether the model runs on our own kernels, and not layer by layer in transformers."""
        return self._model.fused is not None

    @property
    def graph_shapes(self) -> tuple[StepSizes, ...]:
        """The sizes for which CUDA graphs were captured."""
        return self._forward.graph_shapes

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._model.eos_token_ids

    def begin_to_load_tokenizer(self) -> None:
        """Loads the tokenizer beside everything else. Otherwise the first request with a stop string does, and every
        chat waits for it."""
        self._stop.begin_to_load()

    def launch(self, plan: StepPlan) -> TorchStep:
        started_s = time.perf_counter()
        self._forward.begin_step()
        if plan.copies_out:
            # One call, since each takes a staging buffer. Of several copies to a host slot, the last one counts.
            saved = {
                host_slot: slot
                for copy in plan.copies_out
                for slot, host_slot in zip(copy.device_slots, copy.host_slots, strict=True)
            }
            self._host_kv.save(list(saved.values()), list(saved))
        for start in plan.row_starts:
            self._start_row(start)
        copied = [restore for restore in plan.restores if restore.known_slots or restore.host_slots]
        for is_on_device, restores in groupby(copied, _is_on_device):
            if is_on_device:
                self._device_copies.copy(list(restores))
                continue
            for restore in restores:
                self._host_kv.restore(restore.host_slots, restore.device_slots[: len(restore.host_slots)])
        self._forward.enter_slots(plan)
        step = TorchStep(len(plan.rows), {})
        if plan.rows:
            arrays = StepArrays.of(plan)
            step.failed = self._find_failed(arrays)
            arrays.samples[list(step.failed)] = False
            num_failed = len(step.failed)
            self._compute(arrays, step)
            if len(step.failed) == len(arrays.rows) > num_failed:
                self._check_device(step, arrays)
            self._last = step
        step.prepared_s = self._forward.begun_s - started_s
        step.is_replayed = self._forward.is_replayed
        step.num_graph_failures = self._forward.num_graph_failures
        return step

    def execute(self, plan: StepPlan) -> StepResult:
        return self.launch(plan).result()

    def close(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        self._host_kv.close()
        self._grammar_table.close()
        self.grammars.close()
        self._last = None
        self._forward.close()
        del self._model, self._device_copies
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _vocabulary(self) -> Vocabulary:
        """What grammars need to know of the model. Called from another thread."""
        if self._model.device.type == "cpu":
            compile_cpu_masks()
        try:
            tokenizer = self._stop.tokenizer()
        except ValueError as error:
            raise ValueError("grammars need a tokenizer, and this model's cannot be loaded") from error
        return Vocabulary.of(tokenizer, self._info.vocab_size, self._model.eos_token_ids)

    # Parts of a step ------------------------------------------------------------------------------------

    def _start_row(self, start: RowStart) -> None:
        row = start.row
        self._num_prompt_tokens[row] = start.num_prompt_tokens
        self._errors.pop(row, None)
        if self._ranks is None or self._ranks.number == 0:  # whose tokens all ranks get
            self._grammar_table.start(start)
        error = _unknown_token(start, self._info.vocab_size)
        if error is None:
            try:
                self._sampling.start(start)
                self._stop.start(start)
                self._reader.start(start)
                if start.sampling.asks_about_prompt and not self._model.hidden_size:
                    error = "this model's hidden states cannot be read, so it has no scores, prompt_logprobs or pooling"
            except ValueError as invalid:
                error = str(invalid)
            except BaseException as raised:
                error = row_failure(raised)
        if error is not None:
            self._errors[row] = error

    def _find_failed(self, step: StepArrays) -> dict[int, str]:
        """Returns the rows of the plan whose requests fail, by index, with the reason.

        Replaces token ids that the model cannot look up, in place. All other tokens of these rows are computed as
        usual, since their K and V may be shared as a prefix.
        """
        if not self._errors:
            return {}
        step.token_ids[(step.token_ids < -1) | (step.token_ids >= self._info.vocab_size)] = 0
        return {i: self._errors[row] for i, row in enumerate(step.rows.tolist()) if row in self._errors}

    def _compute(self, arrays: StepArrays, step: TorchStep) -> None:
        """Launches the forward pass and the draw, or, if they fail, those of each half in turn: half of the tokens if
        memory does not suffice, and half of the rows after any other error.

        Raises torch.OutOfMemoryError if a single token is too much, or if other ranks have begun the same pass.
        """
        num_tokens = len(arrays.token_ids)
        if num_tokens <= self._limit.tokens:
            if self._has_memory_for(arrays):
                try:
                    failure = self._try_whole(arrays, step)
                except torch.OutOfMemoryError:
                    if num_tokens < 2 or self._has_peers:
                        raise
                else:
                    self._limit.was_computed()
                    if failure is not None:
                        self._compute_apart(arrays, step, failure)
                    return
            self._limit.ran_out(num_tokens)
            # Outside of `except`, so that what the error keeps of the failed pass is released first.
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()
        for half in arrays.halves():
            self._compute(half, step)

    def _has_memory_for(self, arrays: StepArrays) -> bool:
        """Whether to try the pass as a whole; False only if it can be halved."""
        num_tokens = len(arrays.token_ids)
        if self._memory_probe is None or num_tokens < 2:
            return True
        return self._memory_probe.suffices(num_tokens, int(np.count_nonzero(arrays.samples)))

    def _try_whole(self, arrays: StepArrays, step: TorchStep) -> str | None:
        """Launches the forward pass and the draw. Returns the error that one of them raised, or None.

        Raises torch.OutOfMemoryError, and any error that is not about rows or that not all ranks have.
        """
        self._num_passes += 1
        has_computed = False
        try:
            drawing = np.flatnonzero(arrays.samples)
            constraints = self._begin_masks(arrays, drawing)
            readings = arrays.readings(step.failed)
            if readings:
                logits, wanted_rows, pending = self._forward.logits_and_readings(
                    arrays, drawing, readings, self._reader
                )
            else:
                logits, wanted_rows = self._forward.logits(arrays, drawing)
            has_computed = True
            if len(drawing):
                self._draw(logits, wanted_rows, arrays, drawing, step, constraints)
            if readings:
                step.readings.append(pending)  # last, because a repetition reads the same again
        except torch.OutOfMemoryError:
            raise
        except BaseException as error:
            failure = row_failure(error)
            if self._ranks is not None and not self._ranks.all_have_failed(self._num_passes):
                raise
            step.lost_kv |= len(arrays.rows) == 1 and not has_computed
            return failure
        return None

    def _begin_masks(self, arrays: StepArrays, drawing: npt.NDArray[np.intp]) -> Constraints:
        """The grammars of the rows that draw, and their masks, if the tokens of the last step are known already: then
        other threads compute these during the forward pass."""
        rows = arrays.rows[drawing]
        grammars = self._grammar_table.of(rows, arrays.ends[drawing] - self._num_prompt_tokens[rows])
        if grammars is None or not (self._last is None or self._last.is_taken):
            return grammars, None
        return grammars, grammars.begin_masks()

    def _draw(
        self,
        logits: torch.Tensor,
        wanted_rows: torch.Tensor,
        arrays: StepArrays,
        drawing: npt.NDArray[np.intp],
        step: TorchStep,
        constraints: Constraints,
    ) -> None:
        rows = arrays.rows[drawing]
        num_outputs = arrays.ends[drawing] - self._num_prompt_tokens[rows]
        grammars, masks = constraints
        # After the forward pass was launched, which the device computes meanwhile.
        if self._last is not None and (grammars is not None or self._sampler.needs_host_tokens(rows)):
            self._last.result()
        if grammars is not None and masks is None:
            masks = grammars.begin_masks()
        draw = self._sampler.draw(logits, rows, num_outputs, masks)
        rules = self._stop.rules_of(rows)
        drawn = DrawnRows(arrays.index[drawing], num_outputs + 1, draw, rules, grammars)
        # Last, because a repetition needs the tokens that were drawn before.
        self._forward.drawn[wanted_rows] = draw.token_ids
        step.draws.append(drawn)

    def _compute_apart(self, arrays: StepArrays, step: TorchStep, failure: str) -> None:
        """After an error, computes each half of the rows by itself. A single row fails."""
        if len(arrays.rows) > 1:
            for half in arrays.halves_by_row():
                self._compute(half, step)
        else:
            step.failed[int(arrays.index[0])] = failure
            self._errors[int(arrays.rows[0])] = failure

    def _check_device(self, step: TorchStep, arrays: StepArrays) -> None:
        """Computes a token for nobody, because all rows of a step have failed. Raises an error if that fails too: then
        the device is the cause, or this program, and not the requests."""
        row = self._info.max_num_seqs
        ids = np.array([row])
        logits = torch.zeros((1, self._info.vocab_size), device=self._model.device)
        if step.lost_kv:  # so a slot of the step may be overwritten
            none = np.zeros(1, dtype=np.int64)
            probe = StepArrays(none, ids, none, none + 1, none == 0, none, arrays.slots[:1])
            logits, _ = self._forward.logits(probe, none)
        self._sampler.draw(logits[:1], ids, np.zeros(1, dtype=np.int64)).collect()


def _is_on_device(restore: Restore) -> bool:
    return bool(restore.known_slots)


def _unknown_token(start: RowStart, vocab_size: int) -> str | None:
    """The error of a request that names a token outside of the vocabulary, or None."""
    token_ids = np.array(start.token_ids)
    unknown = token_ids[(token_ids < 0) | (token_ids >= vocab_size)]
    if len(unknown):
        return f"token id {unknown[0]} is outside of the model's vocabulary of {vocab_size}"
    for token_id, _ in start.sampling.logit_bias:
        if not 0 <= token_id < vocab_size:
            return f"logit_bias names token id {token_id}, outside of the model's vocabulary of {vocab_size}"
    for token_id in start.sampling.stop_token_ids:
        if not 0 <= token_id < vocab_size:
            return f"stop_token_ids names {token_id}, outside of the model's vocabulary of {vocab_size}"
    return None
