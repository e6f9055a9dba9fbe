"""Sending a notice over a real socket: what arrives, and what becomes of each way in which a receiver behaves."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trustme

from broker_core.adapters import exchange
from broker_core.adapters.clock import SystemClock
from broker_core.adapters.webhook import Webhook
from broker_core.errors import ConfigurationError, Unauthorized
from broker_core.events import Notice, NoticeType
from broker_core.ports import Answer, Delivery
from tests.receiver import DRIPS, HANGS, HUGE, NO_HTTP, SECRET, Receiver, receiving
from tests.waiting import wait_until

NOTICE = Notice(
    UUID("01a20e59-6f3d-7404-afd6-e94a4c5f7a3c"),
    NoticeType.CONNECTION_RECOVERED,
    datetime(2026, 1, 2, 3, 4, 5, 678900, UTC),
    "ws_1",
    {"connectionId": "c-1", "since": "2026-01-01T00:00:00.000000Z"},
)
#: seconds: for what answers, and for what does not
ENOUGH, LITTLE = 10.0, 0.3


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def sent(receiver: Receiver, seconds: float = ENOUGH, **options: Any) -> Delivery:
    return Webhook(receiver.url, SECRET, SystemClock(), **options).send(NOTICE, seconds)


class TestRequest:
    def test_what_arrives(self, receiver: Receiver) -> None:
        """One POST to the whole URL, with the headers of a notice."""
        assert sent(receiver) == Delivery(Answer.TAKEN, status=204)
        (request,) = receiver.requests
        assert request.path == "/hooks?tenant=1"
        signature = request.headers["axiorank-signature"]
        assert request.headers == {
            "host": receiver.url.split("/")[2],
            "accept-encoding": "identity",
            "connection": "close",
            "content-type": "application/json",
            "content-length": str(len(request.body)),
            "user-agent": "axiorank-secrets-broker",
            "axiorank-id": str(NOTICE.id),
            "axiorank-event": "byok.connection_recovered",
            "axiorank-signature": signature,
        }
        assert signature.startswith("t=")

    def test_its_body(self, receiver: Receiver) -> None:
        """The notice as JSON; its id is the header's."""
        sent(receiver)
        (request,) = receiver.requests
        assert request.notice == {
            "id": str(NOTICE.id),
            "type": "byok.connection_recovered",
            "time": "2026-01-02T03:04:05.678900Z",
            "workspaceId": "ws_1",
            "data": {"connectionId": "c-1", "since": "2026-01-01T00:00:00.000000Z"},
        }

    def test_its_signature(self, receiver: Receiver) -> None:
        """It is of these bytes, under the secret, of now."""
        sent(receiver)
        (request,) = receiver.requests
        now = datetime.now(UTC).timestamp()
        request.verify(now)
        with pytest.raises(Unauthorized):
            request.verify(now, "another-secret-of-the-tests")

    def test_the_same_body_each_time(self, receiver: Receiver) -> None:
        """Sent again it is the same notice, byte for byte."""
        sent(receiver)
        sent(receiver)
        assert len({request.body for request in receiver.requests}) == 1

    def test_nothing_of_the_environment(self, receiver: Receiver, monkeypatch: Any, tmp_path: Path) -> None:
        """No proxy and no netrc entry is used."""
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        assert sent(receiver).answer is Answer.TAKEN
        assert "authorization" not in receiver.requests[0].headers


class TestAnswers:
    @pytest.mark.parametrize("status", [200, 202, 204, 299])
    def test_taken(self, receiver: Receiver, status: int) -> None:
        """Any 2xx."""
        receiver.answer = status
        assert sent(receiver) == Delivery(Answer.TAKEN, status=status)

    @pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 410])
    def test_refused(self, receiver: Receiver, status: int) -> None:
        """Whatever else says that this notice is not wanted; a redirect is not followed."""
        receiver.answer = status
        assert sent(receiver) == Delivery(Answer.REFUSED, "status", status)
        assert len(receiver.requests) == 1

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_away(self, receiver: Receiver, status: int) -> None:
        """Whatever says that nothing is taken now."""
        receiver.answer = status
        assert sent(receiver) == Delivery(Answer.AWAY, "status", status)
        assert len(receiver.requests) == 1

    @pytest.mark.parametrize("manners", [HANGS, DRIPS])
    def test_slow(self, receiver: Receiver, manners: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The time is over, whether nothing comes or a little now and then; it was sent once."""

        class OnceItIsSent(Future[int]):
            """Its time begins when the request is there: else it may be over before anything was sent."""

            def result(self, timeout: float | None = None) -> int:
                wait_until(lambda: receiver.requests, what="the request")
                return super().result(timeout)

        monkeypatch.setattr(exchange, "Future", OnceItIsSent)
        receiver.answer = manners
        assert sent(receiver, LITTLE) == Delivery(Answer.AWAY, "timeout")
        assert len(receiver.requests) == 1

    def test_huge(self, receiver: Receiver) -> None:
        """The status is enough; ten gigabytes of answer are not read."""
        receiver.answer = HUGE
        assert sent(receiver) == Delivery(Answer.TAKEN, status=200)

    def test_no_http(self, receiver: Receiver) -> None:
        """What answers something else took nothing."""
        receiver.answer = NO_HTTP
        assert sent(receiver) == Delivery(Answer.AWAY, "unreachable")

    def test_nobody(self) -> None:
        """Neither did a port where nobody listens, nor a name that nobody has."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
            assert Webhook(url, SECRET, SystemClock()).send(NOTICE, ENOUGH) == Delivery(Answer.AWAY, "unreachable")


class TestTls:
    @pytest.fixture
    def authority(self) -> trustme.CA:
        return trustme.CA()

    @pytest.fixture
    def ca_file(self, authority: trustme.CA, tmp_path: Path) -> Path:
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        return tmp_path / "ca.pem"

    @pytest.fixture
    def secure(self, authority: trustme.CA) -> Iterator[Receiver]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        with receiving(context, "localhost") as running:
            yield running

    def test_trusted(self, secure: Receiver, ca_file: Path) -> None:
        """A certificate of a known authority, for this name."""
        assert sent(secure, ca_file=ca_file) == Delivery(Answer.TAKEN, status=204)

    def test_unknown_authority(self, secure: Receiver, ca_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is sent to whoever has another one, whatever SSL_CERT_FILE says."""
        monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
        monkeypatch.setenv("SSL_CERT_DIR", str(ca_file.parent))
        assert sent(secure) == Delivery(Answer.AWAY, "tls")
        assert secure.requests == []

    def test_another_name(self, secure: Receiver, ca_file: Path) -> None:
        """Nor to whoever has one for another name."""
        secure.url = secure.url.replace("localhost", "127.0.0.1")
        assert sent(secure, ca_file=ca_file) == Delivery(Answer.AWAY, "tls")
        assert secure.requests == []


@pytest.mark.parametrize("host", ["example.com", "10.0.0.1", "localhost.example.com", "127.0.0.1.example.com", "[::2]"])
def test_plain_http_stays_here(host: str) -> None:
    """Off loopback there is https only; a name that begins like an address is a name."""
    with pytest.raises(ConfigurationError):
        Webhook(f"http://{host}/", SECRET, SystemClock())


def test_localhost_is_the_literal_address(receiver: Receiver) -> None:
    """The name could come to mean another machine."""
    receiver.url = receiver.url.replace("127.0.0.1", "localhost")
    assert sent(receiver).answer is Answer.TAKEN
    assert receiver.requests[0].headers["host"].startswith("127.0.0.1:")


def test_an_unreadable_authority() -> None:
    """Is a wrong setting."""
    with pytest.raises(ConfigurationError):
        Webhook("https://example.com/", SECRET, SystemClock(), "/nowhere")
