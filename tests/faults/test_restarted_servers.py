"""A server killed (-9) and started again in the middle of two hundred events. No worker is restarted."""

from __future__ import annotations

from broker_core.dev.aws import Fault
from broker_core.dev.stack import LocalStack
from broker_core.dev.wiring import app_on
from broker_core.model import EventState, SecretStatus
from tests.faults.flood import Flood, flooding

SLOW = Fault("kms:Encrypt", latency=0.02)


def test_the_queue(stack: LocalStack) -> None:
    """With the queue killed and restarted every event ends and the highest version wins: the rows ring again."""
    stack.aws.faults.add(SLOW)
    with flooding(stack, "worker", "scheduler"):
        stack.queue.kill()
        stack.queue.restart()


def test_the_database(stack: LocalStack) -> None:
    """With PostgreSQL killed and restarted every event ends and the highest version wins."""
    stack.aws.faults.add(SLOW)
    with flooding(stack, "worker", "scheduler"):
        stack.postgres.kill()
        stack.postgres.restart()


def test_the_claims(stack: LocalStack) -> None:
    """With the claims' server restarted, what was in flight ends ``expired`` and needs re-provisioning, what was stored
    stays, nothing vanishes, and what comes later is stored."""
    with app_on(stack) as app:
        flood = Flood(stack, app)
        stack.run("worker", "scheduler")
        flood.publish("stored", 1)
        assert flood.wait_for_the_end(1) == {"stored": 1}
        stack.aws.faults.add(Fault("kms:Encrypt", error="ThrottlingException"))
        in_flight = [flood.publish(*one).id for one in (("stored", 2), ("first", 1), ("second", 1))]
        stack.claims.kill()
        stack.claims.restart()
        # an attempt that had opened its claim before would otherwise store it
        flood.wait_for_the_end(4)
        stack.aws.faults.clear()
        assert {app.store.event(flood.workspace, each).state for each in in_flight} == {EventState.EXPIRED}
        assert flood.statuses() == dict.fromkeys(("stored", "first", "second"), SecretStatus.NEEDS_REPROVISION)
        assert flood.injected("stored") == flood.values["stored", 1]
        later = flood.publish("first", 2).id
        flood.wait_for_the_end(5)
        assert app.store.event(flood.workspace, later).state is EventState.STORED
        assert list(stack.claims.directory.iterdir()) == []
