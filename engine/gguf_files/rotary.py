"""The scaling of rotary embeddings that a GGUF file asks for, and that transformers' reader leaves out.

llama.cpp stores Llama 3's scaling as a tensor of factors, and other kinds as metadata. A model that ignores it computes
something else, so a kind that has no equivalent in transformers is an error.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PretrainedConfig

from engine.gguf_files.header import GgufHeader
from engine.gguf_files.stored_values import read_values
from engine.runner.base import UnsupportedModel

FACTORS = "rope_freqs.weight"
_OTHER_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")
# The same in all versions of Llama 3: 3.1, 3.2 and 3.3.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def set_rotary_scaling(header: GgufHeader, config: PretrainedConfig) -> None:
    """Adds the file's scaling to the configuration. Raises UnsupportedModel."""
    scaling = _scaling(header, config)
    if scaling is None:
        return
    parameters: dict[str, Any] = config.rope_parameters
    # Either one set of parameters, or one per layer type; layers with a window are never scaled.
    scaled: dict[str, Any] = parameters.get("full_attention", parameters)
    if "rope_theta" not in scaled:
        raise _unknown(header, str(scaling["rope_type"]))
    scaled.update(scaling)


def _scaling(header: GgufHeader, config: PretrainedConfig) -> dict[str, Any] | None:
    if FACTORS in header.tensors:
        return _llama3(header, config)
    if any(name in header.tensors for name in _OTHER_FACTORS):
        raise _unknown(header, "longrope")

    def value(name: str) -> Any:
        return header.metadata.get(f"{header.architecture}.rope.scaling.{name}")

    kind = value("type") or "none"
    factor = value("factor")
    # gpt-oss's is the one that transformers reads.
    if kind == "none" or factor in (None, 1.0) or header.architecture == "gpt-oss":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and (original := value("original_context_length")):
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise _unknown(header, str(kind))


def _llama3(header: GgufHeader, config: PretrainedConfig) -> dict[str, Any]:
    stored = read_values(header, header.tensors[FACTORS]).astype(np.float64)
    scaling = {"rope_type": "llama3", "factor": float(stored.max()), **_LLAMA3}
    theta = config.rope_parameters.get("rope_theta", 0.0)
    if theta <= 0 or not np.allclose(stored, _llama3_factors(len(stored), theta, scaling), rtol=1e-3):
        raise _unknown(header, "a table of factors")
    return scaling


def _llama3_factors(num_pairs: int, theta: float, scaling: dict[str, Any]) -> npt.NDArray[np.float64]:
    """What each pair's frequency is divided by: 1 for short waves, `factor` for long ones, and between them less and
    less."""
    waves = 2 * math.pi * theta ** (np.arange(num_pairs) / num_pairs)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling["original_max_position_embeddings"]
    share = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    factors: npt.NDArray[np.float64] = 1 / ((1 - share) / scaling["factor"] + share)
    return factors


def _unknown(header: GgufHeader, kind: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{header.path} cannot be converted: its rotary embeddings are scaled in a way ({kind}) that transformers does "
        "not know; use the model's directory with safetensors weights"
    )
