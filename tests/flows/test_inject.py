"""The Injector on fakes: the order of its steps, what each refusal costs, and what is written about it."""

from __future__ import annotations

import gzip
import random
import string
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker_core.audit import Outcome
from broker_core.errors import (
    AuditUnavailable,
    BrokerError,
    Denied,
    InjectionRefused,
    Integrity,
    Invalid,
    KeyServiceError,
    KeyState,
    Misconfigured,
    Transient,
    Unavailable,
    UpstreamError,
)
from broker_core.inject import Call
from broker_core.inject.injector import InjectLimits
from broker_core.injection import Injection, Kind
from broker_core.ports import WireRequest
from tests.fakes_inject import Broker, named
from tests.fakes_upstream import FakeAnswer

VALUE = b"ghp_0123456789abcdefABCDEF"
URL = "https://api.example.com/v1/items?page=2"


def call(url: str = URL, **given: Any) -> Call:
    return Call(workspace_id="ws", agent_id="agent", mcp_server_id="srv", **{"url": url, **given})


@pytest.fixture
def broker() -> Broker:
    """One bearer secret, bound to the server, for api.example.com."""
    broker = Broker()
    broker.keep("github", VALUE)
    return broker


class TestOrder:
    """Each step stands for a promise."""

    def test_the_order_is_fixed(self, broker: Broker) -> None:
        """Select, connect, intent, decrypt, send, outcome: INV-5 and INV-6 in one line."""
        broker.injector.send(call())

        assert broker.steps == ["candidates", "connect", "begin", "decrypt", "send", "end"]

    def test_one_decrypt_under_the_rows_context(self, broker: Broker) -> None:
        """The context is the row's identity, and the audit id is the intent's."""
        answer = broker.injector.send(call())

        (made,) = broker.keys.calls
        assert dict(made.use.context) == {
            "axiorank:workspace": "ws",
            "axiorank:secret": "github",
            "axiorank:version": "1",
        }
        assert made.use.audit_id == broker.store.intents[0].id == answer.audit_id

    def test_the_intent_names_host_and_port_only(self, broker: Broker) -> None:
        """The audit row's target holds no path and no query: those can hold a value."""
        broker.injector.send(call())

        (intent,) = broker.store.intents
        assert (intent.target, intent.method) == ("api.example.com:443", "GET")

    def test_a_success_is_written(self, broker: Broker) -> None:
        """The outcome has the receipt, the upstream's status and the count of redactions."""
        broker.injector.send(call())

        result = broker.result
        assert (result.outcome, result.upstream_status, result.redactions) == (Outcome.OK, 200, 1)
        assert result.receipt.kms_request_id is not None

    def test_a_platform_secret_asks_no_customers_key(self) -> None:
        """A value under the platform cipher is opened by it, and by nothing else."""
        broker = Broker()
        broker.keep("old", VALUE, platform=True)

        broker.injector.send(call())

        assert (broker.decrypts(), broker.result.outcome) == (0, Outcome.OK)

    def test_the_line_is_closed(self, broker: Broker) -> None:
        """No line outlives its use."""
        broker.injector.send(call())

        assert all(line.is_closed for line in broker.upstream.lines)

    def test_a_secret_that_changed_is_selected_again(self, broker: Broker) -> None:
        """A rotation between selecting and the intent starts over, and the first line is closed."""
        broker.store.changes = 1

        broker.injector.send(call())

        assert broker.steps.count("candidates") == 2
        assert (broker.decrypts(), [line.is_closed for line in broker.upstream.lines]) == (1, [True, True])

    def test_a_secret_that_keeps_changing_is_given_up(self, broker: Broker) -> None:
        """After three selections the caller is asked to try again; nothing was decrypted."""
        broker.store.changes = 3

        with pytest.raises(Unavailable):
            broker.injector.send(call())

        assert (broker.decrypts(), broker.store.intents) == (0, [])


def _away(broker: Broker) -> None:
    broker.store.audit_is_away = True


def _blocked(broker: Broker) -> None:
    broker.upstream.connect_error = InjectionRefused("no", code="destination_blocked")


def _no_tls(broker: Broker) -> None:
    broker.upstream.connect_error = UpstreamError("no", code="upstream_tls")


def _twice(broker: Broker) -> None:
    broker.keep("other", VALUE)


def _nothing(broker: Broker) -> None:
    """Leave it as it is."""


REFUSALS = {
    "audit": (_away, call(), AuditUnavailable, "audit_unavailable"),
    "address": (_blocked, call(), InjectionRefused, "destination_blocked"),
    "certificate": (_no_tls, call(), UpstreamError, "upstream_tls"),
    "tie": (_twice, call(), InjectionRefused, "ambiguous_binding"),
    "host": (_nothing, call("https://evil.example.com/"), InjectionRefused, "host_mismatch"),
    "port": (_nothing, call("https://api.example.com:8443/"), InjectionRefused, "host_mismatch"),
    "plain http": (_nothing, call("http://api.example.com/"), InjectionRefused, "destination_blocked"),
    "url": (_nothing, call("https://user@api.example.com/"), Invalid, "invalid"),
    "header": (_nothing, call(headers=[("X", "a\r\nb")]), Invalid, "invalid"),
    "trace": (_nothing, call(method="TRACE"), InjectionRefused, "method_refused"),
    "options": (_nothing, call(method="OPTIONS"), InjectionRefused, "method_refused"),
    "connect": (_nothing, call(method="CONNECT"), InjectionRefused, "method_refused"),
    "another agent": (_nothing, replace(call(), mcp_server_id="other"), InjectionRefused, "no_binding"),
    "another workspace": (_nothing, replace(call(), workspace_id="other"), InjectionRefused, "no_binding"),
    "unknown name": (_nothing, call(secret="unknown"), InjectionRefused, "no_binding"),
    "handle in the URL": (_nothing, call(URL + "&k={{secret:github}}"), InjectionRefused, "handle_misplaced"),
    "nobody asks": (_nothing, Call("ws", None, None, url=URL), Invalid, "invalid"),
}


class TestRefusals:
    """What is refused before the key costs nothing."""

    @pytest.mark.parametrize("name", REFUSALS)
    def test_costs_no_key_call(self, broker: Broker, name: str) -> None:
        """INV-5, INV-6: nothing was assumed, decrypted or sent."""
        arrange, asked, error, code = REFUSALS[name]
        arrange(broker)

        with pytest.raises(error) as refused:
            broker.injector.send(asked)

        assert refused.value.reason == code
        assert (broker.decrypts(), broker.upstream.sent) == (0, [])

    @pytest.mark.parametrize("name", REFUSALS)
    def test_leaves_no_line_open(self, broker: Broker, name: str) -> None:
        """Whatever was connected is closed."""
        arrange, asked, error, _ = REFUSALS[name]
        arrange(broker)

        with pytest.raises(error):
            broker.injector.send(asked)

        assert all(line.is_closed for line in broker.upstream.lines)

    def test_a_stored_row_that_was_widened_is_refused(self, broker: Broker) -> None:
        """A binding key that acceptance would have refused is refused at use."""
        (row,) = broker.store.rows
        broker.store.rows = [replace(row, injection=replace(row.injection, kind=Kind.HTTP_HEADER, binding_key="Host"))]

        with pytest.raises(InjectionRefused) as refused:
            broker.injector.send(call())

        assert refused.value.reason == "no_binding"

    @pytest.mark.parametrize(
        "guess",
        [
            call(URL + "&q=" + VALUE.decode()),
            call(headers=[("X-Guess", "Bearer " + VALUE.decode())]),
            call(method="POST", body=b'{"guess": "' + VALUE.hex().encode() + b'"}'),
            call(URL + "&q=%67" + VALUE.decode()[1:]),
        ],
        ids=["url", "header", "body in hex", "partly encoded"],
    )
    def test_pitfall_10_a_request_that_holds_the_value_is_not_sent(self, broker: Broker, guess: Call) -> None:
        """Else an upstream that echoes would tell by the mask whether a guess is right."""
        with pytest.raises(InjectionRefused) as refused:
            broker.injector.send(guess)

        assert (refused.value.reason, broker.upstream.sent) == ("handle_misplaced", [])
        assert (broker.result.outcome, broker.result.code) == (Outcome.REFUSED, "handle_misplaced")

    def test_a_value_that_does_not_fit_its_kind_is_not_sent(self) -> None:
        """A line break that came in before the kind was known does not get into a header."""
        broker = Broker()
        broker.keep("github", b"first-line\r\nX-Evil: 1")

        with pytest.raises(Misconfigured):
            broker.injector.send(call())

        assert broker.upstream.sent == []
        assert (broker.result.outcome, broker.result.code) == (Outcome.REFUSED, "misconfigured")


class TestKeyFailures:
    """The key said no, or nothing."""

    @pytest.mark.parametrize(
        ("error", "outcome", "code"),
        [
            (Denied("no", state=KeyState.ACCESS_DENIED, aws_code="AccessDenied"), Outcome.REFUSED, "access_denied"),
            (Denied("no", state=KeyState.KEY_DISABLED), Outcome.REFUSED, "key_disabled"),
            (Transient("later", aws_code="ThrottlingException"), Outcome.FAILED, "transient"),
        ],
    )
    def test_is_written_recorded_and_raised(
        self, broker: Broker, error: KeyServiceError, outcome: Outcome, code: str
    ) -> None:
        """The audit row and the record of failures have it at once; nothing is sent."""
        broker.keys.fail(error)

        with pytest.raises(type(error)):
            broker.injector.send(call())

        (failure,) = broker.failures.seen_failures
        assert (broker.result.outcome, broker.result.code, failure.state.value) == (outcome, code, code)
        assert broker.result.receipt.kms_request_id == failure.request_id
        assert broker.upstream.sent == []

    def test_with_the_brake_on_nobody_is_blamed(self, broker: Broker) -> None:
        """Many customers refusing at once is taken for a fault of ours: the caller may try again (INV-8)."""
        broker.keys.fail(Denied("no", state=KeyState.ROLE_REFUSED, aws_code="AccessDenied"))
        broker.failures.is_braking = True

        with pytest.raises(Transient):
            broker.injector.send(call())

        assert broker.result.code == "role_refused"  # the audit row says what AWS said

    def test_another_rows_blob_does_not_open(self, broker: Broker) -> None:
        """A blob that was moved to another name is an integrity failure (INV-2)."""
        (row,) = broker.store.rows
        broker.store.rows = [replace(row, name="renamed")]

        with pytest.raises(Integrity):
            broker.injector.send(call())

        assert broker.result.code == "integrity"

    def test_a_blob_without_its_connection_does_not_open(self, broker: Broker) -> None:
        """It never falls back to another cipher (INV-3)."""
        (row,) = broker.store.rows
        broker.store.rows = [replace(row, connection=None)]

        with pytest.raises(Integrity):
            broker.injector.send(call())

        assert broker.platform.calls == []

    def test_a_lost_outcome_does_not_hide_the_refusal(self, broker: Broker) -> None:
        """The caller hears of the key, not of the database that went away after it."""
        broker.store.outcomes_are_lost = True
        broker.keys.fail(Denied("no"))

        with pytest.raises(Denied):
            broker.injector.send(call())


class TestAfterTheRelease:
    """The value was sent."""

    def test_a_lost_outcome_does_not_take_the_answer_away(self, broker: Broker) -> None:
        """It is logged with the audit id; the reconciler closes the row as unknown."""
        broker.store.outcomes_are_lost = True

        with capture_logs() as logs:
            answer = broker.injector.send(call())

        (lost,) = [line for line in logs if line["event"] == "inject.outcome_lost"]
        assert (answer.status, lost["audit_ids"]) == (200, [str(answer.audit_id)])

    @pytest.mark.parametrize(
        ("code", "outcome"),
        [
            ("upstream_timeout", Outcome.UPSTREAM_FAILED),
            ("upstream_unreachable", Outcome.UPSTREAM_FAILED),
            ("response_withheld", Outcome.WITHHELD),
        ],
    )
    def test_an_answer_that_breaks_off(self, broker: Broker, code: str, outcome: Outcome) -> None:
        """An upstream that fails in the middle: said so, with the status it had begun with, and sent once."""
        broker.upstream.answering = lambda _: FakeAnswer(pieces=[b"half"], error=UpstreamError("no", code=code))

        with pytest.raises(UpstreamError):
            broker.injector.send(call())

        assert (broker.result.outcome, broker.result.code, broker.result.upstream_status) == (outcome, code, 200)
        assert (len(broker.upstream.sent), broker.upstream.answers[0].is_closed) == (1, True)

    def test_a_foreign_exception_does_not_get_out(self, broker: Broker) -> None:
        """A fault of ours becomes a code, with no text or context that could hold the value; its row is closed."""
        broker.upstream.send_error = ValueError(f"Invalid header value {VALUE!r}")

        with pytest.raises(BrokerError) as raised:
            broker.injector.send(call())

        assert (raised.value.reason, raised.value.__context__, raised.value.__cause__) == ("internal", None, None)
        assert broker.result.outcome is Outcome.FAILED

    def test_an_answer_over_the_size_is_withheld(self) -> None:
        """A body over the limit is kept back, and no more than the limit is read."""
        broker = Broker(InjectLimits(max_bytes=1000))
        broker.keep("github", VALUE)
        read: list[int] = []

        def endless(_: WireRequest) -> FakeAnswer:
            return FakeAnswer(pieces=(bytes(100) for _ in iter(lambda: read.append(1), 1)))

        broker.upstream.answering = endless
        with pytest.raises(UpstreamError) as refused:
            broker.injector.send(call())

        assert (refused.value.reason, len(read)) == ("response_withheld", 11)

    def test_pitfall_26_a_decompression_bomb_is_withheld(self) -> None:
        """A small body that unpacks beyond the limit is kept back."""
        broker = Broker(InjectLimits(max_bytes=100_000))
        broker.keep("github", VALUE)
        bomb = gzip.compress(bytes(50_000_000))
        broker.upstream.answering = lambda _: FakeAnswer(headers=[("Content-Encoding", "gzip")], pieces=[bomb])

        with pytest.raises(UpstreamError) as refused:
            broker.injector.send(call())

        assert refused.value.reason == "response_withheld"

    def test_pitfall_26_a_compressed_body_that_gives_nothing_is_withheld(self) -> None:
        """Empty gzip members without end cost time and give no byte to count: what comes is counted, too."""
        broker = Broker(InjectLimits(max_bytes=100_000))
        broker.keep("github", VALUE)
        taken: list[bytes] = []

        def endless() -> Iterator[bytes]:
            for _ in range(1000):
                taken.append(gzip.compress(b"") * 100)
                yield taken[-1]

        broker.upstream.answering = lambda _: FakeAnswer(headers=[("Content-Encoding", "gzip")], pieces=endless())

        with pytest.raises(UpstreamError) as refused:
            broker.injector.send(call())

        assert (refused.value.reason, sum(map(len, taken)) < 110_000) == ("response_withheld", True)

    @pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "deflate, gzip", "compress"])
    def test_pitfall_08_an_encoding_we_do_not_read_is_withheld(self, broker: Broker, coding: str) -> None:
        """What cannot be decoded cannot be redacted."""
        broker.upstream.answering = lambda _: FakeAnswer(headers=[("Content-Encoding", coding)], pieces=[b"x"])

        with pytest.raises(UpstreamError) as refused:
            broker.injector.send(call())

        assert (refused.value.reason, broker.result.outcome) == ("response_withheld", Outcome.WITHHELD)

    def test_pitfall_08_gzip_is_decoded_and_redacted(self, broker: Broker) -> None:
        """Compression does not hide an echo, even cut into single bytes."""
        packed = gzip.compress(b"your token is " + VALUE)
        headers = [("Content-Encoding", "gzip"), ("Content-Length", str(len(packed)))]
        broker.upstream.answering = lambda _: FakeAnswer(
            headers=headers, pieces=[packed[at : at + 1] for at in range(len(packed))]
        )

        answer = broker.injector.send(call())

        assert answer.body == "your token is «redacted:secret.github»".encode()
        assert named(answer.headers, "content-encoding") == []
        assert named(answer.headers, "content-length") == [str(len(answer.body))]


class TestAnswer:
    """What the caller gets."""

    def test_an_echo_is_masked(self, broker: Broker) -> None:
        """The caller sees that its secret was used, and not what it is."""
        body = broker.injector.send(call()).body.decode()

        assert "Authorization: Bearer «redacted:secret.github»" in body
        assert VALUE.decode() not in body

    def test_status_line_and_headers_are_masked_in_ascii(self, broker: Broker) -> None:
        """The reason and every header are redacted; a redirect is handed back, not followed."""
        text = VALUE.decode()
        broker.upstream.answering = lambda _: FakeAnswer(
            302, f"Found {text}", [("Location", f"/x?t={text}"), ("Set-Cookie", f"t={text}"), ("Link", f"<{text}>")]
        )

        answer = broker.injector.send(call())

        mask = "[redacted:secret.github]"
        assert (answer.status, answer.reason) == (302, f"Found {mask}")
        assert named(answer.headers, "location") == [f"/x?t={mask}"]
        assert named(answer.headers, "set-cookie") == [f"t={mask}"]
        assert len(broker.upstream.sent) == 1

    def test_a_name_that_is_masked_goes(self, broker: Broker) -> None:
        """With the mask in it a header's name is none any more, and nobody could send it on."""
        broker.upstream.answering = lambda _: FakeAnswer(headers=[(f"X-{VALUE.decode()}", "x"), ("X-Other", "kept")])

        assert [name for name, _ in broker.injector.send(call()).headers] == ["X-Other", "Content-Length"]

    @pytest.mark.parametrize(
        "name",
        """ETag Content-MD5 Digest Repr-Digest Content-Digest Axiorank-Broker-Error Connection Keep-Alive
        Transfer-Encoding Upgrade Trailer Proxy-Authenticate X-Nominated""".split(),
    )
    def test_pitfall_22_a_header_that_must_not_pass(self, broker: Broker, name: str) -> None:
        """Digests of the unredacted body, headers of the connection, and ours from somebody else are dropped."""
        headers = [(name, "x"), ("Connection", "x-nominated"), ("X-Other", "kept")]
        broker.upstream.answering = lambda _: FakeAnswer(headers=headers)

        answer = broker.injector.send(call())

        assert named(answer.headers, name) == []
        assert named(answer.headers, "x-other") == ["kept"]

    def test_an_answer_to_head_has_no_length(self, broker: Broker) -> None:
        """The length of a body that was never redacted would tell the value's length."""
        broker.upstream.answering = lambda _: FakeAnswer(headers=[("Content-Length", "99"), ("Content-Encoding", "br")])

        answer = broker.injector.send(call(method="HEAD"))

        assert named(answer.headers, "content-length") == []

    def test_repr_shows_no_body(self, broker: Broker) -> None:
        """Neither the call nor the answer shows what they carry."""
        asked = call(method="POST", headers=[("X-Private", "sentinel")], body=b"sentinel")
        answer = broker.injector.send(asked)

        assert "sentinel" not in repr(asked) + repr(answer)
        assert "page=2" not in repr(asked)

    def test_a_short_value_is_not_redacted(self) -> None:
        """Under 8 bytes a mask would shred ordinary text; the owner was warned."""
        broker = Broker()
        broker.keep("short", b"abcdefg")

        assert b"abcdefg" in broker.injector.send(call()).body


class TestTelemetry:
    """What is told about an injection."""

    def test_one_line_per_injection_with_ids_and_codes(self, broker: Broker) -> None:
        """The canonical line has ids, kind, outcome and status; no URL, no header, no count of redactions."""
        with capture_logs() as logs:
            answer = broker.injector.send(call())

        (line,) = logs
        assert line["event"] == "inject.done"
        assert line["audit_id"] == str(answer.audit_id)
        assert set(line) - {"event", "log_level"} == {
            *("audit_id", "workspace_id", "secret_id", "version", "kind", "outcome", "code", "status")
        }


class TestEnvironment:
    """stdio_env: all that is bound, or nothing."""

    def fill(self) -> Broker:
        broker = Broker()
        broker.keep("a", b"value-of-a", Kind.STDIO_ENV, "TOKEN_A", platform=True)
        broker.keep("b", b"value-of-b", Kind.STDIO_ENV, "TOKEN_B")
        broker.keep("c", b"value-of-c", Kind.STDIO_ENV, "TOKEN_C")
        return broker

    def test_gives_every_variable_with_one_audit_row_each(self) -> None:
        """Every bound variable, whatever its cipher."""
        broker = self.fill()

        given = broker.injector.environment(call())

        assert given.variables == {"TOKEN_A": "value-of-a", "TOKEN_B": "value-of-b", "TOKEN_C": "value-of-c"}
        assert list(given.audit_ids) == list(broker.store.results)
        assert {result.outcome for result in broker.store.results.values()} == {Outcome.OK}

    def test_repr_shows_no_value(self) -> None:
        """The environment is not shown by accident."""
        assert "value-of" not in repr(self.fill().injector.environment(call()))

    def test_one_refusal_releases_nothing(self) -> None:
        """What was decrypted before is dropped, what comes after is not asked, and each row says which."""
        broker = self.fill()
        broker.keys.fail_when(lambda use: Denied("no") if use.context["axiorank:secret"] == "b" else None)

        with pytest.raises(Denied):
            broker.injector.environment(call())

        assert [result.code for result in broker.store.results.values()] == [
            "not_released",
            "access_denied",
            "not_asked",
        ]
        assert [failure.secret_id for failure in broker.failures.seen_failures] == [broker.store.rows[1].secret_id]

    def test_a_tie_for_one_variable_refuses_all(self) -> None:
        """Two secrets of one level for one variable: nobody guesses which."""
        broker = self.fill()
        broker.keep("d", b"value-of-d", Kind.STDIO_ENV, "TOKEN_C")

        with pytest.raises(InjectionRefused) as refused:
            broker.injector.environment(call())

        assert (refused.value.reason, broker.decrypts()) == ("ambiguous_binding", 0)

    def test_the_audit_log_away_releases_nothing(self) -> None:
        """No intent, no value (INV-5)."""
        broker = self.fill()
        broker.store.audit_is_away = True

        with pytest.raises(AuditUnavailable):
            broker.injector.environment(call())

        assert (broker.decrypts(), broker.platform.calls[3:]) == (0, [])

    def test_nothing_bound_is_an_empty_environment(self, broker: Broker) -> None:
        """A server without secrets starts without; a bearer secret is no variable."""
        assert broker.injector.environment(call()).variables == {}

    def test_http_kinds_and_variables_do_not_mix(self) -> None:
        """A stdio_env secret never goes on a request, whatever it is called by."""
        broker = self.fill()

        with pytest.raises(InjectionRefused) as refused:
            broker.injector.send(call(secret="a"))

        assert refused.value.reason == "no_binding"


class TestKinds:
    """Each kind on the wire."""

    @pytest.mark.parametrize(
        ("kind", "key", "expected"),
        [
            (Kind.BEARER, None, ("Authorization", "Bearer " + VALUE.decode())),
            (Kind.HTTP_HEADER, "X-Api-Key", ("X-Api-Key", VALUE.decode())),
        ],
    )
    def test_header_kinds(self, kind: Kind, key: str | None, expected: tuple[str, str]) -> None:
        """The value is in its header, and the request is otherwise the caller's."""
        broker = Broker()
        broker.keep("github", VALUE, kind, key)

        broker.injector.send(call(method="POST", headers=[("Content-Type", "text/plain")], body=b"hello"))

        ((destination, wire),) = broker.upstream.sent
        assert expected in wire.headers
        assert ("Content-Type", "text/plain") in wire.headers
        assert (str(destination), wire.target, wire.body) == ("api.example.com:443", "/v1/items?page=2", b"hello")

    def test_query(self) -> None:
        """The value is a parameter, percent-encoded to the last byte."""
        broker = Broker()
        broker.keep("github", b"a b/c&d=e\nf\xff", Kind.QUERY, "key")

        broker.injector.send(call())

        ((_, wire),) = broker.upstream.sent
        assert wire.target == "/v1/items?page=2&key=a%20b%2Fc%26d%3De%0Af%FF"

    def test_a_handle_picks_and_goes(self, broker: Broker) -> None:
        """With two secrets, the handle's is used, and the header that held it is removed."""
        broker.keep("other", b"other-value-other")

        broker.injector.send(call(headers=[("X-Use", "{{secret:other}}")]))

        ((_, wire),) = broker.upstream.sent
        assert named(wire.headers, "authorization") == ["Bearer other-value-other"]
        assert named(wire.headers, "x-use") == []

    def test_no_form_of_a_random_value_comes_back(self) -> None:
        """An upstream that echoes everything gives nothing away."""
        value = "".join(random.choices(string.printable.strip(), k=40)).encode()
        broker = Broker()
        broker.keep("random", value, Kind.HTTP_HEADER, "X-Key")

        assert value not in broker.injector.send(call()).body


def test_injection_of_a_row_is_checked_for_its_subject(broker: Broker) -> None:
    """A row whose bindings were emptied behind our back is bound to nobody."""
    (row,) = broker.store.rows
    broker.store.rows = [replace(row, injection=Injection(Kind.BEARER, None, "api.example.com", None, None))]

    with pytest.raises(InjectionRefused):
        broker.injector.send(call())
