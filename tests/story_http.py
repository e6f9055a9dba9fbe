"""What the life of a secret is over HTTP, on a running ``web`` process: told for INV-1, which searches what it left.

Every answer is kept whole for that search, but for what comes out of the one legitimate door, an environment. Requests
go out by ``http.client`` and bare sockets: they write no log of their own, and send what no other client would.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

from broker_core.api.tokens import LONGEST_LIFE
from broker_core.dev.aws import CustomerAccount
from broker_core.dev.stack import LocalStack
from broker_core.dev.upstream import RawResponse, Received, Response
from tests.live import AGENT
from tests.sentinel import Sentinel, text_sentinel
from tests.tokens import AUDIENCE, ISSUER, Platform
from tests.waiting import wait_until

#: whose environment `broker exec` gets
SERVER = "stdio-server"
OWNER = {"role": "owner"}
INJECT = {"scope": "broker:inject"}
#: what a command does with what it was given
_SHOWS = "import base64, os; v = os.environb[b'HTTP_TOKEN']; print(v.decode()); print(base64.b64encode(v).decode())"

UNPROCESSABLE = HTTPStatus.UNPROCESSABLE_ENTITY


@dataclass(frozen=True)
class Answer:
    """One answer, as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class OverHttp:
    """Everybody who calls ``web`` for one workspace."""

    def __init__(self, stack: LocalStack, workspace: str, platform: Platform, place: Path) -> None:
        """``place``: a directory that is not searched, for the file of a token."""
        self._stack = stack
        self._workspace = workspace
        self._platform = platform
        self._place = place
        self._tokens: dict[str, str] = {}
        self._ids: dict[str, str] = {}
        self.answers: list[bytes] = []
        self.said: list[str] = []
        kinds = ("made", "made, rotated", "made, refused", "produced", "stdio", "misplaced", "commanded")
        self._values = {name: text_sentinel(f"over http, {name}") for name in kinds}

    @property
    def sentinels(self) -> list[Sentinel]:
        """What nothing that is written may hold: values, wherever they were put, and tokens."""
        tokens = [Sentinel("a token", t.encode(), tuple(t.encode().split(b".")[1:])) for t in self._tokens.values()]
        return [*self._values.values(), *tokens]

    # ------------------------------------------------------------ the acts, in their order

    def made(self) -> None:
        """The platform makes the workspace."""
        self.ask("PUT", f"/workspaces/{self._workspace}", {"plan": "enterprise"}, scope="broker:platform")

    def connected(self, customer: CustomerAccount) -> None:
        """An owner connects a key, and has it verified again."""
        given = {"roleArn": customer.role_arn, "externalId": customer.external_id, "keyArn": customer.key_arn}
        answer = self.ask("PUT", "/byok/connection", given, **OWNER)
        assert answer.document["status"] == "current", answer.body

    def taken_in(self) -> None:
        """Values come: created, created once more, rotated, produced as an event, each until it is stored."""
        fields = self._fields("made")
        key = {"Idempotency-Key": "the-first-of-two"}
        first = self.ask("POST", "/broker-secrets", fields, headers=key, expects=202, **OWNER)
        again = self.ask("POST", "/broker-secrets", fields, headers=key, expects=202, **OWNER)
        assert (again.document["id"], again.headers["idempotent-replayed"]) == (first.document["id"], "true")
        # once it is stored, its value alone could not be compared any more
        other = {**fields, "secret": self._text("made, refused"), "rotationPolicy": "30d"}
        self.ask("POST", "/broker-secrets", other, headers=key, expects=UNPROCESSABLE, **OWNER)
        self._ids["made"] = first.document["id"]
        self._stored(first.document["eventId"])
        rotate = f"/broker-secrets/{self._ids['made']}/rotate"
        given = {"secret": self._text("made, rotated")}
        for _ in range(2):
            rotated = self.ask("POST", rotate, given, headers={"Idempotency-Key": "r"}, expects=202, **OWNER)
        stdio = {**self._fields("stdio"), "injectionKind": "stdio_env", "bindingKey": "HTTP_TOKEN"}
        stdio = {**stdio, "name": "handed-over", "targetHost": None, "agentId": None, "mcpServerId": SERVER}
        made = self.ask("POST", "/broker-secrets", stdio, expects=202, **OWNER)
        produced = self.ask("POST", "/events", self._event(), expects=202, scope="broker:events")
        for event in (rotated.document["eventId"], made.document["eventId"], produced.document["id"]):
            self._stored(event)

    def used(self) -> None:
        """The gateway injects, buffered and streamed, and the upstream echoes, breaks off and is broken off; a stdio
        server gets its environment."""
        request = {"method": "POST", "url": self._url("/echo"), "body": "hello"}
        for name in ("made", "produced"):
            answer = self.ask("POST", "/inject", {"agentId": AGENT, "secret": name, "request": request}, **INJECT)
            assert "redacted:secret." in answer.document["body"]
        self._streamed()
        self._given_to_a_stdio_server()

    def misused(self) -> None:
        """Values where none belong: each is refused, and named nowhere."""
        for case in self._misplaced():
            self.ask(**case)
        for bytes_sent in self._no_http():
            self.answers.append(self._raw(bytes_sent))

    def moved(self, customer: CustomerAccount) -> None:
        """The key is connected once more, and what is under the older connection is moved."""
        self.connected(customer)
        self.ask("POST", "/byok/connection/verify", **OWNER)
        move = self.ask("POST", "/byok/reencrypt", expects=202, **OWNER).document["id"]
        ended = self._ended(f"/byok/reencrypt/{move}")
        assert ended["moved"] > 1, ended
        self.ask("GET", f"/byok/reencrypt/{move}/stuck", **OWNER)

    def proved(self) -> None:
        """After a revocation: what an agent learns, and a proof of the lockout, as document and page."""
        asked = {"agentId": AGENT, "secret": "made", "request": {"url": self._url("/echo")}}
        self.ask("POST", "/inject", asked, expects=424, **INJECT)
        proof = self.ask("POST", "/byok/lockout-proof", expects=202, **OWNER).document["id"]
        ended = self._ended(f"/byok/lockout-proof/{proof}")
        assert ended["total"] > 1, ended
        for part in ("document", "page"):
            self.ask("GET", f"/byok/lockout-proof/{proof}/{part}", **OWNER)

    def commanded(self, customer: CustomerAccount) -> None:
        """An operator publishes and injects by command; an owner matches their CloudTrail with our audit log."""
        event = {**self._event(), "id": "commanded-1", "subject": "commanded"}
        event["data"]["value"] = self._text("commanded")
        self.command("event", "--wait", "30", sent=json.dumps(event))
        who = ("--workspace", self._workspace, "--agent", AGENT, "--secret", "commanded")
        assert "redacted:secret.commanded" in self.command("inject", self._url("/echo"), *who)
        trail = self._place / "trail.json"
        trail.write_text(json.dumps({"Records": self._stack.aws.trail.records(customer.account.account_id)}))
        found = self.command("byok", "reconcile", "--workspace", self._workspace, "--cloudtrail", str(trail))
        assert json.loads(found)["summary"]["matched"] > 10, found

    def read(self) -> None:
        """Everything that can be read, by who may read most."""
        made = self._ids["made"]
        paths = [f"/broker-secrets/{made}", f"/broker-secrets/{made}/blob", "/broker-secrets?limit=200", "/audit"]
        paths += [f"/byok/{each}" for each in ("connection", "connections", "coverage", "affected")]
        paths += [f"/byok/setup?format={each}" for each in ("json", "cloudformation", "terraform", "cli")]
        for path in [*paths, "/rotations/overdue", "/audit?limit=200"]:
            self.ask("GET", path, **OWNER)
        self.ask("POST", "/byok/drill", **OWNER)
        for path in ("/healthz", "/readyz", "/metrics", "/api/openapi.json"):
            self.ask("GET", path, root=True)

    # ------------------------------------------------------------ parts of acts

    def _streamed(self) -> None:
        upstream = self._stack.upstream
        upstream.route("/events", lambda asked: Response(200, [("Content-Type", "text/event-stream")], _events(asked)))
        upstream.route("/breaks", _breaks)
        streamed = self._through("/events", {"Axiorank-Secret": "made"})
        assert streamed.body.count(b"redacted:secret.made") == 3, streamed.body
        assert self._through("/breaks", {"Axiorank-Secret": "made"}).status == 200
        self._through("/reset", {"Axiorank-Secret": "made"}, expects=502)
        ours = {"Axiorank-Authorization": f"Bearer {self.token(**INJECT)}", "Authorization": "Bearer mine"}
        self._through("/echo", {"Axiorank-Secret": "produced", **ours})
        body = json.dumps({"a": "{{secret:made}}", "b": 1}).encode()
        self._through("/echo", {"Content-Type": "application/json"}, body)
        for kind in ("application/json", "application/octet-stream"):
            held = json.dumps({"a": self._text("made, rotated")}).encode()
            self._through("/echo", {"Axiorank-Secret": "made", "Content-Type": kind}, held, expects=403)
        self._broken_off()

    def _broken_off(self) -> None:
        """The caller goes away in the middle of an answer."""
        headers = {"Axiorank-Upstream-Url": self._url("/events"), "Axiorank-Agent-Id": AGENT, "Axiorank-Secret": "made"}
        lines = "".join(f"{name}: {text}\r\n" for name, text in self._headers(headers, **INJECT).items())
        with socket.create_connection(self._address, 20) as line:
            line.sendall(f"GET /api/v1/proxy HTTP/1.1\r\nHost: b\r\n{lines}\r\n".encode())
            self.answers.append(line.recv(100))

    def _given_to_a_stdio_server(self) -> None:
        """By `/inject/environment`, whose answer is not searched, and by `broker exec`, whose output is."""
        given = self.ask("POST", "/inject/environment", {"mcpServerId": SERVER}, keep=False, scope="broker:environment")
        assert given.document["environment"] == {"HTTP_TOKEN": self._text("stdio")}
        token = self._place / "token"
        token.write_text(self.token(scope="broker:environment"))
        for source in ((), ("--server", self._stack.web_url, "--token-file", str(token))):
            who = ("--workspace", self._workspace, "--mcp-server", SERVER)
            shown = self.command("exec", *who, *source, "--", sys.executable, "-c", _SHOWS)
            assert shown.count("redacted") == 2, shown

    def _misplaced(self) -> Iterator[dict[str, Any]]:
        """Requests with a value where none belongs, as arguments of ``ask``."""
        value = self._text("misplaced")
        fields, made = self._fields("wrong"), f"/broker-secrets/{self._ids['made']}"
        create: dict[str, Any] = {"method": "POST", "path": "/broker-secrets", "expects": UNPROCESSABLE, **OWNER}
        for wrong in (*("name injectionKind targetHost agentId rotationPolicy".split()), "value", value):
            yield {**create, "body": {**fields, wrong: value}}
        yield {**create, "body": {**fields, "secret": [value]}}
        yield {**create, "body": {**fields, "secret": f"{value}\n"}}
        yield {**create, "body": fields, "headers": {"Idempotency-Key": f"{value} {value}"}}
        written = json.dumps(fields | {"secret": value}).encode()
        for no_json in (written[:-1], b'{"a": NaN, ' + written[1:], b'{"secret": 1, ' + written[1:], written + b"\xff"):
            yield {**create, "body": no_json, "expects": 400}
        yield {**create, "body": written + b" " * 1_100_000, "expects": 413}
        event = self._event()
        events = {"method": "POST", "path": "/events", "scope": "broker:events"}
        yield {**events, "body": {**event, "type": value}, "expects": UNPROCESSABLE}
        yield {**events, "body": {**event, "data": {**event["data"], "token": value}}, "expects": UNPROCESSABLE}
        yield {**events, "body": json.dumps(event).encode()[:-2] + value.encode(), "expects": 400}
        yield {"method": "PATCH", "path": made, "body": {"rotationPolicy": value}, "expects": UNPROCESSABLE, **OWNER}
        connection = {"roleArn": value, "externalId": f"{value}-", "keyArn": value}
        yield {
            "method": "PUT",
            "path": "/byok/connection",
            "body": connection,
            "expects": UNPROCESSABLE,
            **OWNER,
        }
        no_id = quote(value.replace("/", "-"))
        for path, status in ((f"/broker-secrets/{no_id}", UNPROCESSABLE), (f"/{quote(value)}", 404)):
            yield {"method": "GET", "path": path, "expects": status, **OWNER}
        for name in ("status", "cursor", "limit"):
            yield {
                "method": "GET",
                "path": f"/broker-secrets?{name}={quote(value)}",
                "expects": UNPROCESSABLE,
                **OWNER,
            }
        yield {"method": "GET", "path": "/audit", "headers": {"Authorization": f"Bearer {value}"}, "expects": 401}
        yield {"method": "GET", "path": "/audit", "headers": {"traceparent": value, "X-Any": value}, **OWNER}
        yield from self._misplaced_in_injections(value)

    def _misplaced_in_injections(self, value: str) -> Iterator[dict[str, Any]]:
        inject: dict[str, Any] = {"method": "POST", "path": "/inject", **INJECT}
        request, url = {"url": self._url("/echo")}, self._url(f"/echo?key={quote(value)}")
        asked = {"agentId": AGENT, "secret": "made", "request": request}
        yield {**inject, "body": {**asked, "secret": value}, "expects": UNPROCESSABLE}
        yield {**inject, "body": {**asked, "agentId": value}, "expects": UNPROCESSABLE}
        for wrong in ({"url": f"https://{value}/"}, {"headers": [["X", f"{value}\r\nY: 1"]]}, {"bodyEncoding": value}):
            yield {**inject, "body": {**asked, "request": {**request, **wrong}}, "expects": UNPROCESSABLE}
        yield {**inject, "body": {**asked, "request": {**request, "method": value}}, "expects": 403}
        # a value that the broker does not hold is an upstream's to see, and to echo: not one that is searched for
        guess = {"url": f"https://localhost:1/?key={quote(value)}", "headers": [["X-Key", value]], "body": value}
        yield {**inject, "body": {**asked, "request": {"method": "POST", **guess}}, "expects": 403}
        ours = {"Axiorank-Agent-Id": AGENT, "Axiorank-Secret": "nobodys"}
        proxy: dict[str, Any] = {"method": "GET", "path": "/proxy", **INJECT}
        yield {**proxy, "headers": {**ours, "Axiorank-Upstream-Url": url, "X-Key": value}, "expects": 403}
        yield {**proxy, "headers": {**ours, "Axiorank-Upstream-Url": value}, "expects": UNPROCESSABLE}
        yield {**proxy, "headers": {"Axiorank-Agent-Id": value, "Axiorank-Upstream-Url": url}, "expects": UNPROCESSABLE}

    def _no_http(self) -> Iterator[bytes]:
        """What the server itself refuses."""
        value = self._text("misplaced").encode()
        yield b"GET /" + value + b" HTTP/9.9\r\n\r\n"
        yield b"GET /healthz HTTP/1.1\r\nHost: b\r\nX Y: " + value + b"\r\n\r\n"
        yield b"POST /api/v1/broker-secrets HTTP/1.1\r\nHost: b\r\nContent-Length: " + value + b"\r\n\r\n"
        yield b"POST /api/v1/inject HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n" + value + b"\r\n"

    # ------------------------------------------------------------ one request

    def command(self, *arguments: str, sent: str | None = None) -> str:
        """One run of `broker` in a process of its own, which must succeed; what it printed, without its log."""
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "broker_core.cli", *arguments],
            input=sent,
            capture_output=True,
            text=True,
            timeout=90,
            env={**{name: os.environ[name] for name in ("PATH", "TMPDIR")}, **self._stack.environment},
        )
        self.said.append(ended.stdout + ended.stderr)
        assert ended.returncode == 0, ended.stderr[-4000:]
        return ended.stdout

    def token(self, **claims: Any) -> str:
        """A token of the workspace; for the same claims the same one, for as long as a token may live."""
        key = json.dumps(claims)
        if key not in self._tokens:
            ends = int(self._platform.seconds()) + LONGEST_LIFE
            self._tokens[key] = self._platform.token(workspace=self._workspace, exp=ends, **claims)
        return self._tokens[key]

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        expects: int = 200,
        root: bool = False,
        keep: bool = True,
        **claims: Any,
    ) -> Answer:
        """One request, of a caller with these claims; the answer, which must have this status."""
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection(*self._address, timeout=60)
        try:
            url = path if root else f"/api/v1{path}"
            given = {"Content-Type": "application/json"} if sent else {}
            # what is refused by its head is answered, and its connection closed, while the body is still being sent
            with suppress(ConnectionError):
                connection.request(method, url, sent, self._headers({**given, **(headers or {})}, **claims))
            answer = self._read(connection.getresponse())
        finally:
            connection.close()
        if keep:
            self.answers += [repr(answer.headers).encode(), answer.body]
        assert answer.status == expects, (method, path[:40], answer)
        return answer

    def _headers(self, headers: Mapping[str, str], **claims: Any) -> dict[str, str]:
        token = {"Authorization": f"Bearer {self.token(**claims)}"} if claims else {}
        return {**token, **headers}

    def _read(self, response: http.client.HTTPResponse) -> Answer:
        headers = {name.lower(): text for name, text in response.getheaders()}
        try:
            return Answer(response.status, headers, response.read())
        except http.client.IncompleteRead as cut_off:
            return Answer(response.status, headers, cut_off.partial)

    def _through(self, path: str, headers: Mapping[str, str], body: bytes | None = None, expects: int = 200) -> Answer:
        given = {"Axiorank-Upstream-Url": self._url(path), "Axiorank-Agent-Id": AGENT, **headers}
        return self.ask("POST" if body else "GET", "/proxy", body, headers=given, expects=expects, **INJECT)

    def _raw(self, sent: bytes) -> bytes:
        with socket.create_connection(self._address, 20) as line:
            line.sendall(sent)
            line.shutdown(socket.SHUT_WR)
            answer = b""
            while part := line.recv(65_536):
                answer += part
        assert b" 400 " in answer.partition(b"\r\n")[0], answer
        return answer

    @property
    def _address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self._stack.environment["PORT"])

    def _url(self, path: str) -> str:
        return f"https://localhost:{self._stack.upstream.port}{path}"

    def _text(self, name: str) -> str:
        return self._values[name].value.decode()

    def _fields(self, name: str) -> dict[str, Any]:
        """A creation."""
        value = self._text(name if name in self._values else "misplaced")
        where = {"targetHost": f"localhost:{self._stack.upstream.port}", "agentId": AGENT}
        return {"name": name, "secret": value, "injectionKind": "bearer", **where}

    def _event(self) -> dict[str, Any]:
        """A producer's event."""
        where = {"targetHost": f"localhost:{self._stack.upstream.port}", "agentId": AGENT, "injectionKind": "bearer"}
        data = {"workspaceId": self._workspace, "version": 1, "value": self._text("produced"), **where}
        head = {"specversion": "1.0", "id": "produced-1", "source": "tests", "type": "secret.created"}
        return {**head, "subject": "produced", "data": data}

    def _stored(self, event: str) -> None:
        wait_until(
            lambda: self.ask("GET", f"/events/{event}", **OWNER).document["status"] == "stored",
            every_seconds=0.1,
            what="a value that came over HTTP is stored",
        )

    def _ended(self, path: str) -> Any:
        return wait_until(
            lambda: (answer := self.ask("GET", path, **OWNER).document).get("endedAt") and answer,
            deadline_seconds=60,
            every_seconds=0.2,
            what=f"the end of {path.split('/')[2]}",
        )


def settings_of(platform: Platform, place: Path) -> dict[str, str]:
    """What makes ``web`` trust a platform."""
    keys = place / "jwks.json"
    keys.write_bytes(platform.jwks())
    return {"BROKER_TOKEN_JWKS": str(keys), "BROKER_TOKEN_ISSUER": ISSUER, "BROKER_TOKEN_AUDIENCE": AUDIENCE}


def _events(asked: Received) -> Iterator[bytes]:
    """Events, each of which echoes what came, in single bytes."""
    echoed = (asked.header("authorization") or "").removeprefix("Bearer ").encode()
    for number in range(3):
        yield from (bytes([octet]) for octet in b"id: %d\ndata: %b\n\n" % (number, echoed))


def _breaks(asked: Received) -> RawResponse:
    """An answer that breaks off in the middle of an echo."""
    echoed = (asked.header("authorization") or "").removeprefix("Bearer ").encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 9999\r\n\r\n"
    return RawResponse([head, b"before\n", echoed, b"\n", echoed[:-3]], reset=True)
