"""The HTTP surface around its endpoints: who is let in, bodies, errors, aliases, log lines, traces, metrics."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from fastapi import APIRouter, Depends
from pydantic import Field, field_validator
from structlog.testing import capture_logs

from broker_core import errors
from broker_core.adapters.clock import SystemClock
from broker_core.api import bodies
from broker_core.api.bodies import Document, StrictRoute, Wrong
from broker_core.api.callers import Caller, Role, allow
from broker_core.api.jwks import Jwks
from broker_core.api.problems import answer_for
from broker_core.api.tokens import TokenVerifier
from tests.live import Live
from tests.spans import collected
from tests.tokens import AUDIENCE, ISSUER, LEFT_OUT
from tests.web import Web, web_on

SENTINEL = "sentinel-4f1c9a"


class Inner(Document):
    """A body within a body."""

    some_number: int = Field(ge=1, le=9)


class Thing(Document):
    """A body."""

    some_name: str = Field(min_length=1, max_length=20, pattern="^[a-z]+$")
    kind: Literal["one", "two"] = "one"
    inner: Inner | None = None
    reference: UUID | None = None
    extras: dict[str, int] = Field(default_factory=dict)

    @field_validator("some_name")
    @classmethod
    def _own_rule(cls, name: str) -> str:
        if name == "wrong":
            raise Wrong("give another name")
        if name == "broken":
            raise ValueError(f"a library says {name}")
        return name


def _routes() -> APIRouter:
    router = APIRouter(route_class=StrictRoute)

    @router.post("/things/{id}")
    def post(thing: Thing, caller: Annotated[Caller, Depends(allow(role=Role.ADMIN))]) -> Thing:
        return thing

    @router.get("/things/{id}")
    def get(
        caller: Annotated[Caller, Depends(allow(scope="broker:events", role=Role.ADMIN))], limit: int = 1
    ) -> dict[str, Any]:
        return {"workspace": caller.workspace_id, "subject": caller.subject}

    @router.get("/service")
    def service(caller: Annotated[Caller, Depends(allow(scope="broker:inject"))]) -> dict[str, str]:
        return {}

    @router.delete("/bug/{id}")
    def bug(id: str, caller: Annotated[Caller, Depends(allow(role=Role.ADMIN))]) -> None:  # noqa: A002 - the path's name
        raise ValueError(f"a library's text holds {id}")

    return router


class Counting:
    """Limits that note what was counted."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.refuse = False

    def request(self, workspace_id: str, kind: str) -> None:
        self.seen.append((workspace_id, kind))
        if self.refuse:
            raise errors.RateLimited("too many requests", 7)


@pytest.fixture
def rates() -> Counting:
    return Counting()


@dataclass(frozen=True)
class NoApp:
    """Stands for an App where no use case is called."""

    parts: dict[str, Callable[[], object]] = field(default_factory=dict)


@dataclass(frozen=True)
class NoLive:
    """Stands for a ``Live`` where no server is asked."""

    app: NoApp = field(default_factory=NoApp)
    workspace: str = "ws_1"


@pytest.fixture
def things(rates: Counting) -> Iterator[Web]:
    """The application with some endpoints of this test's own, on no server at all."""
    with web_on(cast(Live, NoLive()), rates=rates) as web:
        web.api.include_router(_routes(), prefix="/api/v1")
        yield web


class TestCallers:
    @pytest.mark.parametrize(
        ("claims", "status"),
        [
            ({"role": "owner"}, 200),
            ({"role": "admin"}, 200),
            ({"role": "member"}, 403),
            ({"role": "viewer"}, 403),
            ({"scope": "broker:events"}, 200),
            ({"scope": "broker:inject broker:events"}, 200),
            ({"scope": "broker:inject"}, 403),
            ({"scope": "broker"}, 403),
            ({"scope": "broker:inject", "role": "admin"}, 200),
        ],
    )
    def test_scope_or_role(self, things: Web, claims: dict[str, str], status: int) -> None:
        """Where both are named, the scope suffices, and so does the role or one above it."""
        answer = things.get("/things/1", headers=things.headers(**claims))
        assert (answer.status_code, answer.json().get("error")) == (status, "forbidden" if status == 403 else None)

    def test_an_owner_is_no_service(self, things: Web) -> None:
        """No role stands for a scope."""
        answer = things.get("/service", role="owner")
        assert answer.json() == {"error": "forbidden", "message": "this needs the scope broker:inject"}

    def test_the_workspace_is_the_tokens(self, things: Web) -> None:
        """The workspace comes from the token."""
        assert things.get("/things/1", role="admin", workspace="ws_other").json()["workspace"] == "ws_other"

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [("Authorization", "")],
            [("Authorization", "Bearer")],
            [("Authorization", "Bearer ")],
            [("Authorization", "Basic dTpw")],
            [("Authorization", f"Bearer {SENTINEL}")],
            [("Authorization", "Bearer a"), ("Authorization", "Bearer b")],
        ],
    )
    def test_no_token(self, things: Web, headers: list[tuple[str, str]]) -> None:
        """Without exactly one token that counts: 401, which names the scheme and quotes nothing."""
        answer = things._portal.call(things._send, "GET", "/api/v1/things/1", headers, {})
        assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert SENTINEL not in answer.text

    def test_a_token_that_does_not_count(self, things: Web) -> None:
        """What is wrong with a token is said in its answer."""
        answer = things.get("/things/1", headers=things.headers(role="admin", jti=LEFT_OUT))
        assert answer.status_code == 401
        assert "jti" in answer.json()["message"]

    def test_every_request_is_counted_once(self, things: Web, rates: Counting) -> None:
        """A request is counted once for its workspace, by the scope it came with, or as a person's."""
        things.post("/things/1", role="admin", json={"someName": "a"})
        things.get("/things/1", scope="broker:events")
        things.get("/things/1", role="member")
        assert [kind for _, kind in rates.seen] == ["people", "broker:events"]

    def test_too_many_requests(self, things: Web, rates: Counting) -> None:
        """Above a limit: 429, with the seconds to wait."""
        rates.refuse = True
        answer = things.get("/things/1", role="admin")
        assert (answer.status_code, answer.json()["error"]) == (429, "rate_limited")
        assert answer.headers["retry-after"] == "7"

    def test_another_workspace(self, web: Web) -> None:
        """An id of another workspace's answers like one that does not exist."""
        web.live.store()
        path = f"/broker-secrets/{web.get('/broker-secrets', role='admin').json()['items'][0]['id']}"
        other = web.get(path, role="owner", workspace="ws_other")
        none = web.get(f"/broker-secrets/{UUID(int=1)}", role="owner")
        assert (other.status_code, other.json()) == (none.status_code, none.json()) == (404, other.json())


class TestBodies:
    def test_names(self, things: Web) -> None:
        """Names are camelCase, both ways, whatever the content type says."""
        body = b'{"someName": "a", "inner": {"someNumber": 2}}'
        answer = things.post("/things/1", role="admin", content=body, headers={"Content-Type": "text/plain"})
        assert answer.json()["inner"] == {"someNumber": 2}

    @pytest.mark.parametrize(
        "body",
        [
            b"no json",
            b'{"someName": "a", "someName": "b"}',
            b'{"someName": "a", "inner": {"x": 1, "x": 1}}',
            b'{"someName": "a", "extras": {"a": NaN}}',
            b'{"someName": "a", "extras": {"a": Infinity}}',
            b'{"someName": "a", "extras": {"a": -1e999}}',
            b'{"someName": "\\ud800"}',
            b'{"\\udfff": 1}',
            b'{"someName": "\xff"}',
            b'\xef\xbb\xbf{"someName": "a"}',
            b'{"someName": "a"} x',
            b"[" * 33 + b"]" * 33,
            b"[" * 400_000,
            b'{"someName": ' + b"9" * 5000 + b"}",
        ],
    )
    def test_no_strict_json(self, things: Web, body: bytes) -> None:
        """Anything but strict JSON is 400, without what was sent."""
        answer = things.post("/things/1", role="admin", content=body)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_json")

    def test_deep_enough(self) -> None:
        """32 levels are read."""
        assert bodies.parse(b"[" * 31 + b"1" + b"]" * 31)

    @pytest.mark.parametrize(
        ("change", "fields"),
        [
            ({"someName": 5}, {"someName": "give a text"}),
            ({"someName": ""}, {"someName": "at least 1 long"}),
            ({"someName": "a" * 21}, {"someName": "at most 20 long"}),
            ({"someName": SENTINEL}, {"someName": "does not match ^[a-z]+$"}),
            ({"someName": "wrong"}, {"someName": "give another name"}),
            ({"someName": "broken"}, {"someName": "not acceptable"}),
            ({"kind": SENTINEL}, {"kind": "give one of 'one' or 'two'"}),
            ({"inner": {"someNumber": 10}}, {"inner.someNumber": "at most 9"}),
            ({"inner": {}}, {"inner.someNumber": "is required"}),
            ({"inner": 5}, {"inner": "give an object"}),
            ({"reference": SENTINEL}, {"reference": "give a UUID"}),
            ({SENTINEL: 1}, {"(another field)": "is no field of this request"}),
            ({"some_name": 1, SENTINEL: 1}, {"(another field)": "is no field of this request"}),
            ({"extras": {SENTINEL: "x"}}, {"extras.(another field)": "give a whole number"}),
        ],
    )
    def test_wrong_fields(self, things: Web, change: dict[str, Any], fields: dict[str, str]) -> None:
        """A field that is wrong is named, with what to do; never with what it held, nor a made-up name."""
        answer = things.post("/things/1", role="admin", json={"someName": "a", **change})
        assert (answer.status_code, answer.json()["error"]) == (422, "invalid")
        assert answer.json()["fields"] == fields
        assert SENTINEL not in answer.text

    def test_wrong_parameters(self, things: Web) -> None:
        """A query parameter is named likewise."""
        answer = things.get(f"/things/1?limit={SENTINEL}", role="admin")
        assert (answer.status_code, answer.json()["fields"]) == (422, {"limit": "give a whole number"})

    def test_no_body(self, things: Web) -> None:
        """A body that is missing is required."""
        assert things.post("/things/1", role="admin").json()["fields"] == {"body": "is required"}

    def test_only_who_is_let_in_is_read(self, things: Web) -> None:
        """Without a token the body is neither read nor judged: 401, whatever it is."""
        assert things.post("/things/1", content=b"no json" * 200_000).status_code == 401

    @pytest.mark.parametrize("streamed", [False, True])
    def test_too_large(self, things: Web, streamed: bool) -> None:
        """A body of more than the limit is 413, whether its length is said or not, and the connection ends with it."""
        read = 0

        async def parts() -> Any:
            nonlocal read
            for _ in range(100):
                read += 65_536
                yield b"x" * 65_536

        content = parts() if streamed else b"x" * (bodies.LARGEST + 1)
        answer = things.post("/things/1", role="admin", content=content)
        assert (answer.status_code, answer.json()["error"]) == (413, "too_large")
        assert answer.headers["connection"] == "close"


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status", "code", "headers"),
        [
            (errors.Invalid({"a": "b"}), 422, "invalid", {}),
            (errors.Invalid({"a": "b"}, code="invalid_json"), 400, "invalid_json", {}),
            (errors.Invalid({"a": "b"}, code="too_large"), 413, "too_large", {}),
            (errors.Unauthorized("x"), 401, "unauthorized", {"WWW-Authenticate": "Bearer"}),
            (errors.NotFound("x"), 404, "not_found", {}),
            (errors.Conflict("x"), 409, "conflict", {}),
            (errors.Conflict("x", code="name_taken"), 409, "name_taken", {}),
            (errors.Forbidden("x"), 403, "forbidden", {}),
            (errors.Forbidden("x", code="plan_required"), 403, "plan_required", {}),
            (errors.InjectionRefused("x", code="host_mismatch"), 403, "host_mismatch", {}),
            (errors.RateLimited("x", 3), 429, "rate_limited", {"Retry-After": "3"}),
            (errors.Denied("x"), 424, "secret_unavailable", {}),
            (errors.Misconfigured("x"), 424, "secret_unavailable", {}),
            (errors.Integrity("x"), 424, "secret_unavailable", {}),
            (errors.Transient("x"), 503, "key_service_unavailable", {"Retry-After": "2"}),
            (errors.Busy("x"), 503, "key_service_unavailable", {"Retry-After": "2"}),
            (errors.Unavailable("x"), 503, "unavailable", {"Retry-After": "2"}),
            (errors.AuditUnavailable("x"), 503, "audit_unavailable", {"Retry-After": "2"}),
            (errors.UpstreamError("x"), 502, "upstream_unreachable", {}),
            (errors.UpstreamError("x", code="response_withheld"), 502, "response_withheld", {}),
            (errors.UpstreamError("x", code="upstream_timeout"), 504, "upstream_timeout", {}),
            (errors.ConfigurationError("x"), 503, "unavailable", {"Retry-After": "2"}),
            (errors.BrokerError("x"), 500, "internal", {}),
        ],
    )
    def test_table(self, error: errors.BrokerError, status: int, code: str, headers: dict[str, str]) -> None:
        """Each class of error has its status and code, and the header that tells it from an upstream's."""
        with capture_logs():
            found, body, all_headers = answer_for(error)
        assert (found, body["error"]) == (status, code)
        assert all_headers == {"Axiorank-Broker-Error": "true", **headers}

    def test_key_errors_say_no_more(self) -> None:
        """What an agent is told of a key that refuses holds neither state nor AWS's words."""
        _, body, _ = answer_for(errors.Denied("role_refused by arn:aws", state=errors.KeyState.ROLE_REFUSED))
        assert "role_refused" not in json.dumps(body)

    def test_audit_id(self) -> None:
        """An error that knows its audit row says it."""
        error = errors.UpstreamError("x")
        error.audit_id = UUID(int=1)  # type: ignore[attr-defined] # set where the use is known
        assert answer_for(error)[1]["auditId"] == str(UUID(int=1))

    def test_a_bug(self, things: Web) -> None:
        """A fault of ours is 500 without its text, and logged as class and places."""
        with capture_logs() as logs:
            answer = things.request("DELETE", f"/bug/{SENTINEL}", role="admin")
        assert (answer.status_code, answer.json()["error"]) == (500, "internal")
        assert SENTINEL not in answer.text + json.dumps(logs)
        assert [line["event"] for line in logs] == ["http.bug", "http.request"]
        assert logs[0]["exception"][0]["class"] == "ValueError"

    def test_not_found(self, web: Web) -> None:
        """A path that is none is 404 in the same shape."""
        answer = web.get(f"/{SENTINEL}")
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
        assert answer.headers["axiorank-broker-error"] == "true"
        assert SENTINEL not in answer.text

    @pytest.mark.parametrize(("path", "allowed"), [("/api/v1/things/1", "GET, HEAD, POST"), ("/healthz", "GET, HEAD")])
    def test_other_methods(self, things: Web, path: str, allowed: str) -> None:
        """Another method is 405, and Allow names all that the path has."""
        answer = things.request("PUT", path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert answer.json()["error"] == "method_not_allowed"

    @pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/api/docs", "/api/v1/openapi.json"])
    def test_no_pages(self, web: Web, path: str) -> None:
        """There are no documentation pages, and OpenAPI is at one path."""
        assert web._portal.call(web._send, "GET", path, {}, {}).status_code == 404

    @pytest.mark.parametrize(
        "path",
        """/%6detrics /metrics%2f /metrics/ //metrics /./metrics /x/../metrics /METRICS /metrics;x /metrics%00
        /api%2fv1%2fthings%2f1 /api/v1/%74hings/1 /api/v1//things/1 /api/v1/things/1/ /api/api/things/1
        /api/v1/v1/things/1 /api//v1/things/1 /API/v1/things/1 /api/v1/x/../things/1 /things/1 /v1/things/1""".split(),
    )
    def test_other_spellings(self, things: Web, path: str) -> None:
        """A path has one spelling: a server before us that keeps one away from the outside keeps all of it away."""
        root = urlsplit(things.serve())
        with socket.create_connection((root.hostname, root.port), timeout=20) as connection:
            own = f"Host: b\r\nAuthorization: Bearer {things.token(role='admin')}\r\nConnection: close"
            connection.sendall(f"GET {path} HTTP/1.1\r\n{own}\r\n\r\n".encode())
            assert connection.recv(65_536).startswith(b"HTTP/1.1 404 ")


class TestPassage:
    def test_alias(self, things: Web) -> None:
        """A path without the version is the same."""
        versioned, alias = (things.get(f"/api/{each}things/1", role="admin") for each in ("v1/", ""))
        assert (versioned.status_code, versioned.content) == (alias.status_code, alias.content) == (200, alias.content)

    def test_head(self, things: Web) -> None:
        """HEAD is GET without the body."""
        get, head = (things.request(method, "/things/1", role="admin") for method in ("GET", "HEAD"))
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]

    @pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/api/openapi.json", "/none", "/things/1"])
    def test_headers(self, things: Web, path: str) -> None:
        """No answer of ours is cached or sniffed."""
        answer = things.get(path)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"

    def test_log_line(self, things: Web) -> None:
        """One line for each request: template, method, status, code; no path, query, header or body."""
        with capture_logs() as logs:
            things.get(f"/things/{SENTINEL}?limit={SENTINEL}", headers={"X": SENTINEL})
        (line,) = logs
        assert line.pop("ms") >= 0
        assert line == {
            "event": "http.request",
            "log_level": "info",
            "method": "GET",
            "route": "/api/v1/things/{id}",
            "status": 401,
            "code": "unauthorized",
        }

    def test_probes_are_not_logged(self, web: Web) -> None:
        """A probe that succeeds leaves no line."""
        with capture_logs() as logs:
            web.get("/healthz")
        assert logs == []

    def test_made_up_methods(self, web: Web) -> None:
        """A method that was made up is in no line and no metric."""
        with capture_logs() as logs:
            web.request("SENTINEL", "/healthz")
        assert logs[0]["method"] == "other"
        assert "SENTINEL" not in web.get("/metrics").text

    def test_trace(self, things: Web) -> None:
        """A request's span continues the caller's trace, and holds no path."""
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        with collected() as spans:
            things.get(f"/things/{SENTINEL}", role="admin", headers={"traceparent": parent})
        (span,) = [each for each in spans.get_finished_spans() if each.name == "http.request"]
        assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
        assert dict(span.attributes) == {"http.request.method": "GET", "http.response.status_code": 200}

    def test_the_framework_leaves_no_spans(self, things: Web) -> None:
        """Spans of the framework, which would hold exceptions' texts, are off."""
        with collected() as spans, capture_logs():
            things.post("/things/1", role="admin", json={"someName": SENTINEL})
            things.request("DELETE", f"/bug/{SENTINEL}", role="admin")
        assert {each.name for each in spans.get_finished_spans()} == {"http.request"}
        assert SENTINEL not in repr([each.to_json() for each in spans.get_finished_spans()])


def _away() -> None:
    raise errors.Unavailable(SENTINEL)


def _without_keys() -> TokenVerifier:
    def read() -> bytes:
        raise OSError

    clock = SystemClock()
    return TokenVerifier(Jwks(read, clock), issuer=ISSUER, audience=AUDIENCE, clock=clock)


class TestHealth:
    def test_healthz(self, web: Web) -> None:
        """/healthz says that the process lives, to anybody."""
        answer = web.get("/healthz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})

    def test_readyz(self, web: Web) -> None:
        """/readyz names every part that a request may need."""
        answer = web.get("/readyz")
        assert answer.status_code == 200
        assert answer.json()["parts"] == {"database": "ok", "claims": "ok", "token_keys": "ok"}

    def test_not_ready(self, things: Web) -> None:
        """A part that is away makes it 503, which names the part and nothing of what it said."""
        things.live.app.parts["database"] = _away
        things.live.app.parts["claims"] = lambda: None
        answer = things.get("/readyz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert answer.json()["parts"] == {"database": "away", "claims": "ok", "token_keys": "ok"}
        assert SENTINEL not in answer.text

    def test_no_token_keys(self, things: Web) -> None:
        """Without token keys a process is not ready, but lives; who calls is told to try again."""
        with web_on(things.live, tokens=_without_keys(), rates=Counting()) as web, capture_logs():
            web.api.include_router(_routes(), prefix="/api/v1")
            assert web.get("/healthz").status_code == 200
            assert web.get("/service", scope="broker:inject").json()["error"] == "unavailable"
            assert web.get("/readyz").json()["parts"] == {"token_keys": "away"}

    def test_metrics(self, things: Web) -> None:
        """/metrics counts by template, method and status; no path, no workspace."""
        things.get(f"/things/{SENTINEL}", role="admin")
        things.get(f"/things/{SENTINEL}")
        text = things.get("/metrics").text
        name = 'broker_http_requests_total{method="GET",route="/api/v1/things/{id}",status='
        assert f'{name}"200"}} 1.0' in text
        assert f'{name}"401"}} 1.0' in text
        assert 'broker_http_seconds_count{method="GET",route="/api/v1/things/{id}"} 2.0' in text
        assert "broker_http_under_way 1.0" in text
        assert SENTINEL not in text
        assert things.live.workspace not in text


class TestOpenApi:
    def test_it_is_the_one_that_is_checked_in(self, web: Web) -> None:
        """What is served is docs/openapi.json."""
        checked_in = (Path(__file__).parents[2] / "docs" / "openapi.json").read_text(encoding="utf-8")
        assert web.get("/api/openapi.json").json() == json.loads(checked_in)
