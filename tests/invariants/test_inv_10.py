"""INV-10: a query without a workspace does not exist; another tenant's id answers like one that does not exist."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

import broker_core
from broker_core.adapters import store as store_package
from broker_core.adapters.store import Database, Store
from broker_core.adapters.tables import metadata
from broker_core.errors import BrokerError, NotFound
from tests.databases import plain
from tests.live import AGENT, Live
from tests.store_setup import connected, draft, failure, intent, new_connection, stored
from tests.web import Web, web_on

#: statements that serve all workspaces, each with the reason why it may
FOR_ALL = {
    "custody._BEGIN": "a message carries an event's id only; the rest is reached through the event's row",
    "custody._EXPIRE": "the reconciler ends what is over its time, whose it is does not matter",
    "custody._CLOSE_UNKNOWN": "the reconciler closes uses of crashed processes",
    "custody._TO_RING": "the reconciler rings for what waits; it learns ids and types only",
    "moves._RUNNING": "the sweeper goes on with every re-encryption that runs; each comes with its workspace",
    "proof._PROGRESS": "what the two that ask for proofs begin with: one names a workspace, the other is the next here",
    "proof._RUNNING": "the sweeper goes on with every proof that runs; each comes with its workspace",
    "sweep._DUE_PROBES": "the sweep claims due connections; each comes with its workspace",
    "sweep._DUE_REFUSALS": "the sweep claims roles that are to refuse others; each comes with its workspace",
    "sweep._BUDGETS": "the sweep looks which connections may be asked; each comes with its workspace",
    "notices._ROTATIONS_DUE": "the scheduler tells of what is due; each notice carries its secret's workspace",
    "notices._CLAIM": "the outbox is delivered in order of time; each notice comes with its workspace",
    "notices._GIVE_UP": "old notices are given up, whose they are does not matter; each comes with its workspace",
    "notices._FORGET": "notices that are over are deleted by their age alone; nothing of them is shown",
    "sweep._TURNED": "the brake counts connections that turn at once, and tells numbers only",
}
_STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
#: a workspace that was given: as a parameter, or as a column of the given records
_NAMES_A_WORKSPACE = re.compile(
    r"%\(workspace_id\)s|workspace_id = [iru]\.workspace_id|SELECT id, workspace_id, .*FROM", re.S
)


def statements() -> Iterator[tuple[str, str]]:
    """Every statement that a module of the store defines."""
    for info in pkgutil.iter_modules(store_package.__path__):
        module = importlib.import_module(f"{store_package.__name__}.{info.name}")
        for name, value in _constants(module):
            for text in (value,) if isinstance(value, str) else value:
                if _STATEMENT.match(text):
                    yield f"{info.name}.{name}", text


def _constants(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if isinstance(value, str) or (isinstance(value, tuple) and all(isinstance(one, str) for one in value)):
            yield name, value


STATEMENTS = list(statements())


@pytest.mark.parametrize("table", [name for name in metadata.tables if name != "workspaces"])
def test_every_table_carries_the_workspace(table: str) -> None:
    """And requires it."""
    assert not metadata.tables[table].c.workspace_id.nullable


@pytest.mark.parametrize(("name", "text"), STATEMENTS, ids=[name for name, _ in STATEMENTS])
def test_every_statement_names_a_workspace(name: str, text: str) -> None:
    """But for those that serve all, by name and with a reason."""
    assert name in FOR_ALL or _NAMES_A_WORKSPACE.search(text)


def test_no_reason_is_left_over() -> None:
    """The list of exceptions holds what exists."""
    assert set(FOR_ALL) <= {name for name, _ in STATEMENTS}


STORE = Path(str(store_package.__file__)).parent


def _inside_functions(path: Path) -> Iterator[str]:
    """Every statement that is written inside of a function of a module, f-strings by their beginning."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef):
            texts = [node.value for node in ast.walk(function) if isinstance(node, ast.Constant)]
            yield from (text for text in texts if isinstance(text, str) and _STATEMENT.match(text))


@pytest.mark.parametrize("module", [path.stem for path in sorted(STORE.glob("*.py")) if path.stem != "database"])
def test_no_statement_is_made_on_the_spot(module: str) -> None:
    """Each is a constant of its module, and so among those that are looked at here; but for the health check's, which
    reads no table of ours."""
    assert set(_inside_functions(STORE / f"{module}.py")) <= {"SELECT version_num FROM alembic_version"}


def test_nobody_else_speaks_sql() -> None:
    """Outside of the store's modules no statement is written at all, but for the local stack; and for the matching of
    one customer's trail, which has a database of its own that holds nobody else's."""
    house = Path(broker_core.__file__).parent
    others = [path for path in house.rglob("*.py") if STORE not in path.parents and house / "dev" not in path.parents]
    assert {path.name for path in others if [*_inside_functions(path)]} == {"cloudtrail.py"}


@pytest.mark.parametrize(("name", "text"), STATEMENTS, ids=[name for name, _ in STATEMENTS])
def test_every_join_carries_the_workspace(name: str, text: str) -> None:
    """Wherever a tenant's table is joined to another, the workspace is part of what must be equal."""
    for condition in re.findall(r"JOIN (?!LATERAL)\w+ \w+\s+ON (.*?)(?=LEFT JOIN|JOIN|WHERE|\)|$)", text, re.S):
        assert re.search(
            r"workspace_id = \w+\.workspace_id|workspace_id = \w+\.id|\w+\.id = \w+\.workspace_id", condition
        )


@pytest.fixture
def store(clean_database: str) -> Iterator[Store]:
    """The real store, with two tenants: ``ours`` and ``theirs``."""
    database = Database(clean_database)
    store = Store(database)
    for workspace in ("ours", "theirs"):
        store.put_workspace(workspace, "enterprise")
    yield store
    database.close()


def answer(call: Any) -> tuple[type, str]:
    """What a caller learns."""
    try:
        return type(call()), ""
    except BrokerError as error:
        return type(error), str(error)


def test_a_strange_event_is_one_that_does_not_exist(store: Store) -> None:
    """Looking and discarding say the same words for both."""
    theirs = store.accept(draft("theirs")).event.id
    for ask in (store.event, store.discard):
        strange = answer(lambda ask=ask: ask("ours", theirs))
        assert strange == answer(lambda ask=ask: ask("ours", uuid4()))
        assert strange[0] is NotFound
    assert store.event("theirs", theirs).ended_at is None


def test_a_strange_secret_is_one_that_does_not_exist(store: Store) -> None:
    """It is neither selected nor used, and no outcome of ours marks it."""
    secret_id = stored(store, "theirs")
    assert store.candidates("ours", "agent-1", None) == []
    assert not store.begin_uses([intent("ours", secret_id=secret_id)])
    assert not store.begin_uses([intent("ours", secret_id=uuid4())])


def test_a_strange_connection_is_one_that_does_not_exist(store: Store) -> None:
    """A failure of it cannot be opened or closed from here."""
    connection = connected(store, "theirs")
    unknown = new_connection("ours")
    strange = answer(lambda: store.open_failure(failure(connection, workspace_id="ours")))
    assert strange == answer(lambda: store.open_failure(failure(unknown)))
    assert issubclass(strange[0], BrokerError)
    store.open_failure(failure(connection))
    store.close_failure("ours", connection.id, None)
    assert len(store.affected("theirs").connections) == 1


# ---------------------------------------------------------------- over HTTP, by the document

DOCUMENT = json.loads((Path(__file__).parent.parent.parent / "docs" / "openapi.json").read_text(encoding="utf-8"))
OPERATIONS = [
    (method, path.removeprefix("/api/v1"), operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method != "parameters"
]
NAMING = [operation for operation in OPERATIONS if "{id}" in operation[1]]
LISTING = [
    operation
    for operation in OPERATIONS
    if any(each["name"] == "cursor" for each in operation[2].get("parameters", [])) and "{id}" not in operation[1]
]
#: good bodies, so that nothing else is wrong with a request
BODIES: dict[tuple[str, str], dict[str, str]] = {
    ("post", "/broker-secrets/{id}/rotate"): {"secret": "value-1234"},
    ("patch", "/broker-secrets/{id}"): {"rotationPolicy": "90d"},
    ("put", "/workspaces/{id}"): {"plan": "free"},
}
STRANGER = "ws_stranger"


def _id(operation: tuple[str, str, Any]) -> str:
    return f"{operation[0]} {operation[1]}"


def _whoever_may(operation: Any) -> dict[str, str]:
    """A caller of another workspace whom the document lets in."""
    names = [name for each in operation["security"] for names in each.values() for name in names]
    scopes = [name for name in names if name.startswith("broker:")]
    who = {"scope": scopes[0]} if scopes else {"role": "owner"}
    return {**who, "workspace": STRANGER}


@pytest.fixture
def theirs(used: Live) -> Live:
    """A workspace that has one of everything, beside a stranger's that has nothing."""
    used.app.store.put_workspace(STRANGER, "enterprise")
    return used


@pytest.fixture
def stranger(theirs: Live) -> Iterator[Web]:
    """The HTTP surface, for the stranger to call."""
    with web_on(theirs) as opened:
        yield opened


@pytest.fixture
def rows(theirs: Live, clean_database: str) -> Iterator[Callable[[], dict[str, list[str]]]]:
    """What their workspace holds, by table."""
    tables = [name for name in metadata.tables if name not in ("workspaces", "audit_log")]  # checks and probes go on
    with psycopg.connect(plain(clean_database), autocommit=True) as sql:

        def held() -> dict[str, list[str]]:
            asked = "SELECT t::text FROM {} t WHERE workspace_id = %s ORDER BY 1"
            return {
                name: [row[0] for row in sql.execute(asked.format(name), (theirs.workspace,)).fetchall()]  # type: ignore[arg-type]  # our own tables' names
                for name in tables
            }

        yield held


def _ids(theirs: Live) -> list[str]:
    """One or two ids of theirs of every kind that has any, and the workspace's own."""
    tables = [name for name, table in metadata.tables.items() if "id" in table.c and name != "workspaces"]
    run = theirs.app.store._database.run
    asked = "SELECT id FROM {} WHERE workspace_id = %(workspace_id)s ORDER BY id LIMIT 2"
    found = [run("test", asked.format(name), {"workspace_id": theirs.workspace}) for name in tables]
    return [theirs.workspace, *(str(row.id) for some in found for row in some)]


def _same(theirs: httpx.Response, nobodys: httpx.Response, their_id: str, nobodys_id: str) -> bool:
    """Whether two answers are one, but for the ids that were asked for."""
    headers = [
        {name: text for name, text in answer.headers.items() if name != "content-length"}
        for answer in (theirs, nobodys)
    ]
    texts = (theirs.text.replace(their_id, "ID"), nobodys.text.replace(nobodys_id, "ID"))
    return (theirs.status_code, texts[0], headers[0]) == (nobodys.status_code, texts[1], headers[1])


@pytest.mark.parametrize("operation", NAMING, ids=_id)
def test_every_operation_answers_to_a_strange_id_as_to_none(
    theirs: Live, stranger: Web, rows: Callable[[], dict[str, list[str]]], operation: tuple[str, str, Any]
) -> None:
    """Whatever kind of thing the id is of: status, words and headers are those for an id that nobody has, and nothing
    of theirs changed."""
    method, path, described = operation
    before = rows()
    options: dict[str, Any] = {**_whoever_may(described)}
    if (body := BODIES.get((method, path))) is not None:
        options["json"] = body

    def ask(given: str) -> httpx.Response:
        return stranger.request(method.upper(), path.replace("{id}", given), **options)

    answers = []
    for each in _ids(theirs):
        nobodys = "ws_nobodys" if each == theirs.workspace else str(uuid4())
        answers.append(ask(each))
        assert _same(answers[-1], ask(nobodys), each, nobodys)

    assert {answer.status_code for answer in answers} <= {404, 422}
    assert 404 in {answer.status_code for answer in answers}
    assert rows() == before


def test_no_operation_is_left_out() -> None:
    """The list above is made from the document; every path with something in it has the name that it looks for."""
    assert len(NAMING) >= 13
    assert [path for _, path, _ in OPERATIONS if "{" in path.replace("{id}", "")] == []


@pytest.mark.parametrize("path", ["/byok/drill", "/byok/lockout-proof", "/byok/reencrypt"])
def test_so_does_every_body_that_names_a_connection(theirs: Live, stranger: Web, path: str) -> None:
    """The only ids that a body can hold, but for names that are looked up among one's own."""
    connection = str(theirs.app.store.connections(theirs.workspace)[0].id)
    nobodys = str(uuid4())
    answers = [
        stranger.post(path, json={"connectionId": each}, role="owner", workspace=STRANGER)
        for each in (connection, nobodys)
    ]

    assert _same(*answers, connection, nobodys)
    assert answers[0].status_code in (404, 409)


def test_bodies_hold_no_other_ids() -> None:
    """A new field that is an id of ours wants a test of its own here."""
    schemas = DOCUMENT["components"]["schemas"]
    requests = {name: each for name, each in schemas.items() if name.endswith("Request")}
    ids = {
        field
        for each in requests.values()
        for field, described in each.get("properties", {}).items()
        if '"uuid"' in json.dumps(described)
    }
    assert ids == {"connectionId"}


@pytest.mark.parametrize("operation", LISTING, ids=_id)
def test_a_strange_cursor_shows_nothing(theirs: Live, stranger: Web, operation: tuple[str, str, Any]) -> None:
    """A cursor says where a page goes on, in a list that is the caller's own."""
    method, path, described = operation
    for each in _ids(theirs)[1:]:
        cursor = f"current_key:{each}" if path == "/byok/coverage" else each
        answer = stranger.request(method.upper(), f"{path}?cursor={cursor}", **_whoever_may(described))
        if answer.headers["content-type"].startswith("application/json"):
            assert answer.json().get("items", []) == []
        else:
            assert answer.text == ""


#: a request of the stranger's for what is another workspace's: path, body, headers
STRANGE_USES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "inject": ("/inject", {"agentId": AGENT, "secret": "{name}", "request": {"url": "{url}"}}, {}),
    "proxy": (
        "/proxy",
        {},
        {"Axiorank-Upstream-Url": "{url}", "Axiorank-Agent-Id": AGENT, "Axiorank-Secret": "{name}"},
    ),
}


@pytest.mark.parametrize("use", STRANGE_USES)
def test_a_strange_secrets_name_is_one_that_does_not_exist(theirs: Live, stranger: Web, use: str) -> None:
    """With the agent's id, the host and the name all as they are over there."""
    path, body, headers = STRANGE_USES[use]
    calls = theirs.aws.trail.calls

    def ask(name: str) -> httpx.Response:
        url = f"https://{theirs.target}/echo"
        text = json.dumps([body, headers]).replace("{name}", name).replace("{url}", url)
        given, sent = json.loads(text)
        return stranger.post(path, json=given, headers=sent, scope="broker:inject", workspace=STRANGER)

    known, unknown = ask("github"), ask("nobodys")

    assert _same(known, unknown, "github", "nobodys")
    assert (known.status_code, known.json()["error"]) == (403, "no_binding")
    assert (theirs.aws.trail.calls, theirs.upstream.requests) == (calls, [])


def test_a_strange_environment_is_empty(theirs: Live, stranger: Web) -> None:
    """The same ids of agent and server, in another workspace."""
    body = {"agentId": AGENT}

    answer = stranger.post("/inject/environment", json=body, scope="broker:environment", workspace=STRANGER)

    assert answer.json() == {"environment": {}, "auditIds": []}


def test_an_idempotency_key_is_of_one_workspace(theirs: Live, stranger: Web) -> None:
    """The same key and the same request over there are another request."""
    fields = {"secret": "value-1234", "injectionKind": "bearer", "targetHost": "a.example", "agentId": AGENT}
    body, key = {"name": "made", **fields}, {"Idempotency-Key": "one"}

    first = stranger.post("/broker-secrets", json=body, headers=key, role="admin")
    second = stranger.post("/broker-secrets", json=body, headers=key, role="admin", workspace=STRANGER)

    assert (first.status_code, second.status_code) == (202, 202)
    assert "Idempotent-Replayed" not in second.headers
    assert first.json()["id"] != second.json()["id"]


def test_an_event_of_another_workspace_is_refused(theirs: Live, stranger: Web) -> None:
    """A token's workspace is the only one that its events can be of, and the refusal is the one for any other."""
    event = theirs.event("made")
    unknown = {**event, "data": {**event["data"], "workspaceId": "ws_nobodys"}}
    answers = [
        stranger.post("/events", json=each, scope="broker:events", workspace=STRANGER) for each in (event, unknown)
    ]

    assert _same(*answers, theirs.workspace, "ws_nobodys")
    assert answers[0].status_code >= 400
