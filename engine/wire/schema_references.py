"""References within a JSON schema: where a `$ref` points to."""

from __future__ import annotations

from typing import Any, TypeGuard
from urllib.parse import unquote, urldefrag, urljoin

Steps = tuple[str, ...]
OLD_DRAFTS = ("draft-03", "draft-04", "draft-06", "draft-07")
NOT_SCHEMAS = ("enum", "const", "default", "examples", "example")
MAX_POINTER_CHARS = 300


def pointer(steps: Steps) -> str:
    """Return a place in a schema as a JSON pointer."""
    text = "#" + "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)
    return text if len(text) <= MAX_POINTER_CHARS else text[:MAX_POINTER_CHARS] + "..."


class References:
    """Finds what the references of a schema point to. Nothing outside the schema is ever read."""

    def __init__(self, root: Any) -> None:
        self._root = root
        dialect = root.get("$schema") if isinstance(root, dict) else None
        dialect = dialect if isinstance(dialect, str) else ""
        self.ignores_siblings = any(draft in dialect for draft in OLD_DRAFTS)
        has_plain_ids = "draft-04" in dialect or "draft-03" in dialect
        self._id_keyword = "id" if has_plain_ids else "$id"
        self._places: dict[str, Steps] | None = None

    def value(self, at: Steps) -> Any:
        """Return the value at a place that exists."""
        value = self._root
        for step in at:
            value = _child(value, step)
        return value

    def target(self, reference: str, at: Steps) -> Steps | None:
        """Return the place that a reference in the subschema at `at` points to, or None if there is none."""
        resource, base = self._resource_of(at)
        uri, fragment = ("", reference[1:]) if reference.startswith("#") else _split(base, reference)
        if uri:
            found = self._named().get(uri)
            if found is None:
                return None
            resource = found
        fragment = unquote(fragment)
        if not fragment or fragment.startswith("/"):
            return self._existing((*resource, *_steps(fragment)))
        return self._named().get(f"{pointer(resource)} {fragment}")

    def _resource_of(self, at: Steps) -> tuple[Steps, str]:
        """The innermost subschema around `at` that has an id, and the URI that its references are relative to."""
        resource: Steps = ()
        base = ""
        value = self._root
        for depth in range(len(at) + 1):
            if isinstance(value, dict) and _is_uri(value.get(self._id_keyword)):
                resource, base = at[:depth], _split(base, value[self._id_keyword])[0]
            if depth < len(at):
                value = _child(value, at[depth])
        return resource, base

    def _named(self) -> dict[str, Steps]:
        """The places of ids and anchors."""
        if self._places is None:
            self._places = {}
            waiting: list[tuple[Any, Steps, Steps, str]] = [(self._root, (), (), "")]
            while waiting:
                value, at, resource, base = waiting.pop()
                if isinstance(value, dict):
                    name = value.get(self._id_keyword)
                    anchor = value.get("$anchor")
                    if _is_uri(name):
                        resource, base = at, _split(base, name)[0]
                        self._places[base] = at
                    elif isinstance(name, str) and name.startswith("#"):
                        anchor = name[1:]
                    if isinstance(anchor, str):
                        self._places[f"{pointer(resource)} {anchor}"] = at
                children: Any = ()
                if isinstance(value, dict):
                    children = ((key, each) for key, each in value.items() if key not in NOT_SCHEMAS)
                elif isinstance(value, list):
                    children = ((str(index), each) for index, each in enumerate(value))
                waiting += [
                    (each, (*at, key), resource, base)
                    for key, each in children
                    if isinstance(each, dict | list)
                ]
        return self._places

    def _existing(self, steps: Steps) -> Steps | None:
        try:
            self.value(steps)
        except (LookupError, ValueError, TypeError):
            return None
        return steps


def _child(value: Any, step: str) -> Any:
    if not isinstance(value, list):
        return value[step]
    if not (step.isascii() and step.isdigit()):
        raise LookupError(step)
    return value[int(step)]


def _split(base: str, uri: str) -> tuple[str, str]:
    """Return a URI, relative to `base`, and its fragment. A URI of no valid form is the name of nothing."""
    try:
        absolute, fragment = urldefrag(urljoin(base, uri))
    except ValueError:
        return uri, ""
    return absolute, fragment


def _is_uri(name: Any) -> TypeGuard[str]:
    return isinstance(name, str) and not name.startswith("#")


def _steps(fragment: str) -> Steps:
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in fragment.split("/")[1:])
