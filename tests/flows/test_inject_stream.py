"""The Injector's streams on fakes: what passes when, and that each ends once, however it ends."""

from __future__ import annotations

import gc
import gzip
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker_core.audit import Outcome
from broker_core.errors import (
    BrokerError,
    ClientGone,
    Denied,
    InjectionRefused,
    Invalid,
    RateLimited,
    Transient,
    UpstreamError,
)
from broker_core.inject import Call, Cancellation
from broker_core.inject.injector import InjectLimits
from broker_core.inject.stream import BrokeredStream
from broker_core.inject.watch import Watch
from broker_core.injection import Kind
from tests.fakes_inject import Broker, named
from tests.fakes_upstream import FakeAnswer
from tests.spans import collected
from tests.waiting import wait_until

VALUE = b"ghp_0123456789abcdefABCDEF"
MASK = "«redacted:secret.github»".encode()
URL = "https://api.example.com/v1/items"
EVENTS = [b"data: 1\n\n", b"data: 2\n\n", b"data: " + VALUE + b"\n\n"]


def call(**given: Any) -> Call:
    return Call(workspace_id="ws", agent_id="agent", mcp_server_id="srv", url=URL, **given)


def post(body: bytes | Iterable[bytes], **given: Any) -> Call:
    return call(method="POST", body=body, **given)


def made(limits: InjectLimits | None = None, *pieces: bytes, **answer: Any) -> Broker:
    """A broker with one bearer secret, whose upstream answers so."""
    broker = Broker(limits)
    broker.keep("github", VALUE)
    broker.upstream.answering = lambda _: FakeAnswer(pieces=pieces, **answer)
    return broker


@pytest.fixture
def broker() -> Broker:
    """Its upstream sends events, one of which echoes the value."""
    return made(None, *EVENTS)


def held(broker: Broker) -> list[str]:
    """What of an exchange was not given back."""
    lines = [f"line {n}" for n, line in enumerate(broker.upstream.lines) if not line.is_closed]
    return lines + [f"answer {n}" for n, answer in enumerate(broker.upstream.answers) if not answer.is_closed]


class TestPassing:
    """What the caller gets, and when."""

    def test_the_order_is_the_one_of_send(self, broker: Broker) -> None:
        """Select, connect, intent, decrypt, send; the outcome comes when the answer has ended (INV-5, INV-6)."""
        stream = broker.injector.stream(call())
        assert broker.steps == ["candidates", "connect", "begin", "decrypt", "send"]

        list(stream.chunks())

        assert broker.steps[5:] == ["end"]

    def test_an_event_passes_before_the_next_one_is_there(self) -> None:
        """What ends with a line feed is handed on at once."""
        asked: list[int] = []

        def events() -> Iterator[bytes]:
            for number in range(3):
                asked.append(number)
                yield b"data: %d\n\n" % number

        broker = made()
        broker.upstream.answering = lambda _: FakeAnswer(pieces=events())
        chunks = broker.injector.stream(call()).chunks()

        assert (next(chunks), asked) == (b"data: 0\n\n", [0])
        assert (next(chunks), asked) == (b"data: 1\n\n", [0, 1])

    def test_an_echo_is_masked(self, broker: Broker) -> None:
        """In single bytes, too."""
        broker.upstream.answering = lambda _: FakeAnswer(pieces=[bytes([octet]) for octet in b"".join(EVENTS)])

        assert b"".join(broker.injector.stream(call()).chunks()) == b"".join(EVENTS).replace(VALUE, MASK)

    def test_the_head_is_redacted_and_has_no_length(self) -> None:
        """Status line and headers as in a whole answer; how long the body gets nobody knows yet."""
        text = VALUE.decode()
        headers = [("Content-Length", "9"), ("Content-Type", "text/plain"), ("X-Echo", text), ("ETag", "x")]
        broker = made(None, b"123456789", reason=f"Fine {text}", headers=headers)

        stream = broker.injector.stream(call())

        mask = "[redacted:secret.github]"
        assert (stream.status, stream.reason) == (200, f"Fine {mask}")
        assert list(stream.headers) == [("Content-Type", "text/plain"), ("X-Echo", mask)]
        assert stream.audit_id == broker.store.intents[0].id

    def test_no_chunk_is_empty(self) -> None:
        """An empty chunk ends a chunked body."""
        broker = made(None, b"", b"short", b"", b"\n", b"")

        assert list(broker.injector.stream(call()).chunks()) == [b"short\n"]

    def test_an_encoded_answer_is_decoded_while_it_comes(self) -> None:
        """An event that was flushed in gzip reaches the caller before the next one."""
        packer = gzip.zlib.compressobj(wbits=31)  # type: ignore[attr-defined]  # the module that gzip itself uses
        first = packer.compress(b"data: 1\n\n") + packer.flush(gzip.zlib.Z_SYNC_FLUSH)  # type: ignore[attr-defined]  # as above
        last = packer.compress(b"data: " + VALUE + b"\n\n") + packer.flush()
        broker = made(None, first, last, headers=[("Content-Encoding", "gzip")])

        stream = broker.injector.stream(call())
        chunks = stream.chunks()

        assert next(chunks) == b"data: 1\n\n"
        assert b"".join(chunks) == b"data: " + MASK + b"\n\n"
        assert named(stream.headers, "content-encoding") == []

    def test_a_success_is_written_once(self, broker: Broker) -> None:
        """With the status and the count of redactions; closing afterwards changes nothing."""
        stream = broker.injector.stream(call())
        list(stream.chunks())
        stream.close()
        stream.close()

        result = broker.result
        assert (result.outcome, result.code, result.upstream_status, result.redactions) == (Outcome.OK, "", 200, 1)
        assert (held(broker), list(stream.chunks())) == ([], [])

    def test_patience_is_longer_for_the_body_than_for_the_head(self, broker: Broker) -> None:
        """The head has the time of a whole answer, the rest that of a stream; the pool is the workspace's."""
        broker.injector.stream(call()).close()

        (patience,) = broker.upstream.patience
        assert (patience.answer, patience.total, patience.idle) == (30.0, 3600.0, 300.0)
        assert broker.upstream.pools == ["ws"]

    def test_repr_shows_no_more_than_the_id(self, broker: Broker) -> None:
        """A stream holds the value's forms."""
        stream = broker.injector.stream(call())

        assert repr(stream) == f"<BrokeredStream {stream.audit_id}>"
        assert VALUE.decode() not in repr(vars(stream))
        stream.close()


def _broken(stream: BrokeredStream) -> None:
    with pytest.raises(UpstreamError):
        list(stream.chunks())


def _read(stream: BrokeredStream) -> None:
    list(stream.chunks())


def _closed_at_once(stream: BrokeredStream) -> None:
    stream.close()


def _closed_midway(stream: BrokeredStream) -> None:
    next(stream.chunks())
    stream.close()


def _a_bug(stream: BrokeredStream) -> None:
    with pytest.raises(BrokerError) as raised:
        list(stream.chunks())
    assert (raised.value.reason, raised.value.__context__, raised.value.__cause__) == ("internal", None, None)


LIMITS = InjectLimits(stream_max_bytes=100)
ENDS: dict[str, tuple[FakeAnswer, Callable[[BrokeredStream], None], Outcome, str]] = {
    "whole": (FakeAnswer(pieces=EVENTS), _read, Outcome.OK, ""),
    "broken off": (
        FakeAnswer(pieces=EVENTS, error=UpstreamError("no")), _broken, Outcome.UPSTREAM_FAILED, "upstream_unreachable",
    ),
    "too slow": (
        FakeAnswer(pieces=EVENTS, error=UpstreamError("no", code="upstream_timeout")),
        _broken, Outcome.UPSTREAM_FAILED, "upstream_timeout",
    ),
    "too long": (FakeAnswer(pieces=[b"line\n"] * 21), _broken, Outcome.WITHHELD, "response_withheld"),
    "not decodable": (
        FakeAnswer(pieces=[b"junk"], headers=[("Content-Encoding", "gzip")]),
        _broken, Outcome.WITHHELD, "response_withheld",
    ),
    "closed at once": (FakeAnswer(pieces=EVENTS), _closed_at_once, Outcome.ABANDONED, "client_gone"),
    "closed midway": (FakeAnswer(pieces=EVENTS), _closed_midway, Outcome.ABANDONED, "client_gone"),
    "a fault of ours": (
        FakeAnswer(pieces=[b"x\n"], error=ValueError(VALUE.decode())), _a_bug, Outcome.FAILED, "internal",
    ),
}  # fmt: skip


class TestEnds:
    """However it ends: once, with everything given back."""

    @pytest.mark.parametrize("name", ENDS)
    def test_its_row_is_closed_once_and_nothing_is_held(self, name: str) -> None:
        """The outcome says how (the store of the tests refuses a second one); line, answer and forms are gone."""
        answer, read, outcome, code = ENDS[name]
        broker = made(LIMITS)
        broker.upstream.answering = lambda _: replace(answer)
        stream = broker.injector.stream(call())

        read(stream)
        stream.close()

        assert (broker.result.outcome, broker.result.code, broker.result.upstream_status) == (outcome, code, 200)
        assert (held(broker), stream._passing.masking._redactor.texts.all) == ([], ())

    @pytest.mark.parametrize("name", ENDS)
    def test_what_was_read_of_a_stream_that_failed_is_never_taken_for_all(self, name: str) -> None:
        """Asked again after its end, it is as whole or as broken as before."""
        answer, read, outcome, _ = ENDS[name]
        broker = made(LIMITS)
        broker.upstream.answering = lambda _: replace(answer)
        stream = broker.injector.stream(call())
        read(stream)

        if outcome is Outcome.OK:
            assert list(stream.chunks()) == []
        else:
            with pytest.raises(BrokerError):
                list(stream.chunks())

    def test_the_error_names_the_audit_row(self) -> None:
        """So that whoever reads the answer can look it up."""
        broker = made(None, b"x", error=UpstreamError("no"))

        with pytest.raises(UpstreamError) as raised:
            list(broker.injector.stream(call()).chunks())

        assert raised.value.audit_id == broker.store.intents[0].id

    def test_a_stream_that_is_dropped_gives_its_line_back(self, broker: Broker) -> None:
        """Without a close: the connection and the forms are gone with it; its row is the reconciler's."""
        stream = broker.injector.stream(call())
        next(stream.chunks())
        texts = weakref.ref(stream._passing.masking._redactor.texts)
        del stream
        gc.collect()

        assert (held(broker), texts(), broker.store.results) == ([], None, {})

    def test_a_key_that_says_no(self, broker: Broker) -> None:
        """It is refused before anything is streamed, as for ``send``."""
        broker.keys.fail(Denied("no"))

        with pytest.raises(Denied):
            broker.injector.stream(call())

        assert (broker.result.outcome, held(broker), broker.upstream.sent) == (Outcome.REFUSED, [], [])

    @pytest.mark.parametrize("coding", ["br", "gzip, gzip"])
    def test_pitfall_08_an_encoding_that_we_do_not_read_is_withheld_at_once(self, coding: str) -> None:
        """The caller gets an error for it, not a head and then nothing."""
        broker = made(None, b"x", headers=[("Content-Encoding", coding)])

        with pytest.raises(UpstreamError) as refused:
            broker.injector.stream(call())

        assert (refused.value.reason, broker.result.outcome, held(broker)) == (
            "response_withheld", Outcome.WITHHELD, [],
        )  # fmt: skip

    def test_an_answer_to_head_may_name_any_encoding(self) -> None:
        """There is nothing to be decoded."""
        broker = made(None, headers=[("Content-Encoding", "br")])

        assert list(broker.injector.stream(call(method="HEAD")).chunks()) == []
        assert broker.result.outcome is Outcome.OK

    def test_pitfall_26_what_inflates_too_far_is_withheld(self) -> None:
        """A bomb ends at a hundred times its size, however large an answer may be, and in small pieces."""
        bomb = gzip.compress(bytes(200_000_000))
        broker = made(None, bomb, headers=[("Content-Encoding", "gzip")])
        sizes: list[int] = []

        with pytest.raises(UpstreamError) as refused:
            sizes.extend(map(len, broker.injector.stream(call()).chunks()))

        assert refused.value.reason == "response_withheld"
        assert sum(sizes) <= (1 << 20) + 100 * len(bomb)
        assert max(sizes) <= 65_536 + 100

    def test_pitfall_26_ordinary_compression_passes(self) -> None:
        """What shrinks well is no bomb."""
        text = b"".join(b"line %d of an ordinary log\n" % number for number in range(100_000))
        broker = made(None, gzip.compress(text), headers=[("Content-Encoding", "gzip")])

        assert b"".join(broker.injector.stream(call()).chunks()) == text


class TestTime:
    """What happens when the time is up."""

    def test_a_stream_ends_at_its_time(self, broker: Broker) -> None:
        """Also one whose upstream never stops."""
        stream = broker.injector.stream(call())
        chunks = stream.chunks()
        next(chunks)
        broker.clock.seconds += 3600

        with pytest.raises(UpstreamError) as refused:
            next(chunks)

        assert (refused.value.reason, broker.result.outcome) == ("upstream_timeout", Outcome.UPSTREAM_FAILED)

    def test_the_value_is_forgotten_although_nobody_reads(self, broker: Broker) -> None:
        """A caller that keeps a stream and does not read it cannot keep the value (INV-4)."""
        stream = broker.injector.stream(call())
        texts = stream._passing.masking._redactor.texts
        broker.clock.seconds += 3599
        broker.watch.look()
        assert texts.all

        broker.clock.seconds += 1
        broker.watch.look()

        assert (texts.all, held(broker), broker.upstream.lines[0].aborted.is_set()) == ((), [], True)

    def test_an_expired_stream_says_so_to_its_reader(self, broker: Broker) -> None:
        """And its row is closed then."""
        stream = broker.injector.stream(call())
        broker.clock.seconds += 3600
        broker.watch.look()
        assert broker.store.results == {}

        with pytest.raises(UpstreamError) as refused:
            list(stream.chunks())

        assert (refused.value.reason, broker.result.code) == ("upstream_timeout", "upstream_timeout")

    def test_whoever_waits_is_woken(self) -> None:
        """The watch never waits for who reads: it ends the exchange, and the reader finds the time up."""
        broker = made(None, b"x\n", hangs=True)
        stream = broker.injector.stream(call())
        chunks = stream.chunks()
        next(chunks)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(next, chunks)
            broker.clock.seconds += 3600
            broker.watch.look()
            assert isinstance(reading.exception(20), UpstreamError)
        assert (held(broker), broker.result.code) == ([], "upstream_timeout")

    def test_the_watch_runs_while_there_is_something_to_watch(self) -> None:
        """One thread, which looks by itself and ends with the last stream."""

        class Counting:
            looks = 0

            def expire(self) -> None:
                self.looks += 1

        watch, one = Watch(0.001), Counting()
        watch.add(one)
        wait_until(lambda: one.looks > 1)
        watch.remove(one)

        wait_until(lambda: watch._thread is None)

    def test_the_watch_outlives_a_fault(self) -> None:
        """What goes wrong with one stream keeps no other from being wiped in time."""

        class Faulty:
            looks = 0

            def expire(self) -> None:
                self.looks += 1
                raise RuntimeError("sentinel-5a1c77")

        watch, both = Watch(3600), (Faulty(), Faulty())
        for one in both:
            watch.add(one)
        with capture_logs() as lines:
            watch.look()
        assert [one.looks for one in both] == [1, 1]
        assert [line["event"] for line in lines] == ["inject.watch_failed"] * 2
        assert "sentinel-5a1c77" not in str(lines)

    def test_no_time_left_for_the_key(self, broker: Broker) -> None:
        """The key has the time of a whole answer, not that of a stream."""
        connect = broker.upstream.connect

        def slowly(*given: Any) -> Any:
            broker.clock.seconds += 31
            return connect(*given)

        broker.upstream.connect = slowly  # type: ignore[method-assign]  # the fake's, for this test

        with pytest.raises(Transient):
            broker.injector.stream(call())


class TestCancellation:
    """The caller goes away."""

    def test_before_anything(self, broker: Broker) -> None:
        """Nothing is connected, written or decrypted."""
        cancellation = Cancellation()
        cancellation.cancel()

        with pytest.raises(ClientGone):
            broker.injector.stream(call(), cancellation)

        assert broker.steps == ["candidates"]

    @pytest.mark.parametrize(
        ("step", "outcome"),
        [("connect", None), ("begin", Outcome.FAILED), ("decrypt", Outcome.FAILED), ("send", Outcome.ABANDONED)],
    )
    def test_at_any_step(self, broker: Broker, step: str, outcome: Outcome | None) -> None:
        """No further step follows but the outcome; once the value may have gone the row says that it was released."""
        cancellation = Cancellation()

        def note(done: str) -> None:
            broker.steps.append(done)
            if done == step:
                cancellation.cancel()

        broker.store.note = broker.upstream.note = broker.keys.note = note

        with pytest.raises(ClientGone):
            broker.injector.stream(call(), cancellation)

        assert broker.steps[broker.steps.index(step) + 1 :] == ([] if outcome is None else ["end"])
        assert held(broker) == []
        assert [(result.outcome, result.code) for result in broker.store.results.values()] == (
            [] if outcome is None else [(outcome, "client_gone")]
        )

    def test_while_the_upstream_thinks(self, broker: Broker) -> None:
        """Whoever waits for the head is woken at once."""
        broker.upstream.hangs, cancellation = True, Cancellation()
        with ThreadPoolExecutor(1) as pool:
            streaming = pool.submit(broker.injector.stream, call(), cancellation)
            wait_until(lambda: broker.upstream.sent)
            cancellation.cancel()
            assert isinstance(streaming.exception(20), ClientGone)

        assert (broker.result.outcome, broker.result.code, held(broker)) == (Outcome.ABANDONED, "client_gone", [])

    def test_while_the_body_comes(self) -> None:
        """Whoever waits for the next chunk is woken at once."""
        broker, cancellation = made(None, b"x\n", hangs=True), Cancellation()
        chunks = broker.injector.stream(call(), cancellation).chunks()
        next(chunks)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(next, chunks)
            cancellation.cancel()
            assert isinstance(reading.exception(20), ClientGone)

        assert (broker.result.outcome, broker.result.upstream_status, held(broker)) == (Outcome.ABANDONED, 200, [])

    def test_closing_from_another_thread_wakes_the_reader(self) -> None:
        """And waits until the reader is done with what is given back."""
        broker = made(None, b"x\n", hangs=True)
        stream = broker.injector.stream(call())
        chunks = stream.chunks()
        next(chunks)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(next, chunks)
            wait_until(lambda: not stream._turn.acquire(blocking=False) or stream._turn.release())
            stream.close()
            assert isinstance(reading.exception(20), ClientGone)

        assert (held(broker), broker.result.outcome) == ([], Outcome.ABANDONED)

    def test_a_line_that_cannot_be_given_back_costs_no_row(self, broker: Broker) -> None:
        """Whatever goes wrong at the end, the row is closed, once."""
        stream = broker.injector.stream(call())

        def fails() -> None:
            raise OSError

        broker.upstream.answers[0].close = fails  # type: ignore[method-assign]  # the fake's, for this test
        stream._passing.held.callback(fails)
        list(stream.chunks())

        assert broker.result.outcome is Outcome.FAILED

    def test_after_the_end_it_does_nothing(self, broker: Broker) -> None:
        """A connection that went back to the pool is somebody else's by then."""
        cancellation = Cancellation()
        list(broker.injector.stream(call(), cancellation).chunks())
        cancellation.cancel()

        assert (broker.upstream.lines[0].aborted.is_set(), broker.result.outcome) == (False, Outcome.OK)

    def test_a_reaction_that_comes_late_is_called_at_once(self) -> None:
        """Whoever registers after the fact hears of it all the same, once."""
        cancellation, heard = Cancellation(), threading.Event()
        cancellation.cancel()
        cancellation.register(heard.set)

        assert heard.is_set()

    def test_an_upstream_that_fails_is_not_the_callers_doing(self) -> None:
        """Without a cancellation it stays what it is."""
        broker = made(None, error=UpstreamError("no"))

        with pytest.raises(UpstreamError):
            list(broker.injector.stream(call(), Cancellation()).chunks())


class TestRequestBody:
    """A request's body in pieces."""

    def test_passes_as_it_is_chunked(self, broker: Broker) -> None:
        """Of unknown length: chunked, byte for byte."""
        broker.injector.stream(post(iter([b"one", b"", b"two" * 1000]))).close()

        ((_, wire),) = broker.upstream.sent
        assert (wire.body, named(wire.headers, "transfer-encoding")) == (b"one" + b"two" * 1000, ["chunked"])
        assert named(wire.headers, "content-length") == []

    def test_passes_with_its_length(self, broker: Broker) -> None:
        """Of known length: with that length, and no other framing."""
        broker.injector.stream(post(iter([b"one", b"two"]), body_length=6)).close()

        ((_, wire),) = broker.upstream.sent
        assert (wire.body, named(wire.headers, "content-length")) == (b"onetwo", ["6"])
        assert named(wire.headers, "transfer-encoding") == []

    def test_a_whole_body_is_looked_through_before_the_key_sends_it(self, broker: Broker) -> None:
        """As for ``send``: nothing of it goes."""
        with pytest.raises(InjectionRefused):
            broker.injector.stream(post(b"guess " + VALUE))

        assert (broker.upstream.sent, broker.result.outcome) == ([], Outcome.REFUSED)

    def test_pitfall_10_the_value_ends_the_exchange_before_it_went(self, broker: Broker) -> None:
        """Refused, counted as a guess, and written as released: the head had gone."""
        with pytest.raises(InjectionRefused) as refused:
            broker.injector.stream(post(iter([b"x" * 5000, VALUE[:9], VALUE[9:], b"y" * 5000])))

        assert (refused.value.reason, broker.upstream.sent, held(broker)) == ("handle_misplaced", [], [])
        assert bytes(broker.upstream.arrived) == b"x" * len(broker.upstream.arrived)
        assert (broker.result.outcome, broker.result.code) == (Outcome.ABANDONED, "handle_misplaced")
        assert broker.guesses.counted.total() == 1

    def test_pitfall_14_a_handle_ends_the_exchange(self, broker: Broker) -> None:
        """It cannot select any more; and it is no guess."""
        with pytest.raises(InjectionRefused) as refused:
            broker.injector.stream(post(iter([b'{"a": "{{sec', b'ret:github}}"}'])))

        assert (refused.value.reason, broker.guesses.counted.total()) == ("handle_misplaced", 0)
        assert broker.upstream.arrived == b""

    def test_a_handle_in_a_header_selects(self, broker: Broker) -> None:
        """Beside a body in pieces, too."""
        broker.keep("other", b"other-value-other")
        broker.injector.stream(post(iter([b"x"]), headers=[("X-Use", "{{secret:other}}")])).close()

        ((_, wire),) = broker.upstream.sent
        assert named(wire.headers, "authorization") == ["Bearer other-value-other"]

    def test_a_body_that_breaks_off_is_the_caller_gone(self, broker: Broker) -> None:
        """Its own exception goes no further; the row says that the value was released."""

        def breaks() -> Iterator[bytes]:
            yield b"half"
            raise ConnectionResetError("sentinel")

        with pytest.raises(ClientGone):
            broker.injector.stream(post(breaks()))

        assert (broker.result.outcome, broker.result.code, held(broker)) == (Outcome.ABANDONED, "client_gone", [])

    @pytest.mark.parametrize(
        ("pieces", "length"), [([b"12345"] * 3, None), ([b"x"], 11), ([b"12345"] * 3, 10), ([b"x"], -1)]
    )
    def test_pitfall_26_a_body_over_the_limit(self, pieces: list[bytes], length: int | None) -> None:
        """By what it says, or by what it turns out to be."""
        broker = made(InjectLimits(stream_max_bytes=10), b"x")

        with pytest.raises(Invalid) as refused:
            broker.injector.stream(post(iter(pieces), body_length=length))

        assert (refused.value.reason, len(broker.upstream.arrived) <= 10) == ("too_large", True)

    def test_send_takes_whole_bodies_only(self, broker: Broker) -> None:
        """A body in pieces is refused before anything happens."""
        with pytest.raises(Invalid):
            broker.injector.send(post(iter([b"x"])))

        assert broker.steps == []


class TestGuesses:
    """A caller that tries values."""

    def test_pitfall_10_after_five_hits_the_key_is_not_asked(self, broker: Broker) -> None:
        """The sixth request is refused for its caller and that secret, whatever it holds; the key has rest."""
        for _ in range(5):
            with pytest.raises(InjectionRefused):
                broker.injector.send(post(VALUE))
        decrypts = broker.decrypts()

        with pytest.raises(RateLimited):
            broker.injector.send(call())
        with pytest.raises(RateLimited):
            broker.injector.stream(call())

        assert (broker.decrypts(), len(broker.store.intents), held(broker)) == (decrypts, 5, [])

    def test_other_ids_of_the_caller_are_no_way_round_it(self, broker: Broker) -> None:
        """The count is by the ids that the secret is bound to: those that it is not bound to, anybody may choose."""
        for number in range(5):
            with pytest.raises(InjectionRefused):
                broker.injector.send(replace(post(VALUE), agent_id=f"agent-{number}"))

        with pytest.raises(RateLimited):
            broker.injector.send(replace(post(b"x"), agent_id="agent-6"))

    def test_another_caller_and_another_secret_are_not_concerned(self, broker: Broker) -> None:
        """The count is of one workspace and one secret, as far as it is bound."""
        other = broker.keep("other", b"other-value-other")
        for _ in range(5):
            with pytest.raises(InjectionRefused):
                broker.injector.send(post(VALUE, secret="github"))

        assert broker.injector.send(post(b"x", secret="other")).status == 200
        assert set(broker.guesses.counted) == {("ws", ",srv", broker.store.rows[0].secret_id)}
        assert other.secret_id != broker.store.rows[0].secret_id

    def test_a_request_without_the_value_counts_nothing(self, broker: Broker) -> None:
        """A guess that misses is an ordinary request."""
        broker.injector.send(post(b"guess: " + VALUE[:-1]))

        assert broker.guesses.counted.total() == 0


class TestTelemetry:
    """What is told of a stream."""

    def test_its_span_lasts_until_its_end(self, broker: Broker) -> None:
        """The injection's span holds the sending's, and ends with the last chunk, in whatever thread that is."""
        with collected() as exporter:
            chunks = broker.injector.stream(call()).chunks()
            next(chunks)
            assert [span.name for span in exporter.get_finished_spans()] == ["upstream.connect", "upstream.send"]
            with ThreadPoolExecutor(1) as pool:
                pool.submit(list, chunks).result()
            names = {span.name: span for span in exporter.get_finished_spans()}

        inject, sent = names["inject"], names["upstream.send"]
        assert inject.context is not None
        assert sent.parent is not None
        assert sent.parent.span_id == inject.context.span_id
        assert (inject.end_time or 0) > (sent.end_time or 0)

    def test_one_line_at_its_end(self, broker: Broker) -> None:
        """Not before, and one."""
        with capture_logs() as logs:
            stream = broker.injector.stream(call())
            assert logs == []
            list(stream.chunks())
            stream.close()

        (line,) = logs
        assert (line["event"], line["outcome"], line["status"]) == ("inject.done", "ok", 200)


def test_a_query_secret_streams_too() -> None:
    """Every HTTP kind is applied the same way."""
    broker = Broker()
    broker.keep("github", VALUE, Kind.QUERY, "key")
    broker.upstream.answering = lambda _: FakeAnswer(pieces=EVENTS)
    broker.injector.stream(call()).close()

    ((_, wire),) = broker.upstream.sent
    assert wire.target == f"/v1/items?key={VALUE.decode()}"
