"""Linear layers on a CPU whose weights are laid out for oneDNN once, at load, instead of at every call.

Measured on a core of a Zen 5 (AVX-512), 768 x 2048, against torch's own `F.linear`: float32 is 2.3 times faster at any
number of rows (oneDNN uses AVX-512 where MKL does not); bfloat16 is 1.2 times faster at 64 rows and 2.2 times at one.
"""

from __future__ import annotations

import torch
from torch import nn


class PackedLinear(nn.Linear):
    """A Linear whose `weight` has oneDNN's layout: its shape and dtype can be read as usual, but its values cannot."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.numel():  # oneDNN needs at least one row
            return x.new_empty(*x.shape[:-1], self.out_features)
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packing is possible and pays: oneDNN is available, and the CPU has the instructions for `dtype`."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float32


def pack_linears(model: nn.Module) -> None:
    """Packs every plain Linear in place, one after another, so that only one weight exists twice at a time.

    A weight that is shared with something else (an embedding tied to the output layer) stays unchanged there.
    """
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.numel():
            packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach().contiguous(), None)
            _replace_weight(module, packed, PackedLinear)


def unpack_linears(model: nn.Module) -> None:
    """Undoes `pack_linears`; a weight that was tied becomes a copy."""
    for module in model.modules():
        if type(module) is PackedLinear:
            _replace_weight(module, module.weight.to_dense(), nn.Linear)


def _replace_weight(module: nn.Linear, weight: torch.Tensor, kind: type[nn.Linear]) -> None:
    del module.weight
    module.register_buffer("weight", weight, persistent=False)
    module.__class__ = kind
