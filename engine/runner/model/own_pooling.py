"""How a model makes embeddings, as its sentence-transformers configuration says: `modules.json` and what it names."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.utils.hub import cached_file

from engine.core.terms import Pooling

# Names of the two kinds that causal models use, in the older form of the configuration (one flag per kind) and in the
# newer one.
_FLAGS: dict[str, Pooling] = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}
_MODES: dict[str, Pooling] = {"lasttoken": "last", "mean": "mean"}


def own_pooling(model: str) -> Pooling | None:
    """The pooling that the files of a model, a directory or a hub name, ask for. None if they ask for none, for several
    together, or for one that causal models do not have."""
    modules = _read(model, "modules.json")
    if not isinstance(modules, list):
        return None
    for module in modules:
        if isinstance(module, dict) and str(module.get("type", "")).endswith(".Pooling"):
            config = _read(model, str(PurePosixPath(str(module.get("path", ""))) / "config.json"))
            return _pooling_of(config) if isinstance(config, dict) else None
    return None


def _pooling_of(config: dict[str, Any]) -> Pooling | None:
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        return _MODES.get(mode)
    chosen = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    return _FLAGS.get(chosen[0]) if len(chosen) == 1 else None


def _read(model: str, name: str) -> Any:
    """The contents of a JSON file of the model; None if there is none that can be read."""
    try:
        path = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
