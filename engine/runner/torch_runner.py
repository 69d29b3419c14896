"""Carries out step plans with a transformers model: one packed forward pass and one draw a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.config import EngineConfig
from engine.core.plan import RowStart, StepPlan, StepResult
from engine.core.types import SamplingParams
from engine.kernels.dispatch import attention_op
from engine.kernels.layout import StepLayout
from engine.runner.attention import LayerCache, PackedStep
from engine.runner.base import RunnerInfo
from engine.runner.host_kv import HostKV
from engine.runner.kv_memory import (
    allocate_host_kv,
    allocate_kv,
    bytes_per_slot,
    num_blocks_on_cpu,
    num_blocks_on_gpu,
    num_host_slots,
)
from engine.runner.model import CausalLM, ModelRefused, load_model
from engine.runner.sampler import Sampler
from engine.runner.sampling_rows import SamplingRows
from engine.runner.stop import StopRules


@dataclass(frozen=True, slots=True)
class _Step:
    """A plan as arrays. R rows, T tokens; `ends[i]` tokens of row i's request are computed after the step."""

    rows: npt.NDArray[np.int64]  # [R]
    starts: npt.NDArray[np.int64]  # [R]
    counts: npt.NDArray[np.int64]  # [R]
    ends: npt.NDArray[np.int64]  # [R]
    offsets: npt.NDArray[np.int64]  # [R] each row's first token among the T
    token_ids: npt.NDArray[np.int64]  # [T]


class TorchRunner:
    """A `ModelRunner` on torch. Made by `load`; used from one thread."""

    def __init__(
        self, model: CausalLM, caches: Mapping[int, LayerCache], info: RunnerInfo, tokenizer: str
    ) -> None:
        self._model = model
        self._caches = caches
        self._info = info
        host = allocate_host_kv(model.layers, info.num_host_slots, model.dtype, model.device)
        self._host_kv = HostKV(caches, host)
        self._op = attention_op(model.device)
        self._slot_table = torch.zeros(
            (info.max_num_seqs, info.max_model_len), dtype=torch.int32, device=model.device
        )
        self._sampling = SamplingRows(info.max_num_seqs, model.eos_token_ids)
        self._sampler = Sampler(self._sampling)
        self._stop = StopRules(info.max_num_seqs, model.eos_token_ids, tokenizer)
        self._num_prompt_tokens = np.zeros(info.max_num_seqs, dtype=np.int64)
        self._refused: dict[int, str] = {}  # by row: why its request cannot be computed

    @staticmethod
    def load(config: EngineConfig, *, num_threads: int | None = None) -> TorchRunner:
        """Loads `config.model` (a path or a hub name) and takes memory for KV. Raises ModelRefused.

        `num_threads` None leaves torch's own choice, a thread a core; the attention kernel follows it.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        block_size, max_num_seqs, num_kv_blocks = config.block_size, config.max_num_seqs, config.num_kv_blocks
        loaded = load_model(
            config.model, device=config.device, dtype=config.dtype, max_model_len=config.max_model_len
        )
        slot_bytes = bytes_per_slot(loaded.layers, loaded.dtype)
        if num_kv_blocks is None and loaded.device.type == "cpu":
            num_kv_blocks = num_blocks_on_cpu(slot_bytes, block_size, max_num_seqs, loaded.max_model_len)
        elif num_kv_blocks is None:
            activations = _profile_bytes(loaded, config.max_num_batched_tokens, max_num_seqs)
            num_kv_blocks = num_blocks_on_gpu(
                slot_bytes, block_size, config.gpu_memory_utilization, activations
            )
        if num_kv_blocks < 1:
            raise ModelRefused(
                f"{config.model} leaves no room for KV memory on {loaded.device}: raise "
                "--gpu-memory-utilization, or serve a smaller model"
            )
        num_slots = num_kv_blocks * block_size
        host_slots = config.num_host_slots
        if host_slots is None:
            host_slots = num_host_slots(slot_bytes, num_slots, loaded.device)
        info = RunnerInfo(
            num_blocks=num_kv_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_model_len=loaded.max_model_len,
            vocab_size=loaded.vocab_size,
            device=_device_name(loaded.device),
            dtype=str(loaded.dtype).removeprefix("torch."),
            num_host_slots=host_slots,
        )
        caches = allocate_kv(loaded.layers, num_slots, loaded.dtype, loaded.device)
        return TorchRunner(loaded, caches, info, tokenizer=config.model)

    @property
    def info(self) -> RunnerInfo:
        return self._info

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._model.eos_token_ids

    def execute(self, plan: StepPlan) -> StepResult:
        for copy in plan.copies_out:
            self._host_kv.save(copy.device_slots, copy.host_slots)
        for start in plan.row_starts:
            self._start_row(start)
        for restore in plan.restores:
            if restore.host_slots:
                self._host_kv.restore(restore.host_slots, restore.device_slots)
            self._set_slots(restore.row, restore.start, restore.device_slots)
        sampled, stopped = [-1] * len(plan.rows), [False] * len(plan.rows)
        if not plan.rows:
            return StepResult(sampled, stopped)
        step = _arrays(plan)
        failed = self._find_failed(step)
        samples = np.array(plan.samples, dtype=bool)
        samples[list(failed)] = False
        drawing = np.flatnonzero(samples)
        logits = self._forward(plan, step, drawing)
        if not len(drawing):
            return StepResult(sampled, stopped, failed=failed)

        rows = step.rows[drawing]
        num_outputs = step.ends[drawing] - self._num_prompt_tokens[rows]
        token_ids, logprobs = self._sampler.draw(logits, rows, num_outputs)
        for i, row, token_id, so_far in zip(
            drawing.tolist(), rows.tolist(), token_ids, num_outputs.tolist(), strict=True
        ):
            sampled[i] = token_id
            stopped[i] = self._stop.ends(row, token_id, so_far + 1)
        return StepResult(sampled, stopped, {int(drawing[j]): value for j, value in logprobs.items()}, failed)

    def close(self) -> None:
        self._caches = {}
        del self._host_kv
        self._slot_table = self._slot_table[:0]
        del self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # Parts of a step ------------------------------------------------------------------------------------

    def _start_row(self, start: RowStart) -> None:
        row = start.row
        self._num_prompt_tokens[row] = start.num_prompt_tokens
        self._set_slots(row, 0, start.slots)
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

    def _set_slots(self, row: int, start: int, slots: list[int]) -> None:
        """The computed tokens from position `start` on lie in these slots."""
        if slots:
            self._slot_table[row, start : start + len(slots)] = torch.tensor(slots, dtype=torch.int32)

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

    def _find_failed(self, step: _Step) -> dict[int, str]:
        """Rows of the plan whose requests end here, by index, and why. Token ids that the model cannot look up are
        replaced in place; all others are computed as they are, for their K and V may be shared as a prefix."""
        if not self._refused:
            return {}
        step.token_ids[(step.token_ids < 0) | (step.token_ids >= self._info.vocab_size)] = 0
        return {i: self._refused[row] for i, row in enumerate(step.rows.tolist()) if row in self._refused}

    def _forward(self, plan: StepPlan, step: _Step, drawing: npt.NDArray[np.intp]) -> torch.Tensor:
        """Logits [n, V] at the last token of each row in `drawing`."""
        total = len(step.token_ids)
        packed = np.empty((4, total), dtype=np.int64)  # one transfer for all that is a token long
        packed[0] = step.token_ids
        packed[1] = np.arange(total) + np.repeat(step.starts - step.offsets, step.counts)  # positions
        packed[2] = plan.slots
        packed[3] = np.repeat(step.rows, step.counts)
        device = self._model.device
        token_ids, positions, slots, rows = torch.from_numpy(packed).to(device, non_blocking=True)
        self._slot_table[rows, positions] = slots.int()
        layout = StepLayout.build(self._slot_table, slots, step.rows, step.starts, step.counts)
        wanted = torch.from_numpy((step.offsets + step.counts - 1)[drawing]).to(device)
        return self._model.forward(token_ids, positions, PackedStep(layout, self._caches, self._op), wanted)


def _arrays(plan: StepPlan) -> _Step:
    starts, counts = np.array(plan.starts), np.array(plan.counts)
    return _Step(
        rows=np.array(plan.rows),
        starts=starts,
        counts=counts,
        ends=starts + counts,
        offsets=np.cumsum(counts) - counts,
        token_ids=np.array(plan.token_ids),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _profile_bytes(model: CausalLM, max_num_batched_tokens: int, max_num_seqs: int) -> int:
    """GPU memory that the largest step needs besides weights and KV: measured on one."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    num_rows = min(max_num_seqs, max_num_batched_tokens)
    length = min(max_num_batched_tokens, model.max_model_len)
    probe = TorchRunner(
        model,
        allocate_kv(model.layers, max_num_batched_tokens, model.dtype, model.device),
        RunnerInfo(1, max_num_batched_tokens, num_rows, model.max_model_len, model.vocab_size, "cuda", ""),
        tokenizer="",
    )
    # Every sampling row draws from the whole vocabulary, and the longest chunk fits in.
    counts = [1] * (num_rows - 1) + [min(length, max_num_batched_tokens - num_rows + 1)]
    total = sum(counts)
    probe.execute(
        StepPlan(
            rows=list(range(num_rows)),
            starts=[0] * num_rows,
            counts=counts,
            samples=[True] * num_rows,
            token_ids=[0] * total,
            slots=list(range(total)),
            row_starts=[
                RowStart(
                    row, str(row), [0] * counts[row], counts[row], [], SamplingParams(max_tokens=1, top_p=0.9)
                )
                for row in range(num_rows)
            ],
        )
    )
    torch.cuda.synchronize()
    needed = torch.cuda.max_memory_allocated() - before
    del probe
    torch.cuda.empty_cache()
    return needed
