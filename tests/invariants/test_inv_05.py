"""INV-5: audit intent first, or nothing is assumed, decrypted or released."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import broker_core
from broker_core.audit import Outcome
from broker_core.dev.aws import Call as AwsCall
from broker_core.errors import Unavailable
from broker_core.inject.call import Call
from broker_core.ports import KeyService
from tests.databases import plain
from tests.key_uses import KEY_USES, PLATFORM, purpose_of
from tests.live import AGENT, Live
from tests.web import Web, web_on

_FORBID = """
    CREATE FUNCTION inv_05_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no room'; END $$;
    CREATE TRIGGER inv_05 BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION inv_05_refuse()"""
_ALLOW = "DROP TRIGGER IF EXISTS inv_05 ON audit_log; DROP FUNCTION IF EXISTS inv_05_refuse()"


@pytest.fixture
def sql(clean_database: str) -> Iterator[psycopg.Connection[Any]]:
    """A look at the database from outside: it sees what is committed."""
    with psycopg.connect(plain(clean_database), autocommit=True) as connection:
        yield connection


@pytest.fixture
def no_audit(used: Live, sql: psycopg.Connection[Any]) -> Iterator[Live]:
    """The audit log takes no row."""
    sql.execute(_FORBID)
    try:
        yield used
    finally:
        sql.execute(_ALLOW)


#: which key uses each place that asks a key is behind
ASKING = {
    "canary": {"decrypt", "encrypt", "may_assume", "permits"},  # verify, refusals, probe
    "custody": {"encrypt"},
    "inject/opening": {"decrypt"},  # all of a request, a stream and an environment
    "proof": {"check", "decrypt"},
    "reencrypt": {"decrypt", "encrypt"},
    "sweep": {"check"},
}


def test_no_place_that_asks_a_key_is_left_out() -> None:
    """What calls a method of the key service, found in the sources, is what ``KEY_USES`` was made from: where this
    fails, ``KEY_USES`` wants a row for what is new, before this table is changed."""
    house = Path(broker_core.__file__).parent
    methods = {name for name in vars(KeyService) if not name.startswith("_")}
    found: dict[str, set[str]] = {}
    for path in house.rglob("*.py"):
        module = path.relative_to(house).with_suffix("").as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self._keys" and node.attr in methods:
                found.setdefault(module, set()).add(node.attr)
    assert found == ASKING


#: rounds over many: they say that they skipped one, and go on with the next
ROUNDS = ("probe", "refusals")


@pytest.mark.parametrize("name", KEY_USES)
def test_an_audit_log_that_cannot_be_written_releases_nothing(no_audit: Live, name: str) -> None:
    """No AssumeRole, no Encrypt, no Decrypt, no request to an upstream: whatever the use was for."""
    customer = no_audit.customer()  # made before the count: its own set-up calls AWS
    no_audit.customer = lambda: customer  # type: ignore[method-assign]  # the use above asks for one
    before = no_audit.aws.trail.calls

    if name in ROUNDS:
        KEY_USES[name](no_audit)
    else:
        with pytest.raises(Unavailable):
            KEY_USES[name](no_audit)

    assert no_audit.aws.trail.calls == before
    assert no_audit.upstream.requests == []


def test_without_it_no_value_of_the_platform_cipher_is_released_either(no_audit: Live) -> None:
    """Which key a value is under makes no difference."""
    with pytest.raises(Unavailable):
        no_audit.send(PLATFORM)

    assert no_audit.upstream.requests == []


#: path, who, what is sent
OVER_HTTP: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "inject": ("/inject", {"scope": "broker:inject"}, {"agentId": AGENT, "secret": "github", "request": {}}),
    "environment": ("/inject/environment", {"scope": "broker:environment"}, {"agentId": AGENT}),
    "verify": ("/byok/connection/verify", {"role": "owner"}, {}),
    "proxy": ("/proxy", {"scope": "broker:inject"}, {}),
}


@pytest.fixture
def web_without_audit(no_audit: Live) -> Iterator[Web]:
    """The HTTP surface on it."""
    with web_on(no_audit) as opened:
        yield opened


@pytest.mark.parametrize("name", OVER_HTTP)
def test_over_http_it_is_503_and_nothing_is_released(web_without_audit: Web, name: str) -> None:
    """``audit_unavailable``, and neither AWS nor the upstream heard of it."""
    live, (path, caller, body) = web_without_audit.live, OVER_HTTP[name]
    url = f"https://{live.target}/echo"
    if "request" in body:
        body = {**body, "request": {"url": url}}
    headers = {"Axiorank-Upstream-Url": url, "Axiorank-Agent-Id": AGENT, "Axiorank-Secret": "github"}
    before = live.aws.trail.calls

    answer = web_without_audit.post(path, json=body, headers=headers, **caller)

    assert (answer.status_code, answer.json()["error"]) == (503, "audit_unavailable")
    assert (live.aws.trail.calls, live.upstream.requests) == (before, [])


@pytest.mark.parametrize("name", ["inject", "inject, streamed", "environment"])
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
        KEY_USES[name](used)

    assert (refused.value.reason, selected) == ("audit_unavailable", ["candidates"])
    assert (used.aws.trail.calls, used.upstream.requests) == (before, [])


@pytest.mark.parametrize("name", KEY_USES)
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

    KEY_USES[name](used)

    purpose = purpose_of(name)
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


def test_a_stream_under_way_has_a_row_without_an_outcome(used: Live, sql: psycopg.Connection[Any]) -> None:
    """While it passes it is not over, and once it is given up its row says so."""
    call = Call(used.workspace, AGENT, None, "GET", f"https://{used.target}/echo", secret="github")
    answer = used.app.injector.stream(call)

    outcomes = [sql.execute("SELECT outcome FROM audit_log WHERE id = %s", (answer.audit_id,)).fetchone()]
    answer.close()
    outcomes += [sql.execute("SELECT outcome FROM audit_log WHERE id = %s", (answer.audit_id,)).fetchone()]

    assert outcomes == [(None,), ("abandoned",)]


def test_a_use_under_way_is_not_closed(used: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A use that began a moment ago may still report back."""
    monkeypatch.setattr(used.app.store, "end_uses", lambda results: None)
    used.send()

    used.app.reconcile()

    *_, last = used.app.store.uses(used.workspace)
    assert last.result is None
