"""What a person who traces production sees: one trace of an event, one of an injection, one of a sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from dramatiq import Worker
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from broker_core import events, telemetry
from broker_core.adapters.queue import DramatiqQueue, connect_queue
from broker_core.errors import KeyServiceError
from broker_core.model import EventState
from tests.live import Live, live_app
from tests.spans import collected, tree
from tests.waiting import wait_until
from workers.main import make_worker_queue

EVENT = """\
intake.accept
  db.injection_of
  claims.put
  db.accept
  queue.enqueue
    actor.secret_created
      db.begin_custody
      custody
        claims.get
        sts.AssumeRole
        kms.Encrypt
        db.keep
        claims.delete"""

INJECTION = """\
inject
  db.candidates
  upstream.connect
  db.begin_uses
  sts.AssumeRole
  kms.Decrypt
  upstream.send
  db.end_uses"""

PROBE = """\
sweep.probe
  db.begin_checks
  sts.AssumeRole
  kms.Decrypt
  db.end_checks
  db.begin_checks
  sts.AssumeRole
  kms.Encrypt
  db.end_checks"""


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """The spans of this test."""
    with collected() as spans:
        yield spans


def named(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    """The one span of this name."""
    (span,) = (each for each in exporter.get_finished_spans() if each.name == name)
    return span


def test_one_trace_of_an_event(live: Live, exporter: InMemorySpanExporter) -> None:
    """From the accepted event through the queue's message to the actor, STS, KMS and the database: one trace."""
    live.connect(live.customer())
    queue = DramatiqQueue(connect_queue(live.environment["BROKER_REDIS_URL"]))
    with live_app(live.environment, live.aws, live.upstream, queue=queue) as other:
        other.connect(other.customer())
        broker = make_worker_queue(live.environment["BROKER_REDIS_URL"], other.app)
        worker = Worker(broker, worker_timeout=20, worker_threads=1)
        worker.start()
        exporter.clear()
        receipt = other.app.intake.accept(events.parse(json.dumps(other.event())), workspace_id=other.workspace)
        wait_until(lambda: other.app.store.event(other.workspace, receipt.id).state is EventState.STORED)
        wait_until(lambda: any(span.name == "actor.secret_created" for span in exporter.get_finished_spans()))
        worker.stop()
    queue.close()
    drawn = tree(exporter.get_finished_spans(), "intake.accept")
    print(drawn)
    assert drawn == EVENT


def test_one_trace_of_an_injection(live: Live, exporter: InMemorySpanExporter) -> None:
    """An injection's trace shows each promise in its order."""
    live.connect(live.customer())
    live.store()
    exporter.clear()
    live.send()
    drawn = tree(exporter.get_finished_spans(), "inject")
    print(drawn)
    assert drawn == INJECTION


def test_one_trace_of_a_probe(live: Live, exporter: InMemorySpanExporter) -> None:
    """A probe decrypts and encrypts, each with its own session, each with its intent first."""
    connection = live.connect(live.customer())
    live.app.store._database.run(
        "due_now", "UPDATE byok_connections SET next_probe_at = now() WHERE id = %(id)s", {"id": connection.id}
    )
    exporter.clear()
    live.app.sweep.probes()
    drawn = tree(exporter.get_finished_spans(), "sweep.probe")
    print(drawn)
    assert drawn == PROBE


def test_the_request_id_is_on_the_span(live: Live, exporter: InMemorySpanExporter) -> None:
    """A span of KMS carries AWS's request id, the one that the audit row and the customer's trail have."""
    live.connect(live.customer())
    live.store()
    exporter.clear()
    live.send()
    span = named(exporter, "kms.Decrypt")
    used = live.app.store.uses(live.workspace)[-1]
    assert used.result is not None
    assert (span.attributes or {})["aws.request_id"] == used.result.receipt.kms_request_id


def test_a_failed_span_has_our_code_and_no_text(live: Live, exporter: InMemorySpanExporter) -> None:
    """A refusal is on the span as a code; there is no event, no exception text, no description."""
    customer = live.customer()
    live.connect(customer)
    live.store()
    customer.disable_key()
    exporter.clear()
    with pytest.raises(KeyServiceError):
        live.send()
    span = named(exporter, "inject")
    assert (span.attributes or {})["broker.code"] == "key_disabled"
    assert not span.events
    assert span.status.description is None


def test_attributes_are_from_the_fixed_set(live: Live, exporter: InMemorySpanExporter) -> None:
    """No span has an attribute that ``telemetry.ATTRIBUTES`` does not name."""
    live.connect(live.customer())
    live.store()
    live.send()
    live.app.sweep.checks()
    used = {key for span in exporter.get_finished_spans() for key in (span.attributes or {})}
    assert used
    assert used <= telemetry.ATTRIBUTES


def test_a_second_ring_is_in_the_events_trace(live: Live, exporter: InMemorySpanExporter) -> None:
    """An event that was held and is rung for again stays in the trace that it was accepted in."""
    customer = live.customer()
    live.connect(customer)
    customer.disable_key()
    receipt = live.publish()
    assert live.work() == [EventState.REFUSED]
    live.app.store._database.run(
        "due_now", "UPDATE secret_events SET ring_at = now() WHERE id = %(id)s", {"id": receipt.id}
    )
    queue = DramatiqQueue(connect_queue(live.environment["BROKER_REDIS_URL"]))
    with live_app(live.environment, live.aws, live.upstream, queue=queue) as other:
        other.app.reconcile()
    queue.close()
    accepted, rung = named(exporter, "intake.accept"), named(exporter, "queue.enqueue")
    assert accepted.context is not None
    assert rung.context is not None
    assert rung.context.trace_id == accepted.context.trace_id
