"""Events as they come in: every problem by field, and never a word of what was given."""

from __future__ import annotations

import base64
import json
import traceback
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker_core import events
from broker_core.errors import Invalid
from broker_core.events import IncomingEvent
from broker_core.injection import Injection, Kind
from broker_core.model import EventType
from broker_core.secret import Plaintext

SENTINEL = "pl4nted-v@lue/9f2c"


def document(**changes: Any) -> dict[str, Any]:
    """A good ``secret.created``; ``data__x`` changes a field of the data, ``...`` leaves one out."""
    data = {
        "workspaceId": "ws_1",
        "version": 1,
        "value": SENTINEL,
        "injectionKind": "bearer",
        "targetHost": "api.example.com",
        "agentId": "agent-1",
    }
    whole: dict[str, Any] = {
        "specversion": "1.0",
        "id": "event-1",
        "source": "tests",
        "type": "secret.created",
        "time": "2026-01-31T12:00:00Z",
        "subject": "github",
        "data": data,
    }
    for name, value in changes.items():
        within, key = (data, name.removeprefix("data__")) if name.startswith("data__") else (whole, name)
        if value is ...:
            within.pop(key, None)
        else:
            within[key] = value
    return whole


def rotated(**changes: Any) -> dict[str, Any]:
    """A good ``secret.rotated`` that keeps the injection fields."""
    bare = {f"data__{name}": ... for name in ("injectionKind", "targetHost", "agentId")}
    return document(**({"type": "secret.rotated"} | bare | changes))


def deleted(**changes: Any) -> dict[str, Any]:
    """A good ``secret.deleted``."""
    return rotated(**({"type": "secret.deleted", "data__value": ...} | changes))


def parsed(whole: dict[str, Any]) -> IncomingEvent:
    """Through JSON, as it comes."""
    return events.parse(json.dumps(whole).encode())


def value_of(event: IncomingEvent) -> bytes:
    """The value, used up."""
    assert event.value is not None
    with event.value.reveal() as view:
        return bytes(view)


def refusal(body: bytes | str) -> Invalid:
    """The error for a body."""
    with pytest.raises(Invalid) as error:
        events.parse(body)
    return error.value


def everything_of(error: BaseException) -> str:
    """Everything that an error could show, down its whole chain."""
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None:
        parts += [repr(current), str(current), repr(current.args), repr(vars(current))]
        parts += [str(getattr(current, name, "")) for name in ("doc", "object")]
        parts.append("".join(traceback.format_exception(current)))
        current = current.__cause__ or current.__context__
    return "\n".join(parts)


def shown_for(whole: Any) -> str:
    """What the refusal of a document shows; nothing where it is an event. Lets any other exception pass."""
    try:
        events.from_document(whole)
    except Invalid as error:
        return everything_of(error)
    return ""


class TestGood:
    """What is accepted."""

    def test_created(self) -> None:
        """Every field arrives."""
        event = parsed(document(data__rotationPolicy="90d", data__mcpServerId="server-1"))
        assert (event.id, event.source, event.type) == ("event-1", "tests", EventType.CREATED)
        assert (event.name, event.workspace_id, event.version) == ("github", "ws_1", 1)
        assert event.injection == Injection(Kind.BEARER, None, "api.example.com", "server-1", "agent-1")
        assert event.rotation_policy == "90d"
        assert value_of(event) == SENTINEL.encode()

    def test_a_rotation_may_leave_the_fields_out(self) -> None:
        """They stay as they are."""
        assert parsed(rotated()).injection is None

    def test_a_deletion_has_no_value(self) -> None:
        """Nor injection fields."""
        event = parsed(deleted())
        assert (event.value, event.injection) == (None, None)

    def test_a_value_is_not_shown(self) -> None:
        """An event's ``repr`` does not hold it."""
        assert SENTINEL not in repr(parsed(document()))

    def test_text_is_as_good_as_bytes(self) -> None:
        """For producers in Python."""
        assert value_of(events.parse(json.dumps(document()))) == SENTINEL.encode()

    def test_non_ascii_values_are_utf_8(self) -> None:
        """``value`` is text."""
        assert value_of(
            parsed(document(data__value="pässwörd", data__injectionKind="query", data__bindingKey="k"))
        ) == ("pässwörd".encode())

    @pytest.mark.parametrize("size", [1, 4096, 4097, 65_536])
    @pytest.mark.parametrize("name", ["value", "valueBase64"])
    def test_sizes(self, name: str, size: int) -> None:
        """From 1 byte to 64 KiB, in both forms."""
        raw = b"v" * size
        text = raw.decode() if name == "value" else base64.b64encode(raw).decode()
        assert value_of(parsed(document(**{"data__value": ..., f"data__{name}": text}))) == raw

    def test_the_time_may_be_missing(self) -> None:
        """CloudEvents calls it optional."""
        assert parsed(document(time=...)).time is None

    def test_other_attributes_are_ignored(self) -> None:
        """CloudEvents allows extensions."""
        assert parsed(document(traceparent="00-x", datacontenttype="application/json")).id == "event-1"


BAD: list[tuple[str, dict[str, Any]]] = [
    ("specversion", document(specversion="0.3")),
    ("specversion", document(specversion=...)),
    ("specversion", document(specversion=1.0)),
    ("id", document(id=...)),
    ("id", document(id="")),
    ("id", document(id="x" * 257)),
    ("id", document(id=7)),
    ("id", document(id="a\nb")),
    ("id", document(id="\ud800")),
    ("source", document(source=...)),
    ("source", document(source=["x"])),
    ("source", document(source=events.OWN_SOURCE)),
    ("type", document(type="secret.renamed")),
    ("type", document(type=...)),
    ("type", document(type=None)),
    ("type", document(type=["secret.created"])),
    ("type", document(type={"a": 1})),
    ("time", document(time="yesterday")),
    ("time", document(time="2026-01-31T12:00:00")),
    ("time", document(time=1769860800)),
    ("time", document(time="\ud800")),
    ("subject", document(subject=...)),
    ("subject", document(subject=" github")),
    ("subject", document(subject="git*hub")),
    ("subject", document(subject="github\n")),
    ("subject", document(subject="x" * 129)),
    ("subject", document(subject="gïthub")),
    ("data", document(data=...)),
    ("data", document(data="text")),
    ("data", document(data=[])),
    ("data.workspaceId", document(data__workspaceId=...)),
    ("data.workspaceId", document(data__workspaceId="ws 1")),
    ("data.workspaceId", document(data__workspaceId="x" * 65)),
    ("data.workspaceId", document(data__workspaceId="ws_1\n")),
    ("data.version", document(data__version=...)),
    ("data.version", document(data__version=0)),
    ("data.version", document(data__version=-1)),
    ("data.version", document(data__version=True)),
    ("data.version", document(data__version="1")),
    ("data.version", document(data__version=1.0)),
    ("data.version", document(data__version=2**63)),
    ("data.rotationPolicy", document(data__rotationPolicy="90 days")),
    ("data.rotationPolicy", document(data__rotationPolicy="0d")),
    ("data.rotationPolicy", document(data__rotationPolicy=90)),
    ("data.injectionKind", document(data__injectionKind=...)),
    ("data.injectionKind", document(data__injectionKind="cookie")),
    ("data.injectionKind", document(data__injectionKind=7)),
    ("data.injectionKind", document(data__injectionKind=["bearer"])),
    ("data.injectionKind", document(data__injectionKind={"bearer": 1})),
    ("data.injectionKind", rotated(data__agentId="agent-1")),
    ("data.targetHost", document(data__targetHost=...)),
    ("data.targetHost", document(data__targetHost="https://api.example.com")),
    ("data.targetHost", document(data__targetHost="api.example.com/path")),
    ("data.targetHost", document(data__targetHost="user@api.example.com")),
    ("data.targetHost", document(data__targetHost="api.example.com:0")),
    ("data.targetHost", document(data__targetHost="api.example.com:65536")),
    ("data.targetHost", document(data__targetHost="api.example.com.")),
    ("data.targetHost", document(data__targetHost="0x7f000001")),
    ("data.targetHost", document(data__targetHost="2130706433")),
    ("data.targetHost", document(data__targetHost="１２７.0.0.1")),
    ("data.targetHost", document(data__targetHost="")),
    ("data.targetHost", document(data__targetHost="\ud800.example.com")),
    ("data.targetHost", document(data__targetHost=7)),
    ("data.targetHost", document(data__injectionKind="stdio_env", data__bindingKey="TOKEN")),
    ("data.bindingKey", document(data__bindingKey="X-Key")),
    ("data.bindingKey", document(data__injectionKind="http_header")),
    ("data.bindingKey", document(data__injectionKind="http_header", data__bindingKey="Host")),
    ("data.bindingKey", document(data__injectionKind="http_header", data__bindingKey="axiorank-token")),
    ("data.bindingKey", document(data__injectionKind="http_header", data__bindingKey="X Key")),
    ("data.bindingKey", document(data__injectionKind="http_header", data__bindingKey="X-Key\n")),
    ("data.bindingKey", document(data__injectionKind="query", data__bindingKey="a&b")),
    (
        "data.bindingKey",
        document(data__injectionKind="stdio_env", data__targetHost=..., data__bindingKey="LD_PRELOAD"),
    ),
    ("data.mcpServerId", document(data__agentId=...)),
    ("data.mcpServerId", document(data__mcpServerId="a b")),
    ("data.agentId", document(data__agentId="agent\n1")),
    ("data.agentId", document(data__agentId={"a": 1})),
    ("data.value", document(data__value=...)),
    ("data.value", document(data__value=None)),
    ("data.value", document(data__value="")),
    ("data.value", document(data__value="v" * 65_537)),
    ("data.value", document(data__value="é" * 32_769)),
    ("data.value", document(data__value=7)),
    ("data.value", document(data__value=["v"])),
    ("data.value", document(data__value="\ud800")),
    ("data.value", document(data__valueBase64="dg==")),
    ("data.value", rotated(data__value=...)),
    ("data.value", deleted(data__value="v")),
    ("data.valueBase64", deleted(data__valueBase64="dg==")),
    ("data.agentId", deleted(data__agentId="agent-1")),
    ("data.valueBase64", document(data__value=..., data__valueBase64="")),
    ("data.valueBase64", document(data__value=..., data__valueBase64="dg")),
    ("data.valueBase64", document(data__value=..., data__valueBase64="dg=")),
    ("data.valueBase64", document(data__value=..., data__valueBase64="d g==")),
    ("data.valueBase64", document(data__value=..., data__valueBase64="dg==\n")),
    ("data.valueBase64", document(data__value=..., data__valueBase64="_-8=")),
    ("data.valueBase64", document(data__value=..., data__valueBase64="dh==")),
    ("data.valueBase64", document(data__value=..., data__valueBase64="QUJD=")),
    ("data.valueBase64", document(data__value=..., data__valueBase64="é")),
    ("data.valueBase64", document(data__value=..., data__valueBase64=7)),
    (
        "data.valueBase64",
        document(data__value=..., data__valueBase64=base64.b64encode(b"v" * 65_537).decode()),
    ),
]


class TestBad:
    """What is refused, and how."""

    @pytest.mark.parametrize(("field", "whole"), BAD, ids=[f"{field}-{n}" for n, (field, _) in enumerate(BAD)])
    def test_a_problem_names_its_field(self, field: str, whole: dict[str, Any]) -> None:
        """One wrong field is one problem."""
        error = refusal(json.dumps(whole))
        assert error.reason == "invalid"
        # without data, its fields are missing too
        assert [name for name in error.fields if field != "data" or name == "data"] == [field]

    def test_all_problems_come_at_once(self) -> None:
        """A producer mends them in one go."""
        error = refusal(json.dumps(document(id=7, subject="*", data__version=0, data__value="")))
        assert set(error.fields) == {"id", "subject", "data.version", "data.value"}

    def test_an_unknown_field_of_the_data_is_a_problem(self) -> None:
        """A misspelt ``bindingkey`` would else be lost silently; its name is not repeated, it may be the value."""
        error = refusal(json.dumps(document(**{f"data__{'sk_live_9f2c'}": "x"})))
        assert "sk_live_9f2c" not in everything_of(error)
        (why,) = error.fields.values()
        assert "bindingKey" in why

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"not json",
            b"[]",
            b'"text"',
            b"null",
            b"7",
            b"{",
            b'{"a": 1, "a": 2}',
            b'{"data": {"value": "a", "value": "b"}}',
            b'{"a": NaN}',
            b'{"a": Infinity}',
            b"\xff\xfe{}",
            '{"id": "é"}'.encode("latin-1"),
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"a": ' + b"9" * 5000 + b"}",
        ],
    )
    def test_what_is_no_json_object(self, body: bytes) -> None:
        """``invalid_json``, also for names that come twice: two readers could see two events."""
        assert refusal(body).reason == "invalid_json"

    def test_too_large(self) -> None:
        """It is not even parsed."""
        assert refusal(b" " * (events.LARGEST_EVENT + 1)).reason == "too_large"

    def test_the_largest_value_in_its_longest_form_is_not_too_large(self) -> None:
        """64 KiB of bytes that JSON escapes as six characters each fit."""
        event = parsed(document(data__value="\x01" * 65_536, data__injectionKind="query", data__bindingKey="k"))
        assert len(value_of(event)) == 65_536

    def test_a_refused_value_is_wiped(self) -> None:
        """What is not taken is not kept either."""
        seen: list[Any] = []

        def watched(value: bytes) -> Any:
            seen.append(Plaintext(value))
            return seen[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(events, "Plaintext", watched)
            refusal(json.dumps(document(id=7)))
        (value,) = seen
        with pytest.raises(ValueError, match="wiped"), value.reveal():
            pass

    @pytest.mark.parametrize(
        "body",
        [
            json.dumps(document())[:-1],
            json.dumps(document()) + "}",
            json.dumps(document()).encode() + b"\xff",
            json.dumps(document(type=SENTINEL, subject=SENTINEL, id=f"{SENTINEL}\n", time=SENTINEL)),
            json.dumps(document(data__targetHost=SENTINEL, data__bindingKey=SENTINEL, data__agentId=SENTINEL)),
            json.dumps(document(data__workspaceId=SENTINEL, data__version=SENTINEL, data__rotationPolicy=SENTINEL)),
            json.dumps(document(data__injectionKind=SENTINEL, data__mcpServerId=SENTINEL)),
            json.dumps(document(data__value=[SENTINEL])),
            json.dumps(document(data__valueBase64=SENTINEL)),
            json.dumps(document(specversion=SENTINEL, source=[SENTINEL])),
            json.dumps(document() | {"data": document()["data"] | {SENTINEL: 1}}),
            json.dumps(document() | {"data": SENTINEL}),
            json.dumps(SENTINEL),
        ],
        ids=range(13),
    )
    def test_no_error_holds_a_value(self, body: str | bytes) -> None:
        """Wherever a producer put it by mistake; down the whole chain of exceptions."""
        assert SENTINEL not in everything_of(refusal(body))


_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from([SENTINEL, "secret.created", "secret.rotated", "bearer", "1.0", "dg==", "api.example.com", "ws_1"]),
)
_anything = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_near_misses = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(document(), _anything)
    | {
        "data": st.fixed_dictionaries({}, optional=dict.fromkeys(sorted(events._DATA_FIELDS), _anything)) | _anything,
        "other": _anything,
    },
)


class TestAnything:
    """Input of any shape."""

    @given(_near_misses | _anything)
    @example({"type": "secret.created", "data": {"injectionKind": [SENTINEL]}})
    def test_a_document_of_any_shape_is_an_event_or_invalid(self, whole: Any) -> None:
        """Nothing but ``Invalid`` is raised, and it never holds what was planted."""
        assert SENTINEL not in shown_for(whole)

    @given(changes=st.dictionaries(st.sampled_from(sorted(document()["data"])), _anything, min_size=1, max_size=2))
    def test_one_field_of_any_shape(self, changes: dict[str, Any]) -> None:
        """The same near a good event."""
        assert SENTINEL not in shown_for(document() | {"data": document()["data"] | changes})

    @given(st.binary(max_size=200) | st.text(max_size=200))
    def test_bytes_of_any_shape_are_invalid(self, body: bytes | str) -> None:
        """No short noise is an event."""
        with pytest.raises(Invalid):
            events.parse(body)
