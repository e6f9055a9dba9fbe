"""``broker web`` as a process: what it needs, how it serves, how it ends; and ``broker token``."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import httpx
import pytest
from click.testing import CliRunner, Result

from broker_core.api import server
from broker_core.cli import main
from broker_core.dev import places
from broker_core.dev.aws import AwsDouble
from broker_core.dev.children import Child
from broker_core.dev.tokens import LocalTokens, mint
from broker_core.dev.upstream import SampleUpstream
from broker_core.dev.valkey import Valkey
from broker_core.settings import Settings
from tests.live import settings_for
from tests.waiting import wait_until


@pytest.fixture
def tokens() -> Iterator[LocalTokens]:
    with LocalTokens.start() as started:
        yield started


@pytest.fixture
def web_environment(environment: dict[str, str], tokens: LocalTokens) -> dict[str, str]:
    """The settings of a web process on this worker's servers."""
    return settings_on(environment, tokens)


def settings_on(environment: dict[str, str], tokens: LocalTokens) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, **environment, **tokens.environment, "PORT": str(places.free_port())}


@pytest.fixture(scope="module")
def served(
    database_url: str, aws: AwsDouble, _upstream_server: SampleUpstream
) -> Iterator[tuple[dict[str, str], Child]]:
    """The settings of a web process, and the process: one for all tests that leave it as it was."""
    with (
        Valkey.start(persistent=True) as queue,
        Valkey.start(persistent=False) as claims,
        LocalTokens.start() as tokens,
    ):
        servers = settings_for(database_url, queue.url, claims.url, aws, _upstream_server)
        environment = settings_on(servers, tokens)
        with running(environment) as child:
            yield environment, child


def url(environment: dict[str, str]) -> str:
    return f"http://127.0.0.1:{environment['PORT']}"


@contextmanager
def running(environment: dict[str, str], *options: str) -> Iterator[Child]:
    command = [sys.executable, "-P", "-m", "broker_core.cli", "web", "--host", "127.0.0.1", *options]
    child = Child(command, ready=b"web.started", last_signal="TERM", environment=environment)
    try:
        child.wait_ready(90)
        yield child
    finally:
        child.stop("TERM")


def broker(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "broker_core.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def here(environment: dict[str, str], *words: str) -> Result:
    """The command in this process, which must not come to serve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "listening", lambda *_: pytest.fail("it starts"))
        return CliRunner().invoke(main, words, env=environment, catch_exceptions=False)


def owner_token(environment: dict[str, str]) -> str:
    """What ``broker token`` mints."""
    settings, now = Settings.from_environment(environment), datetime.now(UTC)
    return mint(settings, "ws_1", scopes=[], role="owner", minutes=10, now=now)


class TestServing:
    def test_the_whole_way(self, served: tuple[dict[str, str], Child]) -> None:
        """It is ready, takes a token that `broker token` mints, refuses others, and names no product."""
        environment, child = served
        token = broker(environment, "token", "--workspace", "ws_1", "--role", "owner").stdout.strip()
        with httpx.Client(base_url=url(environment), trust_env=False) as client:
            ready = client.get("/readyz")
            assert ready.json()["parts"] == dict.fromkeys(("database", "claims", "queue", "token_keys"), "ok")
            assert {"server", "date"} & ready.headers.keys() == set()
            assert client.get("/api/broker-secrets").status_code == 401
            answer = client.get("/api/broker-secrets?limit=1", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code in (200, 404)  # the workspace was never made
            large = client.get("/healthz", headers={"X": "x" * 33_000})
            assert (large.status_code, large.json()["error"]) == (400, "invalid")
            assert "GET /" not in child.output
            assert "limit=1" not in child.output

    def test_an_oversized_body_over_a_socket(self, served: tuple[dict[str, str], Child]) -> None:
        """413 is answered before the body is sent, and the connection ends with it."""
        environment, _ = served
        head = (
            "POST /api/v1/broker-secrets HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {owner_token(environment)}\r\n"
            "Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", int(environment["PORT"]))) as line:
            line.sendall(head.encode())
            answer = _until_closed(line)
        assert answer.startswith(b"HTTP/1.1 413 ")

    def test_sigterm_finishes_what_is_under_way(self, web_environment: dict[str, str]) -> None:
        """A request that came before SIGTERM is answered; then the process ends, as it should."""
        head = (
            "POST /api/v1/broker-secrets HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {owner_token(web_environment)}\r\n"
            "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        with running(web_environment) as child:
            port = int(web_environment["PORT"])
            with socket.create_connection(("127.0.0.1", port)) as line:
                line.sendall(head.encode())
                assert line.recv(100).startswith(b"HTTP/1.1 100 ")  # let in, and its body is waited for
                child.signal("TERM")
                wait_until(lambda: _refuses(port))
                line.sendall(b"{}")
                answer = _until_closed(line)
            assert answer.startswith(b"HTTP/1.1 422 ")
            wait_until(lambda: not child.alive)
            assert b"web.stopped" in child.output.encode()
            assert "Traceback" not in child.output

    def test_several_processes(self, web_environment: dict[str, str]) -> None:
        """Several processes serve on one port, one that is killed is replaced, and /metrics is of all of them."""
        with running(web_environment, "--processes", "2") as child:
            wait_until(lambda: child.output.count("web.started") == 2, deadline_seconds=90)
            for _ in range(20):
                _ask(web_environment, "/healthz")
            wait_until(lambda: _counted(web_environment) == 20)  # a request is counted after its answer
            assert [_counted(web_environment) for _ in range(10)] == [20] * 10  # whichever process answers
            (victim, *_) = _children_of(child.pid)
            os.kill(victim, 9)
            wait_until(lambda: child.output.count("web.started") == 3, deadline_seconds=90)
            assert victim not in _children_of(child.pid)
            assert _counted(web_environment) == 20


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False


def _until_closed(line: socket.socket) -> bytes:
    line.settimeout(20)
    answer = b""
    while part := line.recv(65_536):
        answer += part
    return answer


def _ask(environment: dict[str, str], path: str) -> str:
    """The answer to a request on a connection of its own."""
    return httpx.get(f"{url(environment)}{path}", trust_env=False, verify=False).text  # plain http: no CAs to load


def _counted(environment: dict[str, str]) -> int:
    """How many requests for /healthz there were, by the metrics."""
    text = _ask(environment, "/metrics")
    found = re.search(r'broker_http_requests_total\{.*route="/healthz".*\} ([0-9.]+)', text)
    return int(float(found[1])) if found else 0


def _children_of(pid: int) -> list[int]:
    """Processes that were started by one, but for multiprocessing's resource tracker."""
    command = ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == pid and "spawn_main" in row[2]]


class TestStarting:
    @pytest.mark.parametrize("name", ["BROKER_TOKEN_JWKS", "BROKER_TOKEN_ISSUER", "BROKER_TOKEN_AUDIENCE"])
    def test_without_a_setting(self, web_environment: dict[str, str], name: str) -> None:
        """It does not start without knowing whose tokens count: exit code 78, and the setting's name."""
        ended = here({**web_environment, name: ""}, "web", "--host", "127.0.0.1")
        assert (ended.exit_code, f"this process needs {name}" in ended.stderr) == (78, True)

    def test_a_port_that_is_taken(self, web_environment: dict[str, str]) -> None:
        """A port that is taken is said so, with exit code 78 of the process."""
        with socket.create_server(("127.0.0.1", int(web_environment["PORT"]))):
            ended = broker(web_environment, "web", "--host", "127.0.0.1")
        assert (ended.returncode, "cannot listen on 127.0.0.1" in ended.stderr) == (78, True)

    def test_no_keys_in_the_file(self, web_environment: dict[str, str], tokens: LocalTokens) -> None:
        """A file without keys stops it: exit code 78."""
        (tokens.directory / "empty.json").write_text("{}")
        changed = {**web_environment, "BROKER_TOKEN_JWKS": str(tokens.directory / "empty.json")}
        ended = here(changed, "web", "--host", "127.0.0.1")
        assert (ended.exit_code, "BROKER_TOKEN_JWKS must name" in ended.stderr) == (78, True)


class TestToken:
    def test_not_the_local_stack(self, web_environment: dict[str, str], tokens: LocalTokens) -> None:
        """Where the settings name any other set, nothing is minted, whatever lies beside it."""
        (tokens.directory / "jwks.json").write_bytes((tokens.directory / "local-stack-jwks.json").read_bytes())
        for changed in (
            {"BROKER_TOKEN_JWKS": str(tokens.directory / "jwks.json")},
            {"BROKER_TOKEN_JWKS": "https://platform.test/local-stack-jwks.json"},
            {"BROKER_TOKEN_ISSUER": "https://platform.test"},
        ):
            ended = here({**web_environment, **changed}, "token", "--workspace", "ws_1", "--role", "owner")
            assert (ended.exit_code, ended.stdout) == (78, "")
            assert "for the local stack alone" in ended.stderr

    def test_usage(self, web_environment: dict[str, str]) -> None:
        """A token needs a scope or a role."""
        assert here(web_environment, "token", "--workspace", "ws_1").exit_code == 2
