"""The real way out, against a sample upstream that can misbehave."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from typing import Any

import pytest

from broker_core.adapters.clock import SystemClock
from broker_core.adapters.egress import Egress
from broker_core.adapters.upstream import HttpsUpstream
from broker_core.adapters.upstream_line import translated
from broker_core.dev.upstream import RawResponse, Received, Response, SampleUpstream
from broker_core.errors import ConfigurationError, UpstreamError
from broker_core.ports import Destination, Patience, WireRequest
from tests.fakes_inject import named
from tests.fakes_keys import ManualClock

ALLOW = ["127.0.0.0/8"]
SENTINEL = "sentinel-value-5f2e"


def at_home(host: str, port: int, **_: Any) -> Sequence[tuple[Any, ...]]:
    """A resolver by which every name is this machine."""
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


def client(server: SampleUpstream) -> HttpsUpstream:
    return HttpsUpstream(Egress(ALLOW, at_home), SystemClock(), server.ca_file)


def patient(seconds: float = 20.0) -> Patience:
    return Patience(seconds, seconds, seconds)


def ask(
    server: SampleUpstream, path: str = "/x", method: str = "GET", name: str = "upstream.test", seconds: float = 20.0
) -> tuple[int, list[tuple[str, str]], bytes]:
    """One exchange, the whole of it."""
    line = client(server).connect(Destination(name, server.port, server.tls), patient(seconds), "ws")
    try:
        headers = [("Host", name), ("X-Key", SENTINEL)]
        answer = line.send(WireRequest(method, f"{path}?k={SENTINEL}", headers))
        return answer.status, list(answer.headers), b"".join(answer.chunks())
    finally:
        line.close()


def failure(work: Callable[[], object]) -> UpstreamError:
    with pytest.raises(UpstreamError) as raised:
        work()
    return raised.value


def raw(server: SampleUpstream, *chunks: bytes) -> None:
    server.route("/x", lambda _: RawResponse(chunks))


HEAD = b"HTTP/1.1 200 OK\r\n"


class TestTls:
    """The certificate is checked for the name, at the pinned address."""

    def test_pitfall_16_the_name_is_checked_at_the_pinned_address(self, upstream: SampleUpstream) -> None:
        """The address is connected to, the name is asked for and found in the certificate."""
        assert ask(upstream)[0] == 200
        assert upstream.server_names == ["upstream.test"]

    def test_a_literal_address_is_checked_too(self, upstream: SampleUpstream) -> None:
        """A certificate for an address is checked as one."""
        assert ask(upstream, name="127.0.0.1")[0] == 200

    @pytest.mark.parametrize("name", ["other.test", "127.0.0.1"])
    def test_another_name(self, name: str) -> None:
        """A certificate for somebody else, a name or an address, costs nothing but the handshake."""
        with SampleUpstream.start(["upstream.test"]) as server:
            assert failure(lambda: ask(server, name=name)).reason == "upstream_tls"
            assert server.requests == []

    def test_each_connection_checks_again(self, upstream: SampleUpstream) -> None:
        """A success does not relax the shared context for the next name."""
        ask(upstream)
        assert failure(lambda: ask(upstream, name="other.test")).reason == "upstream_tls"

    @pytest.mark.parametrize("certificate", ["self-signed", "expired"])
    def test_pitfall_17_an_untrusted_certificate(self, certificate: Any) -> None:
        """Unknown issuers and expired certificates are refused; no setting changes that."""
        with SampleUpstream.start(certificate=certificate) as server:
            assert failure(lambda: ask(server)).reason == "upstream_tls"
            assert server.requests == []

    def test_tls_1_2_at_least(self) -> None:
        """Older protocols are not offered, and an old one's renegotiation is not answered."""
        context = HttpsUpstream(Egress(), SystemClock())._context
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)

    def test_a_server_without_tls(self) -> None:
        """Plain http where TLS was meant is a TLS error."""
        with SampleUpstream.start(tls=False) as server:
            line = Destination("127.0.0.1", server.port)
            assert failure(lambda: client(server).connect(line, patient(), "ws")).reason == "upstream_tls"

    def test_plain_http_to_an_allowed_loopback(self) -> None:
        """For development, a literal loopback address that the allow list names."""
        with SampleUpstream.start(tls=False) as server:
            assert ask(server, name="127.0.0.1")[0] == 200

    def test_an_unusable_ca_file(self, tmp_path: Any) -> None:
        """It stops the start and names the setting."""
        with pytest.raises(ConfigurationError, match="BROKER_EGRESS_CA_FILE"):
            HttpsUpstream(Egress(), SystemClock(), tmp_path / "missing.pem")


class TestNothingAmbient:
    """Pitfalls 3, 18, 19: no redirects, no proxies, no netrc, no retries."""

    def test_pitfall_03_a_redirect_is_handed_back(self, upstream: SampleUpstream) -> None:
        """Nobody but the named host gets the request."""
        upstream.route("/x", lambda _: Response(302, [("Location", "/elsewhere")]))

        status, headers, _ = ask(upstream)

        assert (status, named(headers, "location"), len(upstream.requests)) == (302, ["/elsewhere"], 1)

    def test_pitfall_18_the_environment_is_not_asked(
        self, upstream: SampleUpstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
    ) -> None:
        """Proxies, netrc and a key log in the environment change nothing."""
        (tmp_path / ".netrc").write_text("machine upstream.test login a password b\n")
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))

        assert ask(upstream)[0] == 200
        assert upstream.requests[0].header("Authorization") is None
        assert not (tmp_path / "keys").exists()

    def test_pitfall_18_whom_we_trust_is_no_matter_of_the_environment(
        self, upstream: SampleUpstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """OpenSSL's own variable would add an authority that no setting names; Python's default context takes it."""
        monkeypatch.setenv("SSL_CERT_FILE", str(upstream.ca_file))
        monkeypatch.setenv("SSL_CERT_DIR", str(upstream.ca_file.parent))
        there, default = ("127.0.0.1", upstream.port), ssl.create_default_context()
        with socket.create_connection(there, 20) as sock, default.wrap_socket(sock, server_hostname="upstream.test"):
            pass

        way = HttpsUpstream(Egress(ALLOW, at_home), SystemClock())
        error = failure(lambda: way.connect(Destination("upstream.test", upstream.port), patient(), "ws"))
        assert error.reason == "upstream_tls"

    def test_pitfall_19_a_reset_is_not_tried_again(self, upstream: SampleUpstream) -> None:
        """One attempt, one connection."""
        assert failure(lambda: ask(upstream, "/reset")).reason == "upstream_unreachable"
        assert (len(upstream.requests), upstream.connections_accepted) == (1, 1)

    def test_only_what_we_gave_is_sent(self, upstream: SampleUpstream) -> None:
        """No header is added on the way."""
        ask(upstream)
        assert [name for name, _ in upstream.requests[0].headers] == ["Host", "X-Key"]

    def test_a_closed_port(self) -> None:
        """Nobody listens: unreachable."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            nobody = Destination("127.0.0.1", taken.getsockname()[1])
            line = HttpsUpstream(Egress(ALLOW), SystemClock())
            assert failure(lambda: line.connect(nobody, patient(), "ws")).reason == "upstream_unreachable"


class TestDeadline:
    """The sum of all waits is bounded."""

    def test_pitfall_26_a_drip_in_the_body_ends(self, upstream: SampleUpstream) -> None:
        """A byte now and then does not keep the line open."""
        upstream.route("/x", lambda _: Response(200, body=_drip()))
        assert failure(lambda: ask(upstream, seconds=0.5)).reason == "upstream_timeout"

    def test_pitfall_26_a_drip_in_the_head_ends(self, upstream: SampleUpstream) -> None:
        """Nor does a header line that never ends."""
        upstream.route("/x", lambda _: RawResponse(chain([HEAD + b"X: "], _drip())))
        assert failure(lambda: ask(upstream, seconds=0.5)).reason == "upstream_timeout"

    def test_no_answer(self, upstream: SampleUpstream) -> None:
        """Silence ends too."""
        assert failure(lambda: ask(upstream, "/hang", seconds=0.3)).reason == "upstream_timeout"

    def test_no_handshake(self) -> None:
        """A server that accepts and never speaks TLS ends too."""
        with _silent() as port:
            upstream = HttpsUpstream(Egress(ALLOW), SystemClock())
            silent = Destination("127.0.0.1", port)
            assert failure(lambda: upstream.connect(silent, patient(0.3), "ws")).reason == "upstream_timeout"

    def test_a_deadline_that_passed_before_sending(self, upstream: SampleUpstream) -> None:
        """The time that the key call took counts: nothing is sent after the end."""
        clock = ManualClock()
        way = HttpsUpstream(Egress(ALLOW, at_home), clock, upstream.ca_file)
        line = way.connect(Destination("upstream.test", upstream.port), patient(20), "ws")
        clock.seconds += 20
        assert failure(lambda: line.send(WireRequest("GET", "/x", [("Host", "a.test")]))).reason == "upstream_timeout"
        line.close()
        assert upstream.requests == []


def _drip() -> Iterator[bytes]:
    pause = threading.Event()
    while True:
        pause.wait(0.05)
        yield b"x"


@contextmanager
def _silent() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


class TestBrokenAnswers:
    """What is no valid answer is an error of ours, by its code."""

    @pytest.mark.parametrize(
        "answer",
        {
            "nothing": b"",
            "no http": b"SSH-2.0-OpenSSH_9.6\r\n",
            "http 0.9": b"<html></html>",
            "another protocol": b"HTTP/2.0 200 OK\r\n\r\n",
            "a switch of protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            "a cut head": HEAD + b"X-Y",
            "a line that is no header": HEAD + b"X: 1\r\nno header\r\nContent-Encoding: gzip\r\n\r\nbody",
            "a folded first line": HEAD + b" folded\r\n\r\nbody",
            "too many headers": HEAD + b"X: 1\r\n" * 101 + b"\r\n",
            "a flood of headers": HEAD + (b"X: " + b"1" * 60_000 + b"\r\n") * 3 + b"\r\n",
            "an endless line": HEAD + b"X: " + b"1" * 70_000,
            "two lengths": HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody!",
            "a length that is none": HEAD + b"Content-Length: -1\r\n\r\nbody",
            "a short body": HEAD + b"Content-Length: 10\r\n\r\nbody",
            "a short chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nff\r\nbody",
            "a bad chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nbody",
            "no last chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n",
            "an endless chunk line": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 70_000,
        }.items(),
        ids=lambda item: item[0],
    )
    def test_is_unreachable(self, upstream: SampleUpstream, answer: tuple[str, bytes]) -> None:
        """It gets out as a code: no text, no context, nothing sent again."""
        raw(upstream, answer[1])

        error = failure(lambda: ask(upstream))

        assert error.reason == "upstream_unreachable"
        assert (error.__context__, error.__cause__, len(upstream.requests)) == (None, None, 1)

    def test_an_unread_transfer_coding_is_withheld(self, upstream: SampleUpstream) -> None:
        """A compressed transfer coding would pass the redaction by."""
        raw(upstream, HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")
        assert failure(lambda: ask(upstream)).reason == "response_withheld"

    def test_a_flood_of_interim_answers_ends(self, upstream: SampleUpstream) -> None:
        """Interim answers count as head."""
        upstream.route("/x", lambda _: RawResponse(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100 for _ in count()))
        assert failure(lambda: ask(upstream)).reason == "upstream_unreachable"


class TestGoodAnswers:
    """What a correct server may send."""

    def test_pitfall_22_interim_answers_are_skipped(self, upstream: SampleUpstream) -> None:
        """100 and 103 are not the answer, and their headers are not its headers."""
        interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        raw(upstream, interim[:30], interim[30:], HEAD + b"Content-Length: 2\r\n\r\nok")

        status, headers, body = ask(upstream)

        assert (status, named(headers, "link"), body) == (200, [], b"ok")

    def test_chunks_with_extensions_and_trailers(self, upstream: SampleUpstream) -> None:
        """Extensions and trailers are no part of the body or the headers."""
        chunks = b"2;a=b\r\nab\r\n3\r\ncde\r\n0\r\nX-Trailer: 1\r\n\r\n"
        raw(upstream, HEAD + b"Transfer-Encoding: Chunked\r\n\r\n" + chunks)

        _, headers, body = ask(upstream)

        assert (body, named(headers, "x-trailer")) == (b"abcde", [])

    def test_a_body_until_the_end(self, upstream: SampleUpstream) -> None:
        """Without a length the body ends with the connection."""
        raw(upstream, HEAD + b"\r\n", b"until", b" the end")
        assert ask(upstream)[2] == b"until the end"

    def test_repeated_and_folded_headers(self, upstream: SampleUpstream) -> None:
        """Repeated headers stay apart; a folded one becomes one line."""
        raw(upstream, HEAD + b"Set-Cookie: a\r\nSet-Cookie: b\r\nX: 1\r\n  2\r\nContent-Length: 0\r\n\r\n")

        _, headers, _ = ask(upstream)

        assert (named(headers, "set-cookie"), named(headers, "x")) == (["a", "b"], ["1 2"])

    @pytest.mark.parametrize(("status", "method"), [(204, "GET"), (304, "GET"), (200, "HEAD")])
    def test_no_body(self, upstream: SampleUpstream, status: int, method: str) -> None:
        """HEAD, 204 and 304 have none, whatever their headers say."""
        raw(upstream, f"HTTP/1.1 {status} X\r\nContent-Length: 5\r\n\r\n".encode())
        assert ask(upstream, method=method)[::2] == (status, b"")

    def test_a_large_body(self, upstream: SampleUpstream) -> None:
        """Megabytes arrive whole."""
        upstream.route("/x", lambda _: Response(200, body=b"0123456789abcdef" * 200_000))
        assert len(ask(upstream)[2]) == 3_200_000

    def test_a_body_arrives_while_it_is_sent(self, upstream: SampleUpstream) -> None:
        """A chunk is given on before the next one is there."""
        second = threading.Event()

        def slowly(_: Received) -> Response:
            return Response(200, body=(part for part in _two(second)))

        upstream.route("/x", slowly)
        line = client(upstream).connect(Destination("upstream.test", upstream.port), patient(), "ws")
        chunks = line.send(WireRequest("GET", "/x", [("Host", "upstream.test")])).chunks()

        assert next(chunks) == b"first"
        second.set()
        assert b"".join(chunks) == b"second"
        line.close()


def _two(second: threading.Event) -> Iterator[bytes]:
    yield b"first"
    second.wait(20)
    yield b"second"


class TestNothingLeaks:
    """Pitfalls 1 and 2."""

    @pytest.mark.parametrize(
        "request_",
        [
            WireRequest("GET", "/x y\r\n" + SENTINEL, []),
            WireRequest("GET", "/x", [("X", SENTINEL + "\r\nY: z")]),
            WireRequest("GET", "/x", [("X", SENTINEL + "€")]),
            WireRequest("GET", "/é" + SENTINEL, []),
        ],
        ids=["target", "header", "not latin-1", "not ascii"],
    )
    def test_pitfall_01_an_exception_of_the_library(self, upstream: SampleUpstream, request_: WireRequest) -> None:
        """The client's exceptions quote what they refuse; ours hold a code, and nothing hangs on them."""
        line = client(upstream).connect(Destination("upstream.test", upstream.port), patient(), "ws")

        error = failure(lambda: line.send(request_))
        line.close()

        assert (error.reason, error.__context__, error.__cause__) == ("upstream_unreachable", None, None)
        assert SENTINEL not in f"{error!r} {error.__dict__}"

    def test_pitfall_02_client_logging_at_debug(
        self, upstream: SampleUpstream, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With every logger at DEBUG, and an answer that urllib3 would warn about, nothing of the request is logged."""
        caplog.set_level(logging.DEBUG)
        raw(upstream, HEAD + b"X: 1\r\nno header\r\n\r\nbody")

        failure(lambda: ask(upstream))
        upstream.clear()
        ask(upstream)

        assert SENTINEL not in caplog.text

    def test_a_translated_error_has_no_context(self) -> None:
        """Not even inside of an exception that is being handled by the library."""

        def deep() -> None:
            try:
                raise ValueError(SENTINEL)
            except ValueError:
                raise OSError(SENTINEL) from None

        error = failure(lambda: translated(deep))
        assert (error.__context__, error.__cause__) == (None, None)
