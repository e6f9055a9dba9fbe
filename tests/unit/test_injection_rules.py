"""The rules of kinds, names and destinations (``broker_core.injection``)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_core.errors import Invalid
from broker_core.injection import LARGEST_VALUE, Injection, Kind, normalise_host, parse_target, value_problem


def problems(kind: Kind, key: str | None, host: str | None = None, server: str | None = "srv") -> set[str]:
    return set(Injection(kind, key, host, server, None).problems())


class TestFields:
    """Which fields go with which kind."""

    @pytest.mark.parametrize(
        ("kind", "key", "host"),
        [
            (Kind.BEARER, None, "api.example.com"),
            (Kind.HTTP_HEADER, "X-Api-Key", "api.example.com:8443"),
            (Kind.QUERY, "filter[key]", "[::1]:443"),
            (Kind.STDIO_ENV, "GITHUB_TOKEN", None),
        ],
    )
    def test_a_fitting_set(self, kind: Kind, key: str | None, host: str | None) -> None:
        """Each kind's own fields have no problem."""
        assert problems(kind, key, host) == set()

    @pytest.mark.parametrize(
        ("kind", "key", "host", "field"),
        [
            (Kind.BEARER, "X", "a.example", "bindingKey"),
            (Kind.HTTP_HEADER, None, "a.example", "bindingKey"),
            (Kind.STDIO_ENV, "TOKEN", "a.example", "targetHost"),
            (Kind.QUERY, "key", None, "targetHost"),
            (Kind.QUERY, "k=v", "a.example", "bindingKey"),
            (Kind.STDIO_ENV, "1TOKEN", None, "bindingKey"),
        ],
    )
    def test_a_field_that_does_not_fit(self, kind: Kind, key: str | None, host: str | None, field: str) -> None:
        """The problem names the event's field."""
        assert problems(kind, key, host) == {field}

    def test_somebody_must_be_bound(self) -> None:
        """A secret that is bound to nobody is refused."""
        assert problems(Kind.BEARER, None, "a.example", server=None) == {"mcpServerId"}

    @pytest.mark.parametrize(
        "name",
        """Host|content-length|Transfer-Encoding|Connection|Proxy-Authorization|Expect|TE|Trailer|Upgrade|:authority
        |Axiorank-Authorization|Accept-Encoding|Range|X Y|X-Key\n|""".split("|"),
    )
    def test_pitfall_12_a_header_that_steers_the_connection(self, name: str) -> None:
        """Reserved headers and what is no header name at all are refused."""
        assert problems(Kind.HTTP_HEADER, name, "a.example") == {"bindingKey"}

    @pytest.mark.parametrize("name", ["PATH", "LD_PRELOAD", "NODE_OPTIONS", "DYLD_INSERT_LIBRARIES", "BROKER_X", "A\n"])
    def test_a_variable_that_changes_how_programs_run(self, name: str) -> None:
        """A credential's variable cannot be one that loads code."""
        assert problems(Kind.STDIO_ENV, name) == {"bindingKey"}


class TestHosts:
    """One normal form."""

    @pytest.mark.parametrize(
        ("given", "normal"),
        [
            ("API.Example.COM", "api.example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("[2001:DB8:0::1]", "2001:db8::1"),
            ("127.0.0.1", "127.0.0.1"),
        ],
    )
    def test_normal_form(self, given: str, normal: str) -> None:
        """Case, IDNA and IPv6 have one spelling."""
        assert normalise_host(given) == normal

    @pytest.mark.parametrize(
        "host",
        """0x7f000001|2130706433|127.1|0177.0.0.1|１２７.0.0.1|a.example.|a..example|-a.example|a_b.example|a.example/
        |user@a.example|ａ.example|a.0x7f|a.1|""".split("|"),
    )
    def test_pitfall_15_an_address_in_disguise(self, host: str) -> None:
        """What getaddrinfo would read as an address, and what is no host, is refused."""
        with pytest.raises(Invalid):
            normalise_host(host)

    @pytest.mark.parametrize("target", ["https://a.example", "a.example:0", "a.example:65536", "a.example:", "::1"])
    def test_a_target_is_host_and_port_only(self, target: str) -> None:
        """A targetHost has no scheme, no path, no odd port."""
        with pytest.raises(Invalid):
            parse_target(target)

    @given(st.text(max_size=30))
    def test_normal_form_is_stable(self, text: str) -> None:
        """Normalising twice is normalising once."""
        try:
            once = normalise_host(text)
        except Invalid:
            return
        assert normalise_host(once) == once


class TestValues:
    """What a value may be, by kind."""

    @pytest.mark.parametrize("value", [b"a\r\n", b"a\n", b" a", b"a\t", b"a\0b", b"a\x7fb", "ä".encode(), b"a\r\nX: y"])
    @pytest.mark.parametrize("kind", [Kind.HTTP_HEADER, Kind.BEARER])
    def test_pitfall_11_a_value_that_would_end_the_header(self, kind: Kind, value: bytes) -> None:
        """Line breaks, outer space, controls and non-ASCII are refused in a header."""
        assert value_problem(kind, memoryview(value)) is not None

    @pytest.mark.parametrize("value", [b"\0", b"a\r\nb", b"\xff"])
    def test_a_parameter_holds_any_bytes(self, value: bytes) -> None:
        """A query's value is percent-encoded, so it can be anything."""
        assert value_problem(Kind.QUERY, memoryview(value)) is None

    @pytest.mark.parametrize("value", [b"a\0b", b"\xff\xfe"])
    def test_a_variable_is_text(self, value: bytes) -> None:
        """An environment holds no NUL, and is handed over as UTF-8 text."""
        assert value_problem(Kind.STDIO_ENV, memoryview(value)) is not None

    @pytest.mark.parametrize("size", [0, LARGEST_VALUE + 1])
    @pytest.mark.parametrize("kind", [None, *Kind])
    def test_length(self, kind: Kind | None, size: int) -> None:
        """Nothing, and more than 64 KiB, is refused for every kind."""
        assert value_problem(kind, memoryview(b"a" * size)) is not None

    def test_the_problem_does_not_quote_the_value(self) -> None:
        """INV-1: a refusal says what is wrong without saying what it is."""
        assert "hunter2" not in str(value_problem(Kind.BEARER, memoryview(b"hunter2\n")))
