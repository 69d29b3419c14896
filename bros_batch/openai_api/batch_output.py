"""Lines of a batch's output file and error file, as OpenAI's API defines them."""

from __future__ import annotations

import json


def line_id(item_id: int) -> str:
    """The `id` of an item's output or error line; the same each time the line is written."""
    return f"batch_req_{item_id:024x}"


def request_id(item_id: int, epoch: int) -> str:
    """The `request_id` of an item under the epoch that gave it its result."""
    return f"req_{item_id:016x}{epoch:08x}"


def output_line(item_id: int, epoch: int, custom_id: str | None, body: str | None) -> str:
    """The output line of an item, with its newline. The response body is JSON text and is not parsed again."""
    return f'{{{_head(item_id, custom_id)},"response":{_response(item_id, epoch, body)},"error":null}}\n'


def error_line(
    item_id: int,
    custom_id: str | None,
    code: str | None,
    message: str | None,
    *,
    epoch: int = 0,
    body: str | None = None,
) -> str:
    """The error line of an item that ended without a result, with its newline.

    `body` is the response of an item that failed because of what the response is.
    """
    error = json.dumps({"code": code, "message": message}, ensure_ascii=False, separators=(",", ":"))
    response = "null" if body is None else _response(item_id, epoch, body)
    return f'{{{_head(item_id, custom_id)},"response":{response},"error":{error}}}\n'


def _head(item_id: int, custom_id: str | None) -> str:
    return f'"id":"{line_id(item_id)}","custom_id":{json.dumps(custom_id, ensure_ascii=False)}'


def _response(item_id: int, epoch: int, body: str | None) -> str:
    return f'{{"status_code":200,"request_id":"{request_id(item_id, epoch)}","body":{body}}}'
