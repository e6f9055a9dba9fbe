"""Which addresses an upstream may have."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_core.adapters import egress_table
from broker_core.adapters.egress import Egress
from broker_core.adapters.egress_table import inner_addresses
from broker_core.errors import BrokerError, ConfigurationError, InjectionRefused, UpstreamError
from broker_core.ports import Destination

EVERYTHING = ("0.0.0.0/0", "::/0")


def resolving(*addresses: str) -> Any:
    """A resolver that gives these."""

    def resolve(host: str, port: int, **_: Any) -> Sequence[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return resolve


def pin(host: str, *addresses: str, allow: Sequence[str] = (), deny: Sequence[str] = (), tls: bool = True) -> str:
    """The address that is connected to."""
    return Egress(allow, resolving(*addresses), deny=deny).addresses(Destination(host, 443, tls), 5.0)[0]


def refusal(host: str, *addresses: str, allow: Sequence[str] = (), deny: Sequence[str] = (), tls: bool = True) -> str:
    with pytest.raises(BrokerError) as refused:
        pin(host, *addresses, allow=allow, deny=deny, tls=tls)
    return refused.value.reason


NOT_PUBLIC = """0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 127.0.0.1 127.8.8.8 169.254.1.1 172.16.0.1 172.31.255.255 192.0.0.1
192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 240.0.0.1 255.255.255.255
:: ::1 ::7f00:1 ::169.254.169.254 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:0:10.0.0.1
64:ff9b::a9fe:a9fe 64:ff9b::10.0.0.1 64:ff9b:1::1 64:ff9b:1::8.8.8.8 100::1 2001::1 2001:2::1 2001:10::1 2001:20::1
2001:db8::1 2002:7f00:1::1 2002:0a00:1::1 2606:4700::5efe:10.0.0.1
2606:4700::200:5efe:127.0.0.1 3fff::1 5f00::1 fc00::1 fd00::1 fe80::1 fec0::1 ff02::1 4000::1""".split()
METADATA = """169.254.169.254 169.254.169.253 169.254.170.2 169.254.170.23 169.254.0.23 169.254.42.42 168.63.129.16
100.100.100.200 192.0.0.192 fd00:ec2::254 fd00:ec2::23 fd20:ce::254 fd00:42::42 fe80::a9fe:a9fe""".split()

PUBLIC = """8.8.8.8 1.1.1.1 172.32.0.1 100.128.0.1 2606:4700::1111 2a00::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8
2a00::5efe:8.8.8.8""".split()
METADATA_V4 = ["169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192"]


def disguised(inner: str) -> list[str]:
    """An IPv4 address in every clothing of IPv6."""
    bits = int(ipaddress.IPv4Address(inner))
    inverted = bits ^ 0xFFFFFFFF
    numbers = {
        "mapped": 0xFFFF << 32 | bits,
        "compatible": bits,
        "siit": 0xFFFF << 48 | bits,
        "nat64": int(ipaddress.ip_address("64:ff9b::")) | bits,
        "nat64 local /96": int(ipaddress.ip_address("64:ff9b:1::")) | bits,
        "nat64 local /64": int(ipaddress.ip_address("64:ff9b:1::")) | bits << 24,
        "nat64 local /48": int(ipaddress.ip_address("64:ff9b:1::")) | bits >> 16 << 64 | (bits & 0xFFFF) << 40,
        "6to4": 0x2002 << 112 | bits << 80,
        "teredo server": 0x20010000 << 96 | bits << 64 | 0xF7F7F7F7,
        "teredo client": 0x20010000 << 96 | inverted,
        "isatap": int(ipaddress.ip_address("2606:4700::")) | 0x5EFE << 32 | bits,
        "isatap, as a global one": int(ipaddress.ip_address("2606:4700::")) | 0x02005EFE << 32 | bits,
    }
    return [str(ipaddress.IPv6Address(number)) for number in numbers.values()]


class TestTable:
    """Our own table, whatever the Python version thinks."""

    @pytest.mark.parametrize("address", NOT_PUBLIC + METADATA)
    def test_pitfall_16_not_an_upstreams(self, address: str) -> None:
        """Private, special, tunnelled and metadata addresses are refused, as a literal and as an answer."""
        assert refusal(address) == refusal("a.example", address) == "destination_blocked"

    @pytest.mark.parametrize("address", PUBLIC)
    def test_public(self, address: str) -> None:
        """Public ones pass, also behind NAT64 and written as IPv6."""
        assert ipaddress.ip_address(pin("a.example", address)) == ipaddress.ip_address(address)

    @pytest.mark.parametrize("address", METADATA)
    def test_pitfall_16_metadata_is_never_allowed(self, address: str) -> None:
        """No allow list opens the place where clouds hand out credentials."""
        assert refusal("a.example", address, allow=EVERYTHING) == "destination_blocked"

    @pytest.mark.parametrize("inner", METADATA_V4)
    def test_pitfall_16_nor_in_any_clothing(self, inner: str) -> None:
        """Mapped, compatible, SIIT, NAT64 (three layouts), 6to4, ISATAP, Teredo (both ends)."""
        passed = [text for text in disguised(inner) if Egress(EVERYTHING).passes(ipaddress.ip_address(text))]
        assert passed == []

    @given(st.ip_addresses(v=4).filter(lambda address: not address.is_global))
    def test_a_private_address_in_any_clothing(self, inner: ipaddress.IPv4Address) -> None:
        """No clothing makes a private address public."""
        if Egress().passes(inner):
            return  # Python's table and ours differ on a few assignments that are reachable
        assert not any(Egress().passes(ipaddress.ip_address(text)) for text in disguised(str(inner)))

    @given(st.ip_addresses(v=6))
    def test_what_passes_is_global_unicast(self, address: ipaddress.IPv6Address) -> None:
        """Anything unassigned is refused: the table says what may, not only what may not."""
        if Egress().passes(address):
            assert address in ipaddress.ip_network("2000::/3") or any(inner_addresses(address))


class TestAllowed:
    """BROKER_EGRESS_ALLOW."""

    def test_a_private_range_may_be_named(self) -> None:
        """A named range is reached, the one beside it is not."""
        assert pin("a.internal", "10.1.2.3", allow=["10.1.0.0/16"]) == "10.1.2.3"
        assert refusal("a.internal", "10.2.0.1", allow=["10.1.0.0/16"]) == "destination_blocked"

    def test_a_range_holds_for_its_mapped_form(self) -> None:
        """``::ffff:10.1.2.3`` is 10.1.2.3."""
        assert pin("a.internal", "::ffff:10.1.2.3", allow=["10.1.0.0/16"])

    def test_a_malformed_range_stops_the_start(self) -> None:
        """The message names the setting."""
        with pytest.raises(ConfigurationError, match="BROKER_EGRESS_ALLOW"):
            Egress(["10.0.0.1/8"])

    @pytest.mark.parametrize(
        ("host", "allow", "fits"),
        [
            ("127.0.0.1", ["127.0.0.1/32"], True),
            ("::1", ["::1/128"], True),
            ("127.0.0.1", [], False),
            ("10.0.0.1", EVERYTHING, False),
            ("localhost", EVERYTHING, False),
        ],
    )
    def test_pitfall_17_plain_http(self, host: str, allow: Sequence[str], fits: bool) -> None:
        """Without TLS only a literal loopback address that the list names; a name never."""
        if fits:
            assert pin(host, allow=allow, tls=False) == host
        else:
            assert refusal(host, "127.0.0.1", allow=allow, tls=False) == "destination_blocked"


class TestDenied:
    """BROKER_EGRESS_DENY."""

    @pytest.mark.parametrize("deny", ["8.8.8.0/24", "8.8.8.8", "a.example", "example"])
    def test_a_network_a_name_and_all_below_it(self, deny: str) -> None:
        """A public address is refused by its network, by its name, and by a name above it."""
        assert refusal("a.example", "8.8.8.8", deny=[deny]) == "destination_blocked"

    @pytest.mark.parametrize("deny", ["9.9.9.0/24", "b.example", "ple", "x.a.example", "a.exampl"])
    def test_what_is_beside_it_is_reached(self, deny: str) -> None:
        """A name ends at a dot."""
        assert pin("a.example", "8.8.8.8", deny=[deny]) == "8.8.8.8"

    def test_it_beats_the_allow_list(self) -> None:
        """A hole in an allowed range."""
        allow, deny = ["10.0.0.0/8"], ["10.9.0.0/16"]
        assert pin("a.internal", "10.1.0.1", allow=allow, deny=deny) == "10.1.0.1"
        assert refusal("a.internal", "10.9.0.1", allow=allow, deny=deny) == "destination_blocked"

    def test_it_beats_the_allow_list_for_a_name(self) -> None:
        """However its address is allowed."""
        assert refusal("a.internal", "10.1.0.1", allow=["10.0.0.0/8"], deny=["internal"]) == "destination_blocked"

    @pytest.mark.parametrize("clothed", disguised("8.8.4.4"))
    def test_a_denied_address_in_any_clothing(self, clothed: str) -> None:
        """The IPv4 address inside decides too, whatever is allowed."""
        assert refusal("a.example", clothed, allow=EVERYTHING, deny=["8.8.4.0/24"]) == "destination_blocked"

    def test_one_denied_answer_refuses_all(self) -> None:
        """The name is not tried at its other address."""
        assert refusal("a.example", "1.1.1.1", "8.8.8.8", deny=["8.8.8.8/32"]) == "destination_blocked"

    def test_a_denied_name_is_not_looked_up(self) -> None:
        """Asking for it would tell its name server that somebody tries."""

        def resolve(*_: Any, **__: Any) -> Sequence[tuple[Any, ...]]:
            raise AssertionError("looked up")

        with pytest.raises(InjectionRefused):
            Egress(resolve=resolve, deny=["example"]).addresses(Destination("a.example", 443), 5.0)


class TestResolving:
    """One lookup, every answer judged, one pinned."""

    def test_pitfall_16_one_bad_answer_refuses_all(self) -> None:
        """A name that also points inside is not tried at its public address."""
        assert refusal("a.example", "8.8.8.8", "10.0.0.1") == "destination_blocked"

    def test_the_first_answer_is_pinned(self) -> None:
        """The resolver's own order (RFC 6724) is kept."""
        assert pin("a.example", "8.8.4.4", "8.8.8.8") == "8.8.4.4"

    def test_every_answer_is_given(self) -> None:
        """So that a kept connection to any of them can be used."""
        egress = Egress(resolve=resolving("8.8.4.4", "8.8.8.8"))
        assert egress.addresses(Destination("a.example", 443), 5.0) == ["8.8.4.4", "8.8.8.8"]

    def test_no_answer(self) -> None:
        """A name without addresses is unreachable."""
        assert refusal("a.example") == "upstream_unreachable"

    def test_a_failing_resolver(self) -> None:
        """Its exception does not get out."""

        def resolve(*_: Any, **__: Any) -> Sequence[tuple[Any, ...]]:
            raise socket.gaierror(-2, "Name or service not known")

        with pytest.raises(UpstreamError) as refused:
            Egress(resolve=resolve).addresses(Destination("a.example", 443), 5.0)

        assert (refused.value.reason, refused.value.__context__) == ("upstream_unreachable", None)

    def test_a_scoped_answer_is_refused(self) -> None:
        """An address of one link is not an upstream's."""
        assert refusal("a.example", "fe80::1%1", allow=EVERYTHING) == "destination_blocked"

    def test_a_resolver_that_hangs(self) -> None:
        """The lookup is inside the deadline, and the threads that hang are bounded."""
        release = threading.Event()

        def resolve(*_: Any, **__: Any) -> Sequence[tuple[Any, ...]]:
            release.wait(30)
            return []

        egress = Egress(resolve=resolve, most_lookups=1)
        try:
            for _ in range(2):  # the second does not even get a thread
                with pytest.raises(UpstreamError) as refused:
                    egress.addresses(Destination("a.example", 443), 0.01)
                assert refused.value.reason == "upstream_timeout"
        finally:
            release.set()

    def test_a_literal_is_not_looked_up(self) -> None:
        """An address is judged as it is."""

        def resolve(*_: Any, **__: Any) -> Sequence[tuple[Any, ...]]:
            raise AssertionError("looked up")

        assert Egress(resolve=resolve).addresses(Destination("8.8.8.8", 443), 5.0) == ["8.8.8.8"]


def test_a_refusal_is_a_refusal_to_the_caller() -> None:
    """A blocked address is the caller's to change: nothing was assumed, decrypted or sent."""
    with pytest.raises(InjectionRefused):
        Egress().addresses(Destination("10.0.0.1", 443), 5.0)


def expected() -> dict[str, list[bool]]:
    """Of each address: whether it passes where nothing is allowed, and whether no allow list makes it pass."""
    never = {*METADATA, "169.254.1.1", "fe80::1", "::169.254.169.254", "64:ff9b::a9fe:a9fe"}
    table = {address: [False, address in never] for address in NOT_PUBLIC + METADATA}
    table |= {address: [True, False] for address in PUBLIC}
    return table | {text: [False, True] for inner in METADATA_V4 for text in disguised(inner)}


JUDGE = """
import importlib.util, ipaddress, json, sys
spec = importlib.util.spec_from_file_location("egress_table", sys.argv[1])
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)
texts = json.load(sys.stdin)
addresses = [ipaddress.ip_address(text) for text in texts]
never = [table.is_metadata(address) for address in addresses]
open_ = [table.is_public(address) for address in addresses]
print(json.dumps({text: [o and not n, n] for text, o, n in zip(texts, open_, never)}))
"""


def interpreters() -> dict[str, str]:
    """Python 3.11, 3.12 and 3.13 where this machine has them: version → program."""
    names = ("python3.11", "python3.12", "python3.13")
    folders = [*map(Path, os.get_exec_path()), *Path.home().glob(".pyenv/versions/*/bin")]
    folders += Path.home().glob(".local/share/uv/python/*/bin")
    programs = [sys.executable, *(str(folder / name) for folder in folders for name in names)]
    return {version: program for program in programs if (version := _version(program)) is not None}


def _version(program: str) -> str | None:
    if not os.access(program, os.X_OK):
        return None
    shown = subprocess.run(
        [program, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True
    )
    return shown.stdout.strip() if shown.returncode == 0 else None  # a shim may stand there for nothing


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The interpreters that were found stand in the tests' names."""
    if "python" in metafunc.fixturenames:
        found = interpreters()
        metafunc.parametrize("python", found.values(), ids=found)


def test_pitfall_16_the_table_is_the_same_on_each_python(python: str) -> None:
    """The standard library's opinion of an address changes from version to version; ours does not."""
    judged = subprocess.run(
        [python, "-I", "-c", JUDGE, str(egress_table.__file__)],
        input=json.dumps(list(expected())),
        capture_output=True,
        text=True,
        check=True,
    )
    assert {text: found for text, found in json.loads(judged.stdout).items() if found != expected()[text]} == {}
