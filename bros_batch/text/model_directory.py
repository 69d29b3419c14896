"""The directory that holds a model's tokenizer and configuration, whatever the model is given as."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engine.gguf_files.place import TEXT, GgufFile, gguf_file

TOKENIZER_FILES = ("*.json", "*.jinja", "*.model")


class UnusableModelFile(ValueError):
    """A GGUF file cannot be used; the message says why and what to do."""


def model_directory(model: str) -> Path:
    """Return the directory of `model`: a directory, a GGUF file, or a name on the Hugging Face Hub.

    Raises ValueError or OSError.
    """
    file = gguf_file(model)
    if file is not None:
        return file.find(TEXT) or Path(_convert(file))
    directory = Path(model).expanduser()
    if directory.is_dir():
        return directory
    if directory.is_absolute():
        raise FileNotFoundError(f"The model directory {directory} does not exist.")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=list(TOKENIZER_FILES)))


def check_gguf_file(file: GgufFile) -> None:
    """Check that a GGUF file can be converted, without writing anything. Raises UnusableModelFile or OSError."""
    if file.find(TEXT) is None:
        _convert(file, "--check")


def _convert(file: GgufFile, *options: str) -> str:
    """Run the engine's converter in a process of its own, because it needs torch; return what it prints."""
    if not file.path.is_file():
        raise UnusableModelFile(
            f"there is no file {file.path}; set --model to a GGUF file or a model directory"
        )
    command = [sys.executable, "-P", "-m", "engine.gguf_files", *options, "--", file.name]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        lines = run.stderr.strip().splitlines()
        raise UnusableModelFile(
            lines[-1] if lines else f"the converter of {file.path} has ended unexpectedly"
        )
    return run.stdout.strip()
