"""``/broker-secrets`` and ``/audit`` over HTTP: the contract's fields, who may, repeats, and no value comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy
from structlog.testing import capture_logs

from broker_core.adapters.store import Database
from broker_core.errors import KeyState
from broker_core.events import _DATA_FIELDS
from broker_core.model import FoundBy, SecretStatus
from broker_core.ports import Failure
from tests.databases import plain
from tests.sentinel import Search, text_sentinel
from tests.spans import collected
from tests.waiting import wait_until
from tests.web import Web

VALUE = "pl4nted-v@lue/9f2c-of-a-credential"
#: always there; the others only where they say something
ALWAYS = {"id", "name", "version", "status", "cipher", "injectionKind", "createdAt", "rotatedAt"}


def body(**changes: Any) -> dict[str, Any]:
    """A good creation; ``...`` leaves a field out."""
    fields: dict[str, Any] = {
        "name": "github",
        "secret": VALUE,
        "injectionKind": "bearer",
        "targetHost": "api.example.com",
        "agentId": "agent-1",
    }
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def create(web: Web, key: str | None = None, **changes: Any) -> Any:
    """POST /broker-secrets."""
    headers = {"Idempotency-Key": key} if key is not None else {}
    return web.post("/broker-secrets", role="admin", json=body(**changes), headers=headers)


def rotate(web: Web, secret_id: str, key: str | None = None, **fields: Any) -> Any:
    """POST /broker-secrets/{id}/rotate."""
    headers = {"Idempotency-Key": key} if key is not None else {}
    path = f"/broker-secrets/{secret_id}/rotate"
    return web.post(path, role="admin", json={"secret": "another-value-of-it", **fields}, headers=headers)


def look(web: Web, secret_id: str) -> Any:
    """GET /broker-secrets/{id}."""
    return web.get(f"/broker-secrets/{secret_id}", role="admin").json()


def stored(web: Web, **changes: Any) -> str:
    """A secret whose value is in place; its id."""
    secret_id: str = create(web, **changes).json()["id"]
    web.live.work()
    return secret_id


class TestCreate:
    """POST /broker-secrets."""

    def test_it_is_accepted(self, web: Web) -> None:
        """202, with the secret's id, its first version, and the event to follow."""
        answer = create(web, rotationPolicy="90d", bindingKey=None)
        assert answer.status_code == 202
        found = answer.json()
        assert set(found) == {"id", "name", "version", "eventId", "warnings"}
        assert (found["name"], found["version"], found["warnings"]) == ("github", 1, [])
        assert "Idempotent-Replayed" not in answer.headers
        assert web.get(f"/events/{found['eventId']}", role="admin").json()["status"] == "accepted"

    def test_a_name_in_use(self, web: Web) -> None:
        """409."""
        create(web)
        answer = create(web)
        assert (answer.status_code, answer.json()["error"]) == (409, "name_taken")

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"name": " github"}, "name"),
            ({"name": ...}, "name"),
            ({"secret": ...}, "secret"),
            ({"secret": ""}, "secret"),
            ({"secret": 7}, "secret"),
            ({"secret": [VALUE]}, "secret"),
            ({"secret": f"{VALUE}\n"}, "secret"),
            ({"secret": "é" * 40_000}, "secret"),
            ({"secret": "x" * 70_000}, "secret"),
            ({"injectionKind": "cookie"}, "injectionKind"),
            ({"injectionKind": ...}, "injectionKind"),
            ({"targetHost": ...}, "targetHost"),
            ({"targetHost": "2130706433"}, "targetHost"),
            ({"agentId": ...}, "mcpServerId"),
            ({"agentId": "a b"}, "agentId"),
            ({"bindingKey": "X-Key"}, "bindingKey"),
            ({"rotationPolicy": "90"}, "rotationPolicy"),
            ({VALUE: 1}, "(another field)"),
        ],
    )
    def test_what_is_wrong_is_named(self, web: Web, changes: dict[str, Any], field: str) -> None:
        """422 by the field; nothing that was given comes back, and nothing is kept."""
        answer = create(web, **changes)
        assert (answer.status_code, answer.json()["error"]) == (422, "invalid")
        assert list(answer.json()["fields"]) == [field]
        assert VALUE[:8] not in answer.text
        assert web.live.queue.rung == []

    @pytest.mark.parametrize("content", [b"{", b"[1,2", b'{"name": "a", "name": "b"}', b'{"secret": "\\ud800"}'])
    def test_what_is_no_json(self, web: Web, content: bytes) -> None:
        """400."""
        answer = web.post("/broker-secrets", role="admin", content=content)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_json")

    def test_a_value_of_every_letter(self, web: Web) -> None:
        """Text is kept as UTF-8, in full."""
        value = "clé-ключ-鍵" * 100
        secret_id = stored(web, secret=value, injectionKind="query", bindingKey="key")
        assert look(web, secret_id)["status"] == "active"


PATIENCE = "SET lock_timeout = '60s'; SET statement_timeout = '60s'"
#: the locks of this database that are of our own choosing
HELD = """
    pg_locks WHERE locktype = 'advisory' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


@contextmanager
def patience(web: Web) -> Iterator[None]:
    """Let statements wait for a lock until a slow machine has done all that this takes."""
    store = web.live.app.store
    usual, own = store._database, Database(web.live.environment["BROKER_DATABASE_URL"])
    sqlalchemy.event.listen(own._engine, "connect", lambda connection, _: connection.execute(PATIENCE))
    store._database = own
    yield
    store._database = usual
    own.close()


class TestIdempotency:
    """Idempotency-Key."""

    def test_a_repeat(self, web: Web) -> None:
        """The same answer, marked; one event."""
        first, again = create(web, "k-1"), create(web, "k-1")
        assert (again.status_code, again.json()) == (202, first.json())
        assert ("Idempotent-Replayed" in first.headers, again.headers["Idempotent-Replayed"]) == (False, "true")
        assert len(web.live.queue.rung) == 1

    def test_a_repeat_of_a_rotation(self, web: Web) -> None:
        """Counts no version."""
        secret_id = stored(web)
        first, again = rotate(web, secret_id, "k-1"), rotate(web, secret_id, "k-1")
        assert (again.json(), again.json()["version"]) == (first.json(), 2)
        assert again.headers["Idempotent-Replayed"] == "true"

    @pytest.mark.parametrize(
        ("changes", "field"), [({"secret": "another-value"}, "secret"), ({"rotationPolicy": "9d"}, "rotationPolicy")]
    )
    def test_another_body(self, web: Web, changes: dict[str, Any], field: str) -> None:
        """422."""
        create(web, "k-1")
        answer = create(web, "k-1", **changes)
        assert answer.status_code == 422
        assert set(answer.json()["fields"]) == {field, "Idempotency-Key"}
        assert "another" not in answer.text.replace("another request", "")

    @pytest.mark.parametrize("key", ["", "a b", "x" * 256])
    def test_what_is_no_key(self, web: Web, key: str) -> None:
        """422."""
        answer = create(web, key)
        assert (answer.status_code, list(answer.json()["fields"])) == (422, ["Idempotency-Key"])

    def test_two_keys(self, web: Web) -> None:
        """Which of the two would count is nobody's to guess: 422."""
        keys = {"Idempotency-Key": "one", "idempotency-key": "two"}
        answer = web.post("/broker-secrets", role="admin", headers=keys, json=body())
        assert (answer.status_code, list(answer.json()["fields"])) == (422, ["Idempotency-Key"])

    def test_in_flight(self, web: Web, clean_database: str) -> None:
        """While the first is being served its repeat is a conflict, at once; then it is answered like the first."""
        with patience(web), psycopg.connect(plain(clean_database)) as other, ThreadPoolExecutor(1) as pool:
            other.execute("SELECT 1 FROM workspaces WHERE id = %s FOR UPDATE", (web.live.workspace,))
            first = pool.submit(create, web, "k-1")
            wait_until(lambda: other.execute(f"SELECT pid FROM {HELD}").fetchall(), what="the first request's lock")
            answer = create(web, "k-1")
            assert (answer.status_code, answer.json()["error"]) == (409, "conflict")
            assert not first.done()
            other.rollback()
            assert first.result(timeout=20).status_code == 202
        assert create(web, "k-1").json() == first.result().json()

    def test_a_broken_one_leaves_nothing_locked(self, web: Web, clean_database: str) -> None:
        """A request whose connection dies in the middle does not lock its key."""
        cut = f"SELECT pg_terminate_backend(pid) FROM {HELD}"
        with patience(web), psycopg.connect(plain(clean_database)) as other, ThreadPoolExecutor(1) as pool:
            other.execute("SELECT 1 FROM workspaces WHERE id = %s FOR UPDATE", (web.live.workspace,))
            first = pool.submit(create, web, "k-1")
            wait_until(lambda: other.execute(cut).fetchall(), what="the first request's lock")
            assert first.result(timeout=20).status_code == 503
            other.rollback()
            # the server says that it ends a connection before it lets go of its locks
            wait_until(lambda: not other.execute(f"SELECT pid FROM {HELD}").fetchall(), what="the connection's end")
        assert create(web, "k-1").status_code == 202


class TestRotate:
    """POST /broker-secrets/{id}/rotate."""

    def test_fields_that_are_not_given_stay(self, web: Web) -> None:
        """And the version counts on."""
        secret_id = stored(web)
        answer = rotate(web, secret_id)
        web.live.work()
        found = look(web, secret_id)
        assert (answer.status_code, answer.json()["id"], found["version"]) == (202, secret_id, 2)
        assert (found["injectionKind"], found["targetHost"]) == ("bearer", "api.example.com")

    def test_fields_change_together(self, web: Web) -> None:
        """All of them."""
        secret_id = stored(web)
        rotate(
            web, secret_id, injectionKind="query", bindingKey="key", targetHost="b.example.com", mcpServerId="server-1"
        )
        web.live.work()
        found = look(web, secret_id)
        assert (found["injectionKind"], found["bindingKey"], found["mcpServerId"]) == ("query", "key", "server-1")
        assert "agentId" not in found

    @pytest.mark.parametrize("fields", [{"targetHost": "b.example.com"}, {"agentId": "agent-2"}])
    def test_one_field_alone(self, web: Web, fields: dict[str, str]) -> None:
        """422."""
        answer = rotate(web, stored(web), **fields)
        assert (answer.status_code, list(answer.json()["fields"])) == (422, ["injectionKind"])


class TestChange:
    """PATCH /broker-secrets/{id}."""

    def test_the_policy(self, web: Web) -> None:
        """200 with the secret; due so many days after the last rotation."""
        secret_id = stored(web)
        answer = web.request("PATCH", f"/broker-secrets/{secret_id}", role="admin", json={"rotationPolicy": "30d"})
        found = answer.json()
        assert (answer.status_code, found["rotationPolicy"]) == (200, "30d")
        due, rotated = (datetime.fromisoformat(found[name]) for name in ("rotationDueAt", "rotatedAt"))
        assert due - rotated == timedelta(days=30)

    def test_it_is_taken_away(self, web: Web) -> None:
        """By null."""
        secret_id = stored(web, rotationPolicy="30d")
        answer = web.request("PATCH", f"/broker-secrets/{secret_id}", role="admin", json={"rotationPolicy": None})
        assert answer.status_code == 200
        assert {"rotationPolicy", "rotationDueAt"}.isdisjoint(answer.json())

    @pytest.mark.parametrize("change", [{}, {"rotationPolicy": "soon"}, {"rotationPolicy": "1d", "targetHost": "b.c"}])
    def test_nothing_else(self, web: Web, change: dict[str, str]) -> None:
        """422: where a value may go changes only with a new value."""
        secret_id = stored(web)
        answer = web.request("PATCH", f"/broker-secrets/{secret_id}", role="admin", json=change)
        assert answer.status_code == 422


class TestDelete:
    """DELETE /broker-secrets/{id}."""

    def test_it_is_gone(self, web: Web) -> None:
        """202, and from then on 404."""
        secret_id = stored(web)
        answer = web.request("DELETE", f"/broker-secrets/{secret_id}", role="admin")
        assert (answer.status_code, answer.json()["id"], answer.json()["version"]) == (202, secret_id, 2)
        assert web.get(f"/events/{answer.json()['eventId']}", role="admin").json()["status"] == "deleted"
        assert web.get(f"/broker-secrets/{secret_id}", role="admin").status_code == 404
        assert web.request("DELETE", f"/broker-secrets/{secret_id}", role="admin").status_code == 404


class TestLook:
    """GET /broker-secrets and GET /broker-secrets/{id}."""

    def test_one_that_waits(self, web: Web) -> None:
        """What there is not yet is null where the contract has it always, and not there elsewhere."""
        found = look(web, create(web).json()["id"])
        assert set(found) == ALWAYS
        assert (found["version"], found["status"], found["cipher"], found["rotatedAt"]) == (0, "pending", None, None)

    def test_one_in_place(self, web: Web) -> None:
        """Times in UTC with a Z."""
        found = look(web, stored(web, rotationPolicy="30d"))
        optional = {"targetHost", "agentId", "rotationPolicy", "rotationDueAt", "lastCheckedAt"}
        assert set(found) == ALWAYS | optional
        assert (found["version"], found["status"], found["cipher"]) == (1, "active", "platform")
        assert all(found[name].endswith("Z") for name in found if name.endswith("At"))

    def test_one_that_is_affected(self, web: Web) -> None:
        """Since when, why, how it was found, and what to do."""
        connection = web.live.connect(web.live.customer())
        secret_id = stored(web)
        web.live.app.store.open_failure(
            Failure(
                web.live.workspace,
                connection.id,
                None,
                KeyState.KEY_DISABLED,
                "DisabledException",
                "request-1",
                FoundBy.PROBE,
            )
        )
        found = look(web, secret_id)
        assert (found["status"], found["cipher"], found["connectionId"]) == ("affected", "kms", str(connection.id))
        failure = found["failure"]
        assert set(failure) == {"state", "awsCode", "since", "foundBy", "whatToDo"}
        assert (failure["state"], failure["awsCode"], failure["foundBy"]) == (
            "key_disabled",
            "DisabledException",
            "probe",
        )
        assert failure["since"].endswith("Z")
        assert "Enable the key" in failure["whatToDo"]

    def test_pages(self, web: Web) -> None:
        """Oldest id first; each goes on after the one before, the last has a null cursor."""
        for name in ("a", "b", "c"):
            create(web, name=name)
        first = web.get("/broker-secrets", role="admin", params={"limit": 2}).json()
        assert set(first) == {"items", "nextCursor"}
        rest = web.get("/broker-secrets", role="admin", params={"limit": 2, "cursor": first["nextCursor"]}).json()
        names = [item["name"] for item in first["items"] + rest["items"]]
        assert (names, rest["nextCursor"]) == (["a", "b", "c"], None)

    @pytest.mark.parametrize("status", list(SecretStatus))
    def test_of_one_status(self, web: Web, status: SecretStatus) -> None:
        """The filter takes every status there is."""
        stored(web, name="active")
        create(web, name="pending")
        found = web.get("/broker-secrets", role="admin", params={"status": status.value}).json()["items"]
        assert [item["name"] for item in found] == [status.value] * (status.value in ("active", "pending"))

    @pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": 201}, {"limit": "x"}, {"cursor": "x"}, {"status": "x"}])
    def test_what_is_no_page(self, web: Web, wrong: dict[str, Any]) -> None:
        """422, by the parameter."""
        answer = web.get("/broker-secrets", role="admin", params=wrong)
        assert (answer.status_code, list(answer.json()["fields"])) == (422, list(wrong))

    @pytest.mark.parametrize(
        ("query", "field"), [("stauts=active", "(another parameter)"), ("status=active&status=pending", "status")]
    )
    def test_a_filter_is_what_it_says(self, web: Web, query: str, field: str) -> None:
        """A misspelt one would answer another question, and one that is there twice two."""
        answer = web.get(f"/broker-secrets?{query}", role="admin")
        assert (answer.status_code, list(answer.json()["fields"])) == (422, [field])


CALLS = [
    ("GET", "/broker-secrets", None),
    ("POST", "/broker-secrets", body()),
    ("GET", "/broker-secrets/{id}", None),
    ("PATCH", "/broker-secrets/{id}", {"rotationPolicy": "1d"}),
    ("DELETE", "/broker-secrets/{id}", None),
    ("POST", "/broker-secrets/{id}/rotate", {"secret": VALUE}),
    ("GET", "/audit", None),
]


class TestWho:
    """Admins and owners, of their own workspace."""

    @pytest.mark.parametrize(("method", "path", "document"), CALLS)
    def test_nobody_else(self, web: Web, method: str, path: str, document: Any) -> None:
        """Neither members, nor services, nor who has no token."""
        options = {"json": document} if document is not None else {}
        path = path.replace("{id}", stored(web))
        for who in ({"role": "viewer"}, {"role": "member"}, {"scope": "broker:events broker:platform"}):
            assert web.request(method, path, **who, **options).status_code == 403
        assert web.request(method, path, **options).status_code == 401

    @pytest.mark.parametrize(("method", "path", "document"), [call for call in CALLS if "{id}" in call[1]])
    def test_a_neighbours_answers_like_none(self, web: Web, method: str, path: str, document: Any) -> None:
        """404, word for word (INV-10), and nothing happened to it."""
        options = {"json": document} if document is not None else {}
        secret_id = stored(web)
        web.live.app.store.put_workspace("ws_other", "enterprise")
        theirs = web.request(method, path.replace("{id}", secret_id), role="owner", workspace="ws_other", **options)
        none = web.request(method, path.replace("{id}", str(uuid4())), role="owner", **options)
        assert (theirs.status_code, theirs.content) == (404, none.content)
        assert look(web, secret_id)["version"] == 1


class TestAudit:
    """GET /audit."""

    def lines(self, web: Web, **params: Any) -> tuple[list[dict[str, Any]], str | None]:
        """The lines of a page, and the cursor of the next."""
        answer = web.get("/audit", role="admin", params=params)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        assert answer.text.endswith("\n") or not answer.text
        return [json.loads(line) for line in answer.text.splitlines()], answer.headers.get("x-axiorank-next-cursor")

    def test_a_line_says_what_was_done(self, web: Web) -> None:
        """Ids and codes; the times in UTC."""
        connection = web.live.connect(web.live.customer())
        secret_id = stored(web)
        found = next(line for line in self.lines(web)[0] if line["purpose"] == "encrypt" and "secretId" in line)
        assert (found["secretId"], found["secretName"], found["version"]) == (secret_id, "github", 1)
        assert (found["connectionId"], found["cipher"], found["outcome"]) == (str(connection.id), "kms", "ok")
        assert found["sessionName"] == f"axiorank-encrypt-{found['id']}"
        assert {"kmsRequestId", "assumeRequestId", "startedAt", "endedAt"} <= found.keys()
        assert found["startedAt"].endswith("Z")
        assert "workspaceId" not in found

    def test_pages(self, web: Web) -> None:
        """The header leads from one to the next, and is not there on the last."""
        for name in ("a", "b", "c"):
            stored(web, name=name)
        first, cursor = self.lines(web, limit=2)
        rest, end = self.lines(web, limit=2, cursor=cursor)
        assert [line["secretName"] for line in first + rest] == ["a", "b", "c"]
        assert (UUID(cursor or ""), end) == (UUID(first[-1]["id"]), None)

    def test_a_period(self, web: Web) -> None:
        """From its first moment on, and before its last."""
        for name in ("a", "b", "c"):
            stored(web, name=name)
        starts = [line["startedAt"] for line in self.lines(web)[0]]
        period = {"from": starts[1], "to": starts[2]}
        assert [line["secretName"] for line in self.lines(web, **period)[0]] == ["b"]

    @pytest.mark.parametrize(
        "wrong", ["yesterday", "1767225600", "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z"]
    )
    def test_what_is_no_time(self, web: Web, wrong: str) -> None:
        """422: a time without its offset could be any."""
        answer = web.get("/audit", role="admin", params={"from": wrong, "to": wrong})
        assert (answer.status_code, set(answer.json()["fields"])) == (422, {"from", "to"})
        assert wrong not in answer.text

    def test_a_neighbours_uses_are_not_there(self, web: Web) -> None:
        """INV-10."""
        stored(web)
        web.live.app.store.put_workspace("ws_other", "free")
        assert web.get("/audit", role="admin", workspace="ws_other").text == ""


def test_no_value_is_in_an_answer_a_log_or_a_span(web: Web) -> None:
    """INV-1, at the admins' and producers' door: accepted, repeated, refused for every reason, listed, audited."""
    value = text_sentinel("value")
    search, text = Search([value]), value.value.decode()
    with collected() as spans, capture_logs() as logs:
        answers = [
            create(web, "k-1", secret=text),
            create(web, "k-1", secret=text),
            create(web, "k-1", secret=text + "!"),
            create(web, "k-1", secret=text, name="other"),
            create(web, secret=text),
            create(web, secret=text + "\n", name="line"),
            create(web, secret={"is": text}, name="object"),
            create(web, secret=text, name=text, targetHost=text, bindingKey=text, agentId=text),
            create(web, secret=text, **{text: text}),
            web.post("/broker-secrets", role="admin", content=f'{{"secret": "{text}" '.encode()),
            web.post("/events", scope="broker:events", content=f'{{"data": "{text}" '.encode()),
            web.post("/events", scope="broker:events", json=web.live.event(value=text, version=1)),
        ]
        web.live.work()
        secret_id = answers[0].json()["id"]
        answers += [
            rotate(web, secret_id, secret=text, targetHost=text),
            rotate(web, text, secret=text),
            web.get("/broker-secrets", role="admin"),
            web.get("/broker-secrets", role="admin", params={"status": text, "cursor": text}),
            web.get("/audit", role="admin"),
            web.get("/audit", role="admin", params={"from": text}),
        ]
    seen = [answer.text + repr(answer.headers) for answer in answers] + [repr(logs)]
    seen += [span.to_json() for span in spans.get_finished_spans()]
    assert {answer.status_code for answer in answers} == {200, 202, 400, 404, 409, 422}
    for each in seen:
        assert search("what was seen", each.encode()) == []


class TestOpenApi:
    """The document describes what is done."""

    def operations(self, web: Web) -> dict[tuple[str, str], Any]:
        """By method and path."""
        paths = web.get("/api/openapi.json").json()["paths"]
        return {(method, path): each for path, of_it in paths.items() for method, each in of_it.items()}

    def test_an_event_is_described_as_it_is_read(self, web: Web) -> None:
        """The same fields as the parser's."""
        described = self.operations(web)["post", "/api/v1/events"]["requestBody"]["content"]
        assert set(described) == {"application/cloudevents+json", "application/json"}
        assert described["application/json"] == {"schema": {"$ref": "#/components/schemas/CloudEvent"}}
        schema = web.get("/api/openapi.json").json()["components"]["schemas"]["CloudEvent"]
        assert set(schema["properties"]["data"]["properties"]) == _DATA_FIELDS

    def test_the_headers_of_a_repeat_are_there(self, web: Web) -> None:
        """The one that is sent and the one that comes back."""
        for path in ("/broker-secrets", "/broker-secrets/{id}/rotate"):
            operation = self.operations(web)["post", f"/api/v1{path}"]
            assert "Idempotency-Key" in [each["name"] for each in operation["parameters"]]
            assert "Idempotent-Replayed" in operation["responses"]["202"]["headers"]
