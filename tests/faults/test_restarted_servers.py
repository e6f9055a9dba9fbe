"""A server killed (-9) and started again in the middle of two hundred events. No worker is restarted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from broker_core.bootstrap import App
from broker_core.dev.aws import Fault
from broker_core.dev.postgres import Postgres
from broker_core.dev.stack import LocalStack
from broker_core.dev.valkey import Valkey
from broker_core.model import EventState, SecretStatus
from migrations import runner
from tests.faults.flood import Flood, flooding, keep_running
from tests.live import settings_for

if TYPE_CHECKING:
    from broker_core.dev.aws import AwsDouble
    from broker_core.dev.upstream import SampleUpstream

SLOW = Fault("kms:Encrypt", latency=0.02)


@pytest.fixture(scope="module")
def servers(aws: AwsDouble, _upstream_server: SampleUpstream) -> Iterator[LocalStack]:
    """A stack on servers that nobody else uses."""
    with ExitStack() as opened:
        postgres = opened.enter_context(Postgres.start())
        queue = opened.enter_context(Valkey.start(persistent=True))
        claims = opened.enter_context(Valkey.start(persistent=False))
        runner.upgrade(postgres.url)
        environment = settings_for(postgres.url, queue.url, claims.url, aws, _upstream_server)
        yield opened.enter_context(LocalStack(postgres, queue, claims, aws, _upstream_server, environment))


def test_the_queue(stack: LocalStack, app: App) -> None:
    """With the queue killed and restarted every event ends and the highest version wins: the rows ring again."""
    stack.aws.faults.add(SLOW)
    with flooding(stack, app, "worker", "scheduler"):
        stack.queue.kill()
        stack.queue.restart()


def test_the_database(stack: LocalStack, app: App) -> None:
    """With PostgreSQL killed and restarted every event ends and the highest version wins."""
    stack.aws.faults.add(SLOW)
    with flooding(stack, app, "worker", "scheduler"):
        stack.postgres.kill()
        stack.postgres.restart()


def test_the_claims(stack: LocalStack, app: App) -> None:
    """With the claims' server restarted, what was in flight ends ``expired`` and needs re-provisioning, what was stored
    stays, nothing vanishes, and what comes later is stored."""
    flood = Flood(stack, app)
    keep_running(stack, "worker", "scheduler")
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
