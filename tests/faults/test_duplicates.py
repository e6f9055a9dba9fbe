"""The same event many times at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import redis

from broker_core import events
from broker_core.model import EventState
from tests.live import Live


def test_the_first_claim_stays(live: Live, claims_valkey: str) -> None:
    """Of sixteen concurrent sendings one is accepted, all get its answer, its claim is the only one, and it is
    stored."""
    document = json.dumps(live.event(value="sent-many-times"))
    with ThreadPoolExecutor(16) as producers:
        receipts = list(
            producers.map(
                lambda _: live.app.intake.accept(events.parse(document), workspace_id=live.workspace), range(16)
            )
        )
    assert len({receipt.id for receipt in receipts}) == 1
    assert len(live.queue.rung) == 1
    with redis.Redis.from_url(claims_valkey) as client:
        assert client.dbsize() == 1
    assert live.work() == [EventState.STORED]
    assert b"sent-many-times" not in live.send().body
    assert ("authorization", "Bearer sent-many-times") in [
        (name.lower(), value) for name, value in live.upstream.requests[-1].headers
    ]


def test_a_late_one(live: Live) -> None:
    """A duplicate that comes after the first was stored gets the first's answer and changes nothing."""
    document = live.event()
    first = live.app.intake.accept(events.parse(json.dumps(document)), workspace_id=live.workspace)
    live.work()
    again = live.app.intake.accept(events.parse(json.dumps(document)), workspace_id=live.workspace)
    assert (again.id, again.version, again.status) == (first.id, first.version, "stored")
    assert live.work() == []
    assert live.candidate().version == 1
