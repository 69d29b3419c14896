"""How the files of a model say that embeddings are made: its sentence-transformers configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# In the older form of the configuration (one flag per kind) and in the newer one.
_FLAGS: dict[str, Literal["last", "mean"]] = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
}
_MODES: dict[str, Literal["last", "mean"]] = {"lasttoken": "last", "mean": "mean"}


@dataclass(frozen=True, slots=True)
class EmbeddingForm:
    """Which hidden states become the embedding, and whether its length is made 1."""

    pooling: Literal["last", "mean"]
    is_normalized: bool


# What a model without a configuration gets, if its server is told to make embeddings.
DEFAULT_FORM = EmbeddingForm("last", is_normalized=True)


def own_embedding_form(directory: Path) -> EmbeddingForm | None:
    """Return what a model's files ask for; None if they ask for nothing, or for a pooling that engines do not have."""
    modules = _read(directory / "modules.json")
    if not isinstance(modules, list):
        return None
    modules = [module for module in modules if isinstance(module, dict)]
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if "Pooling" not in kinds:
        return None
    config = _read(directory / str(modules[kinds.index("Pooling")].get("path", "")) / "config.json")
    pooling = _pooling_of(config) if isinstance(config, dict) else None
    return None if pooling is None else EmbeddingForm(pooling, "Normalize" in kinds)


def _pooling_of(config: dict[str, Any]) -> Literal["last", "mean"] | None:
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        return _MODES.get(mode)
    chosen = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    return _FLAGS.get(chosen[0]) if len(chosen) == 1 else None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
