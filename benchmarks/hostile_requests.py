"""Requests that cost a server memory or time: heads and bodies of all sizes, sent slowly, in part, or many at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

CHAT = "/v1/chat/completions"
MILLION_ZEROS = b",".join([b"0"] * 990_000)
ZEROS = b",".join([b"0"] * 490_000)


@dataclass(frozen=True)
class Hostile:
    """One request: what is sent, in how many pieces, and whether the client then waits for an answer."""

    data: bytes
    pieces: int = 1
    pause_s: float = 0.0
    waits: bool = True


def post(path: str, body: bytes, *, declared: int | None = None, kind: str = "application/json") -> bytes:
    size = len(body) if declared is None else declared
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
    ).encode() + body


def get(path: str, *headers: bytes) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\n".encode()
        + b"".join(h + b"\r\n" for h in headers)
        + b"\r\n"
    )


def chat(body: bytes) -> bytes:
    return post(CHAT, b'{"model":"bros-demo",' + body + b"}")


def keys(count: int) -> bytes:
    return b"{" + b",".join(b'"%d":0' % number for number in range(count)) + b"}"


def form(data: bytes, *, declared: int | None = None) -> bytes:
    body = b'--X\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + data
    return post("/v1/files", body, declared=declared, kind="multipart/form-data; boundary=X")


KINDS: dict[str, Callable[[], Hostile]] = {
    "150 MB of headers": lambda: Hostile(b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 4_000_000, pieces=4),
    "many headers": lambda: Hostile(b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 100_000),
    "half a head": lambda: Hostile(b"GET / HTTP/1.1\r\nX: " + b"a" * 30_000, waits=False),
    "a slow head": lambda: Hostile(
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 20, pieces=20, pause_s=0.05, waits=False
    ),
    "half a body": lambda: Hostile(post(CHAT, b'{"model":"', declared=1_900_000), waits=False),
    "a slow body": lambda: Hostile(chat(b'"messages":[]'), pieces=10, pause_s=0.05),
    "half an upload": lambda: Hostile(form(b"x" * 500_000, declared=10_000_000), waits=False),
    "an upload without an end": lambda: Hostile(form(b"x" * 2_000_000)),
    "an upload of many headers": lambda: Hostile(
        post("/v1/files", b"--X\r\n" + b"a: b\r\n" * 100_000, kind="multipart/form-data; boundary=X")
    ),
    "messages of 1.9 MiB": lambda: Hostile(chat(b'"messages":[' + MILLION_ZEROS + b"]")),
    "a prompt of 1.9 MiB": lambda: Hostile(
        post("/v1/completions", b'{"model":"bros-demo","prompt":[' + MILLION_ZEROS + b"]}")
    ),
    "messages within bounds": lambda: Hostile(chat(b'"messages":[' + ZEROS + b"]")),
    "a prompt within bounds": lambda: Hostile(
        post("/v1/completions", b'{"model":"bros-demo","prompt":[' + ZEROS + b"]}")
    ),
    "empty lists": lambda: Hostile(chat(b'"messages":[' + b",".join([b"[]"] * 600_000) + b"]")),
    "empty lists within bounds": lambda: Hostile(
        chat(b'"messages":[],"user":[' + b",".join([b"[]"] * 19_000) + b"]")
    ),
    "unknown keys": lambda: Hostile(chat(keys(19_000)[1:-1])),
    "a huge logit_bias": lambda: Hostile(chat(b'"messages":[],"logit_bias":' + keys(200_000))),
    "a logit_bias within bounds": lambda: Hostile(
        chat(b'"messages":[{"role":"user","content":"x"}],"logit_bias":' + keys(19_000))
    ),
    "deep JSON": lambda: Hostile(chat(b'"metadata":' + b"[" * 19_000)),
    "a long message": lambda: Hostile(
        chat(b'"max_tokens":1,"messages":[{"role":"user","content":"' + b"word " * 400_000 + b'"}]')
    ),
    "a body of 32 MiB": lambda: Hostile(chat(b'"messages":[],"user":"' + b"x" * 33_000_000 + b'"')),
    "a broken range": lambda: Hostile(get("/v1/files/file-0/content", b"Range: bytes=abc")),
    "many ranges": lambda: Hostile(
        get("/v1/files/file-0/content", b"Range: bytes=" + b"0-0," * 6000 + b"1-1")
    ),
    "many pipelined requests": lambda: Hostile(get("/v1/batches") * 5000),
    "a long path": lambda: Hostile(get("/v1/batches/" + "a" * 15_000)),
    "a long URL": lambda: Hostile(get("/" + "a" * 100_000)),
    "another host": lambda: Hostile(get("/").replace(b"localhost", b"evil.example")),
    "a wrong key": lambda: Hostile(
        get("/v1/models", b"Authorization: Bearer " + os.urandom(16).hex().encode())
    ),
    "not HTTP": lambda: Hostile(os.urandom(10_000)),
    "a login": lambda: Hostile(
        post("/login", b"key=" + b"x" * 8000, kind="application/x-www-form-urlencoded")
    ),
    "a stream that nobody reads": lambda: Hostile(get("/", b"Accept: text/event-stream"), waits=False),
}
