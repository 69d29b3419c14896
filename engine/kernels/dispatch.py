"""Which backend of the attention op a device gets: the one place that knows."""

from __future__ import annotations

from typing import Protocol

import torch

from engine.kernels import cpu, reference
from engine.kernels.layout import StepLayout


class AttentionOp(Protocol):
    """See `engine.kernels.reference.attention` for the shapes and what it means."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        layout: StepLayout,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


def attention_op(device: torch.device) -> AttentionOp:
    """The fastest op that runs on `device`."""
    return cpu.attention if device.type == "cpu" else reference.attention
