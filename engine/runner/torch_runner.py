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

import numpy as np
import numpy.typing as npt
import torch

from engine.core.plan import StepPlan, StepResult
from engine.grammars.store import Grammars
from engine.grammars.tokenizer import Vocabulary
from engine.kernels.cpu.masks import compile_ahead as compile_cpu_masks
from engine.runner.base import RunnerInfo
from engine.runner.forward_pass import ForwardPass
from engine.runner.graphs import GraphBackend
from engine.runner.kv.memory import LayerCache
from engine.runner.kv.moves import KVMoves
from engine.runner.model.causal_lm import CausalLM
from engine.runner.pass_limit import PassLimit
from engine.runner.prompt_reader import PromptReader
from engine.runner.ranks.memory_probe import MemoryProbe
from engine.runner.ranks.tensor_parallel import Ranks
from engine.runner.row_failure import row_failure
from engine.runner.sampling.grammars import GrammarTable, Masks, StepGrammars
from engine.runner.sampling.sampler import EarlierDraws, Sampler
from engine.runner.sampling.stop import StopTable
from engine.runner.sampling.table import SamplingTable
from engine.runner.started_rows import StartedRows
from engine.runner.step_arrays import StepArrays, StepSizes
from engine.runner.step_outputs import DrawnRows, TorchStep

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
        self._model = model
        self._info = info
        self._moves = KVMoves(caches, info.num_host_slots, model.device)
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
        draws_here = ranks is None or ranks.number == 0
        self._rows = StartedRows(
            info, self._sampling, self._stop, self._reader, self._grammar_table if draws_here else None
        )
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
        self._moves.save(plan)
        for start in plan.row_starts:
            self._rows.start(start)
        self._moves.restore(plan)
        self._forward.enter_slots(plan)
        step = TorchStep(len(plan.rows), {})
        if plan.rows:
            arrays = StepArrays.of(plan)
            step.failed = self._rows.failed_in(arrays)
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
        self._moves.close()
        self._grammar_table.close()
        self.grammars.close()
        self._last = None
        self._forward.close()
        del self._model
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
        grammars = self._grammar_table.of(arrays.rows[drawing], self._rows.num_outputs(arrays, drawing))
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
        num_outputs = self._rows.num_outputs(arrays, drawing)
        grammars, masks = constraints
        # After the forward pass was launched, which the device computes meanwhile.
        if self._last is not None and grammars is not None:
            self._last.result()
        if grammars is not None and masks is None:
            masks = grammars.begin_masks()
        earlier = None
        if self._last is not None and not self._last.is_taken:
            earlier = EarlierDraws([drawn.draw for drawn in self._last.draws], self._forward.drawn)
        draw = self._sampler.draw(logits, rows, num_outputs, masks, earlier)
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
            self._rows.fail(int(arrays.rows[0]), failure)

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
