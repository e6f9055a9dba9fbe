"""One customer's KMS that never answers takes no more than its own share of the workers."""

from __future__ import annotations

from broker_core.bootstrap import App
from broker_core.dev.aws import Fault
from broker_core.dev.stack import LocalStack
from tests.faults.flood import Flood
from tests.waiting import wait_until

#: more than the eight threads that a worker has
MANY = 24

#: 1 where the neighbour was stored while no use of the silent key that had reached AWS had ended
_STORED_BESIDE = """
    SELECT count(*) FROM secret_events b
    WHERE b.workspace_id = %(quiet)s AND b.state = 'stored' AND NOT EXISTS (
        SELECT FROM audit_log a WHERE a.workspace_id = %(noisy)s AND a.event_id IS NOT NULL
            AND a.session_name IS NOT NULL AND a.ended_at < b.ended_at)"""
_ENDED = "SELECT count(*) FROM secret_events WHERE workspace_id = %(quiet)s AND ended_at IS NOT NULL"


def test_a_neighbour_is_stored_while_another_hangs(stack: LocalStack, app: App) -> None:
    """With one customer's key silent and more of its events waiting than there are threads, another's event is stored
    before any of those that hang has given up."""
    noisy, quiet = Flood(stack, app), Flood(stack, app)
    whose = {"noisy": noisy.workspace, "quiet": quiet.workspace}
    stack.aws.faults.add(Fault("kms:Encrypt", key=noisy.key_arn, hang=True))
    for number in range(MANY):
        noisy.publish(f"secret-{number}", 1)
    stack.run("worker")
    wait_until(lambda: stack.aws.faults.hanging >= 4, what="uses that hang")
    quiet.publish("secret-0", 1)
    wait_until(lambda: quiet.sql(_ENDED, whose) == [(1,)], what="the neighbour's event")
    assert stack.aws.faults.hanging > 0
    assert quiet.sql(_STORED_BESIDE, whose) == [(1,)]
