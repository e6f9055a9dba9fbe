"""The one parser of an upstream's URL."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import urllib3.util
from hypothesis import example, given
from hypothesis import strategies as st

from broker_core.errors import BrokerError, InjectionRefused, Invalid
from broker_core.inject.url import parse_url


class TestParts:
    """What comes out."""

    @pytest.mark.parametrize(
        ("url", "destination", "target", "host"),
        [
            ("https://api.example.com", "api.example.com:443", "/", "api.example.com"),
            ("HTTPS://API.example.COM:8443/a?b=c", "api.example.com:8443", "/a?b=c", "api.example.com:8443"),
            ("https://api.example.com?x", "api.example.com:443", "/?x", "api.example.com"),
            ("https://[2001:DB8::1]/", "[2001:db8::1]:443", "/", "[2001:db8::1]"),
            ("https://bücher.example/%C3%A4;v=1", "xn--bcher-kva.example:443", "/%C3%A4;v=1", "xn--bcher-kva.example"),
            ("http://127.0.0.1:8080/", "127.0.0.1:8080", "/", "127.0.0.1:8080"),
            ("http://[::1]/", "[::1]:80", "/", "[::1]"),
        ],
    )
    def test_destination_target_and_host(self, url: str, destination: str, target: str, host: str) -> None:
        """The normal host and explicit port, the path and query as they are, and the Host header."""
        parsed = parse_url(url)

        assert (str(parsed.destination), parsed.target, parsed.host_header) == (destination, target, host)

    def test_repr_shows_no_query(self) -> None:
        """A query can hold a value."""
        assert "sentinel" not in repr(parse_url("https://a.example/?k=sentinel"))


class TestRefused:
    """What two readers could read in two ways."""

    @pytest.mark.parametrize(
        "url",
        [
            "https://user@a.example/",
            "https://user:pass@a.example/",
            "https://a.example@b.example/",
            "https://a.example\\@b.example/",
            "https://a.example\\b",
            "https://a.example/#fragment",
            "https://a.example/ b",
            "https://a.example/\tb",
            "https://a.example/\r\nX: y",
            "https://a.example/ä",
            "https://a.example:/",
            "https://a.example:0443/",
            "https://a.example:65536/",
            "https://a.example./",
            "https:///path",
            "https:a.example",
            "//a.example/",
            "ftp://a.example/",
            "https://0x7f000001/",
            "https://2130706433/",
            "https://127.1/",
            "https://[127.0.0.1]/",
            "https://[::1%25eth0]/",
            "https://a.example%2f.b.example/",
            "https://１２７.0.0.1/",
            "https://a.example/%zz",
            "https://a.example/" + "a" * 20_000,
            "",
        ],
    )
    def test_pitfall_15_host_confusion(self, url: str) -> None:
        """User info, backslashes, disguised addresses, odd ports, fragments and raw bytes are refused."""
        with pytest.raises(Invalid) as refused:
            parse_url(url)

        assert set(refused.value.fields) == {"url"}

    @pytest.mark.parametrize(
        "path",
        "/a/../b /.. /./a /a/%2e%2e/b /a%2Fb /a%2fb /a%5cb /a%252fb /a/..;/b /%00 /%0d%0a".split(),
    )
    def test_pitfall_23_a_path_with_two_readings(self, path: str) -> None:
        """Dot segments and encoded separators are refused, in every spelling."""
        with pytest.raises(Invalid):
            parse_url("https://a.example" + path)

    @pytest.mark.parametrize("url", ["http://a.example/", "http://10.0.0.1/", "http://localhost/"])
    def test_pitfall_17_plain_http(self, url: str) -> None:
        """Plain http is for literal loopback addresses only; a name can resolve to anything."""
        with pytest.raises(InjectionRefused) as refused:
            parse_url(url)

        assert refused.value.reason == "destination_blocked"


class TestAgreement:
    """Nobody reads another host than we do."""

    @given(
        st.text(alphabet="aA.:/@?#\\[]%2e0x71-_ \t\r\néß１", max_size=24).map("https://".__add__)
        | st.text(max_size=30).map("https://".__add__)
    )
    @example("https://a.example:443/@b.example")
    @example("https://a.example?@b.example/")
    def test_urllib3_and_urlsplit_read_the_same_host(self, url: str) -> None:
        """Whatever text is accepted, the library's parsers find the very host and port that were checked."""
        try:
            parsed = parse_url(url)
        except BrokerError:
            return
        rebuilt = f"https://{parsed.destination}{parsed.target}"
        for text in (rebuilt, url) if url.isascii() else (rebuilt,):
            theirs, split = urllib3.util.parse_url(text), urlsplit(text)
            assert (theirs.host or "").strip("[]").lower() in _spellings(parsed.destination.host, text)
            assert (split.hostname or "").lower() in _spellings(parsed.destination.host, text)
            assert (theirs.port or 443, split.port or 443) == (parsed.destination.port,) * 2


def _spellings(host: str, text: str) -> set[str]:
    """The normal form and, for IPv6, the spelling in the text."""
    written = text.partition("[")[2].partition("]")[0].lower()
    return {host, written} if ":" in host else {host}
