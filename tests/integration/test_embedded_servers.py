"""The embedded PostgreSQL and Valkeys: what they keep, that they come back, and that they never outlive us."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest
import redis

from broker_core.dev import children, places
from broker_core.dev.postgres import Postgres
from broker_core.dev.valkey import Valkey
from tests.databases import plain
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    """A cluster of this module's own, to restart and kill."""
    with Postgres.start() as server:
        yield server


def _ask(url: str, statement: str) -> object:
    with psycopg.connect(plain(url), autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
        assert row is not None
        return row[0]


def _do(url: str, statement: str) -> None:
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute(statement.encode())


def _client(server: Valkey) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it is just going; or there is no /proc
        return False
    # a zombie is gone, too, where nobody reaps orphans (a container without an init)
    return state.rpartition(")")[2].split()[0] == "Z"


def _missing(path: Path) -> bool:
    return not path.exists()


class TestPostgres:
    def test_it_is_version_18(self, cluster: Postgres) -> None:
        """The embedded server is PostgreSQL 18."""
        assert str(_ask(cluster.url, "SHOW server_version")).startswith("18.")

    def test_it_has_no_tcp_port(self, cluster: Postgres) -> None:
        """It listens on a Unix socket only."""
        assert _ask(cluster.url, "SHOW listen_addresses") == ""

    def test_only_the_owner_reaches_it(self, cluster: Postgres) -> None:
        """There is no password, so the directory of the socket lets nobody else in."""
        assert stat.S_IMODE(cluster.directory.stat().st_mode) == 0o700

    def test_committed_rows_survive_kill_and_restart(self, cluster: Postgres) -> None:
        """After kill -9 and a restart, under the same URL, what was committed is there."""
        url = cluster.create_database("survivor")
        _do(url, "CREATE TABLE kept AS SELECT 7 AS n")
        cluster.kill()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(plain(url))
        cluster.restart()
        assert _ask(url, "SELECT n FROM kept") == 7

    def test_a_restart_cuts_connections(self, cluster: Postgres) -> None:
        """An open connection does not hold up a restart; it is cut."""
        with psycopg.connect(plain(cluster.url)) as connection:
            cluster.restart()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")

    def test_a_copy_of_a_template_has_its_tables(self, cluster: Postgres) -> None:
        """A database made from a template begins with its tables and rows."""
        _do(cluster.create_database("template_a"), "CREATE TABLE kept AS SELECT 7 AS n")
        assert _ask(cluster.create_database("copy_a", "template_a"), "SELECT n FROM kept") == 7

    def test_a_checkpoint_reaches_the_files(self, cluster: Postgres) -> None:
        """After a checkpoint a row's text is found in the data files: tests may search them."""
        url = cluster.create_database("searched")
        _do(url, "CREATE TABLE kept AS SELECT 'needle-' || 4711 AS text")
        cluster.checkpoint()
        files = [path for path in (cluster.data_directory / "base").rglob("*") if path.is_file()]
        assert any(b"needle-4711" in path.read_bytes() for path in files)

    def test_a_dropped_database_is_gone(self, cluster: Postgres) -> None:
        """Dropping throws out whoever is connected, and may be repeated."""
        with psycopg.connect(plain(cluster.create_database("short_lived"))):
            cluster.drop_database("short_lived")
        cluster.drop_database("short_lived")
        assert _ask(cluster.url, "SELECT count(*) FROM pg_database WHERE datname = 'short_lived'") == 0

    def test_failing_statements_are_not_printed(self, cluster: Postgres) -> None:
        """The server's messages hold no statement and no parameter of a failed query."""
        with psycopg.connect(plain(cluster.url)) as connection, pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1 / %s, 'statement-4711'", (0,))
        wait_until(lambda: "division by zero" in cluster.output)
        assert "statement-4711" not in cluster.output

    def test_a_named_directory_is_kept(self) -> None:
        """A cluster in a directory of the caller's is there again at the next start, also under a long path."""
        directory = places.fresh("kept") / ("long " * 12).strip()
        directory.parent.chmod(0o711)
        try:
            with Postgres.start(directory) as first:
                _do(first.url, "CREATE TABLE kept AS SELECT 7 AS n")
            with Postgres.start(directory) as second:
                assert _ask(second.url, "SELECT n FROM kept") == 7
        finally:
            places.remove(directory.parent)

    def test_root_may_not_use_the_checkout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As root, a directory below the checkout is refused."""
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        with pytest.raises(ValueError, match="as root"):
            Postgres.start(Path.cwd() / "data")


class TestValkey:
    def test_the_queue_survives_kill(self) -> None:
        """The queue's kind has every acknowledged write after kill -9, under the same URL."""
        with Valkey.start(persistent=True, appendfsync="always") as server, _client(server) as client:
            client.set("kept", "7")
            server.kill()
            server.restart()
            assert client.get("kept") == b"7"

    def test_the_claims_are_gone_after_a_restart(self) -> None:
        """The claims' kind has nothing after an orderly restart."""
        with Valkey.start(persistent=False) as server, _client(server) as client:
            client.set("gone", "7")
            server.restart()
            assert client.get("gone") is None

    def test_the_claims_directory_stays_empty(self) -> None:
        """Through writes, a restart, a kill and a stop the claims' kind writes no file."""
        directory = places.fresh("empty")
        with Valkey.start(persistent=False, directory=directory) as server, _client(server) as client:
            client.set("gone", "7")
            server.restart()
            client.set("gone", "7")
            server.kill()
            server.restart()
        assert list(directory.iterdir()) == []
        directory.rmdir()

    @pytest.mark.parametrize("command", ["SAVE", "BGSAVE", "BGREWRITEAOF", "PSYNC ? -1", "REPLICAOF 127.0.0.1 1"])
    def test_the_claims_have_no_command_that_copies(self, claims_valkey: str, command: str) -> None:
        """No command makes the claims' kind write a file or feed a replica."""
        with redis.Redis.from_url(claims_valkey) as client, pytest.raises(redis.ResponseError, match="unknown command"):
            client.execute_command(*command.split())

    def test_the_claims_say_that_nothing_persists(self, claims_valkey: str) -> None:
        """Asked, the claims' kind answers as start-up wants to hear it."""
        with redis.Redis.from_url(claims_valkey) as client:
            asked = client.config_get("save", "appendonly", "maxmemory-policy")
        assert asked == {"save": "", "appendonly": "no", "maxmemory-policy": "noeviction"}

    def test_the_queue_says_that_it_persists(self, queue_valkey: str) -> None:
        """Asked, the queue's kind answers that it has an append-only file and evicts nothing."""
        with redis.Redis.from_url(queue_valkey) as client:
            asked = client.config_get("appendonly", "maxmemory-policy")
        assert asked == {"appendonly": "yes", "maxmemory-policy": "noeviction"}

    def test_it_serves_loopback_only(self, queue_valkey: str) -> None:
        """It is bound to 127.0.0.1, in protected mode."""
        with redis.Redis.from_url(queue_valkey) as client:
            assert client.config_get("bind", "protected-mode") == {"bind": "127.0.0.1", "protected-mode": "yes"}

    def test_a_directory_may_have_spaces_and_quotes(self) -> None:
        """A path with a space, a quote and a backslash is used as it is."""
        directory = places.fresh("odd") / 'a "b\\ c'
        with Valkey.start(persistent=True, directory=directory):
            assert (directory / "appendonlydir").is_dir()
        places.remove(directory.parent)

    def test_a_taken_port_is_not_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If somebody has the port, another is tried, and the other's server is never taken for ours."""
        with Valkey.start(persistent=False) as first:
            ports = iter([first.port, first.port + 1, first.port + 2])
            monkeypatch.setattr("broker_core.dev.valkey.secrets.choice", lambda _: next(ports))
            with Valkey.start(persistent=False) as second:
                assert second.port != first.port


_LIVE_AND_REPORT = """
import sys
from broker_core.dev.postgres import Postgres
from broker_core.dev.valkey import Valkey
servers = [Postgres.start(), Valkey.start(persistent=True), Valkey.start(persistent=False)]
for server in servers:
    print(server.pid, server.directory)
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_server_outlives_us(how: signal.Signals) -> None:
    """However the process that started them dies, its servers end and their temporary directories go."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LIVE_AND_REPORT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        process.send_signal(how)
        process.wait(60)
    assert lines.pop() == "up\n"
    for line in lines:
        pid, _, directory = line.strip().partition(" ")
        wait_until(partial(_gone, int(pid)), what=f"the end of the server in {directory}")
        wait_until(partial(_missing, Path(directory)), what=f"the end of {directory}")


def test_a_fork_does_not_keep_a_server() -> None:
    """A forked process that outlives us does not hold the pipe that keeps the server running."""
    script = """
import os, sys
from broker_core.dev.valkey import Valkey
server = Valkey.start(persistent=False)
if os.fork() == 0:
    os.read(0, 1)  # lives until the test closes this pipe
    os._exit(0)
print(server.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        wait_until(lambda: _gone(pid), what="the end of the server")


def test_what_a_killed_server_leaves_behind_is_ended() -> None:
    """A process that the server started, and that survives it, ends when the server is stopped."""
    script = "sleep 1000 & echo left $! ; wait"
    child = children.Child(["/bin/sh", "-c", script], ready=b"left", last_signal="KILL")
    child.wait_ready()
    left = int(child.output.split()[1])
    with pytest.raises(children.StopFailed):
        child.end("KILL", seconds=0)
    child.stop("KILL", seconds=0)
    wait_until(lambda: _gone(left))


def test_a_server_that_cannot_start_says_why() -> None:
    """StartFailed carries what the server printed."""
    child = children.Child(["/bin/sh", "-c", "echo no luck; exit 1"], ready=b"never", last_signal="KILL")
    with pytest.raises(children.StartFailed, match="no luck"):
        child.wait_ready()


class TestCleanDatabase:
    def test_it_has_the_tables_and_no_rows(self, clean_database: str) -> None:
        """A test gets every table of the schema, empty."""
        assert _ask(clean_database, "SELECT count(*) FROM workspaces") == 0

    def test_emptying_removes_rows(self, clean_database: str, empty: Callable[[], None]) -> None:
        """What a test leaves is gone before the next one."""
        _do(clean_database, "CREATE TABLE left_over AS SELECT 7 AS n")
        empty()
        left = _ask(clean_database, "SELECT count(*) FROM left_over")
        _do(clean_database, "DROP TABLE left_over")
        assert left == 0
