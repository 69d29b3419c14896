"""What users see of a row: its document, and the answer in the response.

Both are JSON. They are cut out of the stored texts and copied, not parsed and written again, wherever that is possible.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bros_batch.documents.form import DOCUMENT
from bros_batch.documents.requested_json import asks_for_json
from bros_batch.openai_api.endpoints import DECISIONS, EMBEDDINGS, RESPONSES, SYSTEMONE

DECISION_ENDPOINTS = (DECISIONS, SYSTEMONE)
NULL = b"null"


class _ToolCall(msgspec.Struct):
    function: Any = None


class _Message(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw(NULL)
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: msgspec.Raw = msgspec.Raw(NULL)


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class _OutputPart(msgspec.Struct):
    text: str = ""


class _OutputItem(msgspec.Struct):
    type: str = "message"
    content: list[_OutputPart] | None = None
    name: str | None = None
    arguments: str | None = None


class _Response(msgspec.Struct):
    output: list[_OutputItem]


class _Embedding(msgspec.Struct):
    embedding: msgspec.Raw


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


class _Decisions(msgspec.Struct):
    answers: Any


class _Request(msgspec.Struct):
    """The fields of a batch line's body that say what it is about, and what its answer looks like."""

    messages: list[Any] | None = None
    prompt: Any = None
    input: Any = None
    state: Any = None
    response_format: Any = None
    text: Any = None
    guided_json: Any = None
    structured_outputs: Any = None


_decode_completion = msgspec.json.Decoder(_Completion).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_decode_embeddings = msgspec.json.Decoder(_Embeddings).decode
_decode_decisions = msgspec.json.Decoder(_Decisions).decode
_decode_request = msgspec.json.Decoder(_Request).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_values = msgspec.json.Decoder().decode


def _checked_json(text: str) -> msgspec.Raw:
    """JSON as it was written, but on one line, since rows are sent as lines. Models write line breaks in it. A number
    beyond the range of floats, such as 1e400, is no JSON that whoever reads the row could use."""
    checked = _decode_raw(text)
    _decode_values(checked)
    return (
        msgspec.Raw(msgspec.json.format(bytes(checked), indent=-1))
        if "\n" in text or "\r" in text
        else checked
    )


class _NotJson(msgspec.Struct):
    """A text that was to be JSON, in JSON."""

    text: msgspec.Raw


class RowContents:
    """Reads the documents and answers of one job's rows."""

    def __init__(
        self, endpoint: str, form: str | None, defaults: Mapping[str, Any], id_field: str | None = None
    ) -> None:
        self._endpoint = endpoint
        self._id_field = id_field
        self._has_documents = form == DOCUMENT
        self._job_has_json = asks_for_json(defaults)

    def document(self, body: str | None, custom_id: str | None, line_no: int) -> msgspec.Raw | None:
        """The row's columns and values as JSON. Those of a batch line are its id, and what it asks the model about.

        Of a row that could not be read, the id may be known: one that is not the number of the row.
        """
        if body is None:
            if self._id_field is None or custom_id in (None, str(line_no)):
                return None
            return msgspec.Raw(msgspec.json.encode({self._id_field: custom_id}))
        if self._has_documents:
            return msgspec.Raw(body)
        asked = _text_of_request(_read(_decode_request, body))
        return msgspec.Raw(msgspec.json.encode({"custom_id": custom_id, "text": asked}))

    def answer(self, body: str | None, result: str | None, is_error: bool = False) -> tuple[Any, Any]:
        """The answer in a response, and what the model wrote in its place if it is none. One of them is None.

        An answer is text, the JSON that was asked for, decisions by name, or an embedding. Several choices make a list.
        A text that was to be JSON but was cut is no answer, nor is what a row with an error holds.
        """
        found = self._found(body, result)
        is_answer = not is_error and not _holds_text(found)
        return (found, None) if is_answer else (None, _with_texts(found))

    def _found(self, body: str | None, result: str | None) -> Any:
        if result is None:
            return None
        if self._endpoint in DECISION_ENDPOINTS:
            decisions = _read(_decode_decisions, result)
            return None if decisions is None else _decisions(decisions.answers)
        if self._endpoint == EMBEDDINGS:
            embeddings = _read(_decode_embeddings, result)
            return None if embeddings is None else _one_or_all([each.embedding for each in embeddings.data])
        is_json = self._job_has_json if self._has_documents else _line_has_json(body)
        if self._endpoint == RESPONSES:
            response = _read(_decode_response, result)
            return None if response is None else _answer_of_response(response, is_json)
        completion = _read(_decode_completion, result)
        if completion is None:
            return None
        return _one_or_all([_answer_of_choice(choice, is_json) for choice in completion.choices])


def _line_has_json(body: str | None) -> bool:
    # Most lines ask for no JSON, and each of these words is in one that does.
    if body is None or not ("json" in body or "response_format" in body):
        return False
    request = _read(_decode_request, body)
    return request is not None and asks_for_json(msgspec.structs.asdict(request))


def _read(decode: Any, text: str) -> Any:
    """What a decoder makes of a stored text, or None for one that it does not expect."""
    try:
        return decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _text_of_request(request: _Request | None) -> str:
    """What a batch line asks about: the last message of the user, the prompt, or the input."""
    if request is None:
        return ""
    content = request.messages if request.messages is not None else request.input
    if content is None:
        content = request.prompt if request.prompt is not None else request.state
    if isinstance(content, list):
        asked = [each for each in content if isinstance(each, dict) and each.get("role") == "user"]
        if asked:
            content = asked[-1].get("content")
    return _plain_text(content)


def _plain_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    if parts and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        return "\n".join(part["text"] for part in parts)
    return "" if content is None else msgspec.json.encode(content).decode()


def _answer_of_choice(choice: _Choice, is_json: bool) -> Any:
    if choice.message is None:
        return _json_or_text(choice.text, is_json)
    content = choice.message.content
    if choice.message.tool_calls and bytes(content) in (NULL, b'""'):
        return [_call(call.function) for call in choice.message.tool_calls]
    return _json_or_text(content, is_json)


def _answer_of_response(response: _Response, is_json: bool) -> Any:
    messages = [item for item in response.output if item.type == "message"]
    text = "".join(part.text for item in messages for part in item.content or ())
    calls = [item for item in response.output if item.type == "function_call"]
    if calls and not text:
        return [_call({"name": item.name, "arguments": item.arguments}) for item in calls]
    if not messages:
        return None
    return _json_or_text(msgspec.Raw(msgspec.json.encode(text)), is_json)


def _json_or_text(raw: msgspec.Raw, is_json: bool) -> Any:
    """A string in JSON as it is; with `is_json` the JSON that it contains, or else a _NotJson."""
    if bytes(raw) == NULL:
        return None
    if not is_json:
        return raw
    try:
        return _checked_json(_decode_text(raw))
    except (msgspec.MsgspecError, RecursionError):
        return _NotJson(raw)


def _holds_text(answer: Any) -> bool:
    return type(answer) is _NotJson or (
        type(answer) is list and any(type(each) is _NotJson for each in answer)
    )


def _with_texts(answer: Any) -> Any:
    """The same with the texts of what is not JSON."""
    if type(answer) is list:
        return [_with_texts(each) for each in answer]
    return answer.text if type(answer) is _NotJson else answer


def _call(function: Any) -> Any:
    function = function or {}
    name, arguments = function.get("name"), function.get("arguments")
    with contextlib.suppress(msgspec.MsgspecError, TypeError, RecursionError):
        arguments = _checked_json(arguments)
    return {"name": name, "arguments": arguments}


def _one_or_all(answers: Sequence[Any]) -> Any:
    return answers[0] if len(answers) == 1 else answers


def _decisions(answers: Any) -> dict[str, Any]:
    """Each decision by the name of its question, as the value and its probability."""
    if isinstance(answers, dict):
        return {name: _decision(answer) for name, answer in answers.items()}
    named: dict[str, Any] = {}
    for number, answer in enumerate(answers, start=1):
        named[answer.get("name") or f"question_{number}"] = _decision(answer)
    return named


def _decision(answer: Mapping[str, Any]) -> dict[str, Any]:
    kind = answer["type"]
    if kind in ("predicate", "noul"):
        true = answer["probability" if kind == "predicate" else "noul"]
        return {"value": true >= 0.5, "probability": max(true, 1 - true)}
    found = answer["probabilities"]
    if isinstance(found, dict):
        probabilities = {str(value): probability for value, probability in found.items()}
    else:
        probabilities = {str(each["value"]): each["probability"] for each in found}
    if kind == "choice":
        return {"value": answer["choice"], "probability": probabilities[str(answer["choice"])]}
    return {"value": answer["score"] + _lowest(found), "probability": max(probabilities.values())}


def _lowest(levels: Any) -> int:
    """The first of levels whose labels are whole numbers that follow each other, or 0 for other labels."""
    try:
        labels = [int(level["label"]) for level in levels]
    except (TypeError, KeyError, ValueError):
        return 0
    return labels[0] if labels == list(range(labels[0], labels[0] + len(labels))) else 0
