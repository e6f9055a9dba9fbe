"""``/proxy`` over real sockets: what goes up, what comes down and when, and what happens when somebody goes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest

from broker_core.audit import Outcome
from broker_core.dev.upstream import RawResponse, Received, Response
from broker_core.ports import Use, WireRequest
from tests.fakes_upstream import FakeAnswer, FakeUpstream
from tests.live import AGENT
from tests.waiting import wait_until
from tests.web import Web, served, web_on

VALUE = "ghp_0123456789abcdefghij"
EVENTS = [("Content-Type", "text/event-stream")]
#: bytes; what the receiver's socket takes: the kernel would let it grow to whatever a machine is set to, 32 MiB here
RECEIVED = 256 << 10
#: bytes; what the sockets on the way take, the sender's up to 4 MiB, and a little of ours
LARGEST_ON_THE_WAY = 16 << 20
MASK = "«redacted:secret.github»"


@pytest.fixture
def stored(web: Web) -> Web:
    """A workspace with a bearer for AGENT."""
    web.live.store("github", value=VALUE)
    return web


class Client:
    """An agent's gateway: HTTP to a server of the application."""

    def __init__(self, web: Web, root: str = "") -> None:
        self.web = web
        self.root = root or web.serve()
        transport = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED)])
        self.http = httpx.Client(base_url=self.root, timeout=60, trust_env=False, transport=transport)

    def headers(self, path: str = "/echo", **more: str) -> dict[str, str]:
        """The headers of a request for a path of the sample upstream. ``more``: ``x_a="1"`` is ``X-A: 1``."""
        own = {
            "Axiorank-Authorization": f"Bearer {self.web.token(scope='broker:inject')}",
            "Axiorank-Upstream-Url": f"https://{self.web.live.target}{path}",
            "Axiorank-Agent-Id": AGENT,
        }
        return {**own, **{name.replace("_", "-"): text for name, text in more.items()}}

    def send(self, method: str = "GET", path: str = "/echo", *, content: Any = None, **more: str) -> httpx.Response:
        """One request."""
        return self.http.request(method, "/api/v1/proxy", headers=self.headers(path, **more), content=content)

    def stream(self, method: str = "GET", path: str = "/echo", *, content: Any = None, **more: str) -> Any:
        """One request whose answer is read as it comes."""
        return self.http.stream(method, "/api/v1/proxy", headers=self.headers(path, **more), content=content)

    def raw(
        self,
        head: str = "",
        body: bytes = b"",
        *,
        path: str = "/echo",
        method: str = "GET",
        version: str = "1.1",
        token: str = "",
    ) -> socket.socket:
        """A connection on which a request with these further header lines, and this token, has been sent."""
        headers = self.headers(path)
        headers["Axiorank-Authorization"] = f"Bearer {token}" if token else headers["Axiorank-Authorization"]
        lines = "".join(f"{name}: {text}\r\n" for name, text in headers.items())
        address = urlsplit(self.root)
        connection = socket.create_connection((address.hostname, address.port), timeout=60)
        connection.sendall(
            f"{method} /api/v1/proxy HTTP/{version}\r\nHost: b\r\n{lines}{head}\r\n".encode("latin-1") + body
        )
        return connection


@pytest.fixture
def client(stored: Web) -> Iterator[Client]:
    made = Client(stored)
    yield made
    made.http.close()


def last_use(web: Web) -> Use | None:
    """The latest injection in the audit log."""
    uses: list[Use] = [use for use in web.live.app.store.uses(web.live.workspace) if use.intent.purpose == "inject"]
    return uses[-1] if uses else None


def ended(web: Web) -> Use:
    """The latest injection, once it has ended."""

    def found() -> Use | None:
        use = last_use(web)
        return use if use is not None and use.result is not None else None

    use = wait_until(found, what="the use's outcome")
    assert use is not None
    return use


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    received = b""
    try:
        while data := connection.recv(65_536):
            received += data
    except ConnectionResetError:
        pass
    connection.close()
    return received


class Taking:
    """An upstream (and its one line) that takes a request's body in pieces, and sees how far its caller is ahead."""

    def __init__(self, given: Callable[[], int], pieces: int = 1_000_000) -> None:
        self._given = given
        self._pieces = pieces
        self.taken = self.ahead = 0

    def connect(self, *_: object) -> Taking:
        return self

    def send(self, request: WireRequest) -> FakeAnswer:
        assert not isinstance(request.body, bytes)
        for _, piece in zip(range(self._pieces), request.body, strict=False):
            self.taken += len(piece)
            self.ahead = max(self.ahead, self._given() - self.taken)
        return FakeAnswer(pieces=[b"taken"])

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass


class TestAnswer:
    def test_redacted(self, client: Client) -> None:
        """The upstream's answer comes back as it is, redacted, with the audit row's id, and without our mark."""
        answer = client.send()
        assert answer.status_code == 200
        assert MASK in answer.text
        assert VALUE not in answer.text + str(answer.headers)
        assert UUID(answer.headers["Axiorank-Audit-Id"]) == ended(client.web).intent.id
        assert "Axiorank-Broker-Error" not in answer.headers

    def test_without_the_version(self, client: Client) -> None:
        """The path works without its version, as all do."""
        assert client.http.get("/api/proxy", headers=client.headers()).status_code == 200

    def test_the_audit_row(self, client: Client) -> None:
        """The use ends ``ok`` with the upstream's status."""
        client.send()
        result = ended(client.web).result
        assert result is not None
        assert (result.outcome, result.upstream_status) == (Outcome.OK, 200)

    def test_status(self, client: Client) -> None:
        """Whatever the upstream's status, it is the answer's: nothing is followed, and it is no error of ours."""
        for status in (201, 301, 401, 403, 404, 429, 500, 503):
            answer = client.send(path=f"/status/{status}")
            assert (answer.status_code, answer.json()) == (status, {"status": status})
            assert "Axiorank-Broker-Error" not in answer.headers

    def test_an_upstream_that_says_it_is_us(self, client: Client) -> None:
        """Our own headers are taken from what an upstream sends."""
        forged = [("Axiorank-Broker-Error", "true"), ("Axiorank-Audit-Id", "x"), ("X-Own", "1")]
        client.web.live.upstream.route("/forged", lambda _: Response(403, forged, b"{}"))
        answer = client.send(path="/forged")
        assert "Axiorank-Broker-Error" not in answer.headers
        assert UUID(answer.headers["Axiorank-Audit-Id"])
        assert answer.headers["X-Own"] == "1"

    def test_headers_that_come_twice(self, client: Client) -> None:
        """Headers that come more than once stay apart, in order."""
        cookies = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
        client.web.live.upstream.route("/cookies", lambda _: Response(200, cookies, b"{}"))
        assert client.send(path="/cookies").headers.get_list("Set-Cookie") == ["a=1", "b=2"]

    def test_no_body(self, client: Client) -> None:
        """What has no body gets none, and the connection goes on."""
        for method, path in (("HEAD", "/echo"), ("GET", "/status/204"), ("GET", "/status/304")):
            assert client.send(method, path).content == b""
            assert client.send().status_code == 200

    def test_keep_alive(self, client: Client) -> None:
        """A connection serves one request after another."""
        assert [client.send().status_code for _ in range(3)] == [200, 200, 200]

    def test_methods(self, client: Client) -> None:
        """Every ordinary method goes through, with its body."""
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        for method in methods:
            client.send(method, content=b"a body")
        seen = [(request.method, request.body) for request in client.web.live.upstream.requests]
        assert seen == [(method, b"a body") for method in methods]

    def test_other_methods(self, client: Client) -> None:
        """What reflects a request, asks about a server or is unknown is refused, and nothing is sent."""
        for method in ("OPTIONS", "TRACE", "PROPFIND", "get"):
            answer = read_all(client.raw("Connection: close\r\n", method=method))
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b'"method_refused"' in answer
        assert client.web.live.upstream.requests == []


class TestHeaders:
    def test_our_own_go_no_further(self, client: Client) -> None:
        """Neither our headers nor our token reach the upstream."""
        client.send(axiorank_other="1")
        (seen,) = client.web.live.upstream.requests
        assert [name for name, _ in seen.headers if name.lower().startswith("axiorank")] == []
        assert seen.headers_named("Authorization") == [f"Bearer {VALUE}"]

    def test_token_in_authorization(self, client: Client) -> None:
        """Without ``Axiorank-Authorization`` our token is in ``Authorization``, which goes no further."""
        client.web.live.store(
            "key",
            value="another-value-12",
            injectionKind="http_header",
            bindingKey="X-Key",
            targetHost=client.web.live.target,
            mcpServerId="server-1",
        )
        headers = client.headers()
        headers["Authorization"] = headers.pop("Axiorank-Authorization")
        headers["Axiorank-Mcp-Server-Id"] = "server-1"
        assert client.http.get("/api/v1/proxy", headers=headers).status_code == 200
        (seen,) = client.web.live.upstream.requests
        assert (seen.header("Authorization"), seen.header("X-Key")) == (None, "another-value-12")

    def test_the_callers_own_authorization(self, client: Client) -> None:
        """With ``Axiorank-Authorization`` the caller's ``Authorization`` is theirs, and goes on."""
        client.web.live.store(
            "key",
            value="another-value-12",
            injectionKind="http_header",
            bindingKey="X-Key",
            targetHost=client.web.live.target,
            mcpServerId="server-1",
        )
        client.send(authorization="Basic dGhlaXJzOm93bg==", axiorank_mcp_server_id="server-1")
        (seen,) = client.web.live.upstream.requests
        assert (seen.header("Authorization"), seen.header("X-Key")) == ("Basic dGhlaXJzOm93bg==", "another-value-12")

    def test_a_copy_of_our_token(self, client: Client) -> None:
        """A header that holds our token once more goes no further either, with our prefix or without."""
        headers = client.headers()
        headers["X-Forwarded-Authorization"] = headers["Axiorank-Authorization"]
        headers["Axiorank-Authorization"] = headers["Axiorank-Authorization"].replace("Bearer ", "Bearer axr_tok_")
        assert client.http.get("/api/v1/proxy", headers=headers).status_code == 200
        (seen,) = client.web.live.upstream.requests
        assert seen.header("X-Forwarded-Authorization") is None

    def test_our_token_in_the_url(self, client: Client) -> None:
        """A URL that holds our token is refused."""
        headers = client.headers()
        headers["Axiorank-Upstream-Url"] += "?t=" + headers["Axiorank-Authorization"].removeprefix("Bearer ")
        assert client.http.get("/api/v1/proxy", headers=headers).status_code == 422
        assert client.web.live.upstream.requests == []

    def test_hop_by_hop(self, client: Client) -> None:
        """What is about our connection ends here, what ``Connection`` names too, and the rest goes on."""
        client.send(
            connection="keep-alive, X-Named",
            x_named="1",
            te="trailers",
            keep_alive="timeout=5",
            proxy_authorization="Basic eDp5",
            x_kept="1",
            accept_encoding="gzip",
            range="bytes=0-1",
        )
        (seen,) = client.web.live.upstream.requests
        names = {name.lower() for name, _ in seen.headers}
        assert not names & {"x-named", "te", "keep-alive", "proxy-authorization", "range"}
        assert (seen.header("X-Kept"), seen.header("Accept-Encoding")) == ("1", "identity")

    def test_twice(self, client: Client) -> None:
        """A header of ours that comes twice is refused: which one counts would be a matter of taste."""
        for name in ("Axiorank-Upstream-Url", "Axiorank-Agent-Id", "axiorank-mcp-server-id", "Axiorank-Secret"):
            answer = read_all(client.raw(f"{name}: x\r\n{name}: x\r\nConnection: close\r\n"))
            assert answer.startswith(b"HTTP/1.1 422 ")
            assert b"axiorank-broker-error: true" in answer.lower()
        assert client.web.live.upstream.requests == []

    def test_two_tokens(self, client: Client) -> None:
        """Two tokens are none."""
        answer = read_all(client.raw("axiorank-authorization: Bearer x\r\nConnection: close\r\n"))
        assert answer.startswith(b"HTTP/1.1 401 ")

    def test_missing(self, client: Client) -> None:
        """Without one of them there is nothing to do."""
        for name, status in (
            ("Axiorank-Upstream-Url", 422),
            ("Axiorank-Agent-Id", 422),
            ("Axiorank-Authorization", 401),
        ):
            headers = client.headers()
            del headers[name]
            answer = client.http.get("/api/v1/proxy", headers=headers)
            assert (answer.status_code, answer.headers["Axiorank-Broker-Error"]) == (status, "true")

    def test_another_scope(self, client: Client) -> None:
        """Only a token for injecting injects."""
        headers = {**client.headers(), "Axiorank-Authorization": f"Bearer {client.web.token(role='owner')}"}
        assert client.http.get("/api/v1/proxy", headers=headers).status_code == 403

    def test_the_token_comes_first(self, client: Client) -> None:
        """Who is not let in learns that, whatever else is wrong with the request: its headers, its version."""
        for token, status in (("nonsense", b"401"), (client.web.token(role="owner"), b"403")):
            for version in ("1.0", "1.1"):
                head = "Axiorank-Agent-Id: another\r\nConnection: close\r\n"
                answer = read_all(client.raw(head, version=version, token=token))
                assert answer.startswith(b"HTTP/1.1 " + status)

    def test_http_1_0(self, client: Client) -> None:
        """HTTP/1.0, where an answer that breaks off looks like a whole one, is refused."""
        connection = client.raw(version="1.0")
        assert read_all(connection).startswith(b"HTTP/1.1 422 ")
        assert client.web.live.upstream.requests == []


class TestHandles:
    def test_in_a_small_json_body(self, client: Client) -> None:
        """A handle in a small JSON body selects the secret and is removed."""
        client.web.live.store("other", value="another-value-12")
        body = json.dumps({"note": "{{secret:github}}", "n": 1})
        assert client.send("POST", content=body, content_type="application/json").status_code == 200
        (seen,) = client.web.live.upstream.requests
        assert json.loads(seen.body) == {"note": "", "n": 1}
        assert seen.header("Authorization") == f"Bearer {VALUE}"

    def test_in_a_header(self, client: Client) -> None:
        """A handle in a header selects the secret, and the header goes no further."""
        client.web.live.store("other", value="another-value-12")
        assert client.send(x_use="{{secret:github}}").status_code == 200
        (seen,) = client.web.live.upstream.requests
        assert (seen.header("Authorization"), seen.header("X-Use")) == (f"Bearer {VALUE}", None)

    def test_by_name(self, client: Client) -> None:
        """``Axiorank-Secret`` names one where several fit."""
        client.web.live.store("other", value="another-value-12")
        assert client.send().json()["error"] == "ambiguous_binding"
        assert client.send(axiorank_secret="github").status_code == 200

    def test_in_a_body_that_streams(self, client: Client) -> None:
        """A handle in a body that is not read first never reaches the upstream in a whole request."""

        def body() -> Iterator[bytes]:
            yield b'{"note": "{{secret:git'
            yield b'hub}}"}'

        answer = client.send("POST", content=body(), content_type="application/json")
        assert (answer.status_code, answer.json()["error"]) == (403, "handle_misplaced")
        assert client.web.live.upstream.requests == []


class TestAsItComes:
    def test_an_event_arrives_before_the_end(self, client: Client) -> None:
        """An event of a stream reaches the caller while the upstream has not ended."""
        goes_on = threading.Event()

        def events() -> Iterator[bytes]:
            yield b"data: 1\n\n"
            assert goes_on.wait(20)
            yield b"data: 2\n\n"

        client.web.live.upstream.route(
            "/events", lambda _: Response(200, [("Content-Type", "text/event-stream")], events())
        )
        with client.stream(path="/events") as answer:
            lines = answer.iter_lines()
            assert next(lines) == "data: 1"
            goes_on.set()
            assert [line for line in lines if line] == ["data: 2"]

    def test_mcp(self, client: Client) -> None:
        """MCP's streamable HTTP: a POST is answered by a stream of events; each arrives by itself, redacted."""
        goes_on = threading.Event()

        def messages(request: Received) -> Iterator[bytes]:
            called = json.loads(request.body)
            shown = {"jsonrpc": "2.0", "method": "notifications/message", "params": request.header("Authorization")}
            yield b"event: message\ndata: " + json.dumps(shown).encode() + b"\n\n"
            assert goes_on.wait(20)
            yield b"event: message\ndata: " + json.dumps({"jsonrpc": "2.0", "id": called["id"]}).encode() + b"\n\n"

        kinds = [("Content-Type", "text/event-stream"), ("Mcp-Session-Id", "s-1")]
        client.web.live.upstream.route("/mcp", lambda request: Response(200, kinds, messages(request)))
        call = json.dumps({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {}})
        accepts = {"accept": "application/json, text/event-stream", "content_type": "application/json"}
        with client.stream("POST", "/mcp", content=call, **accepts) as answer:
            assert (answer.status_code, answer.headers["Mcp-Session-Id"]) == (200, "s-1")
            lines = (line for line in answer.iter_lines() if line.startswith("data: "))
            assert json.loads(next(lines)[6:])["params"] == f"Bearer {MASK}"
            goes_on.set()
            assert [json.loads(line[6:])["id"] for line in lines] == [7]

    def test_a_long_answer_is_not_gathered(self, live_with: Callable[..., Any]) -> None:
        """The upstream is asked for no more than the caller takes, and what the sockets on the way hold."""
        size, count, given = 65_536, 600, [0]

        def pieces() -> Iterator[bytes]:
            for _ in range(count):
                given[0] += size
                yield b"x" * size

        taken = ahead = 0
        with web_on(live_with(upstream=FakeUpstream(lambda _: FakeAnswer(pieces=pieces())))) as web:
            web.live.store("github", value=VALUE)
            client = Client(web)
            with client.stream() as answer:
                for piece in answer.iter_raw():
                    taken += len(piece)
                    ahead = max(ahead, given[0] - taken)
            client.http.close()
        assert taken == size * count
        assert ahead < LARGEST_ON_THE_WAY < taken / 2

    def test_a_long_body_arrives(self, client: Client) -> None:
        """A long body without a length arrives whole, as it was."""
        sent = [bytes([number % 251]) * 60_000 for number in range(100)]
        assert client.send("POST", content=iter(sent)).status_code == 200
        (seen,) = client.web.live.upstream.requests
        assert seen.body == b"".join(sent)
        assert seen.header("Transfer-Encoding") == "chunked"

    def test_a_long_body_is_not_gathered(self, live_with: Callable[..., Any]) -> None:
        """A caller sends no more than the upstream takes, and what the sockets on the way hold."""
        size, count, given = 65_536, 600, [0]

        def pieces() -> Iterator[bytes]:
            for _ in range(count):
                given[0] += size
                yield b"x" * size

        taking = Taking(lambda: given[0])
        with web_on(live_with(upstream=taking)) as web, served(web.api, received_bytes=RECEIVED) as root:
            web.live.store("github", value=VALUE)
            client = Client(web, root)
            assert client.send("POST", content=pieces()).status_code == 200
            client.http.close()
        assert taking.taken == size * count
        assert taking.ahead < LARGEST_ON_THE_WAY < taking.taken / 2

    def test_an_early_answer(self, live_with: Callable[..., Any]) -> None:
        """An answer that comes before the body has ended is handed on at once; the connection ends with it."""
        taking = Taking(lambda: 0, pieces=1)
        with web_on(live_with(upstream=taking)) as web:
            web.live.store("github", value=VALUE)
            connection = Client(web).raw("Content-Length: 10000000\r\n", b"x" * 200_000, method="POST")
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"0\r\n\r\n")

    def test_a_body_with_a_length(self, client: Client) -> None:
        """A body whose length was said goes up with that length."""
        assert client.send("PUT", content=b"y" * 300_000).status_code == 200
        (seen,) = client.web.live.upstream.requests
        assert (seen.header("Content-Length"), len(seen.body)) == ("300000", 300_000)

    def test_asked_to_go_on(self, client: Client) -> None:
        """A caller that waits for 100 is told to go on once its body is wanted."""
        connection = client.raw("Content-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n", method="POST")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"body")
        assert b"200 OK" in read_all(connection)

    def test_refused_without_the_body(self, client: Client) -> None:
        """A caller that waits for 100 and is refused never sends its body."""
        head = "Content-Length: 4\r\nExpect: 100-continue\r\nAxiorank-Secret: nobody\r\nConnection: close\r\n"
        assert read_all(client.raw(head, method="POST")).startswith(b"HTTP/1.1 403 ")


class TestSomebodyGoes:
    def test_the_caller_while_the_head_is_awaited(self, client: Client) -> None:
        """A caller that goes before there is an answer ends the upstream's exchange at once."""
        arrived, release = threading.Event(), threading.Event()

        def hang(_: Received) -> Response:
            arrived.set()
            release.wait(60)
            return Response()

        client.web.live.upstream.route("/hang", hang)
        connection = client.raw(path="/hang")
        assert arrived.wait(20)
        connection.close()
        result = ended(client.web).result
        release.set()
        assert result is not None
        assert result.outcome is not Outcome.OK

    def test_the_caller_in_the_body(self, client: Client) -> None:
        """A caller that goes in the middle of an answer that never ends stops the upstream."""
        stopped = threading.Event()

        def drip() -> Iterator[bytes]:
            try:
                while True:
                    yield b"data: more\n\n" * 100
            finally:
                stopped.set()

        client.web.live.upstream.route("/endless", lambda _: Response(200, [], drip()))
        with client.stream(path="/endless") as answer:
            next(answer.iter_raw())
        assert stopped.wait(20)
        assert ended(client.web).result is not None

    def test_the_caller_between_two_events(self, client: Client) -> None:
        """A caller that goes while the upstream is silent is noticed without another event."""
        stopped, release = threading.Event(), threading.Event()

        def one() -> Iterator[bytes]:
            yield b"data: 1\n\n"
            release.wait(60)

        client.web.live.upstream.route("/silent", lambda _: Response(200, [], one()))
        with client.stream(path="/silent") as answer:
            next(answer.iter_raw())
        assert ended(client.web).result is not None
        assert not stopped.is_set()
        release.set()

    def test_the_caller_in_its_own_body(self, client: Client) -> None:
        """A body that breaks off never reaches the upstream as a whole request."""
        connection = client.raw("Content-Length: 1000000\r\n", b"x" * 100_000, method="POST")
        wait_until(lambda: last_use(client.web), what="the use's intent")
        connection.close()
        result = ended(client.web).result
        assert result is not None
        assert result.outcome is not Outcome.OK
        # the sample upstream takes what there is for the body, however long it was said to be
        assert all(len(seen.body) < 1_000_000 for seen in client.web.live.upstream.requests)

    @pytest.mark.parametrize(
        "chunks",
        [
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"],
            [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello\n"],
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"],
        ],
        ids=["in chunks", "of a length", "broken chunk"],
    )
    def test_the_upstream_after_its_head(
        self, client: Client, chunks: list[bytes], caplog: pytest.LogCaptureFixture
    ) -> None:
        """An answer that breaks off arrives broken off: without the last chunk, and the connection ends. It is no
        error of ours, and none is logged."""
        client.web.live.upstream.route("/broken", lambda _: RawResponse(chunks))
        received = read_all(client.raw(path="/broken"))
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"transfer-encoding: chunked" in head.lower()
        assert not body.endswith(b"0\r\n\r\n")
        result = ended(client.web).result
        assert result is not None
        assert result.outcome in (Outcome.UPSTREAM_FAILED, Outcome.WITHHELD)
        assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []

    @pytest.mark.parametrize(
        ("answer", "status"),
        [
            (RawResponse(reset=True), 502),
            (RawResponse([]), 502),
            (RawResponse([b"HTTP/1.1 2"]), 502),
            (RawResponse([b"not http\r\n\r\n"]), 502),
        ],
        ids=["reset", "nothing", "half a head", "no head"],
    )
    def test_the_upstream_before_its_head(self, client: Client, answer: RawResponse, status: int) -> None:
        """An upstream that fails before its head is an error of ours, with the audit row's id."""
        client.web.live.upstream.route("/early", lambda _: answer)
        got = client.send(path="/early")
        assert (got.status_code, got.headers["Axiorank-Broker-Error"]) == (status, "true")
        assert UUID(got.json()["auditId"]) == ended(client.web).intent.id


class TestTheServerStops:
    def test_in_flight(self, stored: Web) -> None:
        """A server that is told to stop takes no more connections, and finishes what is under way."""
        arrived, release = threading.Event(), threading.Event()

        def late(_: Received) -> Response:
            arrived.set()
            assert release.wait(30)
            return Response(200, [], b"late")

        stored.live.upstream.route("/late", late)
        with ThreadPoolExecutor(1) as pool:
            with served(stored.api) as root:
                client = Client(stored, root)
                answer = pool.submit(client.send, "GET", "/late")
                assert arrived.wait(20)
                waiter = threading.Thread(target=lambda: (wait_until(lambda: is_closed(root)), release.set()))
                waiter.start()
            waiter.join()
            assert answer.result().text == "late"
            client.http.close()


def is_closed(root: str) -> bool:
    """Whether nobody listens there any more."""
    address = urlsplit(root)
    try:
        socket.create_connection((address.hostname, address.port), timeout=5).close()
    except OSError:
        return True
    return False


class TestPlaces:
    @pytest.fixture
    def narrow(self, live_with: Callable[..., Any]) -> Iterator[Client]:
        """A process that streams four exchanges at a time."""
        with web_on(live_with({"BROKER_STREAM_PLACES": "4"})) as web:
            web.live.store("github", value=VALUE)
            client = Client(web)
            yield client
            client.http.close()

    def test_half_for_one(self, narrow: Client) -> None:
        """One workspace holds half of the places at most; a third stream is 429, and works once another has ended."""
        release = threading.Event()

        def one() -> Iterator[bytes]:
            yield b"data: 1\n\n"
            release.wait(60)

        narrow.web.live.upstream.route("/held", lambda _: Response(200, [], one()))
        with narrow.stream(path="/held") as first, narrow.stream(path="/held") as second:
            assert (first.status_code, second.status_code) == (200, 200)
            refused = narrow.send()
            assert (refused.status_code, refused.json()["error"]) == (429, "rate_limited")
            assert int(refused.headers["Retry-After"]) >= 1
            release.set()
        wait_until(lambda: narrow.send().status_code == 200)
