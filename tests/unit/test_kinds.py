"""How a value goes on a request."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_core.errors import Invalid
from broker_core.inject.call import Call
from broker_core.inject.kinds import apply, prepare, with_parameter
from broker_core.inject.url import parse_url
from broker_core.injection import Injection, Kind
from broker_core.ports import WireRequest
from tests.fakes_inject import named

BEARER = Injection(Kind.BEARER, None, "a.example", "srv", None)
HEADER = Injection(Kind.HTTP_HEADER, "X-Api-Key", "a.example", "srv", None)


def wire(
    headers: list[tuple[str, str]], injection: Injection = BEARER, method: str = "GET", body: bytes = b""
) -> WireRequest:
    call = Call("ws", None, "srv", method, "https://a.example:8443/p?q=1", headers, body)
    return apply(injection, b"value-value", prepare(call, parse_url(call.url), 1000))


class TestHeaders:
    """Injected always wins, and nobody else frames the message."""

    @pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
    def test_pitfall_13_every_case_of_the_header_is_replaced(self, name: str) -> None:
        """One Authorization, and it is the injected one."""
        sent = wire([(name, "Bearer mine"), (name, "Basic mine")])
        assert named(sent.headers, "authorization") == ["Bearer value-value"]

    @pytest.mark.parametrize("name", ["x-api-key", "X_Api_Key", "X_API-KEY"])
    def test_pitfall_13_a_spelling_that_servers_fold_is_replaced(self, name: str) -> None:
        """CGI and WSGI read an underscore as a hyphen."""
        sent = wire([(name, "mine")], HEADER)
        assert [pair for pair in sent.headers if pair[1] in ("mine", "value-value")] == [("X-Api-Key", "value-value")]

    @pytest.mark.parametrize(
        "name",
        """Host Content-Length Transfer-Encoding Connection Keep-Alive Proxy-Authorization Proxy-Anything Expect TE
        Trailer Upgrade Range If-Range Accept-Encoding Accept-Charset A-IM Axiorank-Authorization axiorank-agent-id
        HTTP2-Settings X-Nominated""".split(),
    )
    def test_pitfall_22_a_header_that_steers_is_dropped(self, name: str) -> None:
        """Framing, the connection's own, ranges, encodings, and ours never go upstream as the caller sent them."""
        sent = wire([(name, "mine"), ("Connection", "close, X-Nominated")])
        assert "mine" not in named(sent.headers, name)

    def test_our_own_framing(self) -> None:
        """Host, encoding and length are ours, once each."""
        sent = wire([("Host", "evil"), ("Content-Length", "99")], method="POST", body=b"12345")

        framing = {name: named(sent.headers, name) for name in ("host", "accept-encoding", "content-length")}
        assert framing == {"host": ["a.example:8443"], "accept-encoding": ["identity"], "content-length": ["5"]}

    def test_other_headers_pass_in_order(self) -> None:
        """What is the caller's stays: repeated, in order, trimmed."""
        sent = wire([("Accept", "a "), ("Accept", "b"), ("User-Agent", "mine")])
        assert (named(sent.headers, "accept"), named(sent.headers, "user-agent")) == (["a", "b"], ["mine"])

    @pytest.mark.parametrize(
        "pair", [("X Y", "1"), ("X\r\nY", "1"), ("", "1"), ("X:", "1"), ("é", "1")]
        + [("X", text) for text in ("a\r\nb", "a\nb", "a\rb", "a\0b", "a\x7fb", "€")],
    )  # fmt: skip
    def test_pitfall_01_a_header_that_a_client_would_quote_in_its_error(self, pair: tuple[str, str]) -> None:
        """It is refused before a client library sees it, and not quoted."""
        with pytest.raises(Invalid) as refused:
            wire([pair])
        assert set(refused.value.fields) == {"headers"}

    @pytest.mark.parametrize("headers", [[("X", "1")] * 101, [("X", "1" * 70_000)]])
    def test_too_many_or_too_large(self, headers: list[tuple[str, str]]) -> None:
        """The count and the size of the headers are bounded."""
        with pytest.raises(Invalid):
            wire(headers)

    def test_a_body_over_the_limit(self) -> None:
        """The body's size is bounded."""
        with pytest.raises(Invalid) as refused:
            wire([], method="POST", body=bytes(1001))
        assert set(refused.value.fields) == {"body"}


class TestParameters:
    """One parameter of the name, wherever and however the caller wrote it."""

    @pytest.mark.parametrize(
        "query",
        """key=mine k%65y=mine %6B%65%79=mine KEY=mine key key= &&key=mine a=1;key=mine +key=mine key+=mine key[]=mine
        key[0]=mine key%00x=mine key%5B%5D=mine key=mine&key=mine2""".split(),
    )
    def test_pitfall_13_every_variant_is_removed(self, query: str) -> None:
        """By encoding, case, separator, and by the ways in which servers fold names."""
        target = with_parameter(f"/p?b=2&{query}&c=3", "key", b"v&=")

        assert "mine" not in target
        assert target.endswith("&key=v%26%3D")

    def test_dots_and_spaces_are_underscores_to_some(self) -> None:
        """PHP reads ``api.key`` and ``api key`` as ``api_key``."""
        assert with_parameter("/?api.key=1&api+key=2&other=3", "api_key", b"v") == "/?other=3&api_key=v"

    def test_others_stay_byte_for_byte(self) -> None:
        """What is not the parameter is not decoded and encoded again."""
        query = "a=%7e&b=x+y;c=%C3%A4&keys=1&xkey=2&a[key]=3"
        assert with_parameter(f"/p?{query}", "key", b"v") == f"/p?{query}&key=v"

    @pytest.mark.parametrize("target", ["/p", "/p?", "/p?&", "/p?key=1"])
    def test_alone(self, target: str) -> None:
        """The only parameter stands directly behind the question mark."""
        assert with_parameter(target, "key", b"v") == "/p?key=v"

    @given(
        st.lists(st.tuples(st.sampled_from(["key", "KEY", "k", "a"]), st.booleans(), st.text(max_size=4)), max_size=6),
        st.sampled_from("&;"),
        st.binary(min_size=1, max_size=12),
    )
    def test_exactly_one_is_left(self, given_pairs: list[tuple[str, bool, str]], separator: str, value: bytes) -> None:
        """Whatever the query: a parser finds the name once, with the injected value; the others as they were."""
        pieces = [
            ("".join(f"%{ord(c):02x}" for c in name) if escaped else name) + "=" + quote(text, safe="")
            for name, escaped, text in given_pairs
        ]
        query = with_parameter("/?" + separator.join(pieces), "key", value).partition("?")[2]

        found = [
            pair for piece in query.split("&") for pair in parse_qsl(piece, True, separator=";", encoding="latin-1")
        ]
        assert [text for name, text in found if name.lower() == "key"] == [value.decode("latin-1")]
        kept = [unquote_plus(name) for name, _, _ in given_pairs if name.lower() != "key"]
        assert [name for name, _ in found if name != "key"] == kept
