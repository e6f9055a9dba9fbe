"""Workers on a real queue: what reaches the use cases, what is tried again, what is given up, what is written."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import pytest
import redis
import structlog
from dramatiq import Message, Worker
from dramatiq.brokers.redis import RedisBroker
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from broker_core import observability, telemetry
from broker_core.adapters.queue import DramatiqQueue, connect_queue, dead_letters, purge_dead_letters
from broker_core.bootstrap import aws_options
from broker_core.dev.valkey import Valkey
from broker_core.errors import BrokerError, Busy, Conflict, Denied, Integrity, Transient, Unavailable
from broker_core.model import EventState, EventType
from broker_core.queues import CUSTODY, MAINTENANCE, SWEEP
from broker_core.settings import Settings
from tests.fakes_queue import FixedClock
from tests.spans import collected
from tests.waiting import wait_until
from workers.custody import RECONCILE, register_custody
from workers.middleware import Retry, Trace, worker_middleware
from workers.start import threads_in, worker_environment
from workers.sweeper import CHECKS, MOVES, PROBES, PROOFS, REFUSALS, register_sweeper

SENTINEL = "hunter2-sentinel-value"


class FakeApp:
    """The use cases as a list of calls; ``failures`` are raised in turn before a call works."""

    def __init__(self, *failures: Exception) -> None:
        self.calls: list[str] = []
        self._failures = list(failures)

    @property
    def custody(self) -> FakeApp:
        return self

    @property
    def sweep(self) -> FakeApp:
        return self

    @property
    def proofs(self) -> FakeApp:
        return self

    @property
    def reencrypt(self) -> FakeMoves:
        return FakeMoves(self)

    def run(self, event_id: UUID, /) -> EventState | None:
        self._call(str(event_id))
        return EventState.STORED

    def reconcile(self) -> None:
        self._call("reconcile")

    def probes(self) -> int:
        self._call("probes")
        return 1

    def checks(self) -> int:
        self._call("checks")
        return 1

    def refusals(self) -> int:
        self._call("refusals")
        return 1

    def tick(self) -> int:
        self._call("proofs")
        return 1

    def _call(self, what: str) -> None:
        self.calls.append(what)
        if self._failures:
            raise self._failures.pop(0)


class FakeMoves:
    """The one that has a ``tick`` too."""

    def __init__(self, app: FakeApp) -> None:
        self._app = app

    def tick(self) -> None:
        self._app._call("moves")


@contextmanager
def working(url: str, app: FakeApp) -> Iterator[RedisBroker]:
    """A broker with our middleware and actors, and a worker on it. Retries do not wait."""
    broker = connect_queue(url, middleware=[Trace(FixedClock()), Retry(uniform=lambda least, most: least)])
    register_custody(broker, app)
    register_sweeper(broker, app)
    worker = Worker(broker, worker_timeout=20, worker_threads=2)
    worker.start()
    try:
        yield broker
    finally:
        worker.stop()
        broker.client.close()


def is_idle(broker: RedisBroker) -> bool:
    """Nothing is queued, delayed or in work."""
    return not any(broker.do_qsize(queue) for queue in (CUSTODY, MAINTENANCE, SWEEP))


def work(url: str, app: FakeApp) -> UUID:
    """Ring for one event and let it come to its end."""
    event_id = uuid4()
    with working(url, app) as broker:
        DramatiqQueue(broker).ring(EventType.CREATED, event_id)
        wait_until(lambda: app.calls and is_idle(broker), what="the message's end")
    return event_id


class TestActors:
    @pytest.mark.parametrize("event_type", [EventType.CREATED, EventType.ROTATED])
    def test_event(self, queue_valkey: str, event_type: EventType) -> None:
        """A ring runs custody once, for its event."""
        app, event_id = FakeApp(), uuid4()
        with working(queue_valkey, app) as broker:
            DramatiqQueue(broker).ring(event_type, event_id)
            wait_until(lambda: app.calls and is_idle(broker))
        assert app.calls == [str(event_id)]

    def test_ticks(self, queue_valkey: str) -> None:
        """Each scheduled actor runs its use case once."""
        app = FakeApp()
        with working(queue_valkey, app) as broker:
            for queue, actor in (
                (MAINTENANCE, RECONCILE),
                *((SWEEP, name) for name in (PROBES, CHECKS, REFUSALS, PROOFS, MOVES)),
            ):
                DramatiqQueue(broker).tick(queue, actor)
            wait_until(lambda: len(app.calls) == 6)
        assert Counter(app.calls) == dict.fromkeys(("reconcile", "probes", "checks", "refusals", "proofs", "moves"), 1)

    def test_message_holds_an_id_and_a_trace_context(self, queue_valkey: str, spans: InMemorySpanExporter) -> None:
        """On the wire a message is the event's id, a traceparent and dramatiq's own ids."""
        broker, event_id = connect_queue(queue_valkey), uuid4()
        DramatiqQueue(broker).ring(EventType.CREATED, event_id)
        (body,) = broker.client.hvals(f"axiorank:{CUSTODY}.msgs")
        broker.client.close()
        message = json.loads(body)
        assert (message["args"], message["kwargs"]) == ([str(event_id)], {})
        assert set(message["options"]) == {"traceparent", "redis_message_id"}

    def test_nothing_of_dramatiqs_defaults(self) -> None:
        """The middleware is ours alone: no time limit, callbacks, pipelines or traceback-storing retries."""
        broker = connect_queue("redis://127.0.0.1:1/0", middleware=worker_middleware())
        assert [type(each) for each in broker.middleware] == [Trace, Retry]
        assert connect_queue("redis://127.0.0.1:1/0").middleware == []


class TestRetries:
    @pytest.mark.parametrize("error", [Unavailable("x"), Transient("x")])
    def test_transient_is_tried_again(self, queue_valkey: str, error: BrokerError) -> None:
        """What may work in a moment is tried again, and leaves no dead letter when it does."""
        app = FakeApp(error, error)
        event_id = work(queue_valkey, app)
        assert app.calls == [str(event_id)] * 3
        assert dead_letters(connect_queue(queue_valkey)) == []

    def test_tries_are_few(self, queue_valkey: str) -> None:
        """After three retries a message is given up; the reconciler rings again."""
        app = FakeApp(*[Unavailable("x")] * 9)
        event_id = work(queue_valkey, app)
        assert len(app.calls) == 4
        assert [letter.event_id for letter in dead_letters(connect_queue(queue_valkey))] == [event_id]

    def test_a_busy_connection_leaves_no_dead_letter(self, queue_valkey: str) -> None:
        """Nothing went wrong: after a few tries its event is the reconciler's."""
        app = FakeApp(*[Busy("x")] * 9)
        work(queue_valkey, app)
        assert len(app.calls) == 4
        assert dead_letters(connect_queue(queue_valkey)) == []

    @pytest.mark.parametrize("error", [Conflict("x"), Denied("x"), Integrity("x"), BrokerError("x"), ValueError("x")])
    def test_anything_else_is_not(self, queue_valkey: str, error: Exception) -> None:
        """An error that time does not mend is tried once."""
        app = FakeApp(error)
        work(queue_valkey, app)
        assert len(app.calls) == 1
        assert len(dead_letters(connect_queue(queue_valkey))) == 1

    def test_backoff_is_full_jitter(self) -> None:
        """The bounds of the delay start at zero and double up to the cap."""
        asked: list[tuple[float, float]] = []

        def uniform(least: float, most: float) -> float:
            asked.append((least, most))
            return most

        retry = Retry(uniform=uniform)
        assert [retry._delay_ms(retries) for retries in range(6)] == [500, 1000, 2000, 4000, 5000, 5000]
        assert {least for least, _ in asked} == {0}


class TestDeadLetters:
    def test_listed(self, queue_valkey: str) -> None:
        """A dead letter names its queue, its actor, its event and when it was given up."""
        event_id = work(queue_valkey, FakeApp(Conflict("x")))
        (letter,) = dead_letters(connect_queue(queue_valkey))
        assert (letter.queue, letter.actor, letter.event_id) == (CUSTODY, "secret_created", event_id)
        assert letter.when.tzinfo is not None

    def test_unknown_actor(self, queue_valkey: str) -> None:
        """A message for an actor that we do not have is a dead letter too."""
        with working(queue_valkey, FakeApp()) as broker:
            DramatiqQueue(broker).tick(SWEEP, "no_such_actor")
            letters = wait_until(lambda: dead_letters(broker))
        assert [(letter.actor, letter.event_id) for letter in letters] == [("no_such_actor", None)]

    def test_malformed_event_id(self, queue_valkey: str) -> None:
        """A message whose id is none reaches no use case; its content is not repeated in the list."""
        app = FakeApp()
        with working(queue_valkey, app) as broker:
            broker.enqueue(Message(CUSTODY, "secret_created", (SENTINEL,), {}, {}))
            (letter,) = wait_until(lambda: dead_letters(broker))
        assert (letter.actor, letter.event_id, app.calls) == ("unreadable", None, [])

    def test_purged(self, queue_valkey: str) -> None:
        """Purging forgets the dead letters, says how many, and leaves what waits."""
        work(queue_valkey, FakeApp(Conflict("x")))
        broker = connect_queue(queue_valkey)
        DramatiqQueue(broker).ring(EventType.CREATED, uuid4())
        assert purge_dead_letters(broker) == 1
        assert dead_letters(broker) == []
        assert DramatiqQueue(broker).waiting(CUSTODY) == 1
        assert list(broker.client.scan_iter("axiorank:*XQ*")) == []
        broker.client.close()


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """The spans that end while the test runs."""
    with collected() as exporter:
        yield exporter


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """The ended spans of this name, in the order that they ended."""
    return [span for span in exporter.get_finished_spans() if span.name == name]


def ids(span: ReadableSpan) -> tuple[int, int]:
    """A span's trace and own id."""
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


class TestTraces:
    def test_one_trace_through_the_queue(self, queue_valkey: str, spans: InMemorySpanExporter) -> None:
        """The actor's span is the child of the enqueuing one, in the trace of the one who rang; retries too."""
        app = FakeApp(Unavailable("x"))
        with working(queue_valkey, app) as broker:
            with telemetry.span("intake.accept"):
                DramatiqQueue(broker).ring(EventType.CREATED, uuid4())
            wait_until(lambda: len(named(spans, "actor.secret_created")) == 2)
        (root,), (enqueue,) = named(spans, "intake.accept"), named(spans, "queue.enqueue")
        first, second = named(spans, "actor.secret_created")
        assert (enqueue.kind, first.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
        assert {ids(span)[0] for span in (enqueue, first, second)} == {ids(root)[0]}
        assert first.parent is not None
        assert second.parent is not None
        assert (first.parent.span_id, second.parent.span_id) == (ids(enqueue)[1], ids(enqueue)[1])

    def test_what_a_span_says(self, queue_valkey: str, spans: InMemorySpanExporter) -> None:
        """A failed try has our code and nothing of the exception; all attributes are known ones."""
        work(queue_valkey, FakeApp(ValueError(SENTINEL)))
        (span,) = named(spans, "actor.secret_created")
        assert span.attributes is not None
        assert span.attributes["broker.code"] == "internal"
        assert set(span.attributes) <= telemetry.ATTRIBUTES
        assert SENTINEL not in span.to_json()
        assert not span.events

    def test_messages_do_not_share_a_trace(self, queue_valkey: str, spans: InMemorySpanExporter) -> None:
        """One worker thread's messages each have the trace they came with."""
        with working(queue_valkey, FakeApp()) as broker:
            for _ in range(5):
                DramatiqQueue(broker).ring(EventType.CREATED, uuid4())
            wait_until(lambda: len(named(spans, "actor.secret_created")) == 5)
        assert len({ids(span)[0] for span in named(spans, "actor.secret_created")}) == 5


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What is logged, with every logger at DEBUG."""
    root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
    levels = {name: logging.getLogger(name).level for name in observability.FLOORS}
    stream = io.StringIO()
    observability.configure_logging(stream, "DEBUG")
    for name in levels:
        logging.getLogger(name).setLevel("DEBUG")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()


Lines = Callable[[], list[dict[str, Any]]]


class TestLines:
    def test_one_line_a_try(self, queue_valkey: str, lines: Lines) -> None:
        """Each try ends with one canonical line: which event, how it ended, by which code."""
        event_id = work(queue_valkey, FakeApp(Unavailable("x"), Conflict("x", code="name_taken")))
        done = [line for line in lines() if line["event"] == "actor.done"]
        assert {(line["actor"], line["event_id"]) for line in done} == {("secret_created", str(event_id))}
        # a try writes its line after it has rung for the next one, which another thread may have ended by then
        assert sorted((line["attempt"], line["outcome"], line["code"]) for line in done) == [
            (1, "retry", "unavailable"),
            (2, "dead", "name_taken"),
        ]

    def test_ids_do_not_stay(self, queue_valkey: str, lines: Lines) -> None:
        """A message's ids are on its own lines only."""
        app, first = FakeApp(), uuid4()
        with working(queue_valkey, app) as broker:
            DramatiqQueue(broker).ring(EventType.CREATED, first)
            wait_until(lambda: app.calls and is_idle(broker))
            for _ in range(4):
                DramatiqQueue(broker).tick(SWEEP, PROBES)
            wait_until(lambda: len(app.calls) == 5 and is_idle(broker))
        probes = [line for line in lines() if line.get("actor") == PROBES]
        assert probes
        assert all(line["event_id"] is None for line in probes)

    def test_no_value_is_written_anywhere(self, lines: Lines, spans: InMemorySpanExporter) -> None:
        """A foreign exception that holds a value leaves it in no log line, span, message or dead letter."""
        value = ValueError(f"bad header {SENTINEL}")
        value.__cause__ = KeyError(SENTINEL)
        with Valkey.start(persistent=True, appendfsync="always") as server:
            work(server.url, FakeApp(value))
            files = b"".join(path.read_bytes() for path in server.directory.rglob("*") if path.is_file())
        written = [
            json.dumps(lines()),
            *(span.to_json() for span in spans.get_finished_spans()),
            files.decode("latin1"),
        ]
        assert b"secret_created" in files
        assert not any(SENTINEL in text for text in written)

    def test_a_bug_is_found_by_its_place(self, queue_valkey: str, lines: Lines) -> None:
        """Of a foreign exception the class and the places are logged, so that it can be mended."""
        work(queue_valkey, FakeApp(ZeroDivisionError(SENTINEL)))
        (bug,) = [line for line in lines() if line["event"] == "actor.bug"]
        assert bug["exception"][0]["class"] == "ZeroDivisionError"
        assert any(frame.startswith(__file__) for frame in bug["exception"][0]["frames"])


class TestLostRetry:
    def test_said(self, lines: Lines) -> None:
        """When the queue is away for a retry, the message is lost and the log says so."""
        broker = connect_queue("redis://127.0.0.1:1/0", middleware=[Retry()])
        register_custody(broker, FakeApp())
        message: Any = dramatiq.MessageProxy(Message(CUSTODY, "secret_created", (str(uuid4()),), {}, {}))
        broker.emit_after("process_message", message, exception=Unavailable("x"))
        assert [line["event"] for line in lines() if line.get("level") == "warning"] == ["actor.retry_lost"]
        assert not message.failed


class NotingApp(FakeApp):
    """Notes its calls in Redis, for a test that looks on from another process."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        self._client = client

    def _call(self, what: str) -> None:
        self._client.rpush("test:calls", what)


def setup_in_a_process() -> None:
    """What ``workers.main:setup`` is, with use cases that note their calls; and a note of what was found here."""
    found = {
        "prefetch": dramatiq.worker.QUEUE_PREFETCH,
        "idle": dramatiq.worker.WORKER_TIMEOUT,
        "threads of the master": len(list(Path(f"/proc/{os.getppid()}/task").iterdir())),
        "connections of the master": sum(_is_socket(Path(name)) for name in os.scandir("/proc/self/fd")),
    }
    url = os.environ["BROKER_REDIS_URL"]
    broker = connect_queue(url, middleware=worker_middleware())
    client = redis.Redis.from_url(url)
    client.rpush("test:found", json.dumps(found))
    app = NotingApp(client)
    register_custody(broker, app)
    register_sweeper(broker, app)
    dramatiq.set_broker(broker)


def _is_socket(descriptor: Path) -> bool:
    try:
        return os.readlink(descriptor).startswith("socket:")
    except FileNotFoundError:  # what listed them
        return False


class TestProcess:
    def test_master(self, environment: dict[str, str]) -> None:
        """dramatiq's master runs our setup on the chosen queues only, with our settings; it starts again at SIGHUP, and
        ends in order at SIGTERM. What it forks has nothing of the check: no other thread, no shared connection."""
        setup = "tests.integration.test_workers:setup_in_a_process"
        line = [sys.executable, "-P", "-c", f"from workers import start; start.run({[CUSTODY]}, 1, 2, {setup!r})"]
        environ = {**os.environ, **environment}
        broker, event_id = connect_queue(environment["BROKER_REDIS_URL"]), uuid4()
        DramatiqQueue(broker).tick(SWEEP, PROBES)
        DramatiqQueue(broker).ring(EventType.ROTATED, event_id)
        process = subprocess.Popen(line, env=environ, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: broker.client.llen("test:calls"), deadline_seconds=60, what="the event's turn")
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: broker.client.llen("test:found") == 2, deadline_seconds=60, what="another start")
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.communicate()
        assert broker.client.lrange("test:calls", 0, -1) == [str(event_id).encode()]
        found = {"prefetch": 4, "idle": 100, "threads of the master": 1, "connections of the master": 0}
        assert [json.loads(each) for each in broker.client.lrange("test:found", 0, -1)] == [found, found]
        assert DramatiqQueue(broker).waiting(SWEEP) == 1
        broker.client.close()

    def test_one_connection_gets_half_of_the_threads(self) -> None:
        """A worker process learns its threads from its master; at least one use is always possible."""
        settings = Settings(database_url="", redis_url="", claim_redis_url="")
        widths = [
            aws_options(settings, threads_in(worker_environment([CUSTODY], threads))).per_connection_concurrency
            for threads in (1, 2, 3, 8, 64)
        ]
        assert widths == [1, 1, 1, 4, 32]
        assert threads_in({}) == 8

    def test_what_a_worker_is_told(self) -> None:
        """The sweep takes one message per thread, events one spare; an unknown queue is refused."""
        assert worker_environment([SWEEP], 4)["dramatiq_queue_prefetch"] == "4"
        assert worker_environment([CUSTODY, MAINTENANCE], 4) == {
            "dramatiq_worker_timeout": "100",
            "dramatiq_queue_prefetch": "8",
            "AXIORANK_WORKER_THREADS": "4",
        }
        with pytest.raises(ValueError, match="queues are"):
            worker_environment(["custdy"], 4)
