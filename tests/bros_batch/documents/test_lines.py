"""Lines of an input file, read without a database."""

from __future__ import annotations

import json

from bros_batch.documents.error_messages import MAX_MESSAGE_CHARS, storable
from bros_batch.documents.form import BATCH, DOCUMENT
from bros_batch.documents.lines import LineReader
from bros_batch.model_names import ModelNames
from tests.bros_batch.world import CHAT, batch_line


def line(**changes: object) -> bytes:
    return json.dumps({**batch_line("a"), **changes}).encode()


def test_the_first_good_line_decides_the_form() -> None:
    reader = LineReader(CHAT, ModelNames("sim"), None)
    assert reader.read(line(method="GET"), 1).error_param == "method"
    assert reader.read(b"nonsense", 2).error_code == "invalid_request"
    assert reader.form == BATCH
    document = reader.read(b'{"text": "a"}', 3)
    assert (document.body, document.error_param) == (None, "custom_id")


def test_a_body_is_not_changed() -> None:
    raw = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":%s}'
    body = b'{"messages":[{"role":"user",  "content":"\\u00e4"}], "model":"sim"}'
    assert LineReader(CHAT, ModelNames("sim"), BATCH).read(raw % body, 1).body == body.decode()
    document = b'{"id": 7,  "text": "\\u00e4"}'
    item = LineReader(CHAT, ModelNames("sim"), DOCUMENT).read(document, 1)
    assert (item.custom_id, item.body) == ("7", document.decode())


def test_messages_can_be_stored_by_every_database() -> None:
    assert storable("a\0b\ud800") == "a\\0b?"
    assert len(storable("x" * 10_000)) == MAX_MESSAGE_CHARS
