"""Makes the conversions of a GGUF file: each once, by one process at a time, and never visible before it is complete.

A process that is killed leaves a directory under a temporary name, which the next conversion of the file removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.gguf_files.header import GgufHeader, read_header
from engine.gguf_files.place import SOURCE, TEXT, GgufFile
from engine.gguf_files.text_files import read_config, write_text_files
from engine.gguf_files.weights import num_weight_bytes, write_weights
from engine.runner.base import UnsupportedModel
from engine.runner.model.checkpoint import load_config, resolve_device, resolve_dtype

log = logging.getLogger("engine.gguf")

_TEMPORARY = "incomplete"
_SPARE_BYTES = 64 << 20  # what a conversion needs besides the weights: tokenizers have tens of megabytes
_REPORT_S = 10.0


def with_model_directory(config: EngineConfig, file: GgufFile) -> EngineConfig:
    """The configuration with a model directory in place of `file`, which is converted if that has not been done.

    Raises UnsupportedModel or OSError.
    """
    text = text_directory(file)
    if config.runner == "simulated" or config.load_format == "dummy":
        return replace(config, model=str(text))
    dtype = resolve_dtype(config.dtype, load_config(str(text)), resolve_device(config.device))
    return replace(config, model=str(weights_directory(file, dtype)))


def text_directory(file: GgufFile) -> Path:
    """The conversion without weights, which web and workers use, too."""

    def write(header: GgufHeader, directory: Path) -> None:
        write_text_files(header, directory, file.sampling)

    return _converted(file, TEXT, write)


def weights_directory(file: GgufFile, dtype: torch.dtype) -> Path:
    """The conversion with the weights in `dtype`."""
    name = str(dtype).removeprefix("torch.")
    text = text_directory(file)

    def write(header: GgufHeader, directory: Path) -> None:
        num_bytes = num_weight_bytes(header, dtype)
        _check_space(file, directory, num_bytes)
        log.info("converting %s to %s, %.1f GB", file.path, name, num_bytes / 1e9)
        started_s = time.monotonic()
        for path in text.iterdir():
            if path.name != SOURCE:
                shutil.copyfile(path, directory / path.name)
        config = load_config(str(text))
        config.dtype = dtype
        config.save_pretrained(directory)
        write_weights(header, config, dtype, directory, _progress())
        log.info("converted %s in %.0f s", file.path, time.monotonic() - started_s)

    return _converted(file, name, write)


def check_file(file: GgufFile, scratch: Path) -> None:
    """Raises UnsupportedModel if the file alone shows that it cannot be converted; OSError if it cannot be read."""
    read_config(read_header(file.path), scratch)


def _converted(file: GgufFile, name: str, write: Callable[[GgufHeader, Path], None]) -> Path:
    if (found := file.find(name)) is not None:
        return found
    header = read_header(file.path)
    place = file.make_place()
    with _locked(place):
        if (found := file.find(name)) is not None:  # another process has made it meanwhile
            return found
        _remove_leftovers(file, place)
        source = file.source()
        directory = place / f"{_TEMPORARY}-{name}"
        directory.mkdir()
        try:
            write(header, directory)
            if file.source() != source:
                raise UnsupportedModel(
                    f"{file.path} has changed while it was converted; start again when it is complete"
                )
            (directory / SOURCE).write_text(json.dumps(source) + "\n")
            _sync(directory)
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _disk_is_full(file, place) from error
            raise
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return directory.rename(place / name)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Holds the lock of a place. The kernel releases it however the process ends."""
    with (place / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that writes to %s", place)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_leftovers(file: GgufFile, place: Path) -> None:
    """Removes what killed processes left, and conversions of an earlier state of the file. The lock is held."""
    for path in place.iterdir():
        if path.is_dir() and file.find(path.name) != path:
            shutil.rmtree(path)


def _check_space(file: GgufFile, directory: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < num_bytes + _SPARE_BYTES:
        raise OSError(
            f"the disk of {directory.parent} has {free / 1e9:.1f} GB left, and {file.name} needs "
            f"{num_bytes / 1e9:.1f} GB there, unpacked; free some space, move the file to another disk, or use "
            "--dtype bfloat16"
        )


def _disk_is_full(file: GgufFile, place: Path) -> OSError:
    return OSError(f"the disk of {place} is full, so {file.name} cannot be converted; free some space")


def _sync(directory: Path) -> None:
    """Writes the files to the disk, so that none can be empty after a power failure once the directory has its name."""
    for path in (*directory.iterdir(), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _progress() -> Callable[[float], None]:
    """A function that logs the share that is done, but not too often."""
    last_s = time.monotonic()

    def report(share: float) -> None:
        nonlocal last_s
        if time.monotonic() - last_s > _REPORT_S:
            last_s = time.monotonic()
            log.info("converted %.0f%%", 100 * share)

    return report
