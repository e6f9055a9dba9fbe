"""INV-4: no decrypt result outlives the one use it was made for (named exception: the environment of a stdio server).

What can be shown: every buffer of ours is zeroed on every way out, nothing is asked from a cache, and no object that
Python can still reach holds the value. What cannot: copies that boto3, json, urllib3 and ssl made are freed, not
zeroed, and may stay in memory that nobody reaches until it is used again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from broker_core.dev.aws import Fault
from broker_core.dev.upstream import RawResponse
from broker_core.errors import BrokerError, Unavailable
from broker_core.inject.call import Call
from broker_core.model import EventState
from broker_core.secret import Plaintext
from tests import key_uses
from tests.driver import Driver
from tests.key_uses import KEY_USES, VALUE, environment, stream
from tests.live import AGENT, Live, settings_for
from tests.web import Web

if TYPE_CHECKING:
    from broker_core.dev.aws import AwsDouble
    from broker_core.dev.upstream import SampleUpstream
    from tests.databases import KeptRedis


class Buffers:
    """Every buffer that a Plaintext had since the last ``clear``."""

    def __init__(self) -> None:
        self.all: list[bytearray] = []

    @property
    def left(self) -> int:
        """How many still hold anything."""
        return sum(any(buffer) for buffer in self.all)


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> Buffers:
    """Watches every Plaintext that is made."""
    seen = Buffers()
    make = Plaintext.__init__

    def watched(self: Plaintext, value: bytes | bytearray) -> None:
        make(self, value)
        seen.all.append(self._buffer)

    monkeypatch.setattr(Plaintext, "__init__", watched)
    return seen


@pytest.fixture
def stored(live: Live) -> Live:
    """A bearer and a variable under a customer's key."""
    live.connect(live.customer())
    live.store(value=VALUE)
    live.store("variable", value=VALUE, injectionKind="stdio_env", bindingKey="TOKEN", agentId=AGENT)
    return live


def _reset(live: Live) -> None:
    live.send(path="/reset")


def _breaks_off(live: Live) -> None:
    live.upstream.route("/half", lambda _: RawResponse([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf"]))
    live.send(path="/half")


def _guesses(live: Live) -> None:
    live.send(body=VALUE, method="POST")


def _cannot_be_redacted(live: Live) -> None:
    headers = b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx"
    live.upstream.route("/br", lambda _: RawResponse([headers]))
    live.send(path="/br")


def _refused(live: Live) -> None:
    live.aws.faults.add(Fault("kms:Decrypt", error="AccessDeniedException", count=1))
    live.send()


def _answer_lost(live: Live) -> None:
    for _ in range(3):
        live.aws.faults.add(Fault("kms:Decrypt", reset=True, after=True, count=1))
    live.send()


def _one_of_two_variables_refused(live: Live) -> None:
    live.store("variable 2", value=VALUE, injectionKind="stdio_env", bindingKey="TOKEN_2", agentId=AGENT)
    second = ("axiorank:secret", "variable 2")
    live.aws.faults.add(Fault("kms:Decrypt", error="DisabledException", context=second))
    environment(live)


def _streamed_and_given_up(live: Live) -> None:
    live.app.injector.stream(_to(live)).close()


def _streamed_and_dropped(live: Live) -> None:
    next(live.app.injector.stream(_to(live)).chunks())


def _streamed_and_breaks_off(live: Live) -> None:
    live.upstream.route("/half", lambda _: RawResponse([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf"]))
    stream(live, "/half")


def _streamed_up_with_the_value(live: Live) -> None:
    stream(live, method="POST", body=iter([b"one", VALUE]))


def _streamed_up_and_broken_off(live: Live) -> None:
    stream(live, method="POST", body=iter([b"one"]), body_length=9)


def _to(live: Live) -> Call:
    return Call(live.workspace, AGENT, None, "GET", f"https://{live.target}/echo", secret="github")


INJECTIONS: dict[str, Callable[[Live], object]] = {
    "a request": lambda live: live.send(),
    "an environment": environment,
    "the upstream resets": _reset,
    "the answer breaks off": _breaks_off,
    "the request holds the value": _guesses,
    "the answer cannot be read": _cannot_be_redacted,
    "the key refuses": _refused,
    "the key's answers are lost": _answer_lost,
    "one of two variables is refused": _one_of_two_variables_refused,
    "another host": lambda live: live.send(url="https://localhost:1/"),
    "a stream": stream,
    "a stream that is given up": _streamed_and_given_up,
    "a stream that is dropped": _streamed_and_dropped,
    "a stream that breaks off": _streamed_and_breaks_off,
    "a stream of the value": _streamed_up_with_the_value,
    "a stream whose body breaks off": _streamed_up_and_broken_off,
}
WELL = (
    "a request",
    "an environment",
    *(name for name in INJECTIONS if name.startswith("a stream that is")),
    "a stream",
)


@pytest.mark.parametrize("name", INJECTIONS)
def test_after_an_injection_no_buffer_of_ours_holds_anything(stored: Live, buffers: Buffers, name: str) -> None:
    """Whether it worked or failed, and wherever it failed, every value that was decrypted for it is zeroed."""
    try:
        INJECTIONS[name](stored)
    except BrokerError:
        assert name not in WELL
    finally:
        stored.aws.faults.clear()

    assert buffers.left == 0
    assert buffers.all or name in ("the key refuses", "the key's answers are lost", "another host")


@pytest.mark.parametrize("name", ["a request", "an environment"])
def test_the_platform_ciphers_values_are_zeroed_too(live: Live, buffers: Buffers, name: str) -> None:
    """A value under the platform cipher is treated no differently."""
    live.store(value=VALUE)
    live.store("variable", value=VALUE, injectionKind="stdio_env", bindingKey="TOKEN", agentId=AGENT)

    INJECTIONS[name](live)

    assert (buffers.left, len(buffers.all) > 4) == (0, True)


@pytest.mark.parametrize("name", KEY_USES)
def test_whatever_asks_a_key_leaves_nothing(used: Live, buffers: Buffers, name: str) -> None:
    """A value, a canary, a data key, random bytes: what was made for a use is zeroed when it is over."""
    KEY_USES[name](used)

    assert (buffers.left, bool(buffers.all)) == (0, name not in ("refusals", "check", "proof", "proof, revoked"))


def _decrypts_after_all(live: Live) -> None:
    live.aws.faults.add(Fault("kms:Decrypt", error="AccessDeniedException", count=1))
    key_uses.prove(live)


def _no_outcome(live: Live) -> None:
    def away(*_: Any) -> None:
        raise Unavailable("the database is away")

    vars(live.app.reencrypt._store)["end_use"] = away
    key_uses.reencrypt(live)


def _not_stored(live: Live) -> None:
    def away(*_: Any) -> None:
        raise Unavailable("the database is away")

    vars(live.app.reencrypt._store)["keep_move"] = away
    key_uses.reencrypt(live)


def _current_key_says_no(live: Live) -> None:
    live.aws.faults.add(Fault("kms:Encrypt", error="AccessDeniedException"))
    key_uses.reencrypt(live)


def _no_second_intent(live: Live) -> None:
    begin, intents = live.app.store.begin_use, list[object]()

    def once(intent: Any) -> None:
        if intents:
            raise Unavailable("the database is away")
        intents.append(intent)
        begin(intent)

    vars(live.app.reencrypt._store)["begin_use"] = once
    key_uses.reencrypt(live)


READ_ALL_THE_SAME: dict[str, Callable[[Live], object]] = {
    "a proof's Decrypt works after all": _decrypts_after_all,
    "a re-encryption's outcome is lost": _no_outcome,
    "a re-encryption is not stored": _not_stored,
    "a re-encryption has no second intent": _no_second_intent,
    "a re-encryption's current key says no": _current_key_says_no,
}


@pytest.mark.parametrize("name", READ_ALL_THE_SAME)
def test_what_was_decrypted_for_a_use_that_failed_is_zeroed_too(used: Live, buffers: Buffers, name: str) -> None:
    """A value that was read, and then was not wanted, or could go nowhere."""
    try:
        READ_ALL_THE_SAME[name](used)
    except Unavailable:
        assert name.startswith("a re-encryption")
    finally:
        used.aws.faults.clear()

    assert (buffers.left, len(buffers.all) > 0) == (0, True)


def test_an_export_reads_nothing(stored: Live, buffers: Buffers) -> None:
    """It is the ciphertext as it is stored: no key is asked, and no value made."""
    (secret,) = [each for each in stored.app.store.secrets(stored.workspace) if each.name == "github"]
    before = stored.aws.trail.calls

    stored.app.administer.export(stored.workspace, secret.id)

    assert (buffers.all, stored.aws.trail.calls) == ([], before)


#: what comes over HTTP with a value in it: path, what is changed of a good creation, and the status
TAKEN_IN: dict[str, tuple[str, dict[str, Any], int]] = {
    "created": ("/broker-secrets", {"name": "new"}, 202),
    "its name is taken": ("/broker-secrets", {}, 409),
    "no injection": ("/broker-secrets", {"name": "new", "targetHost": None}, 422),
    "a value that fits no header": ("/broker-secrets", {"name": "new", "secret": "a\nb"}, 422),
    "rotated": ("/broker-secrets/{id}/rotate", {"name": None}, 202),
    "rotated, but not there": (f"/broker-secrets/{uuid4()}/rotate", {"name": None}, 404),
}


@pytest.mark.parametrize("name", TAKEN_IN)
def test_what_comes_over_http_is_zeroed(stored: Live, web: Web, buffers: Buffers, name: str) -> None:
    """Accepted or refused, wherever it was refused; and once more where it is the repeat of a request."""
    path, changes, status = TAKEN_IN[name]
    where = {"injectionKind": "bearer", "targetHost": stored.target, "agentId": AGENT}
    given = {"name": "github", "secret": VALUE.decode(), **where, **changes}
    body = {field: each for field, each in given.items() if each is not None}
    (secret,) = [each for each in stored.app.store.secrets(stored.workspace) if each.name == "github"]

    for _ in range(2):
        answer = web.post(
            path.replace("{id}", str(secret.id)), json=body, headers={"Idempotency-Key": "one"}, role="admin"
        )
        assert answer.status_code == status

    assert (buffers.left, len(buffers.all) >= 2) == (0, True)


def _setting_changes(live: Live) -> None:
    keep = live.app.store.keep
    changes: Iterator[Any] = iter([live.customer()])

    def changed(*given: Any) -> Any:
        for customer in changes:
            live.connect(customer)
        return keep(*given)

    vars(live.app.custody._store)["keep"] = changed


def _database_goes_away(live: Live) -> None:
    def away(*_: Any) -> Any:
        raise Unavailable("the database is away")

    vars(live.app.custody._store)["keep"] = away


def _superseded(live: Live) -> None:
    live.store(version=9)


def _claim_damaged(live: Live) -> None:
    get = live.app.custody._claims.get
    vars(live.app.custody._claims)["get"] = lambda claim: (get(claim) or b"")[:-1] + b"x"


def _throttled(live: Live) -> None:
    live.aws.faults.add(Fault("kms:Encrypt", error="ThrottlingException"))


def _encrypt_refused(live: Live) -> None:
    live.aws.faults.add(Fault("kms:Encrypt", error="AccessDeniedException"))


CUSTODIES: dict[str, Callable[[Live], object]] = {
    "it is stored": lambda live: None,
    "the key refuses": _encrypt_refused,
    "the key is throttled": _throttled,
    "the setting changes meanwhile": _setting_changes,
    "the database goes away": _database_goes_away,
    "a higher version was there": _superseded,
    "the claim does not open": _claim_damaged,
}


@pytest.mark.parametrize("name", CUSTODIES)
def test_after_custody_no_buffer_of_ours_holds_anything(live: Live, buffers: Buffers, name: str) -> None:
    """Accepting and storing zero every buffer, on each way out."""
    live.connect(live.customer(), verified=True)
    CUSTODIES[name](live)
    receipt = live.publish(version=3, value=VALUE)
    try:
        live.app.custody.run(receipt.id)
    except BrokerError:
        assert name in ("the key is throttled", "the database goes away")
    finally:
        live.aws.faults.clear()

    assert (buffers.left, len(buffers.all) > 2) == (0, True)


@pytest.mark.parametrize("size", [1, 4096, 4097, 65_536])
def test_a_large_value_is_zeroed_like_a_small_one(live: Live, buffers: Buffers, size: int) -> None:
    """Both ciphers of a customer's key zero what they were given and what they gave."""
    live.connect(live.customer())
    live.store(value="x" * size, injectionKind="http_header", bindingKey="X-Key", targetHost=live.target, agentId=AGENT)
    live.upstream.route("/", lambda _: RawResponse([b"HTTP/1.1 204 No Content\r\n\r\n"]))

    live.send(path="/")

    assert (buffers.left, sum(map(len, buffers.all)) >= 2 * size) == (0, True)


def test_a_refused_event_is_zeroed(live: Live, buffers: Buffers) -> None:
    """A value that intake refuses is not kept either."""
    with pytest.raises(BrokerError):
        live.publish(value=b"ends with a line break\n")

    assert (buffers.left, len(buffers.all)) == (0, 1)


def test_probes_and_checks_leave_nothing(stored: Live, buffers: Buffers) -> None:
    """A canary is a value too."""
    connection = stored.app.store.setting(stored.workspace).connection
    stored.app.store._database.run("test", "UPDATE byok_connections SET next_probe_at = now() RETURNING id", {})

    assert stored.app.sweep.probes() == 1

    assert (connection is not None, buffers.left, len(buffers.all)) == (True, 0, 2)


def test_two_injections_are_two_decrypts(stored: Live) -> None:
    """Nothing is kept for the next use: each asks STS and KMS again, in a session of its own."""
    before = stored.aws.trail.calls

    stored.send()
    stored.send()

    calls = stored.aws.trail.calls[len(before) :]
    assert [call.action for call in calls] == ["sts:AssumeRole", "kms:Decrypt"] * 2
    assert len({call.session_name for call in calls}) == 2


def test_a_disabled_key_ends_the_very_next_injection(stored: Live) -> None:
    """Revoked is revoked, one use after the last that worked."""
    stored.send()
    connection = stored.app.store.setting(stored.workspace).connection
    assert connection is not None
    stored.aws.account(connection.key_arn.split(":")[4]).disable_key(connection.key_arn)

    with pytest.raises(BrokerError) as refused:
        stored.send()

    assert refused.value.reason == "key_disabled"


@pytest.fixture(scope="module")
def driver(
    database_url: str,
    _queue_server: KeptRedis,
    _claims_server: KeptRedis,
    aws: AwsDouble,
    _upstream_server: SampleUpstream,
) -> Iterator[Driver]:
    """A process of ours on this worker's servers."""
    with Driver(settings_for(database_url, _queue_server.url, _claims_server.url, aws, _upstream_server)) as started:
        yield started


def test_no_object_that_python_can_reach_holds_the_value_after_its_use(live: Live, driver: Driver) -> None:
    """In a process that injected a value, buffered and streamed, to the end and not, a walk through everything the
    collector knows finds it nowhere."""
    value = f"sentinel-{uuid4().hex}".encode()
    live.connect(live.customer())
    live.store(value=value)
    inverted = bytes(255 - byte for byte in value).hex()
    call = {
        "workspace_id": live.workspace,
        "agent_id": AGENT,
        "mcp_server_id": None,
        "url": f"https://{live.target}/echo",
        "secret": "github",
    }
    assert driver("send", call=call)["status"] == 200
    assert [driver("stream", call=call, pieces=pieces)["status"] for pieces in (None, 1, 0)] == [200] * 3
    left = driver("reachable", inverted=inverted)
    planted = driver("reachable", inverted=inverted, plant=True)

    assert (left, planted) == ({"count": 0}, {"count": 1})


def test_nor_after_it_came_over_http(live: Live, driver: Driver) -> None:
    """In a process that took it in by its own endpoint, was refused it by the same, and injected it by another."""
    value = f"sentinel-{uuid4().hex}".encode()
    live.connect(live.customer())
    inverted = bytes(255 - byte for byte in value).hex()
    asked = {"inverted": inverted, "workspace": live.workspace, "agent": AGENT, "target": live.target}
    assert driver("over_http", **asked) == {"statuses": [202, 409, 422, 400, 200]}
    left = driver("reachable", inverted=inverted)
    planted = driver("reachable", inverted=inverted, plant=True)

    assert (left, planted) == ({"count": 0}, {"count": 1})


def test_an_event_that_ended_leaves_no_half_of_its_value(live: Live) -> None:
    """Once stored, the one-time key is gone from the row and the claim from its server."""
    live.connect(live.customer())
    receipt = live.store(value=os.urandom(12).hex())

    event = live.app.store.event(live.workspace, receipt.id)
    rows = live.app.store._database.run(
        "test", "SELECT claim_key FROM secret_events WHERE id = %(id)s", {"id": receipt.id}
    )
    assert (event.state, rows[0].claim_key) == (EventState.STORED, None)
    assert live.app.custody._claims.get(event.claim_id) is None
