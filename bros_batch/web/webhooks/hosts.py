"""Which hosts webhooks may call: those of the internet, and of the own network only those that the operator names."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence

from bros_batch.web.bounded_threads import BoundedThreads
from bros_batch.webhook_url import PUBLIC, network_of

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

RESOLVE_TIMEOUT_S = 5.0
# Names that are looked up at once. A lookup that hangs keeps its thread for longer than anyone waits for it.
LOOKUPS = 32
MAX_ADDRESSES = 4

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Addresses that look public but lead to the provider of a virtual machine.
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})


class HostError(Exception):
    """A host that cannot be called; the message is a sentence without its subject. `is_final` is false if that may be
    different in a moment."""

    def __init__(self, message: str, *, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final


class WebhookHosts:
    """The hosts that may be called, by the setting `webhook_hosts`."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._names = frozenset(each.lower() for each in allowed)
        self._networks = [network for each in allowed if (network := network_of(each)) is not None]
        self._threads: BoundedThreads | None = None

    async def addresses(self, host: str, port: int) -> list[str]:
        """Look a host up, and return those of its addresses that may be called. Raises HostError if there is none.

        Whoever connects uses these addresses and not the name, which could lead elsewhere a moment later.
        """
        if self._threads is None:
            self._threads = BoundedThreads(LOOKUPS, "webhook names")
        try:
            found = await self._threads.run(lambda: _look_up(host, port), RESOLVE_TIMEOUT_S)
        except TimeoutError:
            raise HostError(f"names the host {host}, whose lookup takes too long", is_final=False) from None
        except socket.gaierror as error:
            is_final = error.errno == socket.EAI_NONAME
            raise HostError(f"names the host {host}, which is not known", is_final=is_final) from None
        except (OSError, UnicodeError):
            raise HostError(f"names the host {host}, which cannot be looked up", is_final=True) from None
        allowed = [str(each) for each in found if self._allows(host, each)]
        if not allowed:
            reason = "an operator can allow it with BROS_WEBHOOK_HOSTS"
            raise HostError(f"names the host {host}, which webhooks may not call: {reason}", is_final=True)
        return allowed[:MAX_ADDRESSES]

    def _allows(self, host: str, address: Address) -> bool:
        name = host.lower().rstrip(".")
        parents = (f"*.{name[match.end() :]}" for match in re.finditer(r"\.", name))
        if name in self._names or not self._names.isdisjoint(parents):
            return True
        if any(address in network for network in self._networks):
            return True
        return PUBLIC in self._names and is_public(address)


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet, and neither of this machine nor of a network around it."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local or address.teredo is not None:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and address not in _METADATA
    )


def _look_up(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found))
