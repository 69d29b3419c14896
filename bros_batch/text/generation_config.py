"""Sampling parameters that a model recommends in its `generation_config.json`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from engine.wire.limits import SAMPLING_RANGES

log = logging.getLogger(__name__)

# By name in transformers: the engine's name, and whether it is a whole number.
_NAMES = {
    "temperature": ("temperature", False),
    "top_p": ("top_p", False),
    "top_k": ("top_k", True),
    "min_p": ("min_p", False),
    "repetition_penalty": ("repetition_penalty", False),
    "max_new_tokens": ("max_tokens", True),
}


def recommended_sampling(generation_config: Mapping[str, Any]) -> dict[str, float]:
    """Return the valid ones among the parameters that vLLM reads too, by the engine's names.

    A model that says `do_sample: false`, and names no temperature, is meant to be decoded greedily.
    """
    named: dict[str, float] = {}
    for name, (engine_name, is_whole) in _NAMES.items():
        value = generation_config.get(name)
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_valid = is_number and SAMPLING_RANGES[engine_name].has(value)
        if engine_name == "max_tokens" and value == 0:
            is_valid = False  # a request may ask for no output, but not by default
        if is_valid and not (is_whole and value != int(value)):
            named[engine_name] = value
        else:
            log.warning("generation_config.json: %s is %r, which is not valid and is ignored", name, value)
    if generation_config.get("do_sample") is False:
        named.setdefault("temperature", 0.0)
    return named
