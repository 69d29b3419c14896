"""From a checkpoint to a `CausalLM`: read it, learn its layers, choose the fastest way to run it, and verify that."""

from __future__ import annotations

import inspect
import logging
from dataclasses import replace
from typing import Any

import torch
from transformers import PretrainedConfig

from engine.runner.base import UnsupportedModel
from engine.runner.model.causal_lm import CausalLM
from engine.runner.model.checkpoint import (
    cannot_serve,
    check_config,
    draw_model,
    eos_token_ids,
    first_line,
    load_config,
    load_weights,
    longest_context,
    resolve_device,
    resolve_dtype,
)
from engine.runner.model.decoder import can_fuse, fuse
from engine.runner.model.discovery import discover_layers
from engine.runner.model.host_sync import remove_host_syncs
from engine.runner.model.linear_fp8 import check_fp8, quantize_linears
from engine.runner.model.linear_onednn import can_pack, pack_linears, unpack_linears
from engine.runner.model.selfcheck import check_hidden, check_packed, own_logits
from engine.runner.ranks.tensor_parallel import Ranks, split_among, why_not_splittable

log = logging.getLogger("engine.model")

DEFAULT_MAX_MODEL_LEN = 2048  # if neither the user nor the model sets one


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    max_model_len: int | None = None,
    load_format: str = "safetensors",
    quantization: str = "none",
    ranks: Ranks | None = None,
) -> CausalLM:
    """Loads a model by path or hub name and verifies that it computes the same through our attention.

    `load_format` "dummy" draws random weights instead, the same ones every time. `dtype` "auto" is the checkpoint's own
    on a GPU, and float32 on a CPU. `quantization` "fp8" stores linear layers as float8. `max_model_len` is capped by
    the positions that the model supports. With `ranks`, all ranks call this together and each gets its part of the
    model. Raises UnsupportedModel.
    """
    target = resolve_device(device)
    config = load_config(name)
    check_config(name, config)
    if ranks is not None:
        _check_split(name, config, ranks, load_format)
    weights_dtype = resolve_dtype(dtype, config, target)
    if quantization == "fp8":
        check_fp8(name, config, target, weights_dtype)

    def read(**split: Any) -> Any:
        if load_format == "dummy":
            model = draw_model(config, target, weights_dtype)
        else:
            model = load_weights(name, config, weights_dtype, **split)
        if quantization == "fp8":
            quantize_linears(name, model, target)
        return model.to(target).eval()

    with split_among(ranks) as split:
        model = read(**split)
    try:
        loaded = _describe(model, config, target, max_model_len)
        expected = own_logits(loaded)
        if ranks is not None:  # packed and fused linear layers need whole matrices
            remove_host_syncs(model)
            check_packed(loaded, expected)
            return _with_hidden(name, loaded, expected)
        if can_fuse(model, loaded.layers):
            fused = _fused(name, loaded, expected)
            if fused is not None:
                return _with_hidden(name, fused, expected)
            loaded = replace(loaded, model=read())
        _prepare(loaded, expected)
    # The checks raise these errors with a reason, and unusual models raise them in unexpected places.
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise cannot_serve(name, config, first_line(error)) from error
    return _with_hidden(name, loaded, expected)


def _check_split(name: str, config: PretrainedConfig, ranks: Ranks, load_format: str) -> None:
    if load_format == "dummy":
        raise UnsupportedModel(
            "--load-format dummy cannot be combined with --tensor-parallel-size; remove one of them"
        )
    if reason := why_not_splittable(config, ranks.size):
        raise UnsupportedModel(
            f"{name} ({config.model_type}) cannot be split among {ranks.size} devices: {reason}; change "
            "--tensor-parallel-size, or leave it out"
        )


def _describe(
    model: Any, config: PretrainedConfig, device: torch.device, max_model_len: int | None
) -> CausalLM:
    text_config = config.get_text_config()
    return CausalLM(
        model=model,
        device=device,
        dtype=model.dtype,
        layers=discover_layers(model),
        vocab_size=text_config.vocab_size,
        max_model_len=min(
            filter(None, (max_model_len, longest_context(text_config))), default=DEFAULT_MAX_MODEL_LEN
        ),
        eos_token_ids=eos_token_ids(model),
        can_select_positions="logits_to_keep" in inspect.signature(model.forward).parameters,
    )


def _fused(name: str, loaded: CausalLM, expected: list[torch.Tensor]) -> CausalLM | None:
    """The model on fused kernels, or None if they fail or give different results. The weights are then gone."""
    try:
        fused = replace(loaded, fused=fuse(loaded.model, loaded.layers, loaded.max_model_len))
        check_packed(fused, expected)
        return fused
    except Exception as error:  # a kernel or its compiler may raise anything
        log.warning(
            "%s runs without fused kernels, several times slower: %s", name, first_line(error), exc_info=True
        )
        return None


def _with_hidden(name: str, loaded: CausalLM, expected: list[torch.Tensor]) -> CausalLM:
    """The model, which says whether its hidden states can be read."""
    try:
        check_hidden(loaded, expected)
    except Exception as error:  # unusual models raise anything
        log.warning("%s has no log-probabilities of prompts and no embeddings: %s", name, first_line(error))
        return loaded
    return replace(loaded, hidden_size=loaded.model.config.get_text_config().hidden_size)


def _prepare(loaded: CausalLM, expected: list[torch.Tensor]) -> None:
    """Packs the weights where that pays, and verifies the model in the form in which it will run."""
    remove_host_syncs(loaded.model)
    if can_pack(loaded.device, loaded.dtype):
        pack_linears(loaded.model)
        try:
            check_packed(loaded, expected)
            return
        except (ValueError, RuntimeError):
            unpack_linears(loaded.model)  # perhaps the model reads a weight itself
    check_packed(loaded, expected)
