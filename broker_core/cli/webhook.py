"""Commands for those who receive notices: ``broker webhook listen``, a receiver to look at and to learn from.

It does what docs/webhooks.md asks of every receiver: check the signature over the bytes as they came, look at the time,
remember ids, and answer soon. It serves loopback only.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from broker_core.cli.common import as_json, exit_codes, settings
from broker_core.errors import ConfigurationError, Unauthorized, Unavailable
from broker_core.notice_signature import ID_HEADER, SIGNATURE_HEADER, check
from broker_core.signals import Stop

#: bytes of a notice that are read; ids that are remembered
LARGEST_NOTICE, MOST_REMEMBERED = 1024 * 1024, 10_000
#: seconds that a sender may take between two bytes
_PATIENCE = 10.0


class Inbox:
    """Judges what comes, and remembers what came."""

    def __init__(self, secret: str, now: Callable[[], float] = time.time) -> None:
        """``now``: Unix seconds."""
        self._secret = secret
        self._now = now
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, Any]]:
        """The HTTP status to answer with, and what to print. Of what is not verified nothing is shown."""
        try:
            given = {name.lower(): value for name, value in headers.items()}
            check([self._secret], given.get(SIGNATURE_HEADER.lower(), ""), body, self._now())
            notice = _notice(body, given.get(ID_HEADER.lower(), ""))
        except Unauthorized as error:
            return 401, {"verdict": "refused", "reason": error.reason, "bytes": len(body)}
        # a repeat is no attack where the signature is new: it is a notice whose answer was lost. It is answered like
        # the first, or it would come again for days
        return 204, {"verdict": "repeated" if self._knows(notice["id"]) else "verified", "notice": notice}

    def _knows(self, notice_id: str) -> bool:
        with self._lock:
            known = notice_id in self._seen
            self._seen[notice_id] = None
            if len(self._seen) > MOST_REMEMBERED:
                self._seen.popitem(last=False)
            return known


def _notice(body: bytes, header_id: str) -> Mapping[str, Any]:
    """The document. Its id is signed; the header's, which is for logs, is not, and must be the same."""
    try:
        notice = json.loads(body)
    except (ValueError, RecursionError):
        notice = None
    if not isinstance(notice, dict) or not isinstance(notice.get("id"), str) or notice["id"] != header_id:
        raise Unauthorized("the body is no notice with the header's id", code="malformed_notice")
    return notice


class Receiver(ThreadingHTTPServer):
    """The inbox on a port of 127.0.0.1."""

    daemon_threads = True

    def __init__(self, port: int, inbox: Inbox, show: Callable[[Mapping[str, Any]], None]) -> None:
        """Raises OSError where the port is taken."""
        super().__init__(("127.0.0.1", port), _Handler)
        self.inbox = inbox
        self.show = show


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE
    server: Receiver

    def do_POST(self) -> None:
        """Read the body as it came, judge it, answer with a status alone."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST_NOTICE:
            return self._answer(413 if length.isdecimal() else 411)
        body = self.rfile.read(int(length))
        status, shown = self.server.inbox.take(dict(self.headers.items()), body)
        try:
            self.server.show(shown)  # before the answer: one sender's notices are shown in their order
        finally:
            self._answer(status)
        return None

    def _answer(self, status: int) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Nothing: what is to be seen is printed."""


@click.group()
def webhook() -> None:
    """The notices that go to the platform."""


@webhook.command()
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    help="Where to listen on 127.0.0.1; without it, where BROKER_WEBHOOK_URL leads.",
)
@click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file that holds the shared secret; without it, BROKER_WEBHOOK_SECRET is used.",
)
def listen(port: int | None, secret_file: Path | None) -> None:
    """Receive notices on loopback until ^C: print each as one JSON object, and whether it is verified.

    Verdicts: verified, repeated (verified, and its id came before), refused (with the reason; answered with 401). With
    the settings that `broker dev --env-file FILE` wrote, it receives the local stack's.
    """
    with exit_codes():
        port, secret = _place(port, secret_file)
        lock = threading.Lock()

        def show(document: Mapping[str, Any]) -> None:
            with lock:
                click.echo(as_json(document))

        try:
            receiver = Receiver(port, Inbox(secret), show)
        except OSError:
            raise Unavailable(f"port {port} of 127.0.0.1 cannot be listened on: is something there?") from None
        _serve(receiver)


def _serve(receiver: Receiver) -> None:
    with Stop(signal.SIGINT, signal.SIGTERM) as stop:
        threading.Thread(target=receiver.serve_forever, name="webhook", daemon=True).start()
        click.echo(f"listening on http://127.0.0.1:{receiver.server_port}/ until ^C", err=True)
        stop.wait()
        receiver.shutdown()
        receiver.server_close()


def _place(port: int | None, secret_file: Path | None) -> tuple[int, str]:
    """Port and secret, from the options or the settings. Raises ConfigurationError."""
    if port is not None and secret_file is not None:
        return port, _secret_in(secret_file)
    ours = settings()
    if ours.webhook_url is None or ours.webhook_secret is None:
        raise ConfigurationError(
            "BROKER_WEBHOOK_URL and BROKER_WEBHOOK_SECRET are not set: load the file that `broker dev --env-file FILE`"
            " wrote, or give --port and --secret-file"
        )
    parts = urlsplit(ours.webhook_url)
    if port is None and (parts.scheme != "http" or parts.port is None):
        raise ConfigurationError("BROKER_WEBHOOK_URL leads elsewhere: give --port")
    return port or parts.port or 0, _secret_in(secret_file) if secret_file else ours.webhook_secret


def _secret_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, ValueError):
        raise ConfigurationError("--secret-file cannot be read as text") from None
