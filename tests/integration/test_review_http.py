"""What one caller may cost the others at the HTTP surface: threads, memory, the event loop, connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from anyio import to_thread
from structlog.testing import capture_logs

from broker_core.api import bodies, front, problems
from broker_core.errors import Invalid, UpstreamError
from broker_core.ports import Destination, Patience
from tests.live import AGENT
from tests.waiting import wait_until
from tests.web import Web, served, web_on

THREADS = 4


class Stuck:
    """A way out on which nobody answers until ``release``."""

    def __init__(self) -> None:
        self.waiting = 0
        self.release = threading.Event()
        self._lock = threading.Lock()

    def connect(self, destination: Destination, patience: Patience, pool: str) -> Any:
        with self._lock:
            self.waiting += 1
        self.release.wait(60)
        raise UpstreamError("nobody answered", code="upstream_timeout")

    def close(self) -> None:
        """As the port has it."""


class TestThreads:
    @pytest.fixture
    def stuck(self) -> Stuck:
        return Stuck()

    @pytest.fixture
    def busy(self, live_with: Callable[..., Any], stuck: Stuck) -> Iterator[Web]:
        """A process of four threads, of which one workspace has asked for more than there are."""
        with web_on(live_with(upstream=stuck)) as web, ThreadPoolExecutor(THREADS + 2) as pool:
            web.live.store("github")
            web._portal.call(_few_threads)
            request = {"agentId": AGENT, "request": {"url": f"https://{web.live.target}/"}}
            for _ in range(THREADS + 2):
                pool.submit(web.post, "/inject", scope="broker:inject", json=request)
            wait_until(lambda: stuck.waiting >= THREADS // 2)
            try:
                yield web
            finally:
                stuck.release.set()

    def test_a_neighbour_is_served(self, busy: Web, stuck: Stuck) -> None:
        """While injections of one workspace hang, more of them than there are threads, another workspace is served."""
        neighbour = f"ws_{uuid4().hex}"
        busy.live.app.store.put_workspace(neighbour, "team")
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(busy.get, "/broker-secrets", role="admin", workspace=neighbour)
            try:
                assert asked.result(timeout=20).status_code == 200
            finally:
                stuck.release.set()

    def test_half_for_one(self, busy: Web, stuck: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
        """A workspace that has half of the threads waits for one of its own; after a while it is told to come later."""
        monkeypatch.setattr("broker_core.api.shares.WAIT_SECONDS", 0.01)
        answer = busy.get("/broker-secrets", role="admin")
        assert (answer.status_code, answer.json()["error"]) == (429, "rate_limited")
        assert int(answer.headers["Retry-After"]) >= 1
        assert stuck.waiting == THREADS // 2

    def test_a_probe_needs_no_thread_of_theirs(self, live_with: Callable[..., Any]) -> None:
        """Readiness is answered while every thread that serves requests is taken."""
        with web_on(live_with()) as web, ThreadPoolExecutor(1) as pool:
            held = threading.Event()
            web._portal.call(_few_threads)
            for _ in range(THREADS):
                web._portal.start_task_soon(to_thread.run_sync, held.wait)
            asked = pool.submit(web.get, "/readyz")
            try:
                assert asked.result(timeout=20).status_code == 200
            finally:
                held.set()

    def test_a_stream_is_admitted_beside_them(self, live_with: Callable[..., Any]) -> None:
        """A request to ``/proxy`` is judged while every thread that serves buffered requests is taken."""
        with web_on(live_with()) as web, ThreadPoolExecutor(1) as pool:
            held = threading.Event()
            web._portal.call(_few_threads)
            for _ in range(THREADS):
                web._portal.start_task_soon(to_thread.run_sync, held.wait)
            headers = {"Axiorank-Upstream-Url": "https://upstream.test/"}
            asked = pool.submit(web.get, "/proxy", role="viewer", headers=headers)
            try:
                assert asked.result(timeout=20).status_code == 403
            finally:
                held.set()


async def _few_threads() -> None:
    to_thread.current_default_thread_limiter().total_tokens = THREADS


class TestBodies:
    def test_many_small_parts(self) -> None:
        """A document of more names and items than any request has is refused before anything is made of it."""
        for part in (b"{}", b"1", b'""', b"[]"):
            with pytest.raises(Invalid) as refused:
                bodies.parse(b"[" + b",".join([part] * (bodies.MOST_PARTS + 2)) + b"]")
            assert refused.value.reason == "invalid_json"

    def test_parts_within_a_text(self) -> None:
        """What stands in a text counts for nothing: an upstream's own JSON goes through."""
        text = r"{\"a\":[1,2]}," * bodies.MOST_PARTS + r"\\"
        assert bodies.parse(f'{{"body":"{text}"}}'.encode()) == {"body": text.replace('\\"', '"').replace("\\\\", "\\")}

    def test_many_wrong_fields(self, web: Web) -> None:
        """An answer names some of the wrong fields, not as many as a caller can make up."""
        headers = [1] * (bodies.MOST_PARTS - 100)
        answer = web.post(
            "/inject", scope="broker:inject", json={"agentId": AGENT, "request": {"url": "x", "headers": headers}}
        )
        assert answer.status_code == 422
        assert 1 <= len(answer.json()["fields"]) <= problems.MOST_FIELDS

    def test_a_body_that_does_not_come(self, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        """A body that is not there in time is given up."""
        monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
        for path, scope in (("inject", "broker:inject"), ("events", "broker:events")):
            head = f"POST /api/v1/{path} HTTP/1.1\r\nHost: b\r\nContent-Length: 9\r\n".encode()
            head += f"Authorization: Bearer {web.token(scope=scope)}\r\n\r\n{{".encode()
            with _connected(web.serve()) as connection:
                connection.sendall(head)
                assert connection.recv(65_536).startswith(b"HTTP/1.1 422 ")

    def test_a_caller_who_leaves(self, web: Web) -> None:
        """A caller who goes before its body has come is no mistake of ours, and is noted as gone."""
        for path, scope in (("inject", "broker:inject"), ("events", "broker:events")):
            head = f"POST /api/v1/{path} HTTP/1.1\r\nHost: b\r\nContent-Length: 9\r\n".encode()
            head += f"Authorization: Bearer {web.token(scope=scope)}\r\n\r\n{{".encode()
            with capture_logs() as lines:
                with _connected(web.serve()) as connection:
                    connection.sendall(head)
                wait_until(lambda: any(line["event"] == "http.request" for line in lines))
            assert [(line["event"], line.get("status")) for line in lines] == [("http.request", 499)]


class TestSlowHeads:
    @pytest.mark.parametrize(
        "sent", [b"", b"GET /healthz HTTP/1.1\r\nHost", b"GET /healthz HTTP/1.1\r\nHost: b\r\n\r\nGET"]
    )
    def test_a_head_that_does_not_come(self, web: Web, sent: bytes) -> None:
        """A connection on which no head of a request is complete in time is closed, the first and any later one."""
        with served(web.api, timeout_keep_alive=0.2) as root, _connected(root) as connection:
            connection.sendall(sent)
            with suppress(ConnectionResetError):  # what was sent after the end
                while connection.recv(65_536):
                    pass  # the end comes, or the test runs into the socket's limit

    def test_a_drip_is_no_sign_of_life(self, web: Web) -> None:
        """Nor does it help to send a byte now and then."""
        with served(web.api, timeout_keep_alive=0.2) as root, _connected(root) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
            wait_until(lambda: _is_gone(connection))


class TestUntakenAnswers:
    def test_a_caller_that_does_not_read(self, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answers that nobody takes do not stay in memory, nor hold up what was asked for behind them."""
        monkeypatch.setattr(front, "TAKING_SECONDS", 0.2)
        lost = threading.Event()

        class Watched(front.StrictProtocol):
            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                lost.set()

        with served(web.api, http=Watched) as root, _connected(root) as connection:
            # more than the kernel's buffers take
            connection.sendall(b"GET /api/openapi.json HTTP/1.1\r\nHost: b\r\n\r\n" * 300)
            wait_until(lost.is_set)  # the kernel still has megabytes to tell before it tells the end

    def test_a_caller_that_reads(self, web: Web) -> None:
        """Who takes them in the end gets them whole."""

        class Hurried(front.StrictProtocol):
            """In no hurry before something has come."""

            def data_received(self, data: bytes) -> None:
                self.timeout_keep_alive = 0.05
                super().data_received(data)

        with served(web.api, http=Hurried) as root, _connected(root) as connection:
            connection.sendall(b"GET /api/openapi.json HTTP/1.1\r\nHost: b\r\n\r\n" * 100)
            received = b""
            while data := connection.recv(65_536):
                received += data
            assert received.count(b"HTTP/1.1 200 ") == 100


def _connected(root: str) -> socket.socket:
    address = urlsplit(root)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def _is_gone(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"x")
    except OSError:
        return True
    return False
