"""The columns of a table with answers: those of the documents, then those of the answers, then `_error`.

An answer that is an object has a column for each of its properties, a decision has two (NAME and NAME_probability), and
any other answer is in the column `answer`. What a model wrote in place of an answer, such as JSON that was cut, is in
`_raw_answer`, which is there if a row has it. The documents keep the names of their columns. A column of the answers
whose name is taken gets `answer_` in front of it, and a number after it if that is taken as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Self

from bros_batch.openai_api.endpoints import DECISIONS, SYSTEMONE

ANSWER = "answer"
RAW_ANSWER = "_raw_answer"
ERROR = "_error"
# Of a row that succeeded: nobody but its own request, in OpenAI's batch format, asked for JSON.
NOT_JSON = "The answer is not the JSON that was asked for."
PROBABILITY = "_probability"

Types = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class KnownColumns:
    """What is known of a job's columns before its rows are: the endpoint, and the columns with their types.

    `columns` are those of the table that the documents came from, and `answers` the properties of the answers.
    Documents and answers may have further ones. The types are those of `column_types`. `title` is what the owner of the
    job calls the table.
    """

    endpoint: str
    columns: Sequence[str] = ()
    types: Types = field(default_factory=dict)
    answers: Types = field(default_factory=dict)
    title: str = ""

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any]) -> Self:
        """What the batch object of a job says."""
        source = batch.get("source") or {}
        answers = batch.get("answer_columns") or {}
        title = table_title(batch.get("name"), source.get("name")) or batch["id"]
        return cls(batch["endpoint"], source.get("columns") or (), source.get("types") or {}, answers, title)


def table_title(name: str | None, source: str | None) -> str:
    """The title of a job's table: the job's name, or that of its input without the suffix."""
    return name if name and name != source else PurePath(source or "").stem


class AnswerColumns:
    """Collects the columns of a job's rows, as its API returns them, and then puts the rows into columns."""

    def __init__(self, known: KnownColumns) -> None:
        self._is_decision = known.endpoint in (DECISIONS, SYSTEMONE)
        self._known = known
        self._of_documents: dict[str, None] = dict.fromkeys(known.columns)
        self._properties: dict[str, None] = dict.fromkeys(known.answers)
        self._has_plain = self._has_raw = False

    def see(self, row: Mapping[str, Any]) -> None:
        """Take in the columns of a row."""
        document, answer = row["document"], row["answer"]
        if document is not None and not document.keys() <= self._of_documents.keys():
            self._of_documents.update(dict.fromkeys(document))
        if isinstance(answer, dict):
            if not answer.keys() <= self._properties.keys():
                self._properties.update(dict.fromkeys(answer))
        elif answer is not None:
            self._has_plain = True
        if "raw_answer" in row:
            self._has_raw = True

    @property
    def num_of_documents(self) -> int:
        """How many of the columns are the documents' own; they come first."""
        return len(self._of_documents)

    @property
    def names(self) -> list[str]:
        """The names of all columns in order. No two are equal."""
        names = dict(self._of_documents)
        for wanted in self._wanted():
            name, number = wanted, 2
            if name in names:
                wanted = name = f"{ANSWER}_{wanted}"
            while name in names:
                name, number = f"{wanted}_{number}", number + 1
            names[name] = None
        return list(names)

    @property
    def types(self) -> list[str | None]:
        """The types of all columns in order, None where it is not known."""
        types = [self._known.types.get(name) for name in self._of_documents]
        if self._is_decision:
            types += [None, "number"] * len(self._properties)
        else:
            types += [self._known.answers.get(name) for name in self._properties]
        return [*types, *[None] * self._has_answer, *["text"] * self._has_raw, "text"]

    def values(self, row: Mapping[str, Any]) -> list[Any]:
        """The values of a row in the order of `names`; None where it has none."""
        document: Mapping[str, Any] = row["document"] or {}
        answer = row["answer"]
        values = [document.get(name) for name in self._of_documents]
        properties: Mapping[str, Any] = answer if isinstance(answer, dict) else {}
        if self._is_decision:
            for name in self._properties:
                decision = properties.get(name) or {}
                values += (decision.get("value"), decision.get("probability"))
        else:
            values += [properties.get(name) for name in self._properties]
        if self._has_answer:
            values.append(None if isinstance(answer, dict) else answer)
        if self._has_raw:
            values.append(row.get("raw_answer"))
        error = row["error"]
        if error is not None:
            values.append(error["message"] or error["code"])
        else:
            values.append(NOT_JSON if "raw_answer" in row else None)
        return values

    @property
    def _has_answer(self) -> bool:
        return self._has_plain or not self._properties

    def _wanted(self) -> Sequence[str]:
        """The names that the columns after those of the documents would have if none of them was taken."""
        wanted: list[str] = []
        for name in self._properties:
            wanted += (name, name + PROBABILITY) if self._is_decision else (name,)
        if self._has_answer:
            wanted.append(ANSWER)
        return [*wanted, *[RAW_ANSWER] * self._has_raw, ERROR]
