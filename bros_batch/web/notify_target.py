"""Whom a new job tells of its end: the webhook that its request names, or that of its API key, or the server's."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request

from bros_batch.request_error import RequestError
from bros_batch.web.app_state import app_state
from bros_batch.web.owners import key_of
from bros_batch.web.webhooks.hosts import HostError
from bros_batch.webhook_url import check_webhook_url


@dataclass(frozen=True, slots=True)
class NotifyTarget:
    """A webhook: its URL, which is empty for the server's own, or None if there is none, and the key that signs."""

    url: str | None
    key_id: str | None


async def notify_target(request: Request, wanted: str | None = None) -> NotifyTarget:
    """The webhook of a job that a request creates. Raises RequestError for a URL that cannot be called."""
    state, key = app_state(request), key_of(request)
    url = wanted
    if wanted is not None:
        try:
            check_webhook_url(wanted)
            parts = urlsplit(wanted)
            await state.webhook_hosts.addresses(parts.hostname or "", parts.port or 443)
        except (ValueError, HostError) as error:
            # A lookup that fails now may work when the job has ended.
            if not isinstance(error, HostError) or error.is_final:
                raise RequestError(f"Invalid 'notify': the URL {error}.", "notify") from None
    elif key is not None and key.terms.notify_url is not None:
        url = key.terms.notify_url
    elif state.settings.webhook_url:
        url = ""
    return NotifyTarget(url, None if key is None else key.id)
