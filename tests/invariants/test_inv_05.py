"""INV-5: audit intent first, or nothing is assumed, decrypted or released."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from broker_core.audit import Outcome
from broker_core.dev.aws import Call as AwsCall
from broker_core.errors import Unavailable
from broker_core.inject.call import Call
from tests.databases import plain
from tests.live import AGENT, Live

_FORBID = """
    CREATE FUNCTION inv_05_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no room'; END $$;
    CREATE TRIGGER inv_05 BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION inv_05_refuse()"""
_ALLOW = "DROP TRIGGER IF EXISTS inv_05 ON audit_log; DROP FUNCTION IF EXISTS inv_05_refuse()"


@pytest.fixture
def sql(live: Live) -> Iterator[psycopg.Connection[Any]]:
    """A look at the database from outside: it sees what is committed."""
    with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"]), autocommit=True) as connection:
        yield connection


@pytest.fixture
def used(live: Live, sql: psycopg.Connection[Any]) -> Live:
    """A workspace with a key, a bearer, a variable, a platform secret, and a probe and checks that are due."""
    live.store("on the platform cipher")
    live.connect(live.customer())
    live.store()
    live.store("variable", injectionKind="stdio_env", bindingKey="TOKEN", agentId=AGENT)
    sql.execute("UPDATE byok_connections SET next_probe_at = now(), check_ready_at = now() - interval '1 hour'")
    sql.execute("UPDATE broker_secrets SET checked_at = now() - interval '2 days'")
    return live


@pytest.fixture
def no_audit(used: Live, sql: psycopg.Connection[Any]) -> Iterator[Live]:
    """The audit log takes no row."""
    sql.execute(_FORBID)
    try:
        yield used
    finally:
        sql.execute(_ALLOW)


def _take_in(live: Live) -> None:
    live.publish("new")
    live.work()


USES: dict[str, Callable[[Live], object]] = {
    "inject": lambda live: live.send(),
    "inject, platform": lambda live: live.send("on the platform cipher"),
    "environment": lambda live: live.app.injector.environment(Call(live.workspace, AGENT, None)),
    "encrypt": _take_in,
    "verify": lambda live: live.connect(live.customer()),
    "verify again": lambda live: live.app.byok.verify(live.workspace),
    "probe": lambda live: live.app.sweep.probes(),
    "check": lambda live: live.app.sweep.checks(),
}


@pytest.mark.parametrize("name", USES)
def test_an_audit_log_that_cannot_be_written_releases_nothing(no_audit: Live, name: str) -> None:
    """No AssumeRole, no Encrypt, no Decrypt, no request to an upstream: whatever the use was for."""
    customer = no_audit.customer()  # made before the count: its own set-up calls AWS
    no_audit.customer = lambda: customer  # type: ignore[method-assign]  # the use above asks for one
    before = no_audit.aws.trail.calls

    if name == "probe":  # a round says that it skipped one, and goes on with the next connection
        USES[name](no_audit)
    else:
        with pytest.raises(Unavailable):
            USES[name](no_audit)

    assert no_audit.aws.trail.calls == before
    assert no_audit.upstream.requests == []


@pytest.mark.parametrize("name", ["inject", "environment"])
def test_a_database_that_goes_away_before_the_intent_releases_nothing(
    used: Live, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Selected and connected, and then the database is gone: nothing is asked, nothing sent."""
    run = used.app.store._database.run
    selected: list[str] = []

    def away_after_selecting(operation: str, *given: Any) -> Any:
        if selected:
            raise Unavailable("the database is away")
        selected.append(operation)
        return run(operation, *given)

    monkeypatch.setattr(used.app.store._database, "run", away_after_selecting)
    before = used.aws.trail.calls

    with pytest.raises(Unavailable) as refused:
        USES[name](used)

    assert (refused.value.reason, selected) == ("audit_unavailable", ["candidates"])
    assert (used.aws.trail.calls, used.upstream.requests) == (before, [])


@pytest.mark.parametrize("name", sorted(USES.keys() - {"inject, platform"}))
def test_every_session_has_a_row_that_was_committed_before_it(
    used: Live, sql: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """At the moment that STS is about to answer, the row that the session's name leads to is there for all to see, with
    the purpose that the name says, and without an outcome."""
    rows: list[tuple[str, Any]] = []
    add = used.aws.trail.add

    def looked_up(call: AwsCall) -> None:
        if call.action == "sts:AssumeRole":
            _, purpose, audit_id = str(call.session_name).split("-", 2)
            row = sql.execute("SELECT purpose, outcome FROM audit_log WHERE id = %s", (audit_id,)).fetchone()
            rows.append((purpose, row))
        add(call)

    monkeypatch.setattr(used.aws.trail, "add", looked_up)

    USES[name](used)

    purpose = {"environment": "inject", "verify again": "verify"}.get(name, name)
    assert rows
    assert rows == [(purpose, (purpose, None))] * len(rows)


def test_every_row_of_a_use_leads_to_its_session(used: Live) -> None:
    """The session's name and both request ids of the customer's CloudTrail are in the row."""
    answer = used.send()

    (use,) = [use for use in used.app.store.uses(used.workspace) if use.intent.id == answer.audit_id]
    assume, decrypt = used.aws.trail.calls[-2:]
    assert use.result is not None
    receipt = use.result.receipt
    assert receipt.session_name == assume.session_name == decrypt.session_name == f"axiorank-inject-{answer.audit_id}"
    assert (receipt.assume_request_id, receipt.kms_request_id) == (assume.request_id, decrypt.request_id)


class Killed(BaseException):
    """Stands for kill -9: no code of ours runs after it."""


def test_a_use_that_never_reported_back_is_closed_as_unknown(
    used: Live, sql: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process died between the release and its outcome: the row stays, and the reconciler says ``unknown``."""

    def killed(*_: Any) -> Any:
        raise Killed

    monkeypatch.setattr(used.app.store, "end_uses", killed)
    with pytest.raises(Killed):
        used.send()
    assert [use for use in used.app.store.uses(used.workspace) if use.result is None]
    sql.execute("UPDATE audit_log SET started_at = now() - interval '2 days' WHERE outcome IS NULL")

    used.app.reconcile()

    *_, last = used.app.store.uses(used.workspace)
    assert last.result is not None
    assert last.result.outcome is Outcome.UNKNOWN


def test_a_use_under_way_is_not_closed(used: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A use that began a moment ago may still report back."""
    monkeypatch.setattr(used.app.store, "end_uses", lambda results: None)
    used.send()

    used.app.reconcile()

    *_, last = used.app.store.uses(used.workspace)
    assert last.result is None
