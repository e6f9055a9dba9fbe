"""Many events at once on a stack with real processes, and what became of them.

Tests share a stack: each looks at the events of its own workspace.

Time is moved in the rows instead of waited for: an attempt that never reports back is rung for again after a minute,
here after two seconds.
"""

from __future__ import annotations

import json
import random
import secrets
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg

from broker_core import events
from broker_core.bootstrap import App
from broker_core.dev.aws import CustomerAccount, fresh_account_id
from broker_core.dev.stack import OUR_ACCOUNT, LocalStack
from broker_core.errors import Unavailable
from broker_core.inject.call import Call
from broker_core.intake import Receipt
from broker_core.model import SecretStatus
from tests.databases import plain
from tests.waiting import wait_until

AGENT = "agent-1"
NAMES, VERSIONS = 10, 20
#: how many have ended in the middle; and how many are not sent before it is seen
SOME = NAMES * VERSIONS // 5
_SOONER = """
    WITH sooner AS (
        UPDATE secret_events SET ring_at = now() + interval '2 seconds'
        WHERE workspace_id = %(workspace)s AND ended_at IS NULL AND ring_at > now() + interval '2 seconds')
    SELECT count(*) FROM secret_events WHERE workspace_id = %(workspace)s AND ended_at IS NOT NULL"""
_STATES = "SELECT state, count(*) FROM secret_events WHERE workspace_id = %(workspace)s GROUP BY state"
_ENDED = "SELECT count(*) FROM secret_events WHERE workspace_id = %(workspace)s AND ended_at IS NOT NULL"
_BLOBS = """
    SELECT name, version, cipher FROM broker_secrets
    WHERE workspace_id = %(workspace)s AND blob IS NOT NULL ORDER BY name"""


class Flood:
    """Two hundred events of one workspace under a customer's key, and their values."""

    def __init__(self, stack: LocalStack, app: App, connect: bool = True) -> None:
        self.stack = stack
        self.app = app
        self.workspace = f"ws_{uuid4().hex}"
        self.values: dict[tuple[str, int], str] = {}
        self._is_middle = threading.Event()
        app.store.put_workspace(self.workspace, "enterprise")
        if connect:
            account = stack.aws.account(fresh_account_id())
            customer = CustomerAccount(account, OUR_ACCOUNT, f"external-{uuid4().hex}")
            self.key_arn = customer.key_arn
            app.byok.connect(self.workspace, customer.role_arn, customer.external_id, customer.key_arn)

    def publish(self, name: str, version: int) -> Receipt:
        """One event, sent again with the same id while a part of ours is away, as a producer does."""
        value = self.values[name, version] = f"value-{name}-{version}-{secrets.token_hex(8)}"
        sent = json.dumps(self._document(name, version, value))
        receipt = wait_until(lambda: self._sent(sent), deadline_seconds=90, every_seconds=0.1, what="an accepted event")
        assert receipt is not None
        return receipt

    def publish_all(self) -> list[UUID]:
        """All of them, in random order, from four producers, the last fifth once the middle was seen; their ids."""
        all_of_them = [(f"secret-{n}", v) for n in range(NAMES) for v in range(1, VERSIONS + 1)]
        random.shuffle(all_of_them)
        with ThreadPoolExecutor(4) as producers:
            first = list(producers.map(lambda one: self.publish(*one).id, all_of_them[:-SOME]))
            self._is_middle.wait()
            return first + list(producers.map(lambda one: self.publish(*one).id, all_of_them[-SOME:]))

    def wait_for_the_middle(self) -> None:
        """Return once a fifth has ended; the rest is in flight or not sent yet."""
        try:
            wait_until(lambda: self.ended() >= SOME, deadline_seconds=60, every_seconds=0.05, what="a fifth of them")
        finally:
            self._is_middle.set()

    def wait_for_the_end(self, total: int = NAMES * VERSIONS) -> Counter[str]:
        """How many events ended in which state, once all have."""

        def over() -> bool:
            ((ended,),) = self.sql(_SOONER)
            return int(ended) >= total

        wait_until(over, deadline_seconds=120, every_seconds=0.25, what="the end of every event")
        return Counter(dict(self.sql(_STATES)))

    def ended(self) -> int:
        """How many events have ended."""
        ((ended,),) = self.sql(_ENDED)
        return int(ended)

    def sql(self, statement: LiteralString, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """One statement, on a connection of its own; ``workspace`` is among the values."""
        with psycopg.connect(plain(self.stack.postgres.url), autocommit=True) as connection:
            cursor = connection.execute(statement, {"workspace": self.workspace, **(values or {})})
            return cursor.fetchall() if cursor.description else []

    def statuses(self) -> dict[str, SecretStatus]:
        """Each secret's status, as its owner sees it."""
        return {view.name: view.status for view in self.app.store.secrets(self.workspace, limit=200)}

    def injected(self, name: str) -> str:
        """The value that an upstream receives."""
        self.stack.upstream.clear()
        url = f"{self.stack.upstream.url}/echo"
        self.app.injector.send(Call(self.workspace, AGENT, None, "GET", url, secret=name))
        (received,) = self.stack.upstream.wait_for(1)
        return {key.lower(): value for key, value in received.headers}["authorization"].removeprefix("Bearer ")

    def assert_highest_won(self) -> None:
        """Every event was stored or superseded; each name has one blob, of its highest version, and it is the value."""
        states = self.wait_for_the_end()
        assert set(states) <= {"stored", "superseded"}
        assert states.total() == NAMES * VERSIONS
        assert self.sql(_BLOBS) == sorted((f"secret-{n}", VERSIONS, "kms") for n in range(NAMES))
        for n in range(NAMES):
            assert self.injected(f"secret-{n}") == self.values[f"secret-{n}", VERSIONS]

    def _sent(self, document: str) -> Receipt | None:
        try:
            return self.app.intake.accept(events.parse(document), workspace_id=self.workspace)
        except Unavailable:
            return None

    def _document(self, name: str, version: int, value: str) -> dict[str, Any]:
        data: dict[str, Any] = {"workspaceId": self.workspace, "version": version, "value": value}
        if version == 1:
            target = f"localhost:{self.stack.upstream.port}"
            data |= {"injectionKind": "bearer", "targetHost": target, "agentId": AGENT}
        return {
            "specversion": "1.0",
            "id": f"{name}-{version}",
            "source": "flood",
            "type": "secret.created" if version == 1 else "secret.rotated",
            "subject": name,
            "data": data,
        }


def keep_running(stack: LocalStack, *programs: str) -> None:
    """Start those that do not run: the file's first test, and who comes after one that ended them."""
    stack.run(*(name for name in programs if name not in stack.programs or not stack.programs[name].alive))


@contextmanager
def flooding(stack: LocalStack, app: App, *programs: str) -> Iterator[Flood]:
    """Processes that work, while two hundred events are on their way in: the block begins in the middle. After it every
    event must have been accepted and have ended, and the highest versions must have won."""
    with ThreadPoolExecutor(1) as background:
        flood = Flood(stack, app)
        keep_running(stack, *programs)
        publishing = background.submit(flood.publish_all)
        flood.wait_for_the_middle()
        yield flood
        publishing.result()
        flood.assert_highest_won()
