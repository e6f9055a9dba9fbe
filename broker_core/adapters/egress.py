"""Which addresses an upstream may have: names are resolved here, every answer is judged, and one is pinned.

The judgement is of addresses, never of text, by the table in ``egress_table``. What is pinned is what is connected to:
a second lookup could answer differently (DNS rebinding). The deny list comes first and beats the allow list. Imports no
other adapter but the table.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from broker_core.adapters.egress_table import (
    IPAddress,
    IPNetwork,
    inner_addresses,
    is_in,
    is_metadata,
    is_public,
    same_addresses,
)
from broker_core.errors import BrokerError, ConfigurationError, InjectionRefused, UpstreamError
from broker_core.ports import Destination

#: shaped like ``socket.getaddrinfo(host, port, type=SOCK_STREAM)``
Resolve = Callable[..., Sequence[tuple[Any, ...]]]


class Egress:
    """The gate out."""

    def __init__(
        self,
        allow: Sequence[str] = (),
        resolve: Resolve = socket.getaddrinfo,
        most_lookups: int = 64,
        deny: Sequence[str] = (),
    ) -> None:
        """``allow``: CIDRs that may be reached although they are not public. ``deny``: CIDRs and host names that may
        not be, whatever else is said; a name means all names below it too. Raises ConfigurationError.

        Denied are addresses, because a name is the caller's to choose and can lead anywhere; and names, because many
        services (a pastebin, a request logger) share a CDN's addresses with half of the web.

        ``most_lookups`` bounds the threads that wait for a resolver: the C library's lookup cannot be cut short.
        """
        try:
            self._allow = tuple(ipaddress.ip_network(part) for part in allow)
        except ValueError:
            raise ConfigurationError("BROKER_EGRESS_ALLOW: a comma-separated list of CIDRs, like 10.1.0.0/16") from None
        networks = {part: network for part in deny if (network := _network(part)) is not None}
        self._deny = tuple(networks.values())
        self._deny_names = frozenset(part for part in deny if part not in networks)
        self._resolve = resolve
        self._free_lookups = threading.BoundedSemaphore(most_lookups)

    def addresses(self, destination: Destination, seconds: float) -> list[str]:
        """Every address of it, the one to connect to first. All of them must pass.

        Raises InjectionRefused (``destination_blocked``), UpstreamError (``upstream_unreachable``,
        ``upstream_timeout``).
        """
        try:
            addresses: list[IPAddress] = [ipaddress.ip_address(destination.host)]
        except ValueError:
            addresses = []
        if not destination.tls and not (addresses and addresses[0].is_loopback and self._is_allowed(addresses[0])):
            raise _blocked()
        if self._is_denied_name(destination.host):
            raise _blocked()
        addresses = addresses or self._look_up(destination, seconds)
        if not all(self.passes(address) for address in addresses):
            raise _blocked()
        return [str(address) for address in addresses]

    def passes(self, address: IPAddress) -> bool:
        """The judgement of one address."""
        if is_metadata(address) or any(is_in(one, self._deny) for one in (address, *inner_addresses(address))):
            return False
        return is_public(address) or any(self._is_allowed(one) for one in same_addresses(address))

    def _is_denied_name(self, host: str) -> bool:
        labels = host.split(".")
        return any(".".join(labels[first:]) in self._deny_names for first in range(len(labels)))

    def _is_allowed(self, address: IPAddress) -> bool:
        return is_in(address, self._allow)

    def _look_up(self, destination: Destination, seconds: float) -> list[IPAddress]:
        answers: queue.SimpleQueue[list[IPAddress] | None] = queue.SimpleQueue()
        if not self._free_lookups.acquire(timeout=max(0.0, seconds)):
            raise UpstreamError("the name was not resolved in time", code="upstream_timeout")
        try:
            threading.Thread(target=self._answer, args=(destination, answers), name="resolve", daemon=True).start()
        except RuntimeError:  # out of threads for a moment: the place must not be lost for ever
            self._free_lookups.release()
            raise
        found: list[IPAddress] | BrokerError | None
        try:
            found = answers.get(timeout=max(0.0, seconds))
        except queue.Empty:
            found = UpstreamError("the name was not resolved in time", code="upstream_timeout")
        if isinstance(found, BrokerError):
            raise found
        if not found:
            raise UpstreamError("the name was not resolved", code="upstream_unreachable")
        return found

    def _answer(self, destination: Destination, answers: queue.SimpleQueue[list[IPAddress] | None]) -> None:
        try:
            found = self._resolve(destination.host, destination.port, type=socket.SOCK_STREAM)
            # a scope ("fe80::1%eth0") is in no table of ours: ip_address keeps it, and the tables refuse link-local
            answers.put([ipaddress.ip_address(entry[4][0]) for entry in found])
        except Exception:  # noqa: BLE001 - who waits is to be told, whatever it was
            answers.put(None)
        finally:
            self._free_lookups.release()


def _network(text: str) -> IPNetwork | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def _blocked() -> InjectionRefused:
    return InjectionRefused("this destination may not be reached", code="destination_blocked")
