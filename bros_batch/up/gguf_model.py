"""A GGUF file as the model to serve: found, checked, and prepared for the services before they start."""

from __future__ import annotations

from bros_batch.text.model_directory import check_gguf_file, model_directory
from bros_batch.up.announcements import Say
from bros_batch.up.preflight import StartupError
from engine.gguf_files.place import TEXT, GgufFile, gguf_file


def find_gguf_model(model: str) -> GgufFile | None:
    """Return the GGUF file that `model` stands for, if any. Raises StartupError."""
    try:
        return gguf_file(model)
    except ValueError as error:
        raise StartupError(f"{error}.") from None


def is_prepared(file: GgufFile) -> bool:
    """Return whether the file's tokenizer has been converted, as at the first start."""
    return file.find(TEXT) is not None


def check_gguf_model(file: GgufFile) -> None:
    """Check that the file can be served, without writing anything. Raises StartupError."""
    try:
        check_gguf_file(file)
    except (ValueError, OSError) as error:
        raise StartupError(f"{error}.") from None


def prepare_gguf_model(file: GgufFile, say: Say) -> None:
    """Convert the file's tokenizer, which all services need. The engine unpacks the weights. Raises StartupError."""
    if not is_prepared(file):
        say("up", f"reading the tokenizer of {file.path}, which is done once")
    try:
        model_directory(file.name)
    except (ValueError, OSError) as error:
        raise StartupError(f"{error}.") from None
