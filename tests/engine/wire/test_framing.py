"""Frames and addresses: byte streams of any fragmentation, size limits, and invalid addresses."""

from __future__ import annotations

import pytest

from engine.wire.framing import Address, FrameError, FrameReader, frame
from engine.wire.protocol import Cancel, Hello, decode_client_message


@pytest.mark.parametrize("piece_bytes", [1, 3, 7, 1000])
def test_frames_are_found_in_any_fragmentation(piece_bytes):
    messages = [Hello(), *(Cancel(id="x" * n) for n in range(20))]
    stream = b"".join(frame(message) for message in messages)
    reader = FrameReader()
    bodies = []
    for i in range(0, len(stream), piece_bytes):
        reader.add(stream[i : i + piece_bytes])
        while (body := reader.take()) is not None:
            bodies.append(body)
    assert [decode_client_message(body) for body in bodies] == messages


def test_a_frame_above_the_limit_is_an_error():
    body = frame(Cancel(id="x" * 100))
    reader = FrameReader(max_frame_bytes=len(body) - 4)
    reader.add(body)
    assert reader.take() == body[4:]
    reader.max_frame_bytes = 100
    reader.add(body)
    with pytest.raises(FrameError, match="exceeds the limit of 100"):
        reader.take()


def test_addresses():
    assert Address.parse("unix:///run/engine.sock") == Address(path="/run/engine.sock")
    assert Address.parse("tcp://engine-0:7000") == Address(host="engine-0", port=7000)
    assert Address.parse("tcp://[::1]:7000") == Address(host="::1", port=7000)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/run/engine.sock",
        "unix://host/path",
        "tcp://host",
        "tcp://host:1/path",
        "http://host:80",
        "unix://[",
        "tcp://[::1:7000",
        "tcp://host:port",
        "tcp://host:99999",
        "unix:///a\0b",
    ],
)
def test_an_invalid_address_is_an_error(url):
    with pytest.raises(ValueError, match=r"write unix:///path/to\.sock or tcp://host:port"):
        Address.parse(url)
