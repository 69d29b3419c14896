"""The URL of a webhook, and the setting that says where it may lead: what they may look like."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_CHARS = 2048
PUBLIC = "public"  # in the setting: every address of the internet
_NAME = re.compile(r"(\*\.)?[a-zA-Z0-9_]([a-zA-Z0-9_.-]*[a-zA-Z0-9_])?")


def check_webhook_url(url: str) -> None:
    """Raise ValueError, with what is wrong, for a URL that no webhook can have."""
    if len(url) > MAX_URL_CHARS:
        raise ValueError(f"must have at most {MAX_URL_CHARS:,} characters")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(
            "must consist of printable ASCII characters; write others in their encoded form (%C3%A9, xn--...)"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is not a URL such as https://example.com/hook") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(
            "must begin with https:// or http:// and name a host, such as https://example.com/hook"
        )
    if port == 0:
        raise ValueError("must have a port from 1 to 65535")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must have no user and password; put a token into its path or its query instead")
    if "#" in url:
        raise ValueError("must have no fragment (#...), which is never sent")


def check_host_entry(entry: str) -> None:
    """Raise ValueError for an entry of the setting `webhook_hosts` that means nothing."""
    if network_of(entry) is None and not _NAME.fullmatch(entry):
        raise ValueError(
            f"{entry!r} must be '{PUBLIC}', a host name, *.NAME for all names below one, an address, or a network "
            "such as 10.0.0.0/8"
        )


def network_of(entry: str) -> Network | None:
    """The network that an entry of that setting is; an address is one as well."""
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None
