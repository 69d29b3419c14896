"""Queries about how wrong earlier forecasts were."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, insert, select, update

from bros_batch.db.tables import meta

KEY = "forecast_errors"
MAX_ERRORS = 40  # of each stage


def read_errors(connection: Connection) -> dict[str, list[float]]:
    """The latest errors of forecasts by the stage of the job, oldest first, in units of their doubt."""
    text = connection.execute(select(meta.c.value).where(meta.c.key == KEY)).scalar()
    found = json.loads(text) if text else {}
    return {stage: [float(each) for each in errors if math.isfinite(each)] for stage, errors in found.items()}


def add_errors(connection: Connection, new: Mapping[str, Sequence[float]]) -> None:
    """Add errors to those that are kept, and drop the oldest."""
    kept = read_errors(connection)
    for stage, errors in new.items():
        kept[stage] = [*kept.get(stage, ()), *errors][-MAX_ERRORS:]
    text = json.dumps(kept)
    if not connection.execute(update(meta).where(meta.c.key == KEY).values(value=text)).rowcount:
        connection.execute(insert(meta).values(key=KEY, value=text))
