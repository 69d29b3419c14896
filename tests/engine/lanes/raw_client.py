"""A client of the engine's socket that can send anything."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgspec

from engine.wire.framing import LENGTH_PREFIX, frame
from engine.wire.protocol import Finished, Hello, Tokens, Welcome, decode_engine_message
from tests.services import PATIENCE_S


class RawClient:
    """A connection whose frames the test makes itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, url: str, *, greets: bool = True) -> RawClient:
        client = cls(*await asyncio.open_unix_connection(url.removeprefix("unix://")))
        if greets:
            client.send(frame(Hello()))
            assert isinstance(await client.receive(), Welcome)
        return client

    def send(self, *frames: bytes) -> None:
        self._writer.writelines(frames)

    def send_map(self, **fields: Any) -> None:
        body = msgspec.msgpack.encode(fields)
        self.send(LENGTH_PREFIX.pack(len(body)) + body)

    async def receive(self) -> Any:
        """The next message, or None at the end of the connection."""
        async with asyncio.timeout(PATIENCE_S):
            if not (prefix := await self._reader.read(4)):
                return None
            return decode_engine_message(await self._reader.readexactly(struct.unpack(">I", prefix)[0]))

    async def output_of(self, request_id: str) -> list[int]:
        token_ids: list[int] = []
        while not isinstance(message := await self.receive(), Finished):
            if isinstance(message, Tokens) and message.id == request_id:
                token_ids += message.ids
        return token_ids

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()
