"""A file that cannot be served is refused by a sentence that names it, says what is wrong, and what to do."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from engine.gguf_files.convert import check_file, text_directory, weights_directory
from engine.gguf_files.header import read_header
from engine.gguf_files.place import gguf_file
from engine.runner.base import UnsupportedModel
from tests.factories_gguf import make_gguf


def refused(path: Path) -> str:
    """The reason for which the file is refused, by the check alone and by the conversion of what all services need."""
    file = gguf_file(str(path))
    assert file is not None
    with pytest.raises(UnsupportedModel) as checked:
        check_file(file, path.parent)
    with pytest.raises(UnsupportedModel) as converted:
        text_directory(file)
    assert str(checked.value) == str(converted.value)
    return _sentence(path, converted.value)


def refused_weights(path: Path) -> str:
    """The same for what only the weights show."""
    import torch

    file = gguf_file(str(path))
    assert file is not None
    with pytest.raises(UnsupportedModel) as caught:
        weights_directory(file, torch.float32)
    assert [each.name for each in (path.parent / f"{path.name}.bros").iterdir() if each.is_dir()] == ["text"]
    return _sentence(path, caught.value)


def _sentence(path: Path, error: Exception) -> str:
    message = str(error)
    assert message.startswith(str(path)) and "\n" not in message and not message.endswith(".")
    assert ";" in message, "it does not say what to do"
    return message.removeprefix(str(path)).strip()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_gguf(tmp_path_factory.mktemp("good") / "m.gguf").read_bytes()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for content in (b"", b"GGU", b"PK\x03\x04 a zip file", b"<html>404</html>"):
        path.write_bytes(content)
        assert refused(path).startswith("is not a GGUF file; set --model to")


@pytest.mark.parametrize("length", [4, 7, 12, 24, 100, 3_000, 9_000])
def test_a_header_that_ends_too_early_is_refused(good: bytes, length: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(good[:length])
    assert refused(path) == "is incomplete or damaged; download it again"


def test_a_file_that_lacks_its_last_bytes_is_refused(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(good)
    end = max(tensor.start + tensor.num_bytes for tensor in read_header(path).tensors.values())
    path.write_bytes(good[: end - 1])
    assert refused(path).startswith(
        f"is incomplete: it has {end - 1:,} bytes, and its tensors end at byte {end:,};"
    )


@pytest.mark.parametrize("position", range(8, 400, 8))
def test_wrong_numbers_in_the_header_are_refused_or_harmless(
    good: bytes, position: int, tmp_path: Path
) -> None:
    """Lengths and counts of 2**64 - 1: the reader must neither hang, nor take all memory, nor raise anything else."""
    path = tmp_path / "m.gguf"
    path.write_bytes(good[:position] + b"\xff" * 8 + good[position + 8 :])
    try:
        read_header(path)
    except UnsupportedModel as error:
        _sentence(path, error)


def test_another_version_or_byte_order_is_refused(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for version in (1, 4, 3 << 24):
        path.write_bytes(good[:4] + struct.pack("<I", version) + good[8:])
        assert f"has version {version} of the GGUF format" in refused(path)


def test_a_part_of_a_model_is_refused(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m-00001-of-00003.gguf", metadata={"split.count": 3})
    assert (
        refused(path) == "is one of 3 parts of a model; join them with llama.cpp's `llama-gguf-split --merge`"
    )


def test_a_file_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", without=("tokenizer.ggml.tokens",))
    assert refused(path).startswith("holds no tokenizer;")


def test_a_tokenizer_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", metadata={"tokenizer.ggml.model": "rwkv"})
    file = gguf_file(str(path))
    assert file is not None
    with pytest.raises(
        UnsupportedModel, match=r"cannot read its tokenizer \(rwkv\): .*; use the model's directory"
    ):
        text_directory(file)


@pytest.mark.parametrize("architecture", ["clip", "rwkv7", "llama5"])
def test_an_architecture_that_transformers_does_not_know_is_refused(
    architecture: str, tmp_path: Path
) -> None:
    path = make_gguf(tmp_path / "m.gguf", metadata={"general.architecture": architecture})
    reason = refused(path)
    assert reason.startswith("cannot be converted: ") and f"its architecture is {architecture};" in reason


def test_a_model_that_the_engine_cannot_run_is_refused_before_its_weights_are_unpacked(
    tmp_path: Path,
) -> None:
    path = make_gguf(
        tmp_path / "m.gguf",
        metadata={"general.architecture": "mamba", "mamba.block_count": 2, "mamba.embedding_length": 64},
    )
    assert refused(path).startswith("(mamba) cannot be served: it has layers with recurrent state")


CHANGES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a missing tensor": (
        lambda path: make_gguf(path, without=("blk.1.ffn_up.weight", "blk.2.ffn_up.weight")),
        "it lacks 2 of the model's tensors, such as model.layers.1.mlp.up_proj.weight;",
    ),
    "an unknown tensor": (
        lambda path: make_gguf(path, extra={"blk.0.attn_q.bias": np.zeros(64, np.float32)}),
        "has no place for its tensor blk.0.attn_q.bias in a model of the architecture llama;",
    ),
    "a tensor of another shape": (
        lambda path: make_gguf(path, metadata={"llama.feed_forward_length": 128}),
        "mlp.gate_proj.weight has the shape [96, 64], where its metadata make it [128, 64];",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_do_not_make_the_model_are_refused(change: str, tmp_path: Path) -> None:
    make, reason = CHANGES[change]
    assert reason in refused_weights(make(tmp_path / "m.gguf"))


def test_a_quantization_that_cannot_be_unpacked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    content = path.read_bytes()
    row = content.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 2 * 8
    path.write_bytes(content[:row] + struct.pack("<I", 999) + content[row + 4 :])
    assert refused(path).startswith(
        "holds tensors of a type (999) that the installed package gguf does not know;"
    )

    path.write_bytes(content)
    monkeypatch.delitem(gguf.quants._type_traits, gguf.GGMLQuantizationType.Q8_0)
    assert "holds tensors of type Q8_0, which the installed package gguf cannot unpack;" in refused_weights(
        path
    )


def test_the_converter_of_web_and_workers_prints_the_reason(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(good[:1000])
    for flags in ([], ["--check"]):
        run = subprocess.run(
            [sys.executable, "-m", "engine.gguf_files", *flags, str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode, run.stdout) == (2, "")
        assert run.stderr.splitlines()[-1] == f"{path} is incomplete or damaged; download it again"
