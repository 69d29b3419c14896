"""Frames on the engine's socket: valid messages with changes, and bytes that are none."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.wire.framing import LENGTH_PREFIX, frame
from engine.wire.item_messages import encode
from engine.wire.protocol import Cancel, Hello, StatsQuery, Submit, SubmitParts
from engine.wire.request_terms import Grammar, Part, Sampling, Slo
from tests.fuzz.examples import fuzz
from tests.fuzz.strategies import changed, values
from tests.fuzz.target import Target

SAMPLING = Sampling(
    max_tokens=4,
    min_tokens=1,
    temperature=0.5,
    top_p=0.9,
    top_k=5,
    min_p=0.1,
    seed=3,
    stop=("a", "b"),
    stop_token_ids=(5, 6),
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias=((7, 1.0),),
    logprobs=2,
)
MESSAGES = (
    Submit("a", [5, 6, 7], SAMPLING, "rt", Slo(0.5, 0.1), 1, 2e9),
    Submit("b", [5, 6, 7], SAMPLING, "be", None, 1, 2e9),
    Submit("c", [5, 6, 7], Sampling(max_tokens=3, grammar=Grammar("json_schema", '{"enum": [1, "a"]}'))),
    Submit("d", [5, 6, 7], Sampling(max_tokens=3, grammar=Grammar("lark", 'start: "a"+ /[0-9]/'))),
    Submit("e", [5, 6, 7], Sampling(max_tokens=0, score_token_ids=(5, 6))),
    Submit("f", [5, 6, 7], Sampling(max_tokens=0, pooling="last"), "be"),
    Submit("g", [5, 6, 7], Sampling(max_tokens=1, prompt_logprobs=2)),
    SubmitParts(
        "h",
        [5, 6],
        [
            Part([7], Sampling(max_tokens=0, score_token_ids=(5,))),
            Part([], Sampling(max_tokens=0, pooling="last")),
        ],
    ),
    Cancel("a"),
    StatsQuery(True),
    Hello(),
)


def plain(message: msgspec.Struct) -> Any:
    """The message as the dicts and lists that msgpack carries."""
    return msgspec.msgpack.decode(encode(message))


def packed(value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, ValueError, TypeError):  # msgpack has no such value
        return b"\xc0"


prefixed = st.one_of(
    st.sampled_from(MESSAGES).flatmap(lambda message: changed(plain(message))).map(packed),
    values.map(packed),
    st.binary(max_size=60),
).map(lambda body: LENGTH_PREFIX.pack(len(body)) + body)
pieces = st.one_of(prefixed, st.sampled_from(MESSAGES).map(frame), st.binary(max_size=20))


@fuzz
@given(greets=st.booleans(), sent=st.lists(pieces, max_size=8))
def test_frames(watched: Target, greets: bool, sent: list[bytes]) -> None:
    watched.sent["frames"] += len(sent)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(watched.engine_url.removeprefix("unix://"))
        with contextlib.suppress(OSError):  # the engine may close the connection
            connection.sendall(frame(Hello()) * greets + b"".join(sent))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass


def test_the_innocent_are_answered_meanwhile(watched: Target) -> None:
    """Frames from many connections at the same time as chats over the web process's connection."""

    @fuzz
    @given(sent=st.lists(pieces, min_size=1, max_size=8))
    def run(sent: list[bytes]) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(watched.engine_url.removeprefix("unix://"))
            with contextlib.suppress(OSError):
                connection.sendall(frame(Hello()) + b"".join(sent))
            watched.check_innocent_chat()
            watched.sent["frames"] += len(sent)

    run()
