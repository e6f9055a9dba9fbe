"""``/events`` and ``/workspaces`` over HTTP: who may, what is answered, and that nothing of a value comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from broker_core.events import OWN_SOURCE
from broker_core.intake import Intake
from tests.live import Live
from tests.web import Web

SENTINEL = "pl4nted-v@lue/9f2c\n"
EVENTS, PLATFORM = "broker:events", "broker:platform"
REFUSED = "Axiorank-Broker-Error"


def send(web: Web, document: Any, **options: Any) -> Any:
    """One event, as a producer sends it."""
    headers = {"Content-Type": "application/cloudevents+json", **options.pop("headers", {})}
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return web.post("/events", content=body, headers=headers, **{"scope": EVENTS, **options})


class TestAccept:
    """POST /events."""

    def test_it_is_accepted(self, web: Web) -> None:
        """202, with our id and where it is."""
        answer = send(web, web.live.event(version=7))
        assert answer.status_code == 202
        found = answer.json()
        assert {**found, "id": None} == {
            "id": None,
            "status": "accepted",
            "name": "github",
            "version": 7,
            "warnings": [],
        }
        assert [str(event_id) for _, event_id in web.live.queue.rung] == [found["id"]]

    @pytest.mark.parametrize("kind", ["application/cloudevents+json; charset=utf-8", "application/json"])
    def test_both_content_types(self, web: Web, kind: str) -> None:
        """Structured mode, as CloudEvents and as plain JSON."""
        assert send(web, web.live.event(), headers={"Content-Type": kind}).status_code == 202

    def test_the_value_is_stored(self, web: Web) -> None:
        """The door leads to custody."""
        send(web, web.live.event(value="a-value-that-is-sent"))
        assert [state.value for state in web.live.work() if state] == ["stored"]
        assert web.live.candidate("github").version == 1

    def test_a_short_value_warns(self, web: Web) -> None:
        """Answers of upstreams are not redacted for it."""
        assert len(send(web, web.live.event(value="short")).json()["warnings"]) == 1

    def test_a_repeat_is_answered_like_the_first(self, web: Web) -> None:
        """Also byte for byte."""
        document = web.live.event()
        first, again = send(web, document), send(web, document)
        assert (again.status_code, again.content) == (202, first.content)

    def test_a_deletion(self, web: Web) -> None:
        """It ends at once."""
        send(web, web.live.event())
        assert send(web, web.live.event(kind="secret.deleted", version=2)).json()["status"] == "deleted"


class TestRefusals:
    """What is not accepted."""

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            (b"", 400, "invalid_json"),
            (b"[]", 400, "invalid_json"),
            (b"{", 400, "invalid_json"),
            (b'{"id": 1, "id": 2}', 400, "invalid_json"),
            (b"\xff", 400, "invalid_json"),
            (b'"' + b"x" * 600_000 + b'"', 413, "too_large"),
            (b"{}", 422, "invalid"),
        ],
    )
    def test_what_is_no_event(self, web: Web, body: bytes, status: int, code: str) -> None:
        """By code."""
        answer = send(web, body)
        assert (answer.status_code, answer.json()["error"], answer.headers[REFUSED]) == (status, code, "true")

    def test_fields_are_named_and_the_value_is_not(self, web: Web) -> None:
        """Every wrong field at once, and never a word of what was given."""
        answer = send(web, web.live.event(value=SENTINEL, rotationPolicy="x", targetHost=SENTINEL))
        assert answer.status_code == 422
        assert {"data.rotationPolicy", "data.targetHost"} <= set(answer.json()["fields"])
        assert SENTINEL[:8] not in answer.text

    def test_another_workspaces_event(self, web: Web) -> None:
        """404: it does not exist for this token (INV-10)."""
        assert send(web, web.live.event(workspaceId="ws_other")).status_code == 404

    def test_our_own_source_is_reserved(self, web: Web) -> None:
        """No producer takes the ids of an admin's requests."""
        document = web.live.event() | {"source": OWN_SOURCE}
        assert list(send(web, document).json()["fields"]) == ["source"]

    def test_a_version_that_is_taken(self, web: Web) -> None:
        """409."""
        send(web, web.live.event())
        answer = send(web, web.live.event())
        assert (answer.status_code, answer.json()["error"]) == (409, "version_taken")

    def test_another_body_under_the_same_id(self, web: Web) -> None:
        """422, and it says that the value differs without saying how."""
        first = web.live.event(id="same", value="value-number-one")
        send(web, first)
        answer = send(web, {**first, "data": {**first["data"], "value": "value-number-two"}})
        assert answer.status_code == 422
        assert set(answer.json()["fields"]) == {"data.value", "id"}
        assert "number" not in answer.text

    @pytest.mark.parametrize("who", [{"scope": "broker:inject"}, {"role": "owner"}, {"scope": PLATFORM}])
    def test_only_producers(self, web: Web, who: dict[str, str]) -> None:
        """403 for every other scope, and for people."""
        assert send(web, web.live.event(), **{"scope": None, **who}).status_code == 403

    def test_a_full_workspace(self, web: Web) -> None:
        """429 with Retry-After; nothing more is kept."""
        app = web.live.app
        small = Intake(app.store, app.intake._claims, app.queue, ttl_seconds=60, new_id=uuid4, most_waiting=1)
        object.__setattr__(app, "intake", small)
        assert send(web, web.live.event()).status_code == 202
        answer = send(web, web.live.event(version=2))
        assert (answer.status_code, answer.json()["error"]) == (429, "rate_limited")
        assert int(answer.headers["Retry-After"]) >= 1


class TestLook:
    """GET and DELETE /events/{id}."""

    @pytest.mark.parametrize("who", [{"scope": EVENTS}, {"role": "admin"}, {"role": "owner"}])
    def test_where_it_is(self, web: Web, who: dict[str, str]) -> None:
        """For producers and admins; a field that says nothing is not there."""
        event_id = send(web, web.live.event()).json()["id"]
        found = web.get(f"/events/{event_id}", **who).json()
        assert set(found) == {"id", "type", "source", "name", "version", "status", "heldUntil", "acceptedAt"}
        assert (found["id"], found["type"], found["status"]) == (event_id, "secret.created", "accepted")
        assert found["acceptedAt"].endswith("Z")
        assert found["heldUntil"] > found["acceptedAt"]

    def test_how_it_ended(self, web: Web) -> None:
        """With the time."""
        event_id = send(web, web.live.event()).json()["id"]
        web.live.work()
        found = web.get(f"/events/{event_id}", role="admin").json()
        assert found["status"] == "stored"
        assert found["endedAt"].endswith("Z")
        assert "heldUntil" not in found

    def test_a_value_that_the_key_refuses_is_held(self, web: Web) -> None:
        """Until when, and why."""
        customer = web.live.customer()
        web.live.connect(customer)
        customer.disable_key()
        event_id = send(web, web.live.event()).json()["id"]
        web.live.work()
        found = web.get(f"/events/{event_id}", role="admin").json()
        assert (found["status"], found["reason"]) == ("refused", "key_disabled")
        assert found["heldUntil"].endswith("Z")

    def test_a_held_value_is_discarded(self, web: Web) -> None:
        """By an admin; the claim goes with it."""
        event_id = send(web, web.live.event()).json()["id"]
        claim_id = web.live.app.store.event(web.live.workspace, event_id).claim_id
        answer = web.request("DELETE", f"/events/{event_id}", role="admin")
        assert (answer.status_code, answer.json()["status"], answer.json()["reason"]) == (202, "deleted", "discarded")
        assert web.live.app.intake._claims.get(claim_id) is None
        assert web.request("DELETE", f"/events/{event_id}", role="admin").status_code == 409

    @pytest.mark.parametrize("who", [{"scope": EVENTS}, {"role": "member"}])
    def test_discarding_is_for_admins(self, web: Web, who: dict[str, str]) -> None:
        """403."""
        event_id = send(web, web.live.event()).json()["id"]
        assert web.request("DELETE", f"/events/{event_id}", **who).status_code == 403

    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    def test_a_neighbours_and_an_unknown_one(self, web: Web, method: str) -> None:
        """Both 404 (INV-10)."""
        event_id = send(web, web.live.event()).json()["id"]
        web.live.app.store.put_workspace("ws_other", "free")
        theirs = web.request(method, f"/events/{event_id}", role="admin", workspace="ws_other")
        unknown = web.request(method, f"/events/{uuid4()}", role="admin")
        assert (theirs.status_code, theirs.json()) == (404, unknown.json())
        assert web.request(method, "/events/no-id", role="admin").status_code == 422


class TestWorkspaces:
    """/workspaces/{id}."""

    def test_the_platform_makes_one(self, web: Web) -> None:
        """The one that its token speaks for."""
        workspace = f"ws_{uuid4().hex}"
        answer = web.request(
            "PUT", f"/workspaces/{workspace}", scope=PLATFORM, workspace=workspace, json={"plan": "team"}
        )
        assert (answer.status_code, answer.json()) == (200, {"id": workspace, "plan": "team"})
        assert web.live.app.store.plan_of(workspace) == "team"

    def test_another_one_is_not_found(self, web: Web) -> None:
        """Neither made, nor changed, nor ended."""
        there, not_there = web.live.workspace, f"ws_{uuid4().hex}"
        who = {"scope": PLATFORM, "workspace": "ws_mine"}
        for path in (f"/workspaces/{there}", f"/workspaces/{not_there}"):
            assert web.request("PUT", path, json={"plan": "free"}, **who).status_code == 404
            assert web.request("DELETE", path, **who).status_code == 404
        assert web.live.app.store.plan_of(there) == "enterprise"

    def test_its_end(self, web: Web) -> None:
        """204; what waits is forgotten, and its id is never used again."""
        event_id = send(web, web.live.event()).json()["id"]
        claim_id = web.live.app.store.event(web.live.workspace, event_id).claim_id
        path = f"/workspaces/{web.live.workspace}"
        assert web.request("DELETE", path, scope=PLATFORM).status_code == 204
        assert web.live.app.intake._claims.get(claim_id) is None
        assert web.request("DELETE", path, scope=PLATFORM).status_code == 404
        assert web.request("PUT", path, scope=PLATFORM, json={"plan": "free"}).status_code == 409
        assert send(web, web.live.event(version=2)).status_code == 404

    @pytest.mark.parametrize("body", [{"plan": "gold"}, {}, {"plan": "free", "more": 1}, []])
    def test_what_is_no_plan(self, web: Web, body: Any) -> None:
        """422."""
        path = f"/workspaces/{web.live.workspace}"
        assert web.request("PUT", path, scope=PLATFORM, json=body).status_code == 422

    @pytest.mark.parametrize("who", [{"scope": EVENTS}, {"role": "owner"}])
    def test_only_the_platform(self, web: Web, who: dict[str, str]) -> None:
        """403."""
        path = f"/workspaces/{web.live.workspace}"
        assert web.request("PUT", path, json={"plan": "free"}, **who).status_code == 403
        assert web.request("DELETE", path, **who).status_code == 403


def test_no_event_is_let_in_without_a_token(web: Web, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """401, before the body is read."""
    parse: Callable[..., Any] = pytest.fail
    monkeypatch.setattr("broker_core.events.parse", parse)
    answer = send(web, live.event(), scope=None)
    assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")
