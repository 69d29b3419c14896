"""The columns of a table with answers."""

from __future__ import annotations

from typing import Any

from bros_batch.documents.answer_columns import AnswerColumns, KnownColumns

CHAT = "/v1/chat/completions"


def table(rows: list[dict[str, Any]], endpoint: str = CHAT, columns: Any = (), answers: Any = {}) -> Any:  # noqa: B006
    """The names of the columns, and the values of each row."""
    rows = [{"document": None, "answer": None, "error": None, **row} for row in rows]
    found = AnswerColumns(KnownColumns(endpoint, columns, answers=answers))
    for row in rows:
        found.see(row)
    assert len(found.types) == len(found.names)
    return found.names, [found.values(row) for row in rows]


def test_the_documents_come_first_in_their_order_then_the_answer() -> None:
    rows = [
        {"document": {"b": "1", "a": "2"}, "answer": "yes"},
        {"document": {"a": "3", "c": 4}, "error": {"code": "x", "message": "Line 2: no"}},
    ]
    assert table(rows) == (
        ["b", "a", "c", "answer", "_error"],
        [["1", "2", None, "yes", None], [None, "3", 4, None, "Line 2: no"]],
    )
    assert table(rows, columns=["a", "b", "d"])[0] == ["a", "b", "d", "c", "answer", "_error"]
    assert table([{"error": {"code": "gone", "message": None}}]) == (["answer", "_error"], [[None, "gone"]])


def test_properties_are_flattened_one_level_and_an_answer_that_is_cut_is_beside_them() -> None:
    rows = [
        {"document": {"id": 1}, "answer": {"vendor": "A", "lines": [{"n": 1}]}},
        {"document": {"id": 2}, "answer": {"vendor": None, "total": 2.5}},
        {
            "document": {"id": 3},
            "raw_answer": '{"vendor": "B',
            "error": {"code": "output_truncated", "message": "cut"},
        },
    ]
    assert table(rows) == (
        ["id", "vendor", "lines", "total", "_raw_answer", "_error"],
        [
            [1, "A", [{"n": 1}], None, None, None],
            [2, None, None, 2.5, None, None],
            [3, None, None, None, '{"vendor": "B', "cut"],
        ],
    )


def test_columns_of_a_schema_are_there_if_no_answer_has_them() -> None:
    cut = {"raw_answer": '{"vendor": "B', "error": {"code": "output_truncated", "message": "cut"}}
    answers = {"vendor": "text", "total": None}
    assert table([cut], answers=answers) == (
        ["vendor", "total", "_raw_answer", "_error"],
        [[None, None, '{"vendor": "B', "cut"]],
    )
    assert table([cut])[0] == ["answer", "_raw_answer", "_error"]
    not_json = {"raw_answer": "{", "error": None}
    assert table([not_json])[1] == [[None, "{", "The answer is not the JSON that was asked for."]]
    taken = {"document": {"_raw_answer": "mine"}, **cut}
    assert table([taken], answers=answers)[0] == [
        "_raw_answer", "vendor", "total", "answer__raw_answer", "_error",
    ]  # fmt: skip


def test_a_decision_is_a_value_and_a_probability() -> None:
    rows = [
        {"document": {"text": "t"}, "answer": {"urgent": {"value": True, "probability": 0.9}}},
        {"document": {"text": "u"}},
    ]
    assert table(rows, "/v1/decisions") == (
        ["text", "urgent", "urgent_probability", "_error"],
        [["t", True, 0.9, None], ["u", None, None, None]],
    )


def test_a_name_that_is_taken_changes_predictably() -> None:
    document = {"total": "12", "answer": "a", "_error": "e", "answer_total": "b"}
    rows = [
        {"document": document, "answer": {"total": 3, "answer": 4}},
        {"document": document, "answer": "text"},
    ]
    names, (first, second) = table(rows)
    assert names == [*document, "answer_total_2", "answer_answer", "answer_answer_2", "answer__error"]
    assert first == [*document.values(), 3, 4, None, None]
    assert second == [*document.values(), None, None, "text", None]
