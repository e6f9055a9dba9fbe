"""INV-4: no decrypt result outlives the one use it was made for (named exception: the environment of a stdio server).

What can be shown: every buffer of ours is zeroed on every way out, nothing is asked from a cache, and no object that
Python can still reach holds the value. What cannot: copies that boto3, json, urllib3 and ssl made are freed, not
zeroed, and may stay in memory that nobody reaches until it is used again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from broker_core.dev.aws import Fault
from broker_core.dev.upstream import RawResponse
from broker_core.errors import BrokerError, Unavailable
from broker_core.inject.call import Call
from broker_core.model import EventState
from broker_core.secret import Plaintext
from tests.driver import Driver
from tests.live import AGENT, Live

VALUE = b"ghp_0123456789abcdefABCDEF"


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


def _environment(live: Live) -> Any:
    return live.app.injector.environment(Call(live.workspace, AGENT, None))


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
    _environment(live)


INJECTIONS: dict[str, Callable[[Live], object]] = {
    "a request": lambda live: live.send(),
    "an environment": _environment,
    "the upstream resets": _reset,
    "the answer breaks off": _breaks_off,
    "the request holds the value": _guesses,
    "the answer cannot be read": _cannot_be_redacted,
    "the key refuses": _refused,
    "the key's answers are lost": _answer_lost,
    "one of two variables is refused": _one_of_two_variables_refused,
    "another host": lambda live: live.send(url="https://localhost:1/"),
}


@pytest.mark.parametrize("name", INJECTIONS)
def test_after_an_injection_no_buffer_of_ours_holds_anything(stored: Live, buffers: Buffers, name: str) -> None:
    """Whether it worked or failed, and wherever it failed, every value that was decrypted for it is zeroed."""
    try:
        INJECTIONS[name](stored)
    except BrokerError:
        assert name not in ("a request", "an environment")
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
    live.connect(live.customer())
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


def test_no_object_that_python_can_reach_holds_the_value_after_its_use(live: Live) -> None:
    """In a process that injected a value, a walk through everything the collector knows finds it nowhere."""
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
    with Driver(live.environment) as driver:
        assert driver("send", call=call)["status"] == 200
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
