"""A checkpoint's configuration and weights, read by transformers, and what they say about serving the model."""

from __future__ import annotations

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

from engine.runner.base import UnsupportedModel
from engine.runner.model.attention import IMPLEMENTATION

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Parts of the `layer_types` in transformers' configurations whose layers keep state other than K and V per token.
_STATEFUL_LAYERS = ("linear_attention", "mamba", "conv", "recurrent", "hybrid", "ssm")


def resolve_device(device: str) -> torch.device:
    """The device to use; "auto" means the first GPU, or the CPU if there is no GPU. Raises UnsupportedModel."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedModel(
            "--device is cuda, but torch sees no GPU: use --device cpu, or install a CUDA build of torch"
        )
    return torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)


def resolve_dtype(dtype: str, config: PretrainedConfig, device: torch.device) -> torch.dtype:
    """The dtype of the weights; "auto" means float32 on a CPU and the checkpoint's own dtype on a GPU."""
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type == "cpu":
        return torch.float32
    own = getattr(config.get_text_config(), "dtype", None) or config.dtype
    return own if isinstance(own, torch.dtype) else torch.bfloat16


def longest_context(config: PretrainedConfig) -> int | None:
    """The number of positions that the model supports, or None where nothing limits them.

    Rotary scaling of the types `dynamic` and `longrope` depends on the longest sequence of a batch, but not up to the
    original length, so such a model is served up to that length.
    """
    longest = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    # Either one set of parameters, or one per layer type.
    for parameters in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            original = parameters.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            longest = min(filter(None, (longest, original)), default=None)
    return longest


def eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    """The ids at which `generate` ends a sequence: from the generation config, or else from the model's config."""
    generation = getattr(model, "generation_config", None)
    ids = getattr(generation, "eos_token_id", None)
    if ids is None:
        ids = getattr(model.config.get_text_config(), "eos_token_id", None)
    if ids is None:
        return frozenset()
    vocab_size = model.config.get_text_config().vocab_size
    # Some configurations name ids that have no logit: such a token is never drawn, and has nothing to suppress.
    return frozenset(each for each in ([ids] if isinstance(ids, int) else ids) if 0 <= each < vocab_size)


def load_config(name: str) -> PretrainedConfig:
    """Reads the configuration of a model directory or hub name. Raises UnsupportedModel."""
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise UnsupportedModel(
            f"there is no directory {name}; a model is a directory with config.json and safetensors weights"
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
        return config
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModel(
            f"{name} cannot be loaded: {first_line(error)} (a model is a directory with config.json and "
            "safetensors weights, or a hub name, of an architecture that this version of transformers supports)"
        ) from error


def check_config(name: str, config: PretrainedConfig) -> None:
    """Raises UnsupportedModel if the configuration alone shows that the model cannot be served."""
    if config.is_encoder_decoder:
        raise cannot_serve(name, config, "it is an encoder-decoder model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise cannot_serve(name, config, "transformers has no causal language model of this architecture")
    stateful = sorted(
        kind
        for kind in set(getattr(config.get_text_config(), "layer_types", None) or [])
        if any(word in kind for word in _STATEFUL_LAYERS)
    )
    if stateful:
        raise cannot_serve(name, config, f"it has layers with recurrent state ({', '.join(stateful)})")
    if getattr(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], "_is_stateful", False):
        raise cannot_serve(name, config, "it keeps recurrent state besides attention")


def load_weights(name: str, config: PretrainedConfig, dtype: torch.dtype, **split: Any) -> Any:
    """Reads the model with its weights, on the CPU unless the options `split` say otherwise. Raises
    UnsupportedModel."""
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
        raise UnsupportedModel(
            f"{name} cannot be loaded: {first_line(error)} (only safetensors weights are read; convert others with "
            "transformers' save_pretrained)"
        ) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise UnsupportedModel(
            f"{name} cannot be served: its checkpoint lacks {len(missing)} of the model's tensors, such as "
            f"{missing[0]}; use a complete checkpoint of a causal language model"
        )
    return model


def draw_model(
    config: PretrainedConfig, device: torch.device, dtype: torch.dtype, attention: str = IMPLEMENTATION
) -> Any:
    """A model with random weights, the same ones every time. They are drawn on the device, where billions of weights
    take seconds."""
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation=attention
        )
    return model.eval()


def cannot_serve(name: str, config: PretrainedConfig, reason: str) -> UnsupportedModel:
    """The error for a model whose architecture the engine does not support."""
    return UnsupportedModel(
        f"{name} ({config.model_type}) cannot be served: {reason}; use a decoder-only transformer such as Llama, Qwen, "
        "Mistral, Gemma, Phi or GPT-2"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, to be part of a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .") if lines else type(error).__name__
