"""Which addresses an upstream may have: names are resolved here, every answer is judged, and one is pinned.

The judgement is of addresses, never of text, and the table is our own: ``ipaddress.is_global`` differs between Python
versions and calls ``64:ff9b::a9fe:a9fe`` (169.254.169.254 behind NAT64) global. An address that carries an IPv4 address
inside is judged by both. What is pinned is what is connected to: a second lookup could answer differently (DNS
rebinding). Imports no other adapter.

https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from broker_core.errors import BrokerError, ConfigurationError, InjectionRefused, UpstreamError
from broker_core.ports import Destination

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
#: shaped like ``socket.getaddrinfo(host, port, type=SOCK_STREAM)``
Resolve = Callable[..., Sequence[tuple[Any, ...]]]


def _networks(text: str) -> tuple[IPNetwork, ...]:
    return tuple(ipaddress.ip_network(part) for part in text.split())


#: where clouds hand out credentials and host agents listen: refused whatever the allow list says. All of link-local,
#: and those outside of it: Azure's wire server, Alibaba, Oracle; AWS, Google and Scaleway over IPv6
METADATA = _networks(
    """169.254.0.0/16 fe80::/10 168.63.129.16/32 100.100.100.200/32 192.0.0.192/32
    fd00:ec2::/32 fd20:ce::254/128 fd00:42::42/128"""
)
#: not an upstream's: this host, private, shared, documentation, benchmarks, relays, multicast, reserved, broadcast
NOT_PUBLIC_V4 = _networks(
    """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"""
)
PUBLIC_V6 = _networks("2000::/3")
#: inside 2000::/3 and still not an upstream's: protocol assignments with Teredo, documentation, 6to4
NOT_PUBLIC_V6 = _networks("2001::/23 2001:db8::/32 2002::/16 3fff::/20 3ffe::/16 5f00::/16")

_MAPPED, _NAT64, _NAT64_LOCAL = _networks("::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48")
_COMPATIBLE, _SIIT, _TEREDO, _6TO4 = _networks("::/96 ::ffff:0:0:0/96 2001::/32 2002::/16")
#: written so, it is the IPv4 address itself that is reached, and that decides
_SAME_AS_INNER = (_MAPPED, _NAT64)


def inner_addresses(address: IPAddress) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address carries: mapped, compatible, SIIT, NAT64, 6to4, Teredo (server and
    client)."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    bits = int(address)
    if any(address in network for network in (_MAPPED, _NAT64, _COMPATIBLE, _SIIT, _NAT64_LOCAL)):
        yield ipaddress.IPv4Address(bits & 0xFFFFFFFF)
    if address in _NAT64_LOCAL:  # RFC 6052 §2.2: with a /48 or a /64 prefix it stands around the bits 64 to 71
        yield ipaddress.IPv4Address((bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF)
        yield ipaddress.IPv4Address(bits >> 24 & 0xFFFFFFFF)
    if address in _6TO4:
        yield ipaddress.IPv4Address(bits >> 80 & 0xFFFFFFFF)
    if address in _TEREDO:
        yield ipaddress.IPv4Address(bits >> 64 & 0xFFFFFFFF)
        yield ipaddress.IPv4Address(~bits & 0xFFFFFFFF)


def is_metadata(address: IPAddress) -> bool:
    """Whether it, or one that it carries, is where credentials are handed out."""
    return any(_in(one, METADATA) for one in (address, *inner_addresses(address)))


def is_public(address: IPAddress) -> bool:
    """Whether an upstream may have it without being allowed by name."""
    if isinstance(address, ipaddress.IPv4Address):
        return not _in(address, NOT_PUBLIC_V4)
    if _in(address, _SAME_AS_INNER):
        return all(is_public(inner) for inner in inner_addresses(address))
    return _in(address, PUBLIC_V6) and not _in(address, NOT_PUBLIC_V6)


def _in(address: IPAddress, networks: Sequence[IPNetwork]) -> bool:
    return any(address in network for network in networks)


class Egress:
    """The gate out."""

    def __init__(
        self, allow: Sequence[str] = (), resolve: Resolve = socket.getaddrinfo, most_lookups: int = 64
    ) -> None:
        """``allow``: CIDRs that may be reached although they are not public. Raises ConfigurationError.

        ``most_lookups`` bounds the threads that wait for a resolver: the C library's lookup cannot be cut short.
        """
        try:
            self._allow = tuple(ipaddress.ip_network(part) for part in allow)
        except ValueError:
            raise ConfigurationError("BROKER_EGRESS_ALLOW: a comma-separated list of CIDRs, like 10.1.0.0/16") from None
        self._resolve = resolve
        self._free_lookups = threading.BoundedSemaphore(most_lookups)

    def pin(self, destination: Destination, seconds: float) -> str:
        """The one address to connect to. Every address of the name must pass.

        Raises InjectionRefused (``destination_blocked``), UpstreamError (``upstream_unreachable``,
        ``upstream_timeout``).
        """
        try:
            addresses: list[IPAddress] = [ipaddress.ip_address(destination.host)]
        except ValueError:
            addresses = []
        if not destination.tls and not (addresses and addresses[0].is_loopback and self._is_allowed(addresses[0])):
            raise _blocked()
        addresses = addresses or self._look_up(destination, seconds)
        if not all(self.passes(address) for address in addresses):
            raise _blocked()
        return str(addresses[0])

    def passes(self, address: IPAddress) -> bool:
        """The judgement of one address."""
        if is_metadata(address):
            return False
        same = [address, *(inner_addresses(address) if _in(address, _SAME_AS_INNER) else ())]
        return is_public(address) or any(self._is_allowed(one) for one in same)

    def _is_allowed(self, address: IPAddress) -> bool:
        return _in(address, self._allow)

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
        except (OSError, ValueError, UnicodeError):
            answers.put(None)
        finally:
            self._free_lookups.release()


def _blocked() -> InjectionRefused:
    return InjectionRefused("this destination may not be reached", code="destination_blocked")
