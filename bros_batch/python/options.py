"""The options of a job, as keyword arguments."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

REQUEST_OPTIONS = ("system", "model", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop")
JOB_OPTIONS = ("name", "priority", "deadline", "fresh", "notify")
TABLE_OPTIONS = ("id_field", "sheet")


class JobOptions(TypedDict, total=False):
    """Options of a job; each may be left out.

    `system`: system message for every row, a template as the prompt is.
    `model`: name of the model; the served model if it is left out.
    `max_tokens`: maximum length of an answer. `stop`: texts that end an answer.
    `temperature` (0 is greedy decoding), `top_p`, `top_k`, `seed`: how tokens are sampled.
    `name`: name of the job. `priority`: jobs with higher values run first.
    `deadline`: when the job expires, such as `"6h"` or a time in ISO 8601; 24 hours if it is left out.
    `fresh`: compute all rows, also those whose answers are known from equal requests.
    `notify`: URL of a webhook that is told when the job has ended, with OpenAI's events (`batch.completed`, ...).
    `id_field`: column with the ids of the rows; `custom_id` or `id` if it is left out. Ids may repeat.
    `sheet`: sheet of a workbook to read; the first with more than one row and the prompt's columns if left out.
    """

    system: str | None
    model: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    name: str | None
    priority: int | None
    deadline: str | None
    fresh: bool | None
    notify: str | None
    id_field: str | None
    sheet: str | None


def given(options: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return those of the options that have one of these names and a value."""
    return {name: options[name] for name in names if options.get(name) is not None}


def check_names(options: Mapping[str, Any]) -> None:
    """Raise TypeError, as Python does, for a keyword argument that does not exist."""
    known = (*REQUEST_OPTIONS, *JOB_OPTIONS, *TABLE_OPTIONS)
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f". Did you mean {close[0]!r}?" if close else f"; the options are {', '.join(known)}"
            raise TypeError(f"got an unexpected keyword argument {name!r}{hint}")
