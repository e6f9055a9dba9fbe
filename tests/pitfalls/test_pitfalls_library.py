"""Pitfalls 1, 2, 21, 24, 25 and 28: what libraries do with a value, what is kept of it, and what is written first."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from broker_core.dev.upstream import Received, Response, SampleUpstream
from broker_core.dev.upstream_hostile import BREAKING
from broker_core.errors import AuditUnavailable, BrokerError, Denied, Invalid
from tests.databases import plain
from tests.live import AGENT, Live
from tests.pitfalls.agent import NAME, Agent, everything_of
from tests.sentinel import Search

ROOT = Path(__file__).parents[2]
QUERY = {"injectionKind": "query", "bindingKey": "key"}
#: answers that quote the value where a client library's exception quotes the answer
QUOTED = ["no-http", "status-of-letters", "header-without-colon", "length-too-long", "chunk-size-of-letters"]


class TestExceptions:
    @pytest.mark.parametrize("name", [*sorted(BREAKING.keys() - {"endless", "interim-endless", "trailers-endless"})])
    @pytest.mark.parametrize("injection", [{}, QUERY], ids=["bearer", "query"])
    def test_pitfall_01_no_exception_holds_it(self, live: Live, name: str, injection: dict[str, str]) -> None:
        """Whatever the client library raises over an answer, ours holds no form of the value, nor does its context."""
        agent = Agent(live)
        agent.keep(**injection)
        assert agent.leaks([name]) == {}

    @pytest.mark.parametrize("name", QUOTED)
    def test_pitfall_01_nothing_hangs_on_ours(self, agent: Agent, name: str) -> None:
        """The library's exception is let go before ours is raised."""
        with pytest.raises(BrokerError) as raised:
            agent.live.send(NAME, f"/hostile/{name}")
        assert (raised.value.__cause__, raised.value.__context__) == (None, None)

    @pytest.mark.parametrize(
        "header", [("X", "guess\r\nY: z"), ("X", "guess\0"), ("X y", "guess"), ("X", "guess€"), ("X:", "")]
    )
    def test_pitfall_01_a_header_that_a_library_would_quote(self, agent: Agent, header: tuple[str, str]) -> None:
        """A caller's header that cannot be sent is refused by us, unquoted, before a library sees it."""
        with pytest.raises(Invalid) as raised:
            agent.live.send(NAME, headers=[header])
        assert b"guess" not in everything_of(raised.value)


class TestLogs:
    @pytest.mark.parametrize("path", ["/echo", "/hostile/header-without-colon"])
    def test_pitfall_02_nothing_at_debug(self, live: Live, path: str) -> None:
        """A process in which every logger is at DEBUG prints no form of a value that it decrypts and puts on a URL."""
        agent = Agent(live)
        live.connect(live.customer())
        agent.keep(**QUERY)
        arguments = ["--workspace", live.workspace, "--agent", AGENT, f"https://{live.target}{path}"]
        ended = subprocess.run(
            [sys.executable, "-m", "broker_core.cli", "inject", *arguments],
            env={**live.environment, "PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT / 'tests/every_logger'}:{ROOT}"},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert b"[botocore speaks at DEBUG]" in ended.stderr
        assert b"[urllib3 speaks at DEBUG]" in ended.stderr
        assert len(live.upstream.requests) == 1
        assert Search([agent.value])("the output", ended.stdout + ended.stderr) == []


class TestNothingKept:
    def test_pitfall_21_a_revocation_holds_for_the_next_use(self, live: Live) -> None:
        """After a use that worked, the first one after the revocation is refused: nothing was kept."""
        customer = live.customer()
        live.connect(customer)
        live.store(NAME)
        assert live.send(NAME).status == 200
        customer.disable_key()
        with pytest.raises(Denied):
            live.send(NAME)
        assert len(live.upstream.requests) == 1

    def test_pitfall_21_a_rotation_holds_for_the_next_use(self, agent: Agent) -> None:
        """The use after a rotation sends the new value."""
        agent.live.send(NAME)
        agent.live.store(NAME, "secret.rotated", 2, "the-second-value", bare=True)
        agent.live.send(NAME)
        assert agent.live.upstream.requests[-1].header("Authorization") == "Bearer the-second-value"


@contextmanager
def no_audit_log(live: Live) -> Iterator[None]:
    """The table is away, as after a bad migration."""
    with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"]), autocommit=True) as connection:
        connection.execute("ALTER TABLE audit_log RENAME TO audit_log_away")
        try:
            yield
        finally:
            connection.execute("ALTER TABLE audit_log_away RENAME TO audit_log")


class TestAudit:
    def test_pitfall_24_no_audit_no_release(self, live: Live) -> None:
        """Where the intent cannot be written, no role is assumed, no key asked and nothing sent."""
        live.connect(live.customer())
        live.store(NAME)
        live.aws.trail.clear()
        with no_audit_log(live), pytest.raises(AuditUnavailable):
            live.send(NAME)
        assert (live.aws.trail.calls, live.upstream.requests) == ((), [])

    def test_pitfall_24_the_intent_comes_first(self, live: Live) -> None:
        """While the request is out, its row is committed, and open."""
        open_rows: list[int] = []

        def look(_: Received) -> Response:
            with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"])) as connection:
                row = connection.execute("SELECT count(*) FROM audit_log WHERE outcome IS NULL").fetchone()
            open_rows.append(row[0] if row else 0)
            return Response()

        live.store(NAME)
        live.upstream.route("/look", look)
        live.send(NAME, "/look")
        assert open_rows == [1]


class TestConnections:
    def test_pitfall_25_never_across_workspaces(self, live: Live) -> None:
        """A connection that one workspace's request used is not used for another's."""
        live.store(NAME)
        live.send(NAME)
        live.workspace = f"{live.workspace}_2"
        live.app.store.put_workspace(live.workspace, "enterprise")
        live.store(NAME)
        live.send(NAME)
        assert live.upstream.connections_accepted == 2


class TestTheSampleUpstream:
    def test_pitfall_28_answers_leave_in_one_piece(self, upstream: SampleUpstream) -> None:
        """Head and body of a short answer are one write, without Nagle's delay: no false 44 ms on keep-alive."""
        context = ssl.create_default_context(cafile=str(upstream.ca_file))
        with closing(http.client.HTTPSConnection("localhost", upstream.port, timeout=10, context=context)) as client:
            client.request("GET", "/echo")
            head, _, body = client.sock.recv(65_536).partition(b"\r\n\r\n")
            assert (head[:15], json.loads(body)["path"]) == (b"HTTP/1.1 200 OK", "/echo")
            (served,) = (each for each in list(upstream._server._open) if _peer(each) == client.sock.getsockname())
            assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def _peer(connection: socket.socket) -> object:
    """Whom it leads to; nobody, where it is just being closed."""
    with suppress(OSError):
        return connection.getpeername()
    return None
