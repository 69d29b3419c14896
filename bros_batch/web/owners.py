"""Whose things a request may see, and to whom belongs what it creates.

A key without an owner, the server's own key, and everyone where no key is needed see the things of all owners. What
they create belongs to the owner without a name.
"""

from __future__ import annotations

from starlette.requests import HTTPConnection

from bros_batch.web.api_key import Key


def key_of(request: HTTPConnection) -> Key | None:
    """The key with which a request was sent; None if none was needed."""
    key = request.scope["state"].get("key")
    assert key is None or isinstance(key, Key)
    return key


def owner_of(request: HTTPConnection) -> str:
    """The owner of what a request creates."""
    key = key_of(request)
    return "" if key is None else key.terms.owner


def visible_owner(request: HTTPConnection) -> str | None:
    """The owner whose things alone a request may see; None if it may see those of all. Anything else does not exist for
    the request."""
    return owner_of(request) or None


def asker_of(request: HTTPConnection) -> str:
    """Whose turn it is where owners take turns: the owner, or else the key, of a request."""
    key = key_of(request)
    return "" if key is None else key.terms.owner or key.id
