"""The table of addresses: which are an upstream's to have, and which hand out credentials.

Pure. It imports ``ipaddress`` alone, and of it no opinion: ``is_global`` differs between Python versions and calls
``64:ff9b::a9fe:a9fe`` (169.254.169.254 behind NAT64) global. An address that carries an IPv4 address inside is judged
by both.

https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


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
#: RFC 5214: the interface's half of an address under any prefix, but for the bit that says whether it is unique
_ISATAP = 0x00005EFE
#: written so, it is the IPv4 address itself that is reached, and that decides
_SAME_AS_INNER = (_MAPPED, _NAT64)


def inner_addresses(address: IPAddress) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address carries: mapped, compatible, SIIT, NAT64, 6to4, ISATAP, Teredo
    (server and client)."""
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
    if bits >> 32 & 0xFDFFFFFF == _ISATAP:
        yield ipaddress.IPv4Address(bits & 0xFFFFFFFF)
    if address in _TEREDO:
        yield ipaddress.IPv4Address(bits >> 64 & 0xFFFFFFFF)
        yield ipaddress.IPv4Address(~bits & 0xFFFFFFFF)


def is_metadata(address: IPAddress) -> bool:
    """Whether it, or one that it carries, is where credentials are handed out."""
    return any(is_in(one, METADATA) for one in (address, *inner_addresses(address)))


def is_public(address: IPAddress) -> bool:
    """Whether an upstream may have it without being allowed by name."""
    if isinstance(address, ipaddress.IPv4Address):
        return not is_in(address, NOT_PUBLIC_V4)
    if not is_in(address, _SAME_AS_INNER) and (not is_in(address, PUBLIC_V6) or is_in(address, NOT_PUBLIC_V6)):
        return False
    return all(is_public(inner) for inner in inner_addresses(address))


def same_addresses(address: IPAddress) -> list[IPAddress]:
    """It, and what it is another spelling of."""
    return [address, *(inner_addresses(address) if is_in(address, _SAME_AS_INNER) else ())]


def is_in(address: IPAddress, networks: Sequence[IPNetwork]) -> bool:
    """Whether one of the networks holds it."""
    return any(address in network for network in networks)
