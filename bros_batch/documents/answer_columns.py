"""The columns of a table with answers: those of the documents, then those of the answers, then `_error`.

An answer that is an object has a column for each of its properties, a decision has two (NAME and NAME_probability), and
any other answer is in the column `answer`. The documents keep the names of their columns. A column of the answers whose
name is taken gets `answer_` in front of it, and a number after it if that is taken as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bros_batch.openai_api.endpoints import DECISIONS, SYSTEMONE

ANSWER = "answer"
ERROR = "_error"
PROBABILITY = "_probability"


class AnswerColumns:
    """Collects the columns of a job's rows, as its API returns them, and then puts the rows into columns.

    `columns` are those of the table that the documents came from, if it is known. Documents may have further ones.
    """

    def __init__(self, endpoint: str, columns: Iterable[str] | None = None) -> None:
        self._is_decision = endpoint in (DECISIONS, SYSTEMONE)
        self._of_documents: dict[str, None] = dict.fromkeys(columns or ())
        self._properties: dict[str, None] = {}
        self._has_plain = False

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
        error = row["error"]
        values.append(None if error is None else error["message"] or error["code"])
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
        return [*wanted, ERROR]
