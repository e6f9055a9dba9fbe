"""``broker webhook listen``: what it prints, and how it answers."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import urllib3
from click.testing import CliRunner

from broker_core.adapters.clock import SystemClock
from broker_core.adapters.webhook import Webhook
from broker_core.cli import main
from broker_core.cli.webhook import LARGEST_NOTICE, MOST_REMEMBERED, Inbox
from broker_core.dev.children import Child
from broker_core.dev.places import free_port
from broker_core.dev.stack import webhook_environment
from broker_core.events import Notice, NoticeType
from broker_core.notice_signature import signature
from broker_core.ports import Answer
from tests.waiting import wait_until

SECRET = "a-secret-for-listening"
NOW = 1_767_225_600.0


def notice(**changes: Any) -> Notice:
    """One notice."""
    now = SystemClock().now()
    fields: dict[str, Any] = {
        "id": uuid4(),
        "type": NoticeType.CONNECTION_RECOVERED,
        "time": now,
        "workspace_id": "ws_1",
    }
    return Notice(**(fields | {"data": {"connectionId": "c-1"}} | changes))


class TestInbox:
    def headers(self, body: bytes, seconds: float = NOW, notice_id: str = "1") -> Mapping[str, str]:
        """As a notice brings them."""
        return {"axiorank-ID": notice_id, "AXIORANK-signature": signature([SECRET], int(seconds), body)}

    @pytest.fixture
    def inbox(self) -> Inbox:
        return Inbox(SECRET, lambda: NOW)

    def test_verified(self, inbox: Inbox) -> None:
        """What is signed is shown as it is."""
        body = b'{"id": "1", "type": "x"}'
        assert inbox.take(self.headers(body), body) == (204, {"verdict": "verified", "notice": json.loads(body)})

    def test_repeated(self, inbox: Inbox) -> None:
        """An id that came before is answered like the first: it is a notice whose answer was lost, or a replay."""
        body = b'{"id": "1"}'
        verdicts = [inbox.take(self.headers(body, NOW + seconds), body) for seconds in (0, 0, 100)]
        assert [(status, shown["verdict"]) for status, shown in verdicts] == [
            (204, "verified"),
            (204, "repeated"),
            (204, "repeated"),
        ]

    def test_memory_is_bounded(self, inbox: Inbox) -> None:
        """The oldest ids are forgotten first."""
        bodies = [f'{{"id": "{number}"}}'.encode() for number in range(MOST_REMEMBERED + 1)]
        for number, body in enumerate([*bodies, bodies[1], bodies[0]]):
            notice_id = json.loads(body)["id"]
            _, shown = inbox.take(self.headers(body, notice_id=notice_id), body)
            assert shown["verdict"] == ("repeated" if number == len(bodies) else "verified")

    @pytest.mark.parametrize(
        ("body", "changes", "reason"),
        [
            (b'{"id": "1"}', {"AXIORANK-signature": "t=1,v1=" + "0" * 64}, "bad_signature"),
            (b'{"id": "1"}', {"AXIORANK-signature": ""}, "malformed_signature"),
            (b'{"id": "2"}', {}, "malformed_notice"),
            (b"[]", {}, "malformed_notice"),
            (b"no json", {}, "malformed_notice"),
        ],
    )
    def test_refused(self, inbox: Inbox, body: bytes, changes: dict[str, str], reason: str) -> None:
        """Of what is not verified only the size is shown, and no id is remembered."""
        shown = {"verdict": "refused", "reason": reason, "bytes": len(body)}
        assert inbox.take({**self.headers(body), **changes}, body) == (401, shown)
        good = b'{"id": "1"}'
        assert inbox.take(self.headers(good), good)[1]["verdict"] == "verified"

    def test_too_old(self, inbox: Inbox) -> None:
        """What was captured is refused five minutes later."""
        body = b'{"id": "1"}'
        status, shown = inbox.take(self.headers(body, NOW - 301), body)
        assert (status, shown["reason"]) == (401, "too_old")


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[Child, str]]:
    """The command, running, and its URL."""
    (tmp_path / "secret").write_text(SECRET + "\n")
    port = free_port()
    options = ["--port", str(port), "--secret-file", str(tmp_path / "secret")]
    child = Child(
        [sys.executable, "-P", "-m", "broker_core.cli", "webhook", "listen", *options],
        ready=b"listening on",
        last_signal="TERM",
    )
    try:
        child.wait_ready(60)
        yield child, f"http://127.0.0.1:{port}/"
    finally:
        child.stop("TERM")


def printed(child: Child) -> list[dict[str, Any]]:
    """The JSON objects that it printed."""
    text = child.output.partition("until ^C\n")[2]
    return [json.loads(part) for part in re.findall(r"^\{\n.*?^\}$", text, re.S | re.M)]


class TestCommand:
    def test_it_receives_what_we_send(self, listening: tuple[Child, str]) -> None:
        """Verified, repeated and refused, each as one object."""
        child, url = listening
        one = notice()
        right, wrong = (Webhook(url, secret, SystemClock()) for secret in (SECRET, "another-secret-of-tests"))
        answers = [way.send(one, 30) for way in (right, right, wrong)]
        assert [(each.answer, each.status) for each in answers] == [
            (Answer.TAKEN, 204),
            (Answer.TAKEN, 204),
            (Answer.REFUSED, 401),
        ]
        found = wait_until(lambda: len(printed(child)) == 3 and printed(child), what="three objects")
        assert found == [
            {"verdict": "verified", "notice": json.loads(one.body())},
            {"verdict": "repeated", "notice": json.loads(one.body())},
            {"verdict": "refused", "reason": "bad_signature", "bytes": len(one.body())},
        ]

    def test_too_large(self, listening: tuple[Child, str]) -> None:
        """Is not read."""
        _, url = listening
        with urllib3.PoolManager(retries=False) as pool:
            sizes = {"Content-Length": str(LARGEST_NOTICE + 1)}
            assert pool.request("POST", url, headers=sizes, body=b"").status == 413
            assert pool.request("GET", url).status == 501

    def test_its_end(self, listening: tuple[Child, str]) -> None:
        """SIGTERM ends it."""
        child, _ = listening
        child.end("TERM")
        assert not child.alive

    def test_a_taken_port(self, listening: tuple[Child, str], tmp_path: Path) -> None:
        """Exit code 69."""
        port = listening[1].split(":")[2].strip("/")
        result = CliRunner().invoke(
            main, ["webhook", "listen", "--port", port, "--secret-file", str(tmp_path / "secret")]
        )
        assert (result.exit_code, "cannot be listened on" in result.stderr) == (69, True)

    def test_without_a_secret(self, environment: dict[str, str]) -> None:
        """Exit code 78, and how to get one."""
        result = CliRunner().invoke(main, ["webhook", "listen"], env=environment)
        assert (result.exit_code, "--env-file" in result.stderr) == (78, True)

    def test_an_endpoint_elsewhere(self, environment: dict[str, str]) -> None:
        """The port must be said."""
        elsewhere = {"BROKER_WEBHOOK_URL": "https://hooks.example.com/", "BROKER_WEBHOOK_SECRET": SECRET}
        result = CliRunner().invoke(main, ["webhook", "listen"], env=environment | elsewhere)
        assert (result.exit_code, "give --port" in result.stderr) == (78, True)

    def test_the_local_stacks(self, environment: dict[str, str]) -> None:
        """With its settings nothing needs to be said."""
        child = Child(
            [sys.executable, "-P", "-m", "broker_core.cli", "webhook", "listen"],
            ready=b"listening on",
            last_signal="TERM",
            environment={**environment, **(ours := webhook_environment())},
        )
        try:
            child.wait_ready(60)
            sending = Webhook(ours["BROKER_WEBHOOK_URL"], ours["BROKER_WEBHOOK_SECRET"], SystemClock())
            assert sending.send(notice(), 30).answer is Answer.TAKEN
        finally:
            child.stop("TERM")


def test_the_clock_is_the_machines() -> None:
    """The command compares Unix time."""
    body = b'{"id": "1"}'
    headers = {"Axiorank-Id": "1", "Axiorank-Signature": signature([SECRET], int(time.time()), body)}
    assert Inbox(SECRET).take(headers, body)[0] == 204
