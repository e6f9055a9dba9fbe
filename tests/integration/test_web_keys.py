"""The platform's keys over HTTP: what is fetched, and what is not put up with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from structlog.testing import capture_logs

from broker_core.adapters.clock import SystemClock
from broker_core.api import jwks
from broker_core.api.jwks import Jwks
from broker_core.dev.upstream import Response, SampleUpstream
from broker_core.errors import Unavailable
from tests.tokens import Platform
from tests.waiting import wait_until

PLATFORM = Platform()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, KeyServer)
        server.asked.append((self.path, dict(self.headers)))
        if self.path == "/moved":
            self._answer(302, b"", Location=f"{server.url}/jwks")
        elif self.path == "/drip":
            self._answer(200, b"", **{"Content-Length": "1000"})
            self._drip(server.over)
        elif self.path == "/late":
            server.over.wait(0.2)
            self._answer(200, PLATFORM.jwks())
        elif self.path == "/no-http":
            self.wfile.write(b"no HTTP at all\r\n\r\n")
        elif self.path == "/drip-in-the-head":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            self._drip(server.over)
        else:
            content = {"/jwks": PLATFORM.jwks(), "/large": PLATFORM.jwks() + b" " * jwks.LARGEST_SET}
            self._answer(200 if self.path in content else 500, content.get(self.path, b"{}"))

    def _drip(self, over: threading.Event) -> None:
        try:
            while not over.wait(0.05):
                self.wfile.write(b" ")
        except OSError:
            assert isinstance(self.server, KeyServer)
            self.server.left.set()

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class KeyServer(ThreadingHTTPServer):
    """The platform, on loopback."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.over, self.left = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with KeyServer() as opened:
        thread = threading.Thread(target=opened.serve_forever, args=(0.01,))
        thread.start()
        yield opened
        opened.over.set()
        opened.shutdown()
        thread.join()


def keys_of(url: str) -> Jwks:
    return jwks.from_setting(url, SystemClock())


def refused(url: str) -> str:
    """The class of what went wrong, as it is logged."""
    with capture_logs() as logs, pytest.raises(Unavailable):
        keys_of(url).check()
    (line,) = logs
    return str(line["reason"])


class TestFetching:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_a_set(self, server: KeyServer, host: str) -> None:
        """A set is fetched from its URL; plain http goes to a literal loopback address."""
        keys = keys_of(server.url.replace("127.0.0.1", host) + "/jwks")
        assert keys.find(PLATFORM.key_id, "EdDSA")
        assert [(path, headers["Host"].partition(":")[0]) for path, headers in server.asked] == [("/jwks", "127.0.0.1")]

    def test_redirects(self, server: KeyServer) -> None:
        """A redirect is not followed."""
        assert refused(f"{server.url}/moved") == "ValueError"
        assert [path for path, _ in server.asked] == ["/moved"]

    @pytest.mark.parametrize("path", ["/large", "/broken"])
    def test_no_sets(self, server: KeyServer, path: str) -> None:
        """A set that is too large, and any other status, are refused."""
        assert refused(server.url + path) == "ValueError"

    def test_proxies(self, server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy from the environment is not used."""
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        assert keys_of(f"{server.url}/jwks").find(PLATFORM.key_id, "EdDSA")

    @pytest.mark.parametrize("path", ["/drip", "/drip-in-the-head"])
    def test_slow_sets(self, server: KeyServer, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
        """An answer that comes byte by byte is given up when its time is over, and its connection ends."""
        monkeypatch.setattr(jwks, "FETCH_SECONDS", 0.2)
        assert refused(server.url + path) == "TimeoutError"
        wait_until(server.left.is_set)

    def test_an_answer_may_take_longer_than_connecting(
        self, server: KeyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its time is its own."""
        monkeypatch.setattr(jwks, "CONNECT_SECONDS", 0.05)
        monkeypatch.setattr(jwks, "WAIT_SECONDS", 30.0)
        monkeypatch.setattr(jwks, "FETCH_SECONDS", 30.0)
        assert keys_of(f"{server.url}/late").find(PLATFORM.key_id, "EdDSA")

    def test_a_target_is_encoded(self, server: KeyServer) -> None:
        """As a browser does it."""
        assert refused(f"{server.url}/ä b?ß") == "ValueError"
        assert [path for path, _ in server.asked] == ["/%C3%A4%20b?%C3%9F"]

    def test_no_http(self, server: KeyServer) -> None:
        """What answers something else has no keys."""
        assert refused(f"{server.url}/no-http") == "ProtocolError"

    def test_nobody_there(self) -> None:
        """Where nobody listens the keys are unavailable."""
        assert refused("http://127.0.0.1:1/jwks") == "NewConnectionError"

    @pytest.mark.parametrize("variable", ["nothing", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
    def test_certificates(self, upstream: SampleUpstream, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
        """A server whose certificate nobody vouches for is not believed, whatever the environment says."""
        monkeypatch.setenv(variable, str(upstream.ca_file))
        assert refused(f"{upstream.url}/jwks") == "SSLCertVerificationError"

    def test_more_certificates(self, upstream: SampleUpstream) -> None:
        """The CAs of the setting are trusted, as they are for upstreams."""
        upstream.route("/jwks", lambda _: Response(200, body=PLATFORM.jwks()))
        keys = jwks.from_setting(f"{upstream.url}/jwks", SystemClock(), str(upstream.ca_file))
        assert keys.find(PLATFORM.key_id, "EdDSA")
