"""Who can write to the queue can ring as often as they like; that must not cost a value."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from broker_core.dev.aws import Fault
from broker_core.errors import Transient
from broker_core.model import EventState
from tests.live import Live


def test_a_flood_of_doorbells_loses_no_value(live: Live) -> None:
    """Eight messages for one event at once, while KMS is slow: it is stored, and not taken for one that crashes."""
    live.connect(live.customer())
    receipt = live.publish()
    live.aws.faults.add(Fault("kms:Encrypt", latency=0.5))

    def answer_the_bell(_: int) -> None:
        with suppress(Transient):  # too many at once for one customer: the row waits
            live.app.custody.run(receipt.id)

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(answer_the_bell, range(8)))
    if not live.app.store.event(live.workspace, receipt.id).state.is_end:
        live.app.custody.run(receipt.id)
    assert live.app.store.event(live.workspace, receipt.id).state is EventState.STORED
