"""INV-3: with BYOK on, no path encrypts with anything but the customer's key.

Random sequences of events, changes of the setting (also between an encryption and its storing) and faults of the key
run on a real PostgreSQL; after every step the database is asked, in SQL of this test's own, what it holds.
"""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import broker_core
from broker_core import events
from broker_core.adapters import store as store_package
from broker_core.byok import Verification
from broker_core.context import EncryptionContext
from broker_core.custody import CustodyLimits
from broker_core.dev.aws import CustomerAccount, Fault
from broker_core.errors import (
    BrokerError,
    Conflict,
    Denied,
    Forbidden,
    Integrity,
    KeyServiceError,
    Misconfigured,
    Refused,
    Transient,
    Unavailable,
)
from broker_core.model import Blob, Plan
from broker_core.ports import KeyUse, Sealed
from broker_core.reencrypt import MoveLimits
from broker_core.secret import Plaintext
from tests.databases import plain
from tests.fakes_keys import FakeKeyService, FakePlatformCipher
from tests.fakes_queue import FakeClaimBox
from tests.live import AGENT, Live
from tests.web import Web

NAMES = ("a", "b", "c")
ACCOUNT = "222222222222"
#: how a key may fail; a hanging, throttled or reset one comes out of the adapter as Transient (its own tests say so)
FAULTS: dict[str, Callable[[], KeyServiceError]] = {
    "refused": lambda: Denied("no", aws_code="AccessDeniedException"),
    "hung": lambda: Transient("no answer"),
    "throttled": lambda: Transient("slow down", aws_code="ThrottlingException"),
    "reset": lambda: Transient("the connection was reset"),
    "misconfigured": lambda: Misconfigured("no"),
    "integrity": lambda: Integrity("no"),
}
CHANGES = ("connect", "disconnect", "lose_enterprise", "get_enterprise")
#: what may happen between an encryption and its storing
MEANWHILE = (*CHANGES, "others_work", "everybody_works")

Step = tuple[Any, ...]


class HookedKeys(FakeKeyService):
    """Does something once, after the next encryption of a value and before it can be stored."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], None]] = []

    def encrypt(self, use: KeyUse, value: Plaintext, seconds: float) -> Sealed:
        sealed = super().encrypt(use, value, seconds)
        if self.meanwhile:
            self.meanwhile.pop()()
        return sealed


class HookedPlatform(FakePlatformCipher):
    """The same for the platform cipher."""

    def __init__(self, keys: HookedKeys) -> None:
        super().__init__()
        self._hooks = keys

    def encrypt(self, context: EncryptionContext, value: Plaintext) -> Blob:
        blob = super().encrypt(context, value)
        if self._hooks.meanwhile:
            self._hooks.meanwhile.pop()()
        return blob


@dataclass
class World:
    """One workspace on the shared App, and what the database said of it after the last step."""

    live: Live
    keys: HookedKeys
    sql: psycopg.Connection[Any]
    workspace: str = field(default_factory=lambda: f"ws_{uuid4().hex}")
    blobs: dict[str, Any] = field(default_factory=dict)
    trying: UUID | None = None
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.live.workspace = self.workspace
        self.live.app.store.put_workspace(self.workspace, "enterprise")

    def take(self, step: Step) -> None:
        """One step, then the questions."""
        getattr(self, step[0])(*step[1:])
        self.check()

    def publish(self, name: str, version: int, kind: str) -> None:
        """An event; one whose version is taken is refused, and nothing else."""
        document = (
            self.live.event(name, kind, version, targetHost="api.example.com", injectionKind="bearer", agentId=AGENT)
            if (kind != "secret.deleted")
            else self.live.event(name, kind, version)
        )
        try:
            self.live.app.intake.accept(events.parse(json.dumps(document)), workspace_id=self.workspace)
        except Refused:
            return

    def work(self, fault: str | None, change: str | None, which: int) -> None:
        """One waiting event is tried; the key may fail, and before the blob is stored the setting may change or other
        workers may do whatever waits, this very event included."""
        waiting = self.ask("SELECT id FROM secret_events WHERE ended_at IS NULL AND workspace_id = %s ORDER BY id")
        if not waiting:
            return
        self.trying = event_id = waiting[which % len(waiting)].id
        self.keys.fail(FAULTS[fault]() if fault else None)
        self.keys.meanwhile = [getattr(self, change)] if change else []
        try:
            self.live.app.custody.run(event_id)
        except (KeyServiceError, Unavailable):
            pass  # it waits, and is tried again
        finally:
            self.keys.meanwhile = []
            self.keys.fail(None)

    def move(self, fault: str | None, change: str | None) -> None:
        """Secrets are moved to the current key; the keys may fail, and before a blob is stored the setting may change
        or workers may do whatever waits."""
        try:
            running = self.live.app.reencrypt.start(self.workspace)
        except Refused:
            return  # nothing is connected
        self.keys.fail(FAULTS[fault]() if fault else None)
        self.keys.meanwhile = [getattr(self, change)] if change else []
        try:
            self.live.app.reencrypt.step(self.workspace, running.id)
        finally:
            self.keys.meanwhile = []
            self.keys.fail(None)

    def lose_enterprise(self) -> None:
        """The plan changes, and with it who may connect; never what encrypts."""
        self.live.app.administer.put_workspace(self.workspace, Plan.FREE)

    def get_enterprise(self) -> None:
        """The other way round."""
        self.live.app.administer.put_workspace(self.workspace, Plan.ENTERPRISE)

    def connect(self) -> None:
        """Connect, or replace what is connected; nothing on a plan that may not."""
        with suppress(Forbidden):
            self.try_to_connect()

    def try_to_connect(self) -> Verification:
        """Raises Forbidden. While the key fails this changes nothing."""
        self.keys.meanwhile = []
        arn = f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/00000000-0000-4000-8000-{next(self.numbers):012d}"
        found: Verification = self.live.app.byok.connect(
            self.workspace, f"arn:aws:iam::{ACCOUNT}:role/axiorank", f"external-{uuid4().hex}", arn
        )
        return found

    def others_work(self) -> None:
        """Other workers try everything else that waits, the newest first."""
        for row in self.ask(
            "SELECT id FROM secret_events WHERE ended_at IS NULL AND workspace_id = %s ORDER BY version DESC"
        ):
            if row.id != self.trying:
                self.live.app.custody.run(row.id)

    def everybody_works(self) -> None:
        """The same, and then the very event that is being tried: its message came twice."""
        self.others_work()
        assert self.trying is not None
        self.live.app.custody.run(self.trying)

    def failing_connect(self, fault: str) -> None:
        """A connection that does not show that it works changes nothing."""
        before = self.ask("SELECT connection_id, setting_version FROM workspaces WHERE id = %s")
        self.keys.fail(FAULTS[fault]())
        with suppress(Forbidden):
            assert not self.try_to_connect().is_current
        self.keys.fail(None)
        assert self.ask("SELECT connection_id, setting_version FROM workspaces WHERE id = %s") == before

    def disconnect(self) -> None:
        """Back to the platform cipher; nothing where nothing is connected."""
        try:
            self.live.app.byok.disconnect(self.workspace)
        except Conflict:
            return

    # ------------------------------------------------------------ what must hold

    def check(self) -> None:
        """Whatever blob is new since the last step is under the setting of now; ends have no key; versions grow."""
        (setting,) = self.ask("SELECT connection_id FROM workspaces WHERE id = %s")
        rows = self.ask("SELECT name, version, blob, cipher, connection_id FROM broker_secrets WHERE workspace_id = %s")
        now = {row.name: row for row in rows}
        for name, row in now.items():
            before = self.blobs.get(name)
            if row.blob is not None and (before is None or row.blob != before.blob):
                assert row.connection_id == setting.connection_id
                assert (row.cipher == "platform") == (setting.connection_id is None)
            assert before is None or row.version >= before.version
        assert not self.ask(
            "SELECT id FROM secret_events WHERE workspace_id = %s AND ended_at IS NOT NULL AND claim_key IS NOT NULL"
        )
        self.blobs = now

    def finish(self) -> None:
        """Every fault over, every waiting event tried: all ended, and of each secret the highest version is there."""
        while self.ask("SELECT id FROM secret_events WHERE ended_at IS NULL AND workspace_id = %s"):
            self.take(("work", None, None, 0))
        for row in self.ask(
            "SELECT s.name, s.version, s.blob, s.deleted_at, max(e.version) FILTER (WHERE e.type <> 'secret.deleted')"
            " AS given, max(e.version) FILTER (WHERE e.type = 'secret.deleted') AS deleted FROM broker_secrets s"
            " JOIN secret_events e ON e.workspace_id = s.workspace_id AND e.secret_id = s.id"
            " WHERE s.workspace_id = %s GROUP BY s.id"
        ):
            assert (row.blob is not None) == ((row.given or 0) > (row.deleted or 0))
            assert row.version == max(row.given or 0, row.deleted or 0)

    def ask(self, statement: str) -> list[Any]:
        """A question of the workspace."""
        with self.sql.cursor(row_factory=psycopg.rows.namedtuple_row) as cursor:
            return cursor.execute(statement, (self.workspace,)).fetchall()


STEPS = st.one_of(
    st.tuples(
        st.just("publish"),
        st.sampled_from(NAMES),
        st.integers(1, 12),
        st.sampled_from(["secret.created", "secret.rotated", "secret.rotated", "secret.deleted"]),
    ),
    st.tuples(
        st.just("work"),
        st.none() | st.sampled_from(sorted(FAULTS)),
        st.none() | st.sampled_from(MEANWHILE),
        st.integers(0, 5),
    ),
    st.tuples(
        st.just("move"),
        st.none() | st.sampled_from(sorted(FAULTS)),
        st.none() | st.sampled_from([*CHANGES, "others_work"]),
    ),
    st.tuples(st.sampled_from(CHANGES)),
    st.tuples(st.just("failing_connect"), st.sampled_from(sorted(FAULTS))),
)
PUBLISH: Step = ("publish", "a", 3, "secret.created")
STORED_AND_REPLACED: list[Step] = [("connect",), PUBLISH, ("work", None, None, 0), ("connect",)]


@pytest.fixture
def on_fakes(live_with: Callable[..., Live], way_out: object) -> Iterator[Callable[[], World]]:
    """Makes workspaces on one App: a real PostgreSQL; keys, platform cipher and claims in memory."""
    keys = HookedKeys()
    live = live_with(keys=keys, platform=HookedPlatform(keys), claims=FakeClaimBox(), upstream=way_out)
    live.app.reencrypt._limits = MoveLimits(calls_per_second=1_000_000)
    with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"]), autocommit=True) as sql:
        yield lambda: World(live, keys, sql)


@settings(max_examples=40)
@given(steps=st.lists(STEPS, min_size=8, max_size=18))
@example(steps=[PUBLISH, ("work", None, "connect", 0)])
@example(steps=[("connect",), PUBLISH, ("work", None, "connect", 0)])
@example(steps=[("connect",), PUBLISH, ("work", None, "disconnect", 0)])
@example(steps=[("connect",), PUBLISH, *(("work", fault, None, 0) for fault in FAULTS)])
@example(steps=[PUBLISH, ("publish", "a", 1, "secret.rotated"), ("work", None, "others_work", 1)])
@example(steps=[("connect",), PUBLISH, ("publish", "a", 4, "secret.rotated"), ("work", None, "others_work", 0)])
@example(steps=[("connect",), PUBLISH, ("work", None, "everybody_works", 0)])
@example(steps=[PUBLISH, ("publish", "a", 1, "secret.rotated"), ("work", None, None, 1), ("work", None, None, 0)])
@example(steps=[("connect",), ("lose_enterprise",), PUBLISH, ("work", None, None, 0)])
@example(steps=[("connect",), PUBLISH, ("work", None, "lose_enterprise", 0), ("failing_connect", "refused")])
@example(steps=[*STORED_AND_REPLACED, ("move", None, "lose_enterprise")])
@example(steps=[*STORED_AND_REPLACED, ("move", None, None)])
@example(steps=[*STORED_AND_REPLACED, ("move", None, "connect"), ("move", None, "disconnect")])
@example(steps=[*STORED_AND_REPLACED, *(("move", fault, None) for fault in FAULTS)])
@example(steps=[*STORED_AND_REPLACED, ("publish", "a", 4, "secret.rotated"), ("move", None, "others_work")])
def test_whatever_happens_a_new_blob_is_under_the_setting_that_holds(
    on_fakes: Callable[[], World], steps: list[Step]
) -> None:
    """Through any sequence of events, settings and faults: a blob stored while a connection was current is under that
    connection and never under the platform cipher, the highest version wins, and ended events have no key."""
    world = on_fakes()
    for step in steps:
        world.take(step)
    world.finish()


HOUSE = Path(broker_core.__file__).parent
#: who encrypts with what: the customer's key, the platform cipher where there is none, and both by their adapters
ENCRYPTING = {
    ("custody", "self._keys"),
    ("custody", "self._platform"),
    ("reencrypt", "self._keys"),
    ("canary", "self._keys"),
    ("envelope", "_aead(key)"),  # under a key of one use: a claim's, or a data key that the caller wraps
}


def test_one_place_uses_the_platform_cipher() -> None:
    """Found in the sources of the use cases: custody alone, which looks at the setting first. A second one would be a
    second place to fall back in."""
    found = set()
    for path in HOUSE.rglob("*.py"):
        module = path.relative_to(HOUSE).with_suffix("").as_posix()
        if module.split("/")[0] in ("adapters", "dev"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "encrypt":
                found.add((module, ast.unparse(node.value)))
    assert found == ENCRYPTING


def test_two_statements_store_a_blob() -> None:
    """Custody's and the re-encryption's, each of which compares the setting in its transaction, as the histories here
    show."""
    found = set()
    for info in pkgutil.iter_modules(store_package.__path__):
        module = importlib.import_module(f"{store_package.__name__}.{info.name}")
        texts = {name: text for name, text in vars(module).items() if isinstance(text, str)}
        found |= {
            f"{info.name}.{name}" for name, text in texts.items() if re.search(r"\bblob = %|INTO .*\bblob\b", text)
        }
    assert found == {"custody._STORE_BLOB", "moves._STORE_BLOB"}


#: what an admin's request does over HTTP: path, and what is sent
OVER_HTTP = {
    "created": ("/broker-secrets", {"name": "new", "injectionKind": "bearer", "agentId": AGENT}),
    "rotated": ("/broker-secrets/{id}/rotate", {}),
    "rotated with new fields": ("/broker-secrets/{id}/rotate", {"injectionKind": "bearer", "agentId": AGENT}),
}


@pytest.mark.parametrize("plan", [Plan.FREE, Plan.ENTERPRISE])
@pytest.mark.parametrize("name", OVER_HTTP)
def test_what_comes_over_http_goes_under_the_key_or_waits(live: Live, web: Web, name: str, plan: Plan) -> None:
    """On every plan: while the key refuses, nothing new is stored; then it is under the key."""
    connection = live.connect(live.customer())
    secret_id = str(live.store().secret_id)
    live.app.administer.put_workspace(live.workspace, plan)
    path, body = OVER_HTTP[name]
    fields = {**body, "targetHost": live.target} if body else {}
    before = _blobs(live)
    live.aws.faults.add(Fault("kms:Encrypt", error="AccessDeniedException"))

    answer = web.post(path.replace("{id}", secret_id), json={"secret": "new-value-1234", **fields}, role="admin")
    event_id = UUID(answer.json()["eventId"])
    _try(live, event_id)
    assert _blobs(live) == before

    live.aws.faults.clear()
    _try(live, event_id)
    assert _blobs(live) != before
    assert {each[:2] for each in _blobs(live)} == {("kms", connection.id)}


@pytest.mark.parametrize("fault", ["refusing", "throttling", "failing"])
def test_a_current_key_that_fails_moves_nothing_anywhere(live: Live, fault: str) -> None:
    """A re-encryption leaves every blob as it was, under the older key."""
    older = live.connect(live.customer())
    live.store()
    current = live.customer()
    live.connect(current)
    before = _blobs(live)
    live.aws.faults.add(Fault("kms:Encrypt", account=current.account.account_id, **AWS_FAULTS[fault]))

    live.app.reencrypt.step(live.workspace, live.app.reencrypt.start(live.workspace).id)

    assert [each[:2] for each in before] == [("kms", older.id)]
    assert _blobs(live) == before


AWS_FAULTS: dict[str, dict[str, Any]] = {
    "refusing": {"error": "AccessDeniedException"},
    "hanging": {"hang": True},
    "throttling": {"error": "ThrottlingException"},
    "resetting": {"reset": True},
    "failing": {"error": "KMSInternalException"},
}


@pytest.fixture
def impatient(live: Live) -> Live:
    """An App on real servers whose custody gives a key half a second: too little for one that works on a busy machine,
    so give it its time back before it is to work."""
    live.app.custody._limits = CustodyLimits(key_seconds=0.5)
    return live


@pytest.mark.parametrize("action", ["kms:Encrypt", "sts:AssumeRole"])
@pytest.mark.parametrize("fault", AWS_FAULTS)
def test_a_key_of_aws_that_fails_stores_nothing(impatient: Live, action: str, fault: str) -> None:
    """With the customer's KMS or STS refusing, hanging, throttling, resetting or failing, the value waits: no blob is
    there, under no cipher; and once it works again, the value is under the customer's key."""
    customer = impatient.customer()
    connection = impatient.connect(customer)
    impatient.aws.faults.add(Fault(action, account=customer.account.account_id, **AWS_FAULTS[fault]))
    receipt = impatient.publish(version=1)

    _try(impatient, receipt.id)
    assert _blob(impatient) == (None, None, None)

    impatient.aws.faults.clear()
    impatient.app.custody._limits = CustodyLimits()
    _try(impatient, receipt.id)
    assert _blob(impatient)[:2] == ("kms", connection.id)


@settings(max_examples=6)
@given(
    moves=st.lists(
        st.sampled_from([*AWS_FAULTS.keys() - {"hanging"}, "connect", "disconnect", "works"]), min_size=3, max_size=6
    )
)
def test_a_random_history_on_the_aws_double(live: Live, moves: list[str]) -> None:
    """The same promise with the real adapter: after every move and rotation, a new blob is under the setting of now."""
    live.workspace = f"ws_{uuid4().hex}"
    live.app.store.put_workspace(live.workspace, "enterprise")
    customers: list[CustomerAccount] = []
    for version, move in enumerate(moves, 1):
        live.aws.faults.clear()
        if move == "connect":
            customers.append(live.customer())
            live.connect(customers[-1])
        elif move == "disconnect" and live.app.store.setting(live.workspace).connection:
            live.app.byok.disconnect(live.workspace)
        elif move in AWS_FAULTS:
            for customer in customers:
                live.aws.faults.add(Fault("kms:*", account=customer.account.account_id, **AWS_FAULTS[move]))
        before = _blob(live)
        _try(live, live.publish(version=version).id)
        setting = live.app.store.setting(live.workspace).connection
        after = _blob(live)
        if move in AWS_FAULTS and setting:
            assert after == before
        else:
            assert after[:2] == (("kms", setting.id) if setting else ("platform", None))


def _try(live: Live, event_id: Any) -> None:
    live.queue.rung.clear()
    try:
        live.app.custody.run(event_id)
    except BrokerError:
        return


def _blob(live: Live) -> tuple[Any, ...]:
    return next(iter(_blobs(live)), (None, None, None))


def _blobs(live: Live) -> list[tuple[Any, ...]]:
    """Cipher, connection and blob of every secret that has one."""
    with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"]), autocommit=True) as sql:
        statement = (
            "SELECT cipher, connection_id, blob FROM broker_secrets WHERE workspace_id = %s AND blob IS NOT NULL"
        )
        return sql.execute(statement, (live.workspace,)).fetchall()
