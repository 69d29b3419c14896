"""What must hold before a service starts. Each check raises `Refused` with one sentence that says what to do."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path

from bros_batch.addresses import is_loopback
from bros_batch.settings import DEMO_MODEL_DIR, Settings

MIN_FREE_BYTES = 64 * 1024**2
_OURS = {"run", "logs", "redis", "files", "bros.db"}


class Refused(Exception):
    """Starting makes no sense; the message says why and what to do."""


def check_model(model: str, *, needs_weights: bool = True) -> None:
    """A directory must hold a model; a name on the Hugging Face hub passes, which only loading can check."""
    path = Path(model).expanduser()
    missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).exists()]
    if needs_weights and not any(path.glob("*.safetensors")):
        missing.append("*.safetensors")
    if not missing:
        return
    give = "give --model a model directory or a Hugging Face name."
    if path == DEMO_MODEL_DIR:
        raise Refused(f"This installation has no demo model; {give}")
    if path.is_dir():
        raise Refused(f"The model directory {model} lacks {', '.join(missing)}; {give}")
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise Refused(f"There is no model at {model}; {give}")


def check_data_dir(data_dir: Path) -> None:
    """Make the directory, private to its owner, or see that it can be used."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = data_dir.stat()
        if status.st_uid != os.getuid():
            raise Refused(
                f"The data directory {data_dir} belongs to another user; give --data-dir one of your own."
            )
        if status.st_mode & 0o077:
            names = {entry.name for entry in data_dir.iterdir()}
            if names and not names & _OURS:
                raise Refused(
                    f"{data_dir} holds other files and is open to others; give --data-dir a new directory."
                )
            data_dir.chmod(0o700)
        for name in ("run", "logs", "redis"):
            (data_dir / name).mkdir(mode=0o700, exist_ok=True)
        probe = data_dir / "run" / "probe"
        probe.write_bytes(b"x")
        probe.unlink()
        free = shutil.disk_usage(data_dir).free
    except FileExistsError:
        raise Refused(f"The data directory {data_dir} is a file; give --data-dir a directory.") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refused(_disk_is_full(data_dir, 0)) from None
        raise Refused(f"The data directory {data_dir} cannot be used: {error.strerror}.") from None
    if free < MIN_FREE_BYTES:
        raise Refused(_disk_is_full(data_dir, free))


def _disk_is_full(data_dir: Path, free_bytes: int) -> str:
    free = f"has only {free_bytes // 1024**2} MB left" if free_bytes else "is full"
    return f"The disk that holds {data_dir} {free}; free some space, or give another --data-dir."


def check_exposure(settings: Settings) -> None:
    """Without a key, only this machine may be let in."""
    if settings.api_key or settings.insecure or is_loopback(settings.host):
        return
    raise Refused(
        f"Listening on {settings.host} lets others in: set BROS_API_KEY, or say --insecure if you mean it."
    )


def choose_port(host: str, port: int) -> int:
    """`port` if it is free; 0 picks one that is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Refused(
                    f"Port {port} on {host} is in use; stop what uses it, or give another --port."
                ) from None
            if error.errno == errno.EACCES:
                raise Refused(f"Port {port} needs privileges; give a --port above 1023.") from None
            raise Refused(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
        chosen: int = probe.getsockname()[1]
        return chosen


def bring_database_up_to_date(url: str) -> None:
    """Make the database, or upgrade it, unless its schema is right already."""
    from sqlalchemy.exc import SQLAlchemyError

    from bros_batch.db.connections import DatabaseTooNew, DatabaseTooOld, check_schema, make_engine, upgrade

    try:
        engine = make_engine(url)
        try:
            check_schema(engine)
        except DatabaseTooOld:
            upgrade(url)
        finally:
            engine.dispose()
    except DatabaseTooNew as error:
        raise Refused(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    except ModuleNotFoundError as error:
        raise Refused(f"The database's driver is missing: pip install {error.name}.") from None
    except (SQLAlchemyError, ValueError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise Refused(f"The database cannot be used: {reason}.") from None
