"""From the rows of a job to the answers of a table: in its order, and as columns or objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from bros_batch.documents.answer_columns import AnswerColumns, KnownColumns
from bros_batch.documents.column_types import answer_types
from bros_batch.python.sources import Source

if TYPE_CHECKING:
    from pydantic import BaseModel

NOT_COMPUTED = "The row was not computed."


class InvalidAnswer(ValueError):
    """An answer does not fit the schema or model that was asked for."""


class RowsFailed(UserWarning):
    """Some rows of a table have no answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked about each row: the endpoint, the names of what an answer has, and the class of its objects."""

    endpoint: str
    names: Sequence[str] = ()
    model: type[BaseModel] | None = None

    @classmethod
    def of_job(cls, body: Mapping[str, Any], model: type[BaseModel] | None) -> Asked:
        """What the body of a job's creation asks about each row."""
        defaults = body["defaults"]
        names = [question["name"] for question in defaults.get("questions", ()) if "name" in question]
        return cls(body["endpoint"], [*names, *(answer_types(defaults) or ())], model)


@dataclass(frozen=True, slots=True)
class Answers:
    """The answer of each row of a table, or None, and the error of each row, or None.

    `raw` has what the model wrote in place of an answer, by the place of the row.
    """

    values: list[Any]
    errors: list[str | None]
    raw: dict[int, Any] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, lines: Iterable[bytes], num_rows: int, model: type[BaseModel] | None) -> Answers:
        """Read the rows of a job. Those that the job does not have were not computed."""
        values: list[Any] = [None] * num_rows
        errors: list[str | None] = [NOT_COMPUTED] * num_rows
        raw: dict[int, Any] = {}
        for line in lines:
            row = msgspec.json.decode(line)
            place = row["row"] - 1
            error = row["error"]
            errors[place] = None if error is None else error["message"] or error["code"]
            if "raw_answer" in row:
                raw[place] = row["raw_answer"]
            if error is None and model is not None:
                try:
                    values[place] = validated(row["answer"], model)
                except InvalidAnswer as problem:
                    errors[place] = str(problem)
                    raw[place] = row["answer"]
            else:
                values[place] = row["answer"]
        return cls(values, errors, raw)

    def failures(self) -> list[tuple[int, str]]:
        """The number and the error of each row without an answer."""
        return [(number, error) for number, error in enumerate(self.errors, start=1) if error is not None]


def validated(answer: Any, model: type[BaseModel]) -> BaseModel:
    """Return an answer as an object of a pydantic model. Raises InvalidAnswer."""
    from pydantic import ValidationError

    try:
        return model.model_validate_json(msgspec.json.encode(answer))
    except ValidationError as error:
        details = error.errors()[0]
        place = ".".join(map(str, details["loc"]))
        shown = f"{place}: {details['msg']}" if place else details["msg"]
        raise InvalidAnswer(f"The answer is not a valid {model.__name__}: {shown}") from None


def with_answers(source: Source, asked: Asked, answers: Answers) -> Any:
    """Return the table with the columns of the answers, and with `_error` if a row has no answer."""
    if source.is_texts:
        return answers.values
    has_objects = asked.model is not None and source.is_plain
    table = _table(replace(asked, names=()) if has_objects else asked, source.column_names())
    rows = [_row(*pair) for pair in zip(answers.values, answers.errors, strict=True)]
    for place, raw in answers.raw.items():
        rows[place]["raw_answer"] = raw
    for row in rows:
        table.see(row)
    first = table.num_of_documents
    names = table.names[first:]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for row in rows:
        for name, value in zip(names, table.values(row)[first:], strict=True):
            columns[name].append(value)
    if not answers.failures():
        del columns[names[-1]]
    return source.joined(columns)


def row_dicts(lines: Iterable[bytes], asked: Asked, columns: Iterable[str] | None) -> list[dict[str, Any]]:
    """Return the rows of a job as dicts: the document's columns, the answer's, and `_error` if a row has no answer."""
    table = _table(asked, columns)
    rows = [msgspec.json.decode(line) for line in lines]
    for row in rows:
        table.see(row)
    names = table.names
    if all(row["error"] is None for row in rows):
        names = names[:-1]
    return [dict(zip(names, table.values(row), strict=False)) for row in rows]


def _table(asked: Asked, columns: Iterable[str] | None) -> AnswerColumns:
    """The columns that the answers have in any case: also if no row has one."""
    return AnswerColumns(
        KnownColumns(asked.endpoint, list(columns or ()), answers=dict.fromkeys(asked.names))
    )


def _row(answer: Any, error: str | None = None) -> dict[str, Any]:
    return {"document": None, "answer": answer, "error": None if error is None else {"message": error}}
