"""Changing keys and proving a lockout over HTTP, and overdue rotations: what owners start, follow and take away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from structlog.testing import capture_logs

from broker_core import proof_document
from broker_core.adapters.signing import Ed25519Signer, verified
from tests.databases import plain
from tests.live import Live
from tests.waiting import wait_until
from tests.web import Web, web_on

KEY = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
SETTINGS = {"BROKER_SIGNING_KEY": KEY, "BROKER_CHECK_RPS": "1000"}


@pytest.fixture
def web(live_with: Callable[..., Live], way_out: Any) -> Iterator[Web]:
    """The surface on an App that can sign, and is allowed to ask AWS quickly."""
    with web_on(live_with(SETTINGS, upstream=way_out)) as opened:
        yield opened


def ended(web: Web, what: str, step: Callable[[str, UUID], Any], run: dict[str, Any]) -> dict[str, Any]:
    """Do what the sweeper does until a run has ended; how it is then."""

    def goes_on() -> dict[str, Any]:
        step(web.live.workspace, UUID(run["id"]))
        found: dict[str, Any] = web.get(f"/byok/{what}/{run['id']}", role="owner").json()
        return found if "endedAt" in found else {}

    # what AWS does not answer in time comes again after seconds
    return wait_until(goes_on, deadline_seconds=60, what=f"the end of {what}")


class TestConnections:
    """GET /byok/connections and DELETE /byok/connections/{id}."""

    def test_each_says_what_needs_it(self, web: Web) -> None:
        """The current one first, then those before it, with how many secrets are under each and what waits."""
        first = web.live.connect(web.live.customer())
        web.live.store("old")
        second = web.live.connect(web.live.customer())
        web.live.publish("waiting")
        items = web.get("/byok/connections", role="admin").json()["items"]
        assert [(item["id"], item["status"], item["neededBy"], item["waiting"]) for item in items] == [
            (str(second.id), "current", 0, 1),
            (str(first.id), "retired", 1, 0),
        ]
        assert [item["health"] for item in items] == ["healthy", "healthy"]
        assert all("retiredAt" not in item for item in items)

    def test_retiring(self, web: Web) -> None:
        """409 while a secret is under it, or while it is current; then it says since when it is retired."""
        first = web.live.connect(web.live.customer())
        assert web.request("DELETE", f"/byok/connections/{first.id}", role="owner").status_code == 409
        web.live.store("github")
        web.live.connect(web.live.customer())
        needed = web.request("DELETE", f"/byok/connections/{first.id}", role="owner")
        assert (needed.status_code, needed.json()["error"]) == (409, "conflict")
        web.live.store("github", kind="secret.rotated", version=2)
        answer = web.request("DELETE", f"/byok/connections/{first.id}", role="owner")
        assert (answer.status_code, answer.json()["status"], answer.json()["neededBy"]) == (200, "retired", 0)
        assert "retiredAt" in answer.json()


class TestReencrypt:
    """POST and GET /byok/reencrypt."""

    def test_secrets_move_to_the_current_key(self, web: Web) -> None:
        """202; it goes on as the sweeper steps; then the older connection is needed no more."""
        older = web.live.connect(web.live.customer())
        for name in ("one", "two"):
            web.live.store(name)
        current = web.live.connect(web.live.customer())
        answer = web.post("/byok/reencrypt", role="owner", json={"connectionId": str(older.id)})
        started = answer.json()
        assert (answer.status_code, started["total"], started["left"]) == (202, 2, 2)
        assert started["connectionId"] == str(older.id)
        assert "endedAt" not in started
        assert web.get("/byok/reencrypt", role="owner").json() == started
        done = ended(web, "reencrypt", web.live.app.reencrypt.step, started)
        assert (done["moved"], done["left"], done["denied"], done["failed"], done["overtaken"]) == (2, 0, 0, 0, 0)
        secrets = web.get("/broker-secrets", role="admin").json()["items"]
        assert {secret["connectionId"] for secret in secrets} == {str(current.id)}

    def test_what_the_older_key_denies_stays(self, web: Web) -> None:
        """It is listed with state, AWS's code and what to do."""
        customer = web.live.customer()
        older = web.live.connect(customer)
        for name in ("one", "two"):
            web.live.store(name)
        web.live.connect(web.live.customer())
        customer.disable_key()
        started = web.post("/byok/reencrypt", role="owner").json()
        done = ended(web, "reencrypt", web.live.app.reencrypt.step, started)
        assert (done["moved"], done["denied"]) == (0, 2)
        page = web.get(f"/byok/reencrypt/{done['id']}/stuck", role="owner", params={"limit": "1"}).json()
        (first,) = page["items"]
        assert (first["name"], first["outcome"], first["state"]) == ("one", "denied", "key_disabled")
        assert (first["awsCode"], first["connectionId"]) == ("DisabledException", str(older.id))
        assert first["whatToDo"]
        rest = web.get(
            f"/byok/reencrypt/{done['id']}/stuck", role="owner", params={"cursor": page["nextCursor"]}
        ).json()
        assert ([item["name"] for item in rest["items"]], rest["nextCursor"]) == (["two"], None)


class TestProof:
    """/byok/lockout-proof."""

    def test_from_start_to_document(self, web: Web) -> None:
        """202 and progress, then a JWS of our key that names who asked, and the same as a page that fetches nothing."""
        customer = web.live.customer()
        connection = web.live.connect(customer)
        web.live.store("github")
        customer.remove_role_from_key_policy()
        answer = web.post("/byok/lockout-proof", role="owner")
        started = answer.json()
        assert (answer.status_code, started["total"], started["done"]) == (202, 1, 0)
        assert (started["connectionId"], started["askedBy"]) == (str(connection.id), "user-1")
        path = f"/byok/lockout-proof/{started['id']}"
        for part in ("document", "page"):
            assert web.get(f"{path}/{part}", role="owner").status_code == 409
        assert web.post("/byok/lockout-proof", role="owner").status_code == 409  # one at a time
        done = ended(web, "lockout-proof", web.live.app.proofs.step, started)
        assert (done["done"], done["isLockedOut"]) == (1, True)
        assert web.get("/byok/lockout-proof", role="owner").json() == done

        document = web.get(f"{path}/document", role="owner")
        assert document.headers["content-type"] == "application/jose"
        assert f"lockout-proof-{started['id']}.jws" in document.headers["content-disposition"]
        said = proof_document.read(verified(document.text, Ed25519Signer(KEY).public_key, proof_document.CONTENT_TYPE))
        assert (said["isLockedOut"], said["askedBy"], said["totals"]["locked_out"]) == (True, "user-1", 1)
        page = web.get(f"{path}/page", role="owner")
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert "Locked out" in page.text

    def test_it_can_fail(self, web: Web) -> None:
        """A secret that still decrypts makes it say so."""
        web.live.connect(web.live.customer())
        web.live.store("github")
        started = web.post("/byok/lockout-proof", role="owner").json()
        done = ended(web, "lockout-proof", web.live.app.proofs.step, started)
        assert done["isLockedOut"] is False
        assert "NOT locked out" in web.get(f"/byok/lockout-proof/{done['id']}/page", role="owner").text

    def test_nothing_to_prove(self, web: Web) -> None:
        """409 where nothing is under a key; 404 where no proof was ever asked for."""
        assert web.get("/byok/lockout-proof", role="owner").status_code == 404
        web.live.connect(web.live.customer())
        assert web.post("/byok/lockout-proof", role="owner").status_code == 409

    def test_without_a_signing_key(self, live_with: Callable[..., Live]) -> None:
        """503 before anything is asked: it is the operator's to mend."""
        live = live_with()
        live.connect(live.customer())
        live.store("github")
        with web_on(live) as web, capture_logs() as logs:
            answer = web.post("/byok/lockout-proof", role="owner")
            assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
            assert "http.unconfigured" in [line["event"] for line in logs]
            assert web.get("/byok/lockout-proof", role="owner").status_code == 404


class TestOverdue:
    """GET /rotations/overdue."""

    def test_what_was_due(self, web: Web) -> None:
        """Secrets past their policy's days, with the date, oldest first; others are not there."""
        for name, policy in (("a", "30d"), ("b", "30d"), ("c", "90d"), ("d", None)):
            web.live.store(name, **({"rotationPolicy": policy} if policy else {}))
        url = plain(web.live.environment["BROKER_DATABASE_URL"])
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "UPDATE broker_secrets SET created_at = now() - interval '40 days',"
                " rotated_at = now() - interval '40 days'"
            )
        page = web.get("/rotations/overdue", role="admin", params={"limit": "1"}).json()
        (item,) = page["items"]
        assert set(item) == {
            "id",
            "name",
            "version",
            "rotationPolicy",
            "rotationDueAt",
            "createdAt",
            "rotatedAt",
        }
        assert (item["name"], item["rotationPolicy"]) == ("a", "30d")
        secret = web.get(f"/broker-secrets/{item['id']}", role="admin").json()
        assert secret["rotationDueAt"] == item["rotationDueAt"]
        rest = web.get("/rotations/overdue", role="admin", params={"cursor": page["nextCursor"]}).json()
        assert ([each["name"] for each in rest["items"]], rest["nextCursor"]) == (["b"], None)
