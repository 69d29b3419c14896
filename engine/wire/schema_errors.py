"""Why the grammar compiler refuses a JSON schema, and which part of the schema it is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.wire.json_schemas import decoded, encoded
from engine.wire.schema_keywords import unusable
from engine.wire.schema_references import Steps
from engine.wire.schema_walk import SchemaWalk

MAX_COMPILED_TO_LOCATE = 200


def located(text: str, problem: str, problem_of: Callable[[str], str | None]) -> str:
    """Return why the grammar compiler refuses a schema, with the innermost place that it refuses by itself.

    `problem` is its message for the whole. `problem_of` compiles a plain schema, given as text, and returns the
    compiler's message, or None for success.
    """
    walk = SchemaWalk(decoded(text))
    walk.plain()
    parts = walk.parts
    place: Steps = ()
    waiting, seen = parts.get(place, []), {place}
    for _ in range(MAX_COMPILED_TO_LOCATE):
        if not waiting:
            break
        part, waiting = waiting[0], waiting[1:]
        inner = None if part in seen or part not in parts else problem_of(encoded(walk.plain(part)))
        seen.add(part)
        if inner is not None:
            place, problem, waiting = part, inner, parts[part]
    return _explained(problem, walk.value(place), place)


def _explained(problem: str, schema: Any, at: Steps) -> str:
    """A compiler's message in the words of a schema's author."""
    lines = problem.strip().splitlines()
    if "regex parse error" in problem:
        name = (
            "patternProperties" if isinstance(schema, dict) and "patternProperties" in schema else "pattern"
        )
        return str(unusable(f"'{name}' is not supported: {lines[-1].removeprefix('error: ')[:200]}", at))
    if problem.startswith("oneOf"):
        what = (
            "'oneOf' is supported only if its schemas exclude each other, by 'type' or by a required property"
        )
        return str(unusable(f"{what} with a different 'const' in each", at))
    if "patternProperty" in problem:
        return str(unusable(f"'patternProperties' is not supported: {lines[0][:200]}", at))
    if problem.startswith("Unsatisfiable schema: "):
        return str(unusable(f"No value fits the schema: {lines[0][22:222]}", at))
    return str(unusable(lines[0][:300], at))
