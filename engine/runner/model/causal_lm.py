"""Any causal language model of transformers, run as one packed forward pass a step."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from engine.runner.model.attention import IMPLEMENTATION, LayerShape, PackedStep, attention_step
from engine.runner.model.fused_cpu import Decoder, can_fuse, fuse
from engine.runner.model.linear_onednn import can_pack, pack_linears, unpack_linears
from engine.runner.model.no_sync import keep_from_waiting
from engine.runner.model.selfcheck import check_packed, discover_layers, own_logits
from engine.runner.ranks.tensor_parallel import Ranks, reason_against, split_among

log = logging.getLogger("engine.model")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# layer_types of transformers' configurations that keep something other than K and V per token.
_STATEFUL_LAYERS = ("linear_attention", "mamba", "conv", "recurrent", "hybrid", "ssm")


class ModelRefused(ValueError):
    """The model cannot be served; the message says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A loaded model whose attention is ours, and what an engine needs to know of it."""

    model: Any  # a PreTrainedModel
    device: torch.device
    dtype: torch.dtype
    layers: Mapping[int, LayerShape]
    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    can_select_positions: bool
    fused: Decoder | None = None  # computes in the model's place

    @torch.inference_mode()
    def forward(
        self,
        token_ids: torch.Tensor,  # [T] int64
        positions: torch.Tensor,  # [T] int64
        step: PackedStep,
        wanted: torch.Tensor,  # [n] int64, indices into T
    ) -> torch.Tensor:  # [n, vocab_size], float32 or the model's dtype
        """Logits at the wanted tokens of one packed step."""
        if self.fused is not None:
            return self.fused.forward(token_ids, positions, step.layout, step.caches, wanted)
        selection = {"logits_to_keep": wanted} if self.can_select_positions else {}
        with attention_step(step):
            outputs = self.model(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False, **selection
            )
        logits: torch.Tensor = outputs.logits[0]
        return logits if self.can_select_positions else logits[wanted]


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    max_model_len: int | None = None,
    load_format: str = "safetensors",
    ranks: Ranks | None = None,
) -> CausalLM:
    """Loads a model by path or hub name and proves that it computes the same through our attention. `load_format`
    "dummy" draws its weights instead, the same ones each time.

    `dtype` "auto" is the checkpoint's own on a GPU and float32 on a CPU, where exactness costs least.
    `max_model_len` is capped by what the model's positions reach. With `ranks`, all of which make this call together,
    it is this rank's part of the model. Raises ModelRefused.
    """
    target = resolve_device(device)
    config = _load_config(name)
    _refuse_by_config(name, config)
    if ranks is not None and load_format == "dummy":
        raise ModelRefused("--load-format dummy draws whole models; leave --tensor-parallel-size out")
    if ranks is not None and (reason := reason_against(config, ranks.size)):
        raise ModelRefused(
            f"{name} ({config.model_type}) cannot be split among {ranks.size} devices: {reason}; change "
            "--tensor-parallel-size, or leave it out"
        )
    weights_dtype = resolve_dtype(dtype, config, target)

    def read(**split: Any) -> Any:
        if load_format == "dummy":
            return draw_model(config, target, weights_dtype)
        return _load_weights(name, config, weights_dtype, **split).to(target).eval()

    with split_among(ranks) as split:
        model = read(**split)
    text_config = config.get_text_config()
    try:
        layers = discover_layers(model)
        limit = min(filter(None, (max_model_len, longest_context(text_config))), default=2048)
        loaded = CausalLM(
            model=model,
            device=target,
            dtype=model.dtype,
            layers=layers,
            vocab_size=text_config.vocab_size,
            max_model_len=limit,
            eos_token_ids=eos_token_ids(model),
            can_select_positions="logits_to_keep" in inspect.signature(model.forward).parameters,
        )
        expected = own_logits(loaded)
        if ranks is not None:  # whole matrices are what packed and fused products are made of
            keep_from_waiting(model)
            check_packed(loaded, expected)
            return loaded
        if can_fuse(model, layers):
            fused = _fused(name, loaded, expected)
            if fused is not None:
                return fused
            loaded = replace(loaded, model=read())
        _prepare(loaded, expected)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:  # reasons, and what odd models trip over
        raise _refusal(name, config, _first_line(error)) from error
    return loaded


def _fused(name: str, loaded: CausalLM, expected: list[torch.Tensor]) -> CausalLM | None:
    """The model by kernels of our own; None where those fail or compute something else, and its weights are gone."""
    try:
        fused = replace(loaded, fused=fuse(loaded.model, loaded.layers, loaded.max_model_len))
        check_packed(fused, expected)
        return fused
    except Exception as error:  # of any kernel's making
        log.warning("%s runs without fused kernels: %s", name, _first_line(error))
        return None


def _prepare(loaded: CausalLM, expected: list[torch.Tensor]) -> None:
    """Packs the weights where that pays, and checks the model as it will run."""
    keep_from_waiting(loaded.model)
    if can_pack(loaded.device, loaded.dtype):
        pack_linears(loaded.model)
        try:
            check_packed(loaded, expected)
            return
        except (ValueError, RuntimeError):
            unpack_linears(loaded.model)  # perhaps the model reads a weight itself
    check_packed(loaded, expected)


def resolve_device(device: str) -> torch.device:
    """ "auto" is the first GPU where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelRefused(
            "device cuda was asked for, but torch sees no GPU: use --device cpu or install a CUDA torch"
        )
    return torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)


def resolve_dtype(dtype: str, config: PretrainedConfig, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type == "cpu":
        return torch.float32
    own = getattr(config.get_text_config(), "dtype", None) or config.dtype
    return own if isinstance(own, torch.dtype) else torch.bfloat16


def longest_context(config: PretrainedConfig) -> int | None:
    """How far the model's positions reach, None where nothing limits them.

    Rotary scaling of the kinds `dynamic` and `longrope` changes with the longest sequence of a batch; up to
    the original length it does not, so that is how far such a model is served.
    """
    reach = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    # One set of parameters, or one a layer type.
    for parameters in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            original = parameters.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            reach = min(filter(None, (reach, original)), default=None)
    return reach


def eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    """The ids that end a sequence as `generate` sees it: of the generation config, else of the model's."""
    generation = getattr(model, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    if ids is None:
        ids = getattr(model.config.get_text_config(), "eos_token_id", None)
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)


def _load_config(name: str) -> PretrainedConfig:
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise ModelRefused(
            f"there is no directory {name}; a model is one with config.json and safetensors weights"
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
        return config
    except (OSError, ValueError, KeyError) as error:
        raise ModelRefused(
            f"{name} cannot be loaded: {_first_line(error)} (a model is a directory with config.json and "
            "safetensors weights, or a hub name, of an architecture that this transformers knows)"
        ) from error


def _refuse_by_config(name: str, config: PretrainedConfig) -> None:
    """What the configuration alone gives away, before any weights are read."""
    if config.is_encoder_decoder:
        raise _refusal(name, config, "it is an encoder-decoder model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _refusal(name, config, "transformers has no causal language model of this architecture")
    stateful = sorted(
        kind
        for kind in set(getattr(config.get_text_config(), "layer_types", None) or [])
        if any(word in kind for word in _STATEFUL_LAYERS)
    )
    if stateful:
        raise _refusal(name, config, f"it has layers with recurrent state ({', '.join(stateful)})")
    if getattr(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], "_is_stateful", False):
        raise _refusal(name, config, "it keeps recurrent state besides attention")


def _load_weights(name: str, config: PretrainedConfig, dtype: torch.dtype, **split: Any) -> Any:
    options: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "attn_implementation": IMPLEMENTATION,
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
        **split,
    }
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelRefused(
            f"{name} cannot be loaded: {_first_line(error)} (only safetensors weights are read; convert others with "
            "transformers' save_pretrained)"
        ) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelRefused(
            f"{name} cannot be served: its checkpoint lacks {len(missing)} of the model's tensors, such as "
            f"{missing[0]}; use a complete checkpoint of a causal language model"
        )
    return model


def draw_model(
    config: PretrainedConfig, device: torch.device, dtype: torch.dtype, attention: str = IMPLEMENTATION
) -> Any:
    """A model with random weights, drawn on the device, where that takes seconds for billions of them."""
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation=attention
        )
    return model.eval()


def _refusal(name: str, config: PretrainedConfig, reason: str) -> ModelRefused:
    return ModelRefused(
        f"{name} ({config.model_type}) cannot be served: {reason}; use a decoder-only transformer such as Llama, Qwen, "
        "Mistral, Gemma, Phi or GPT-2"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .") if lines else type(error).__name__
