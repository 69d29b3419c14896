"""How embeddings are made, as a model's sentence-transformers configuration says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bros_batch.text.embedding_form import own_embedding_form

TYPES = "sentence_transformers.models."
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": f"{TYPES}Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{TYPES}Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{TYPES}Normalize"},
]


def own_pooling(directory: Path) -> str | None:
    form = own_embedding_form(directory)
    return None if form is None else form.pooling


def made(directory: Path, config: Any, modules: Any = MODULES) -> Path:
    (directory / "1_Pooling").mkdir()
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False, "include_prompt": True}, "last"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, None),
        ({"pooling_mode_cls_token": True}, None),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, None),
        ([], None),
    ],
)
def test_pooling_of_a_configuration(config: Any, pooling: str | None, tmp_path: Path) -> None:
    assert own_pooling(made(tmp_path, config)) == pooling


def test_a_model_without_a_configuration(tmp_path: Path) -> None:
    assert own_pooling(tmp_path) is None
    (tmp_path / "modules.json").write_text("{not json")
    assert own_pooling(tmp_path) is None
    (tmp_path / "modules.json").write_text(json.dumps(MODULES[:1]))
    assert own_pooling(tmp_path) is None
    assert own_pooling(tmp_path / "missing.gguf") is None


@pytest.mark.parametrize("is_normalized", [True, False])
def test_a_configuration_says_whether_vectors_have_the_length_1(is_normalized: bool, tmp_path: Path) -> None:
    form = own_embedding_form(
        made(tmp_path, {"pooling_mode": "mean"}, MODULES if is_normalized else MODULES[:2])
    )
    assert form is not None
    assert form.is_normalized is is_normalized
