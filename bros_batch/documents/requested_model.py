"""The model that a file of batch lines asks for, from its first lines."""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import Any

import msgspec

from bros_batch.documents.form import BATCH, form_of
from bros_batch.model_names import ModelNames
from bros_batch.request_error import RequestError

HEAD_BYTES = 1024**2

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def check_requested_model(head: bytes, models: ModelNames, prompt_fields: Collection[str]) -> None:
    """Raise RequestError if the first good line in the first HEAD_BYTES of a file asks for a model that is not served.

    Files are usually written for one model, so each line would fail for the same reason. Ingest checks every line.
    """
    for number, line in enumerate(io.BytesIO(head.removeprefix(b"\xef\xbb\xbf")), start=1):
        try:
            value = _decode_object(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        model = value["body"].get("model") if form_of(value, prompt_fields) == BATCH else None
        if isinstance(model, str):
            try:
                models.resolve(model, in_file=True)
            except RequestError as error:
                raise RequestError(
                    f"Line {number} of the input file: {error.message}", "input_file_id", error.code
                ) from None
        return
