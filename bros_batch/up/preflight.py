"""Checks before a service starts. Each raises StartupError with one sentence that says what is wrong and what to do."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path

from bros_batch.addresses import is_loopback
from bros_batch.first_line import first_line
from bros_batch.settings import DEMO_MODEL_DIR, Settings

MIN_FREE_BYTES = 64 * 1024**2
_OURS = {"run", "logs", "redis", "files", "bros.db"}


class StartupError(Exception):
    """A service cannot start; the message says why and what to do."""


def check_model(model: str, *, needs_weights: bool = True) -> None:
    """Check that a model directory is complete. A name on the Hugging Face Hub passes: only loading can verify it."""
    path = Path(model).expanduser()
    missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).exists()]
    if needs_weights and not any(path.glob("*.safetensors")):
        missing.append("*.safetensors")
    if not missing:
        return
    advice = "set --model to a model directory or a name on the Hugging Face Hub."
    if path == DEMO_MODEL_DIR:
        raise StartupError(f"The demo model is missing from this installation; {advice}")
    if path.is_dir():
        raise StartupError(f"The model directory {model} lacks {', '.join(missing)}; {advice}")
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise StartupError(f"There is no model at {model}; {advice}")


def check_data_dir(data_dir: Path) -> None:
    """Create the data directory, private to its owner, or check that the existing one can be used."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = data_dir.stat()
        if status.st_uid != os.getuid():
            raise StartupError(
                f"The data directory {data_dir} belongs to another user; set --data-dir to one of your own."
            )
        if status.st_mode & 0o077:
            names = {entry.name for entry in data_dir.iterdir()}
            if names and not names & _OURS:
                raise StartupError(
                    f"{data_dir} holds other files and other users can read it; set --data-dir to a new directory."
                )
            data_dir.chmod(0o700)
        for name in ("run", "logs", "redis"):
            (data_dir / name).mkdir(mode=0o700, exist_ok=True)
        probe = data_dir / "run" / "probe"
        probe.write_bytes(b"x")
        probe.unlink()
        free = shutil.disk_usage(data_dir).free
    except FileExistsError:
        raise StartupError(
            f"The data directory {data_dir} is a file; set --data-dir to a directory."
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StartupError(_disk_is_full(data_dir, 0)) from None
        raise StartupError(f"The data directory {data_dir} cannot be used: {error.strerror}.") from None
    if free < MIN_FREE_BYTES:
        raise StartupError(_disk_is_full(data_dir, free))


def _disk_is_full(data_dir: Path, free_bytes: int) -> str:
    free = f"has only {free_bytes // 1024**2} MB left" if free_bytes else "is full"
    return f"The disk that holds {data_dir} {free}; free some space, or use another --data-dir."


def check_exposure(settings: Settings) -> None:
    """Check that a server without an API key listens on a loopback address only, unless `insecure` is set, and that
    it does not let pages of every web site in."""
    if "*" in settings.allowed_origins and not settings.api_key:
        raise StartupError(
            "The allowed origin * lets every web site use this server; set BROS_API_KEY, or list the origins."
        )
    if settings.api_key or settings.insecure or is_loopback(settings.host):
        return
    raise StartupError(
        f"Listening on {settings.host} lets other machines in; set BROS_API_KEY, or use --insecure to allow it."
    )


def choose_port(host: str, port: int) -> int:
    """Return `port` if it is free, or any free port if it is 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartupError(
                    f"Port {port} on {host} is in use; stop the process that uses it, or use another --port."
                ) from None
            if error.errno == errno.EACCES:
                raise StartupError(
                    f"Port {port} requires root privileges; use a --port above 1023."
                ) from None
            raise StartupError(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
        chosen: int = probe.getsockname()[1]
        return chosen


def bring_database_up_to_date(url: str) -> None:
    """Create the database, or upgrade it if its schema is older than this version."""
    from sqlalchemy.exc import SQLAlchemyError

    from bros_batch.db.connections import open_database
    from bros_batch.db.schema import DatabaseTooNew, DatabaseTooOld, check_schema, upgrade

    try:
        engine = open_database(url)
        try:
            check_schema(engine)
        except DatabaseTooOld:
            upgrade(url)
        finally:
            engine.dispose()
    except DatabaseTooNew as error:
        raise StartupError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    except ModuleNotFoundError as error:
        raise StartupError(f"The database driver is not installed; run pip install {error.name}.") from None
    except (SQLAlchemyError, ValueError) as error:
        raise StartupError(f"The database cannot be used: {first_line(error).rstrip('.')}.") from None
