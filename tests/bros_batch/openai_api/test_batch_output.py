"""Output and error lines of a batch."""

from __future__ import annotations

import json

from bros_batch.openai_api.batch_output import error_line, line_id, output_line, request_id


def test_an_output_line_holds_the_body_as_it_is() -> None:
    body = '{"choices":  [1.50], "text": "\\u00e4"}'
    line = output_line(7, 2, 'a "quoted" \u00e4', body)
    assert body in line and line.endswith("}\n") and line.count("\n") == 1
    assert json.loads(line) == {
        "id": line_id(7),
        "custom_id": 'a "quoted" \u00e4',
        "response": {"status_code": 200, "request_id": request_id(7, 2), "body": json.loads(body)},
        "error": None,
    }


def test_an_error_line_holds_the_error() -> None:
    line = error_line(7, None, "invalid_request", "Line 3: two\nlines")
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "id": line_id(7),
        "custom_id": None,
        "response": None,
        "error": {"code": "invalid_request", "message": "Line 3: two\nlines"},
    }


def test_ids_name_an_item_and_its_epoch() -> None:
    ids = {request_id(item, epoch) for item in (1, 2**62) for epoch in (1, 2)}
    assert len(ids) == 4
    assert line_id(1) != line_id(2)
