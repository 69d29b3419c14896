"""Identity of what an engine computes with: the files of its model, and the data types it uses.

Two engines with the same identity give the same answers to the same requests, so an answer of one can be reused for the
other. The files are told apart by their names, sizes and times of change: to read gigabytes takes too long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from engine.config import EngineConfig

DIGEST_BYTES = 8


def weights_id(config: EngineConfig, dtype: str) -> str:
    """Return the identity of the model of `config`, a directory or a name on the Hugging Face Hub, in `dtype`."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for setting in (config.runner, dtype, config.quantization, config.kv_cache_dtype, config.load_format):
        digest.update(f"{setting}\n".encode())
    directory = _directory(config)
    if directory is None:
        digest.update(config.model.encode())
    else:
        for line in _files(directory):
            digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _directory(config: EngineConfig) -> Path | None:
    path = Path(config.model).expanduser()
    if path.is_dir():
        return path
    if config.runner == "simulated":  # it needs no model
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(config.model, local_files_only=True))
    except (OSError, ValueError):
        return None


def _files(directory: Path) -> Iterator[str]:
    for path in sorted(directory.iterdir()):
        if path.is_file():
            status = path.stat()
            yield f"{path.name} {status.st_size} {status.st_mtime_ns}"
