"""Notices from what happens in a customer's account to the platform's endpoint, on real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from broker_core.adapters.store import notices
from broker_core.adapters.store.rows import ROTATION_DUE
from broker_core.dev.stack import LocalStack
from broker_core.dev.wiring import app_on
from broker_core.errors import Denied, NotFound, Unavailable
from broker_core.model import EventState, rotation_due
from tests.databases import plain, plan_by
from tests.receiver import Receiver, receiving
from tests.sentinel import Search, text_sentinel
from tests.store_setup import age_event, age_notice, age_secret
from tests.waiting import wait_until

if TYPE_CHECKING:
    from broker_core.adapters.upstream import HttpsUpstream
    from broker_core.dev.aws import CustomerAccount
    from tests.live import Live


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def live(live_with: Callable[..., Live], way_out: HttpsUpstream, receiver: Receiver) -> Live:
    """An App whose notices go to the receiver, announced at the second denial."""
    return live_with({**receiver.environment, "BROKER_ANNOUNCE_AFTER_SECONDS": "0"}, upstream=way_out)


@pytest.fixture
def customer(live: Live) -> CustomerAccount:
    """Whose key the workspace is connected to."""
    customer = live.customer()
    live.connect(customer)
    return customer


def run(live: Live, statement: str, **values: Any) -> list[Any]:
    """A statement of the test's own."""
    with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"])) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def probe(live: Live) -> None:
    """One probe of every connection, due or not."""
    run(live, "UPDATE byok_connections SET next_probe_at = now()")
    live.app.sweep.probes()


def received(receiver: Receiver) -> list[tuple[str, Any]]:
    """Type and data of each request, every one of them verified."""
    now = datetime.now(UTC).timestamp()
    for request in receiver.requests:
        request.verify(now)
        assert request.headers["axiorank-event"] == request.notice["type"]
        assert request.id == request.notice["id"]
    return [(request.notice["type"], request.notice["data"]) for request in receiver.requests]


def waiting(live: Live) -> list[UUID]:
    """The notices that are not delivered."""
    rows = run(live, "SELECT id FROM notifications WHERE delivered_at IS NULL AND given_up_at IS NULL ORDER BY id")
    return [row[0] for row in rows]


def lose_a_value(live: Live, name: str = "lost") -> UUID:
    """An event whose claim is over; returns the secret's id."""
    receipt = live.publish(name)
    age_event(live.app.store, receipt.id, "claim_expires_at", 1)
    live.app.reconcile()
    event = live.app.store.event(live.workspace, receipt.id)
    assert event.state is EventState.EXPIRED
    secret_id: UUID = event.secret_id
    return secret_id


class TestStory:
    def test_one_notice_for_fifty_secrets(self, live: Live, customer: CustomerAccount, receiver: Receiver) -> None:
        """A revocation, one refused injection, a probe: one verified notice that lists all; then restored: one more."""
        names = [f"secret-{number}" for number in range(50)]
        for name in names:
            live.store(name)
        customer.remove_role_from_key_policy()
        for name in names[:3]:
            with pytest.raises(Denied):
                live.send(name)
        for _ in range(3):
            probe(live)
            live.app.notifications.deliver()
        ((kind, data),) = received(receiver)
        assert kind == "byok.connection_failing"
        assert data["secretCount"] == 50
        assert {secret["name"] for secret in data["secrets"]} == set(names)
        assert (data["state"], data["awsCode"], data["foundBy"]) == ("access_denied", "AccessDeniedException", "probe")
        assert "kms:Decrypt" in data["whatToDo"]

        customer.restore_key_policy()
        for _ in range(2):
            probe(live)
            live.app.notifications.deliver()
        (_, failing), (kind, recovered) = received(receiver)
        assert kind == "byok.connection_recovered"
        assert recovered["failureId"] == failing["failureId"]

    def test_a_lost_value(self, live: Live, receiver: Receiver) -> None:
        """The reconciler ends an event whose time is over, and the owner is told to give the value again."""
        secret_id = lose_a_value(live)
        live.app.notifications.deliver()
        ((kind, data),) = received(receiver)
        assert kind == "broker_secret.needs_reprovision"
        assert (data["secretId"], data["name"], data["state"]) == (str(secret_id), "lost", "expired")

    def test_a_due_rotation(self, live: Live, receiver: Receiver) -> None:
        """The tick tells of it once."""
        live.store("github", rotationPolicy="30d")
        secret_id = live.candidate("github").secret_id
        age_secret(live.app.store, secret_id, "rotated_at", 31 * 86_400)
        for _ in range(2):
            live.app.notifications.tell_due_rotations()
            live.app.notifications.deliver()
        ((kind, data),) = received(receiver)
        assert (kind, data["secretId"], data["rotationPolicy"]) == ("broker_secret.rotation_due", str(secret_id), "30d")


class TestSecondDenial:
    def test_two_minutes_later(
        self, live_with: Callable[..., Live], way_out: HttpsUpstream, receiver: Receiver
    ) -> None:
        """By default the second denial counts when it comes two minutes after the first, or later."""
        live = live_with(receiver.environment, upstream=way_out)
        customer = live.customer()
        live.connect(customer)
        live.store()
        customer.disable_key()
        for seconds in (0, 60, 100):  # the probe itself takes its time
            run(
                live,
                "UPDATE decrypt_failures SET first_seen = now() - make_interval(secs => %(seconds)s)",
                seconds=seconds,
            )
            probe(live)
            assert waiting(live) == []
        run(live, "UPDATE decrypt_failures SET first_seen = now() - interval '121 seconds'")
        probe(live)
        assert live.app.notifications.deliver() == 1
        ((_, data),) = received(receiver)
        assert data["state"] == "key_disabled"

    def test_what_heals_in_between(self, live: Live, customer: CustomerAccount, receiver: Receiver) -> None:
        """Is told to nobody: not its failing, and not its recovery."""
        customer.disable_key()
        probe(live)
        customer.enable_key()
        probe(live)
        live.app.notifications.deliver()
        assert received(receiver) == []


class TestTrouble:
    @pytest.mark.parametrize("answer", [500, 302, 404])
    def test_it_comes_again(self, live: Live, receiver: Receiver, answer: int) -> None:
        """What was not taken is sent later, the same notice signed anew."""
        lose_a_value(live)
        receiver.answer = answer
        assert live.app.notifications.deliver() == 0
        receiver.answer = 204
        (notice_id,) = waiting(live)
        age_notice(live.app.store, notice_id, "next_try_at", 1)
        assert live.app.notifications.deliver() == 1
        received(receiver)
        first, again = receiver.requests
        assert (first.id, first.body) == (again.id, again.body)
        assert waiting(live) == []

    def test_two_workers(self, live: Live, live_with: Callable[..., Live], receiver: Receiver) -> None:
        """Rounds that run beside each other send each notice once."""
        other = live_with(receiver.environment)
        for number in range(20):
            live.publish(f"lost-{number}")
        run(live, "UPDATE secret_events SET claim_expires_at = now() - interval '1 second'")
        live.app.reconcile()
        with ThreadPoolExecutor(4) as pool:
            counts = list(pool.map(lambda app: app.notifications.deliver(), 2 * [live.app, other.app]))
        assert sum(counts) == 20
        assert len({request.id for request in receiver.requests}) == len(receiver.requests) == 20

    def test_a_crash_after_sending(self, live: Live, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is sent again under the same id, once the lease of the one that crashed is over."""
        lose_a_value(live)

        def crash(_: object) -> None:
            raise Unavailable("the database is away")

        with monkeypatch.context() as patched:
            patched.setattr(live.app.store, "end_notice", crash)
            with pytest.raises(Unavailable):
                live.app.notifications.deliver()
        assert live.app.notifications.deliver() == 0
        (notice_id,) = waiting(live)
        age_notice(live.app.store, notice_id, "lease_until", 1)
        assert live.app.notifications.deliver() == 1
        assert [request.id for request in receiver.requests] == 2 * [str(notice_id)]

    def test_without_an_endpoint(
        self, live_with: Callable[..., Live], way_out: HttpsUpstream, live: Live, receiver: Receiver
    ) -> None:
        """Notices are written, and go out from the first process that has one."""
        nowhere = live_with(upstream=way_out)
        lose_a_value(nowhere)
        assert nowhere.app.notifications.deliver() == 0
        assert live.app.notifications.deliver() == 1
        assert received(receiver)[0][0] == "broker_secret.needs_reprovision"


def test_no_value_leaves(live: Live, customer: CustomerAccount, receiver: Receiver) -> None:
    """Neither the outbox nor a request holds a value, in whatever form, or half of one that waits."""
    stored, lost = text_sentinel("stored"), text_sentinel("lost")
    live.store("stored", value=stored.value.decode())
    receipt = live.publish("lost", value=lost.value.decode())
    (key,) = run(live, "SELECT claim_key FROM secret_events WHERE claim_key IS NOT NULL")[0]
    customer.disable_key()
    for _ in range(2):
        probe(live)
    age_event(live.app.store, receipt.id, "claim_expires_at", 1)
    live.app.reconcile()
    assert live.app.notifications.deliver() == 2
    look = Search([stored, lost])
    outbox = repr(run(live, "SELECT n::text, payload::text FROM notifications n")).encode()
    sent = b"\n".join(repr((request.path, request.headers)).encode() + request.body for request in receiver.requests)
    assert look("the outbox", outbox) + look("a request", sent) == []
    assert key not in outbox + sent
    assert key.hex().encode() not in outbox + sent


class TestProcesses:
    def test_from_the_scheduler_to_the_endpoint(self, stack: LocalStack, receiver: Receiver) -> None:
        """Scheduler and worker, as the Procfile starts them, tell of a due rotation without anybody asking."""
        stack.environment = {**stack.environment, **receiver.environment}
        with app_on(stack) as app:
            app.store.put_workspace("ws_1", "enterprise")
            with psycopg.connect(plain(stack.postgres.url)) as connection:
                connection.execute(
                    "INSERT INTO broker_secrets (id, workspace_id, name, rotation_policy, created_at)"
                    " VALUES (%s, 'ws_1', 'old', '1d', now() - interval '2 days')",
                    (uuid4(),),
                )
        stack.run("worker", "scheduler")
        wait_until(lambda: receiver.requests, deadline_seconds=60, what="the notice")
        assert received(receiver)[0][1]["name"] == "old"


class TestOverdue:
    def test_the_list(self, live: Live) -> None:
        """What should have been rotated, in pages; what was, or need not, is not in it."""
        for name, days in (("one", 31), ("two", 29), ("three", 500)):
            live.store(name, rotationPolicy="30d")
            age_secret(live.app.store, live.candidate(name).secret_id, "rotated_at", days * 86_400)
        live.store("four")
        first = live.app.reports.overdue(live.workspace, limit=1).items
        rest = live.app.reports.overdue(live.workspace, after=first[0].secret_id, limit=50).items
        assert [secret.name for secret in (*first, *rest)] == ["one", "three"]
        late = rest[0]
        assert (late.version, late.rotation_policy) == (1, "30d")
        assert late.due_at == rotation_due("30d", late.created_at, late.rotated_at)

    def test_whose_it_is(self, live: Live) -> None:
        """Each workspace has its own; one that is not there has none."""
        live.store(rotationPolicy="1d")
        age_secret(live.app.store, live.candidate().secret_id, "rotated_at", 2 * 86_400)
        live.app.store.put_workspace("ws_other", "team")
        assert len(live.app.reports.overdue(live.workspace).items) == 1
        assert live.app.reports.overdue("ws_other").items == []
        with pytest.raises(NotFound):
            live.app.reports.overdue("ws_nowhere")


class TestStatements:
    def test_due_dates_come_from_an_index(self, live: Live) -> None:
        """A tick looks at those that are due, however many secrets there are."""
        url, index = live.environment["BROKER_DATABASE_URL"], "broker_secrets_due_idx"
        plan = plan_by(url, {index}, notices._ROTATIONS_DUE, {"limit": 10})
        assert any(index in line and "Index" in line for line in plan.splitlines())

    @pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
    def test_a_due_date_is_what_the_model_says(self, live: Live, zone: str) -> None:
        """In whatever zone the session is, over the change to summer time too."""
        moments = [datetime(2026, month, 28, 23, 30, tzinfo=UTC) for month in range(1, 13)]
        rows = [
            {"rotation_policy": policy, "created_at": moment.isoformat()}
            for policy in ("1d", "30d", "9999d")
            for moment in moments
        ]
        statement = f"""
            SELECT rotation_policy, created_at, {ROTATION_DUE}
            FROM (SELECT *, NULL::timestamptz AS rotated_at
                FROM jsonb_to_recordset(%(rows)s) AS r(rotation_policy text, created_at timestamptz)) r"""
        with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"])) as connection:
            connection.execute("SELECT set_config('TimeZone', %s, false)", (zone,))
            found = connection.execute(statement, {"rows": Jsonb(rows)}).fetchall()
        assert len(found) == len(rows)
        for policy, created_at, due_at in found:
            assert due_at == rotation_due(policy, created_at.astimezone(UTC), None)
