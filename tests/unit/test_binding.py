"""Which secret a call may use, and for which host."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_core.errors import InjectionRefused
from broker_core.inject.binding import check_host, choose, choose_environment, level
from broker_core.inject.call import Call
from broker_core.inject.handle import take_handle
from broker_core.injection import HTTP_KINDS, Injection, Kind
from broker_core.model import Blob, CipherName
from broker_core.ports import Candidate, Destination

CALL = Call("ws", "agent", "srv", url="https://a.example/")


def candidate(
    name: str, server: str | None, agent: str | None, kind: Kind = Kind.BEARER, key: str | None = None
) -> Candidate:
    host = None if kind is Kind.STDIO_ENV else "a.example"
    injection = Injection(kind, key, host, server, agent)
    return Candidate(UUID(int=1), "ws", name, 1, injection, Blob(CipherName.PLATFORM, b""), None)


BOTH, SERVER, AGENT = candidate("both", "srv", "agent"), candidate("server", "srv", None), candidate("a", None, "agent")


def code(work: object, *given: object) -> str:
    assert callable(work)
    with pytest.raises(InjectionRefused) as refused:
        work(*given)
    return refused.value.reason


class TestChoose:
    """One secret for one request."""

    @pytest.mark.parametrize(
        ("bound", "chosen"), [([AGENT, SERVER, BOTH], BOTH), ([AGENT, SERVER], SERVER), ([AGENT], AGENT)]
    )
    def test_the_most_specific_level_wins(self, bound: list[Candidate], chosen: Candidate) -> None:
        """Server and agent over server over agent."""
        assert choose(bound, CALL, HTTP_KINDS) is chosen

    def test_a_tie_is_refused(self) -> None:
        """Two of one level: nobody guesses, whatever their hosts."""
        other = replace(SERVER, name="x", injection=replace(SERVER.injection, target_host="b.example"))
        assert code(choose, [SERVER, other], CALL, HTTP_KINDS) == "ambiguous_binding"

    def test_a_name_picks_a_less_specific_one(self) -> None:
        """A handle or the ``secret`` field chooses among the caller's own."""
        assert choose([AGENT, SERVER, BOTH], replace(CALL, secret="a"), HTTP_KINDS) is AGENT

    def test_a_name_does_not_widen(self) -> None:
        """Another caller's secret cannot be named."""
        assert (
            code(choose, [candidate("theirs", "other", None)], replace(CALL, secret="theirs"), HTTP_KINDS)
            == "no_binding"
        )

    def test_the_kind_must_fit(self) -> None:
        """A variable never goes on a request."""
        assert code(choose, [candidate("e", "srv", None, Kind.STDIO_ENV, "E")], CALL, HTTP_KINDS) == "no_binding"

    @given(st.permutations([BOTH, SERVER, AGENT, candidate("theirs", "srv", "other"), candidate("no", None, None)]))
    def test_order_does_not_matter(self, bound: list[Candidate]) -> None:
        """What the store gives first is not preferred, and what is not the caller's is not looked at."""
        assert choose(bound, CALL, HTTP_KINDS) is BOTH

    @given(
        st.lists(
            st.tuples(st.sampled_from([None, "srv", "other"]), st.sampled_from([None, "agent", "other"])), max_size=5
        )
    )
    def test_only_what_is_bound_to_the_caller(self, subjects: list[tuple[str | None, str | None]]) -> None:
        """Whatever the rows are: the chosen one names the caller or leaves the id out, and none is as specific."""
        bound = [candidate(f"s{number}", *subject) for number, subject in enumerate(subjects)]
        try:
            chosen = choose(bound, CALL, HTTP_KINDS)
        except InjectionRefused:
            return
        assert chosen.injection.mcp_server_id in (None, "srv")
        assert chosen.injection.agent_id in (None, "agent")
        rivals = [s for s in subjects if s[0] in (None, "srv") and s[1] in (None, "agent")]
        levels = [level(Injection(Kind.BEARER, None, "a.example", *subject)) for subject in rivals]
        assert levels.count(max(levels)) == 1


class TestEnvironment:
    """All variables."""

    def test_per_variable_the_most_specific(self) -> None:
        """One variable's binding says nothing of another's."""
        a1, a2 = (candidate(f"a{i}", "srv", agent, Kind.STDIO_ENV, "A") for i, agent in enumerate((None, "agent")))
        b = candidate("b", None, "agent", Kind.STDIO_ENV, "B")

        assert choose_environment([a1, b, a2, SERVER], CALL) == {"A": a2, "B": b}

    def test_a_tie_refuses_all(self) -> None:
        """Half an environment would start a server with the wrong half."""
        tie = [candidate(name, "srv", None, Kind.STDIO_ENV, "A") for name in "xy"]
        assert code(choose_environment, [*tie, candidate("b", "srv", None, Kind.STDIO_ENV, "B")], CALL) == (
            "ambiguous_binding"
        )


class TestHost:
    """The destination is bound to the value."""

    @pytest.mark.parametrize(
        ("target", "destination", "fits"),
        [
            ("A.example", Destination("a.example", 443), True),
            ("a.example:443", Destination("a.example", 443), True),
            ("a.example", Destination("a.example", 8443), False),
            ("a.example:8443", Destination("a.example", 8443), True),
            ("a.example:8443", Destination("a.example", 443), False),
            ("example", Destination("a.example", 443), False),
            ("a.example", Destination("b.a.example", 443), False),
            ("[::1]:8443", Destination("::1", 8443), True),
            ("127.0.0.1:8080", Destination("127.0.0.1", 8080, tls=False), True),
            ("127.0.0.1", Destination("127.0.0.1", 443, tls=False), False),
        ],
    )
    def test_host_and_port(self, target: str, destination: Destination, fits: bool) -> None:
        """Exactly the named host; its port, else 443; over plain http the port must be named."""
        injection = replace(SERVER.injection, target_host=target)
        if fits:
            check_host(injection, destination)
        else:
            assert code(check_host, injection, destination) == "host_mismatch"


HANDLE = "{{secret:my key}}"

#: JSON without a handle of its own
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def _with_string(document: Any, text: str) -> Any:
    """The document with one string more, as deep inside as its first members go."""
    if isinstance(document, list) and document:
        return [_with_string(document[0], text), *document[1:]]
    if isinstance(document, dict) and document:
        first = next(iter(document))
        return {**document, first: _with_string(document[first], text)}
    return [document, text]


class TestHandle:
    """A handle selects and is removed; it is never a template."""

    def test_in_a_header_it_goes_with_the_header(self) -> None:
        """Nothing of the header is left that could go upstream half filled."""
        call = take_handle(replace(CALL, headers=[("Authorization", f"Token {HANDLE}"), ("X", "y")]))

        assert (call.secret, call.headers) == ("my key", (("X", "y"),))

    def test_in_a_json_string_it_goes_alone(self) -> None:
        """The rest of the body stays as it was, byte for byte."""
        body = f'{{ "a": ["{HANDLE}"], "b": 1.0}}'.encode()
        call = take_handle(replace(CALL, body=body))

        assert (call.secret, call.body) == ("my key", b'{ "a": [""], "b": 1.0}')

    def test_of_a_name_that_is_given_twice_either_counts(self) -> None:
        """Some servers read the first of two members with one name, some the last."""
        for body in (b'{"a": "%s", "a": 1}', b'{"a": 1, "a": "%s"}'):
            call = take_handle(replace(CALL, body=body % HANDLE.encode()))
            assert (call.secret, call.body) == ("my key", body % b"")

    @given(documents)
    def test_one_anywhere_in_a_documents_strings_is_taken(self, document: Any) -> None:
        """Wherever the string stands: what is left is the document with the handle gone from that string."""
        marked, plain = (_with_string(document, text) for text in (f"a{HANDLE}z", "az"))
        call = take_handle(replace(CALL, body=json.dumps(marked).encode()))

        assert call.secret == "my key"
        assert isinstance(call.body, bytes)
        assert json.loads(call.body) == plain

    @given(documents, st.sampled_from(["twice", "key", "escaped too", "escaped"]))
    def test_pitfall_14_no_document_hides_another(self, document: Any, where: str) -> None:
        """A second one, one in a name, one that is written with escapes: whatever stands around it, it is refused."""
        body = json.dumps(_with_string(document, HANDLE)).encode()
        handle, escaped = HANDLE.encode(), b"\\u007b\\u007bsecret:my key}}"
        hidden = {
            "twice": b'["%s", %s]' % (handle, body),
            "key": b'{"%s": %s}' % (handle, body),
            "escaped too": b'["%s", %s]' % (escaped, body),
            "escaped": body.replace(handle, escaped),
        }[where]

        assert code(take_handle, replace(CALL, body=hidden)) == "handle_misplaced"

    def test_without_one_the_call_is_untouched(self) -> None:
        """Braces alone are ordinary text."""
        call = replace(CALL, body=b"{{mustache}}")
        assert take_handle(call) is call

    @pytest.mark.parametrize(
        "call",
        [
            replace(CALL, url=f"https://a.example/?k={HANDLE}"),
            replace(CALL, url="https://a.example/?k=%7B%7Bsecret:my%20key}}"),
            replace(CALL, headers=[(HANDLE, "x")]),
            replace(CALL, headers=[("X", HANDLE), ("Y", HANDLE)]),
            replace(CALL, headers=[("X", HANDLE + HANDLE)]),
            replace(CALL, headers=[("X", HANDLE)], body=json.dumps([HANDLE]).encode()),
            replace(CALL, headers=[("X", HANDLE)], secret="my key"),
            replace(CALL, headers=[("X", "{{secret:")]),
            replace(CALL, headers=[("X", "{{secret: outer }}")]),
            replace(CALL, body=HANDLE.encode()),
            replace(CALL, body=json.dumps({HANDLE: 1}).encode()),
            replace(CALL, body=json.dumps([HANDLE, HANDLE]).encode()),
            replace(CALL, body=b"k=" + HANDLE.encode()),
            replace(CALL, body=b"[" * 100_000 + HANDLE.encode()),
            replace(CALL, body=b'["\\u007b{secret:my key}}"]'),
            replace(CALL, body=b'["\\u007B\\u007bsecret:my key}}"]'),
            replace(CALL, body=json.dumps([HANDLE]).encode()[:-1] + b', "\\u007b{secret:other}}"]'),
            replace(CALL, body=b'{"{{secret:my key}}": 1, "a": "\\u007b{secret:my key}}"}'),
            replace(CALL, body=b'{"{{secret:my key}}": 1, "{{secret:my key}}": 2}'),
            replace(CALL, body=b'{"a": "{{secret:my key}}", "a": "{{secret:other}}"}'),
            replace(CALL, body=b"k=%7B%7Bsecret:my+key}}"),
            replace(CALL, body=b"k=%7b{secret%3amy key}}"),
            replace(CALL, body=json.dumps([HANDLE]).encode("utf-16")),
            replace(CALL, body=json.dumps([HANDLE]).encode("utf-16-be")),
            replace(CALL, body=json.dumps([HANDLE]).encode("utf-32")),
            replace(CALL, body=json.dumps(["{{secret:no/such\\name}}"]).encode()),
            replace(CALL, body=json.dumps([HANDLE]).encode(), secret="my key"),
            replace(CALL, headers=[("X", "%7B%7Bsecret:my key}}")]),
            replace(CALL, headers=[("X", HANDLE), ("Y", "\\u007b{secret:my key}}")]),
        ],
    )
    def test_pitfall_14_anywhere_else_it_is_refused(self, call: Call) -> None:
        """URL, names, keys, forms, two handles, half a handle: each is a refusal, not a guess."""
        assert code(take_handle, call) == "handle_misplaced"
