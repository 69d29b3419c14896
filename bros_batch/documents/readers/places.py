"""Where a table may be: a local file, stdin, or a URL."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from bros_batch.documents.readers.documents_table import DocumentFile, listed_documents
from bros_batch.documents.readers.table import Table, UnreadableTable

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
}
TIMEOUT_S = 60.0


def protocol_of(source: str) -> str | None:
    """Return the protocol of a URL, or None for a path."""
    found = _URL.match(source)
    return found[1].lower() if found else None


def http_stream(url: str, resources: ExitStack) -> tuple[BinaryIO, int | None]:
    """Open a URL of the web. Returns its bytes, and their number if the server says it."""
    import httpx

    try:
        client = resources.enter_context(httpx.Client(follow_redirects=True, timeout=TIMEOUT_S))
        response = resources.enter_context(client.stream("GET", url))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnreadableTable(f"{url} cannot be read: {_words(error)}.") from None
    if response.is_error:
        raise UnreadableTable(
            f"{url} cannot be read: the server returned {response.status_code} {response.reason_phrase}."
        )
    size = response.headers.get("content-length", "")
    is_encoded = "content-encoding" in response.headers
    return cast("BinaryIO", _Pieces(response.iter_bytes())), int(
        size
    ) if size.isdecimal() and not is_encoded else None


class _Pieces(io.RawIOBase):
    """The bytes that come in pieces from a server."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        end = len(self._left) if size < 0 else size
        data, self._left = bytes(self._left[:end]), self._left[end:]
        return data


def store_of(url: str, protocol: str) -> tuple[Any, str]:
    """Return the file system of a URL of a store, and the path in it."""
    import fsspec

    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
    except ImportError:
        package = _PACKAGES.get(protocol, "the package of fsspec for it")
        raise UnreadableTable(
            f"To read {protocol}:// URLs, install {package}: pip install {package}."
        ) from None
    except Exception as error:  # of the package for the store, which may be any
        raise UnreadableTable(f"{url} cannot be read: {_words(error)}.") from None


def store_documents(url: str, store: Any, path: str) -> Table | None:
    """Open a directory or a glob pattern of a store; None if the URL is that of one object."""
    try:
        if "*" in path or "?" in path:
            paths = sorted(store.glob(path))
        elif store.isdir(path):
            paths = sorted(store.find(path))
        else:
            return None
    except Exception as error:
        raise UnreadableTable(f"{url} cannot be read: {_words(error)}.") from None
    return listed_documents(url, url, paths, lambda each: DocumentFile(each, lambda: store.open(each, "rb")))


def store_stream(url: str, store: Any, path: str, resources: ExitStack) -> tuple[BinaryIO, int | None]:
    """Open an object of a store. Returns its bytes, and their number if the store says it."""
    try:
        stream = resources.enter_context(store.open(path, "rb"))
        return cast("BinaryIO", stream), getattr(stream, "size", None)
    except FileNotFoundError:
        raise UnreadableTable(f"{url} does not exist.") from None
    except Exception as error:
        raise UnreadableTable(f"{url} cannot be read: {_words(error)}.") from None


def broken(url: str, error: Exception) -> str:
    """Return the sentence about a connection that broke."""
    return f"{url} cannot be read to its end: {_words(error)}."


def file_stream(path: str, resources: ExitStack) -> tuple[BinaryIO, int | None]:
    """Open a local file. Raises OSError."""
    file = resources.enter_context(Path(path).open("rb"))  # noqa: SIM115
    size = Path(path).stat().st_size if file.seekable() else None
    return cast("BinaryIO", file), size


def stdin_stream() -> tuple[BinaryIO, int | None]:
    """Return stdin."""
    return cast("BinaryIO", sys.stdin.buffer), None


def last_part(url: str) -> str:
    """Return the name of the file that a URL is about."""
    return unquote(urlsplit(url).path.rstrip("/").rsplit("/", 1)[-1]) or url


def _words(error: Exception) -> str:
    text = str(error).strip().splitlines()
    reason = text[0].rstrip(".") if text else type(error).__name__
    return reason[:200]
