"""Who may call what, of the whole HTTP surface: one row for each operation of the OpenAPI document, written down from
the contract. A route without a row fails here, and so does a row without its route.

Every operation is called by every kind of caller, on every plan, and with the ids of another workspace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker_core.api.callers import Role
from broker_core.dev.aws import CustomerAccount
from broker_core.model import Plan
from tests.live import AGENT, Live
from tests.web import Web, web_on

SCOPES = ("broker:events", "broker:inject", "broker:environment", "broker:platform")
#: an id that nobody has
NOBODYS = UUID("0192d4f0-0000-7000-8000-000000000000")
PROXY_METHODS = ("GET", "PUT", "POST", "DELETE", "HEAD", "PATCH")


@dataclass
class Scene:
    """A workspace that has one of everything: what the requests of the rows are about."""

    live: Live
    customer: CustomerAccount
    other_customer: CustomerAccount
    ids: dict[str, UUID | str] = field(default_factory=dict)

    @classmethod
    def of(cls, live: Live) -> Scene:
        """Two connections one after the other, secrets, an event of each kind, a finished proof and re-encryption."""
        app, workspace = live.app, live.workspace
        first = live.connect(live.customer())
        customer = live.customer()
        second = live.connect(customer)
        scene = cls(live, customer, live.customer())
        stored = live.store("github", rotationPolicy="1d")
        live.store("stdio", injectionKind="stdio_env", bindingKey="TOKEN", mcpServerId="server-1")
        waiting = live.publish("waiting")
        live.queue.rung.clear()
        proof = app.proofs.start(workspace, asked_by="tests")
        while app.proofs.step(workspace, proof.id).ended_at is None:
            pass
        move = app.reencrypt.start(workspace)
        scene.ids = {
            "workspace": workspace,
            "secret": stored.secret_id,
            "event": stored.id,
            "waiting": waiting.id,
            "older": first.id,
            "current": second.id,
            "proof": proof.id,
            "move": move.id,
        }
        return scene

    def fields(self, name: str) -> dict[str, Any]:
        """A good creation."""
        fields = {"injectionKind": "bearer", "targetHost": self.live.target, "agentId": AGENT}
        return {"name": name, "secret": "value-of-a-credential", **fields}

    def connection(self) -> dict[str, str]:
        """What connects the other customer."""
        customer = self.other_customer
        return {"roleArn": customer.role_arn, "externalId": customer.external_id, "keyArn": customer.key_arn}

    def through(self) -> dict[str, str]:
        """The headers of a request through the proxy."""
        return {"Axiorank-Upstream-Url": f"https://{self.live.target}/echo", "Axiorank-Agent-Id": AGENT}

    def injection(self) -> dict[str, Any]:
        """A request with the secret."""
        return {"agentId": AGENT, "secret": "github", "request": {"url": f"https://{self.live.target}/echo"}}


Options = Callable[[Scene], dict[str, Any]]


def sends(body: Mapping[str, Any]) -> Options:
    """A request with this body."""
    return lambda scene: {"json": body}


def nothing(scene: Scene) -> dict[str, Any]:
    """A request without a body."""
    return {}


@dataclass(frozen=True)
class Row:
    """One operation: who may, which id stands in its path, a request that succeeds and with what."""

    method: str
    path: str
    scope: str | None = None
    role: Role | None = None
    options: Options = nothing
    status: int = 200
    needs_enterprise: bool = False
    #: what ``{id}`` is of, in a scene
    about: str = ""
    #: a body that names something of the scene by its id
    naming: Options | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.method, self.path

    def lets_in(self, scope: str | None, role: Role | None) -> bool:
        """By the contract."""
        by_role = self.role is not None and role is not None and list(Role).index(role) >= list(Role).index(self.role)
        return by_role or (self.scope is not None and scope == self.scope)

    def call(self, web: Web, scene: Scene, *, resource: object = None, **caller: Any) -> httpx.Response:
        """Call it. Without a caller given, by the least that may."""
        options = self.options(scene)
        if not caller.keys() & {"scope", "role", "nobody"}:
            caller |= {"scope": self.scope} if self.scope else {"role": self.role}
        caller.pop("nobody", None)
        path = self.path.replace("{id}", str(resource or scene.ids.get(self.about, "")))
        return web.request(self.method, path, **caller, **options)


#: in the order of a story that ends everything at last, so that each can succeed in turn
ROWS = (
    # producers and the gateway
    Row(
        "POST",
        "/events",
        scope="broker:events",
        options=lambda scene: {"json": scene.live.event("produced")},
        status=202,
    ),
    Row("GET", "/events/{id}", scope="broker:events", role=Role.ADMIN, about="event"),
    Row("POST", "/inject", scope="broker:inject", options=lambda scene: {"json": scene.injection()}),
    Row(
        "POST",
        "/inject/environment",
        scope="broker:environment",
        options=sends({"mcpServerId": "server-1"}),
    ),
    *(
        Row(method, "/proxy", scope="broker:inject", options=lambda scene: {"headers": scene.through()})
        for method in PROXY_METHODS
    ),
    # admins
    Row(
        "POST",
        "/broker-secrets",
        role=Role.ADMIN,
        options=lambda scene: {"json": scene.fields("made")},
        status=202,
    ),
    Row("GET", "/broker-secrets", role=Role.ADMIN),
    Row("GET", "/broker-secrets/{id}", role=Role.ADMIN, about="secret"),
    Row("PATCH", "/broker-secrets/{id}", role=Role.ADMIN, about="secret", options=sends({"rotationPolicy": "90d"})),
    Row(
        "POST",
        "/broker-secrets/{id}/rotate",
        role=Role.ADMIN,
        about="secret",
        options=sends({"secret": "another-value-of-it"}),
        status=202,
    ),
    Row("GET", "/audit", role=Role.ADMIN),
    Row("GET", "/rotations/overdue", role=Role.ADMIN),
    Row("GET", "/byok/connection", role=Role.ADMIN),
    Row("GET", "/byok/connections", role=Role.ADMIN),
    Row("GET", "/byok/coverage", role=Role.ADMIN),
    Row("GET", "/byok/affected", role=Role.ADMIN),
    # owners
    Row("GET", "/byok/setup", role=Role.OWNER),
    Row(
        "POST",
        "/byok/drill",
        role=Role.OWNER,
        naming=lambda scene: {"json": {"connectionId": str(scene.ids["current"])}},
    ),
    Row("GET", "/broker-secrets/{id}/blob", role=Role.OWNER, about="secret"),
    Row("GET", "/byok/lockout-proof", role=Role.OWNER),
    Row("GET", "/byok/lockout-proof/{id}", role=Role.OWNER, about="proof"),
    Row("GET", "/byok/lockout-proof/{id}/document", role=Role.OWNER, about="proof"),
    Row("GET", "/byok/lockout-proof/{id}/page", role=Role.OWNER, about="proof"),
    Row(
        "POST",
        "/byok/lockout-proof",
        role=Role.OWNER,
        status=202,
        naming=lambda scene: {"json": {"connectionId": str(scene.ids["current"])}},
    ),
    Row("GET", "/byok/reencrypt", role=Role.OWNER),
    Row("GET", "/byok/reencrypt/{id}", role=Role.OWNER, about="move"),
    Row("GET", "/byok/reencrypt/{id}/stuck", role=Role.OWNER, about="move"),
    Row(
        "POST",
        "/byok/reencrypt",
        role=Role.OWNER,
        status=202,
        needs_enterprise=True,
        naming=lambda scene: {"json": {"connectionId": str(scene.ids["older"])}},
    ),
    Row("POST", "/byok/connection/verify", role=Role.OWNER, needs_enterprise=True),
    Row(
        "PUT",
        "/byok/connection",
        role=Role.OWNER,
        options=lambda scene: {"json": scene.connection()},
        needs_enterprise=True,
    ),
    # what ends something
    Row("DELETE", "/byok/connections/{id}", role=Role.OWNER, about="older"),
    Row("DELETE", "/byok/connection", role=Role.OWNER),
    Row("DELETE", "/events/{id}", role=Role.ADMIN, about="waiting", status=202),
    Row("DELETE", "/broker-secrets/{id}", role=Role.ADMIN, about="secret", status=202),
    Row("PUT", "/workspaces/{id}", scope="broker:platform", about="workspace", options=sends({"plan": "enterprise"})),
    Row("DELETE", "/workspaces/{id}", scope="broker:platform", about="workspace", status=204),
)
#: requests that nobody could read
UNREADABLE: Mapping[str, dict[str, Any]] = {
    "no-json": {"content": b"{"},
    "too-large": {"content": b"{", "headers": {"Content-Length": str(1 << 30)}},
    "parameters": {"params": {"limit": "many", "nothing": "1"}},
}
CALLERS: tuple[dict[str, Any], ...] = (*({"scope": scope} for scope in SCOPES), *({"role": role} for role in Role))


@pytest.fixture(scope="module")
def signing_key() -> str:
    """A key for proofs."""
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture
def web(live_with: Callable[..., Live], way_out: Any, signing_key: str) -> Iterator[Web]:
    """The surface on an App that can sign, and is allowed to ask AWS quickly."""
    settings = {"BROKER_SIGNING_KEY": signing_key, "BROKER_CHECK_RPS": "1000"}
    with web_on(live_with(settings, upstream=way_out)) as opened:
        yield opened


@pytest.fixture
def scene(web: Web) -> Scene:
    """A workspace that has one of everything."""
    return Scene.of(web.live)


def is_refused(answer: httpx.Response) -> bool:
    """Whether the caller was not let in; what is wrong with the request is another matter."""
    if answer.status_code not in (401, 403):
        return False
    # an answer to HEAD has no body to read
    return answer.request.method == "HEAD" or answer.json()["error"] in ("unauthorized", "forbidden")


class TestRows:
    """The table itself."""

    def test_every_operation_has_a_row(self, web: Web) -> None:
        """The document's operations are the table's, each once."""
        paths = web.get("/api/openapi.json").json()["paths"]
        found = sorted(
            (method.upper(), path.removeprefix("/api/v1"))
            for path, item in paths.items()
            for method in item
            if method.upper() in (*PROXY_METHODS, "OPTIONS", "TRACE")
        )
        assert found == sorted(row.key for row in ROWS)

    def test_the_document_says_the_same(self, web: Web) -> None:
        """Each operation's security requirement names the row's scope and least role."""
        paths = web.get("/api/openapi.json").json()["paths"]
        for row in ROWS:
            said = paths[f"/api/v1{row.path}"][row.method.lower()]["security"]
            named = {name for requirement in said for names in requirement.values() for name in names}
            assert named == {each for each in (row.scope, row.role) if each is not None}, row.key


class TestCallers:
    """Who is let in."""

    @pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: next(iter(caller.values())))
    def test_each_is_let_in_where_the_contract_says(self, web: Web, caller: dict[str, Any]) -> None:
        """Everywhere else it is 403 `forbidden`, before anything is looked at."""
        wrong = []
        for row in ROWS:
            answer = self.knock(web, row, {}, **caller)
            if is_refused(answer) is row.lets_in(caller.get("scope"), caller.get("role")):
                wrong.append((row.key, answer.status_code))
            elif is_refused(answer):
                assert answer.status_code == 403, row.key
        assert wrong == []

    @pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nonsense"}], ids=["no-token", "no-jwt"])
    def test_nobody(self, web: Web, headers: dict[str, str]) -> None:
        """Without a token that counts everything is 401, also what does not exist."""
        answers = {row.key: self.knock(web, row, headers).status_code for row in ROWS}
        assert answers == dict.fromkeys(answers, 401)

    @pytest.mark.parametrize("options", UNREADABLE.values(), ids=UNREADABLE)
    def test_first_of_all(self, web: Web, options: dict[str, Any]) -> None:
        """Who is not let in is told that, and nothing about the rest of the request, however wrong it is."""
        for scope, status in ((None, 401), ("broker:nothing", 403)):
            answers = {
                row.key: web.request(row.method, row.path.replace("{id}", "no-id"), scope=scope, **options)
                for row in ROWS
            }
            wrong = {key: answer.status_code for key, answer in answers.items() if not is_refused(answer)}
            assert wrong == {}
            assert {answer.status_code for answer in answers.values()} == {status}

    def knock(self, web: Web, row: Row, headers: dict[str, str], **caller: Any) -> httpx.Response:
        """A request that is no good, and about nothing that is there: only who calls makes a difference."""
        through = {"Axiorank-Upstream-Url": "no-url", "Axiorank-Agent-Id": AGENT} if row.path == "/proxy" else {}
        path = row.path.replace("{id}", str(NOBODYS))
        return web.request(row.method, path, json={}, headers={**through, **headers}, **caller)


class TestPlans:
    """What a plan takes away."""

    def test_on_enterprise_everything_succeeds(self, web: Web, scene: Scene) -> None:
        """Each operation, with a good request, answers with its success."""
        answers = {row.key: row.call(web, scene).status_code for row in ROWS}
        assert answers == {row.key: row.status for row in ROWS}

    @pytest.mark.parametrize("plan", [Plan.FREE, Plan.TEAM])
    def test_without_enterprise(self, web: Web, scene: Scene, plan: Plan) -> None:
        """Connecting, verifying and moving to a key are `plan_required`; everything else works, disconnecting too."""
        web.live.app.store.put_workspace(web.live.workspace, plan)
        calls = len(web.live.aws.trail.calls)
        refused = [row for row in ROWS if row.needs_enterprise]
        for row in refused:
            answer = row.call(web, scene)
            assert (answer.status_code, answer.json()["error"]) == (403, "plan_required"), row.key
        assert len(web.live.aws.trail.calls) == calls
        rest = [row for row in ROWS if not row.needs_enterprise]
        assert {row.key: row.call(web, scene).status_code for row in rest} == {row.key: row.status for row in rest}
        assert len(refused) == 3


class TestOtherWorkspaces:
    """INV-10: another workspace's id answers like one that does not exist."""

    def test_ids_in_paths(self, web: Web, scene: Scene) -> None:
        """404, word for word as for an id that nobody has."""
        stranger = self.stranger(web)
        rows = [row for row in ROWS if row.about]
        for row in rows:
            theirs = row.call(web, scene, **self.caller(row, stranger))
            nobodys = row.call(web, scene, resource=NOBODYS, **self.caller(row, stranger))
            assert theirs.status_code == 404, row.key
            assert theirs.json() == nobodys.json(), row.key
        assert len(rows) == len([row for row in ROWS if "{id}" in row.path])

    def test_ids_in_bodies(self, web: Web, scene: Scene) -> None:
        """The same, for the connections that a drill, a proof and a re-encryption can name."""
        stranger = self.stranger(web)
        web.live.app.byok.connect(
            stranger, scene.other_customer.role_arn, scene.other_customer.external_id, scene.other_customer.key_arn
        )
        for row in ROWS:
            if row.naming is not None:
                caller = self.caller(row, stranger)
                theirs = web.request(row.method, row.path, **caller, **row.naming(scene))
                nobodys = web.request(row.method, row.path, **caller, json={"connectionId": str(NOBODYS)})
                assert theirs.status_code == 404, row.key
                assert theirs.json() == nobodys.json(), row.key

    def test_nothing_of_another_workspace_is_shown(self, web: Web, scene: Scene) -> None:
        """No answer to the stranger holds an id, an ARN or the external id of the scene; and nothing there changed."""
        stranger = self.stranger(web)
        before = self.state(web)
        hidden = [str(each) for each in scene.ids.values()] + [scene.customer.external_id, scene.customer.key_arn]
        for row in ROWS:
            if row.path == "/events":
                continue  # names its workspace, which a test of its own refuses
            shown = row.call(web, scene, **self.caller(row, stranger))
            found = [each for each in hidden if each in shown.text and each not in str(shown.request.url)]
            assert found == [], row.key
        assert self.state(web) == before

    def test_a_workspace_that_is_not_there(self, web: Web, scene: Scene) -> None:
        """A token for a workspace that was never made finds nothing, anywhere."""
        nowhere = f"ws_{uuid4().hex}"
        # an audit log outlives its workspace; services are told by what they ask for, as in one with nothing in it
        rows = [row for row in ROWS if row.role is not None and row.path != "/audit"]
        answers = {row.key: row.call(web, scene, **self.caller(row, nowhere)).status_code for row in rows}
        assert answers == dict.fromkeys(answers, 404)

    def stranger(self, web: Web) -> str:
        """A workspace with nothing in it."""
        name = f"ws_{uuid4().hex}"
        web.live.app.store.put_workspace(name, Plan.ENTERPRISE)
        return name

    def caller(self, row: Row, workspace: str) -> dict[str, Any]:
        """Whoever may call it, there."""
        who: dict[str, Any] = {"scope": row.scope} if row.scope else {"role": row.role}
        return {**who, "workspace": workspace}

    def state(self, web: Web) -> list[Any]:
        """What the scene's workspace is like."""
        paths = ("/broker-secrets", "/byok/connections", "/byok/coverage", "/byok/lockout-proof", "/byok/reencrypt")
        return [web.get(path, role="owner").json() for path in paths]
