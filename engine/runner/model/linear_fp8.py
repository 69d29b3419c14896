"""Linear layers in float8 e4m3 (`--quantization fp8`): half the memory of 16 bits, and half the traffic of a step.

Each row of a weight, which makes one output, has a scale, and each token gets one in every product. Nothing has to be
calibrated. The layers of the model's blocks are quantized. The embedding, the output layer and routers keep their
dtype: an error there changes the token or the expert that is chosen, and they are a small part of the traffic.

On a GPU of compute capability 8.9 or higher, tensor cores multiply float8. Elsewhere the same numbers are multiplied in
float32, which is slow, but shows how accurate the model is.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from engine.kernels.dispatch import backend_of
from engine.kernels.reference import fp8_linear as reference
from engine.runner.base import UnsupportedModel

log = logging.getLogger("engine.model")

_LEAST_CAPABILITY = (8, 9)
_MULTIPLE = 16  # of the sizes that float8 products take
_KEPT = ("lm_head", "gate", "router", "shared_expert_gate")  # names of layers, or of a module around them


class Fp8Linear(nn.Linear):
    """A Linear with a float8 `weight` [N, K] and `scales` [N] float32."""

    scales: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self.in_features)
        out = fp8_linear(flat, self.weight, self.scales, self.bias)
        return out.view(*x.shape[:-1], self.out_features)


def fp8_linear(
    x: torch.Tensor,  # [T, K]
    weight: torch.Tensor,  # [N, K] float8
    scales: torch.Tensor,  # [N]
    bias: torch.Tensor | None,  # [N]
) -> torch.Tensor:  # [T, N], x's dtype
    """x @ (weight * scales).T + bias, with x in float8 too. The host does not wait for a GPU."""
    if not len(x):
        return x.new_empty(0, len(weight))
    tokens, token_scales = quantize_tokens(x)
    if x.device.type != "cuda":
        return reference.scaled_product(tokens, token_scales, weight, scales, bias, x.dtype)
    # Sums are in full float32: the tensor cores' own have 14 bits.
    out: torch.Tensor = torch._scaled_mm(
        tokens,
        weight.t(),
        scale_a=token_scales,
        scale_b=scales[None],
        bias=bias,
        out_dtype=x.dtype,
        use_fast_accum=False,
    )
    return out


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns x [T, K] as float8, and its scales [T, 1] float32."""
    if backend_of(x.device) != "triton":
        return reference.quantize_rows(x)
    # Imported here because Triton is not installed everywhere.
    from engine.kernels.triton import quantize

    return quantize.quantize_tokens(x.contiguous())


def check_fp8(name: str, config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raises UnsupportedModel if the device or the checkpoint rules fp8 weights out, before any weight is read."""
    own = getattr(config, "quantization_config", None)
    if own is not None:
        method = own.get("quant_method") if isinstance(own, dict) else getattr(own, "quant_method", None)
        raise UnsupportedModel(
            f"{name} is quantized already ({getattr(method, 'value', method) or 'by an unnamed method'}), so "
            "--quantization fp8 cannot be applied: leave it out, or serve the checkpoint in 16 bits"
        )
    if device.type != "cuda":
        log.warning("fp8 products are emulated on %s, which is slow: use it to judge accuracy only", device)
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        raise UnsupportedModel(
            f"--quantization fp8 needs a GPU of compute capability 8.9 or higher (Ada, Hopper or newer); "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}: leave the option out"
        )
    if dtype is not torch.bfloat16:
        raise UnsupportedModel(
            f"--quantization fp8 computes in bfloat16 on a GPU, and the dtype of {name} is "
            f"{str(dtype).removeprefix('torch.')}: add --dtype bfloat16"
        )


def quantize_linears(name: str, model: Any, device: torch.device) -> None:
    """Quantizes the linear layers of the model's blocks on `device`, in place.

    Weights move to the device one after another, so it holds one of them in 16 bits at a time. Raises UnsupportedModel
    if there is nothing to quantize.
    """
    chosen = [
        (path, module)
        for path, module in model.named_modules()
        if type(module) is nn.Linear and _is_quantized(path, module)
    ]
    if not chosen:
        raise UnsupportedModel(
            f"{name} has no linear layers that --quantization fp8 can store: leave the option out"
        )
    total = sum(parameter.numel() for parameter in model.parameters())
    stored = 0
    for _, module in chosen:
        weight, scales = reference.quantize_rows(module.weight.detach().to(device))
        del module.weight
        module.register_buffer("weight", weight, persistent=False)
        module.register_buffer("scales", scales[:, 0], persistent=False)
        module.__class__ = Fp8Linear
        stored += weight.numel()
    log.info(
        "%d linear layers, %.0f%% of the parameters, are stored as fp8", len(chosen), 100 * stored / total
    )
    if 2 * stored < total:
        log.warning(
            "%s has only %.0f%% of its parameters in layers that fp8 can store (experts of a mixture and embeddings "
            "keep their dtype), so --quantization fp8 saves little memory", name, 100 * stored / total,
        )  # fmt: skip


def _is_quantized(path: str, module: nn.Linear) -> bool:
    names = path.split(".")
    in_block = any(part.isdigit() for part in names)  # blocks are the elements of a list
    fits = module.in_features % _MULTIPLE == 0 and module.out_features % _MULTIPLE == 0
    return in_block and fits and not set(names) & set(_KEPT)
