"""What may come in and what becomes of it, on real servers: one row for each case, with its documented outcome."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any
from urllib.parse import unquote_to_bytes
from uuid import uuid4

import pytest

from broker_core import events
from broker_core.errors import Conflict, InjectionRefused, Invalid, NotFound, Refused
from broker_core.inject.call import Call
from broker_core.intake import Receipt
from broker_core.model import Event, EventState, SecretStatus
from tests.live import AGENT, Live

Document = dict[str, Any]


def accept(live: Live, document: Document) -> Receipt:
    """Accept a document for this workspace."""
    return live.app.intake.accept(events.parse(json.dumps(document)), workspace_id=live.workspace)


def with_data(**changes: Any) -> Callable[[Document], Document]:
    """Change fields of ``data``; None takes one out."""

    def change(document: Document) -> Document:
        data = {name: value for name, value in {**document["data"], **changes}.items() if value is not None}
        return {**document, "data": data}

    return change


def without(*names: str) -> Callable[[Document], Document]:
    """Take out fields of the event."""
    return lambda document: {name: value for name, value in document.items() if name not in names}


def changed(**changes: Any) -> Callable[[Document], Document]:
    """Change fields of the event."""
    return lambda document: document | changes


@dataclass(frozen=True)
class Refusal:
    """A change of a good event, and how the changed one is refused. ``fields``: what the answer names."""

    case: str
    change: Callable[[Document], Document]
    error: type[Refused]
    code: str
    fields: tuple[str, ...] = ()


REFUSALS = [
    Refusal("value of 0 bytes", with_data(value=""), Invalid, "invalid", ("data.value",)),
    Refusal("value of 65,537 bytes", with_data(value="x" * 65_537), Invalid, "invalid", ("data.value",)),
    Refusal("value not for a header", with_data(value="ends with\n"), Invalid, "invalid", ("data.value",)),
    Refusal("value missing", with_data(value=None), Invalid, "invalid", ("data.value",)),
    Refusal("value given twice", with_data(valueBase64="eA=="), Invalid, "invalid", ("data.value",)),
    Refusal(
        "base64 that is none",
        with_data(value=None, valueBase64="*"),
        Invalid,
        "invalid",
        ("data.valueBase64",),
    ),
    Refusal("unknown type", changed(type="secret.renamed"), Invalid, "invalid", ("type",)),
    Refusal("specversion of tomorrow", changed(specversion="2.0"), Invalid, "invalid", ("specversion",)),
    *(Refusal(f"no {name}", without(name), Invalid, "invalid", (name,)) for name in ("id", "source", "subject")),
    *(Refusal(f"no {name}", without(name), Invalid, "invalid", (name,)) for name in ("type", "data", "specversion")),
    *(
        Refusal(f"no data.{name}", with_data(**{name: None}), Invalid, "invalid", (f"data.{name}",))
        for name in ("workspaceId", "version", "injectionKind", "targetHost")
    ),
    Refusal("bound to nobody", with_data(agentId=None), Invalid, "invalid", ("data.mcpServerId",)),
    Refusal("version 0", with_data(version=0), Invalid, "invalid", ("data.version",)),
    Refusal("unknown field", with_data(color="red"), Invalid, "invalid", ("data.(another field)",)),
    Refusal("event too large", with_data(value="x" * 600_000), Invalid, "too_large", ("event",)),
    Refusal("workspace of another tenant", with_data(workspaceId="ws_other"), NotFound, "not_found"),
]


class TestRefusals:
    @pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.case)
    def test_refused(self, live: Live, case: Refusal) -> None:
        """It is refused with its code, the fields are named, the value is not quoted, and nothing is kept."""
        document = case.change(live.event(value="a value like no other"))
        with pytest.raises(case.error) as refused:
            accept(live, document)
        assert refused.value.reason == case.code
        if isinstance(refused.value, Invalid):
            assert case.fields == () or set(case.fields) <= set(refused.value.fields)
        assert "a value like" not in str(refused.value)
        assert live.queue.rung == []
        assert live.app.store.secrets(live.workspace) == []

    @pytest.mark.parametrize(
        "body",
        [b'{"id": "\xff"}', b"\xff\xfe", b"", b"[]", b"{", b'{"id": 1, "id": 2}', b'{"id": NaN}'],
        ids=["not UTF-8", "UTF-16", "empty", "a list", "cut off", "a name twice", "NaN"],
    )
    def test_not_json(self, body: bytes) -> None:
        """What is no JSON object in UTF-8 with unique names is ``invalid_json``."""
        with pytest.raises(Invalid) as refused:
            events.parse(body)
        assert refused.value.reason == "invalid_json"

    def test_unknown_workspace(self, live: Live) -> None:
        """A workspace that the platform never created is answered like another tenant's, also with its own token."""
        unknown = f"ws_{uuid4().hex}"
        document = with_data(workspaceId=unknown)(live.event())
        with pytest.raises(NotFound):
            live.app.intake.accept(events.parse(json.dumps(document)), workspace_id=unknown)

    def test_deleted_workspace(self, live: Live) -> None:
        """A workspace that was deleted is answered like one that never was."""
        live.app.store.delete_workspace(live.workspace)
        with pytest.raises(NotFound):
            accept(live, live.event())


SIZES = [(1, "kms"), (4096, "kms"), (4097, "kms-envelope"), (65_536, "kms-envelope")]


def variables(live: Live) -> dict[str, str]:
    """What a stdio server of AGENT gets."""
    return dict(live.app.injector.environment(Call(live.workspace, AGENT, None)).variables)


class TestSizes:
    @pytest.mark.parametrize(("size", "cipher"), SIZES)
    def test_under_a_customers_key(self, live: Live, size: int, cipher: str) -> None:
        """Up to 4096 bytes KMS encrypts the value itself, above it a data key; what comes out is the very value."""
        live.connect(live.customer())
        live.store(value="v" * size, injectionKind="stdio_env", bindingKey="TOKEN", agentId=AGENT)
        (blob,) = [candidate.blob for candidate in live.app.store.candidates(live.workspace, AGENT, None)]
        assert blob.cipher.value == cipher
        assert variables(live) == {"TOKEN": "v" * size}

    @pytest.mark.parametrize("size", [size for size, _ in SIZES])
    def test_under_the_platform_cipher(self, live: Live, size: int) -> None:
        """Without BYOK every size is one platform blob."""
        live.store(value="v" * size, injectionKind="stdio_env", bindingKey="TOKEN", agentId=AGENT)
        assert live.candidate().blob.cipher.value == "platform"
        assert variables(live) == {"TOKEN": "v" * size}

    def test_short_values_are_warned_about(self, live: Live) -> None:
        """Below eight bytes the answer says that upstreams' answers are not redacted for it."""
        assert "not redacted" in live.publish(value="7 bytes").warnings[0]
        assert live.publish("other", value="8 bytes!").warnings == ()

    def test_bytes_that_are_no_text(self, live: Live) -> None:
        """A value that is not UTF-8 is taken as base64 and reaches the upstream byte for byte."""
        value = b"\xff\x00\xfe any bytes"
        live.store(value=value, injectionKind="query", bindingKey="k", targetHost=live.target, agentId=AGENT)
        live.send()
        assert unquote_to_bytes(live.upstream.requests[-1].query) == b"k=" + value


def event_of(live: Live, receipt: Receipt) -> Event:
    """The event as it is now."""
    event: Event = live.app.store.event(live.workspace, receipt.id)
    return event


class TestOrder:
    @pytest.mark.parametrize("order", list(permutations((1, 2, 3))), ids=lambda order: "".join(map(str, order)))
    def test_any_order(self, live: Live, order: tuple[int, ...]) -> None:
        """In whatever order three versions are accepted and worked on, the highest is what injects; each event ends
        ``stored`` or ``superseded``."""
        kinds = {1: "secret.created", 2: "secret.rotated", 3: "secret.rotated"}
        values = {version: f"value-of-{version}-{uuid4().hex}" for version in order}
        receipts = [
            live.publish(kind=kinds[version], version=version, value=values[version], bare=version != 1)
            for version in order
        ]
        highest_so_far = [version == max(order[: place + 1]) for place, version in enumerate(order)]
        assert live.work() == [EventState.STORED if is_it else EventState.SUPERSEDED for is_it in highest_so_far]
        assert all(event_of(live, receipt).ended_at for receipt in receipts)
        live.send()
        assert live.upstream.requests[-1].header("Authorization") == f"Bearer {values[3]}"

    def test_rotated_before_created(self, live: Live) -> None:
        """A rotation of a name never created is stored as ``unbound`` and cannot inject until ``created`` binds it."""
        live.store(kind="secret.rotated", version=2, bare=True)
        (view,) = live.app.store.secrets(live.workspace)
        assert view.status is SecretStatus.UNBOUND
        with pytest.raises(InjectionRefused):
            live.send()
        receipt = live.publish(version=1)
        assert live.work() == [EventState.SUPERSEDED]
        assert event_of(live, receipt).reason == "higher_version"
        assert live.send().status == 200
        assert live.candidate().version == 2

    def test_deletion_is_no_revival(self, live: Live) -> None:
        """After a deletion a lower version is superseded, and the tombstone's version is never given again."""
        live.store(version=1)
        accept(live, live.event(kind="secret.deleted", version=3))
        late = live.publish(kind="secret.rotated", version=2)
        assert live.work() == [EventState.SUPERSEDED]
        assert event_of(live, late).state is EventState.SUPERSEDED
        assert live.app.store.secrets(live.workspace) == []
        with pytest.raises(Conflict):
            live.publish(version=3)

    def test_late_deletion(self, live: Live) -> None:
        """A deletion below the highest version changes nothing."""
        live.store(version=5)
        assert accept(live, live.event(kind="secret.deleted", version=4)).status == "superseded"
        assert live.send().status == 200

    def test_deletion_ends_what_waits(self, live: Live) -> None:
        """What waited when its secret was deleted ends ``deleted``, and its worker finds nothing to do."""
        waiting = live.publish()
        accept(live, live.event(kind="secret.deleted", version=2))
        assert live.work() == [None]
        assert event_of(live, waiting).state is EventState.DELETED


REPEATS = [
    ("another value", with_data(value="another-value"), "data.value"),
    ("another name", changed(subject="gitlab"), "subject"),
    ("another version", with_data(version=2), "data.version"),
    ("another type", changed(type="secret.rotated"), "type"),
    ("another destination", with_data(targetHost="api.example.com"), "data.injectionKind"),
    ("another agent", with_data(agentId="agent-2"), "data.injectionKind"),
    ("another policy", with_data(rotationPolicy="90d"), "data.rotationPolicy"),
]


class TestRepeats:
    def test_the_same(self, live: Live) -> None:
        """An event that comes twice is answered twice the same, and is worked on once."""
        document = live.event()
        assert accept(live, document) == accept(live, document)
        assert live.work() == [EventState.STORED]

    @pytest.mark.parametrize(("case", "change", "field"), REPEATS, ids=[case for case, _, _ in REPEATS])
    def test_another_body(self, live: Live, case: str, change: Callable[[Document], Document], field: str) -> None:
        """The same id with another body is refused, naming what differs; the first one is stored."""
        document = live.event(value="the-first-value")
        first = accept(live, document)
        with pytest.raises(Invalid) as refused:
            accept(live, change(document))
        assert field in refused.value.fields
        assert "another-value" not in str(refused.value)
        assert live.work() == [EventState.STORED]
        live.send()
        assert live.upstream.requests[-1].header("Authorization") == "Bearer the-first-value"
        assert event_of(live, first).state is EventState.STORED

    def test_value_after_the_claim(self, live: Live) -> None:
        """Once the first was stored its value cannot be compared (nothing of it is kept to compare with): the repeat
        is answered like the first, and changes nothing."""
        document = live.event(value="the-first-value")
        first = accept(live, document)
        live.work()
        assert accept(live, with_data(value="another-value")(document)).id == first.id
        live.send()
        assert live.upstream.requests[-1].header("Authorization") == "Bearer the-first-value"

    def test_same_id_of_another_source(self, live: Live) -> None:
        """An id is its source's: the same id from elsewhere is another event."""
        document = live.event()
        first = accept(live, document)
        second = accept(live, with_data(version=2)(document | {"source": "elsewhere"}))
        assert first.id != second.id
        assert live.work() == [EventState.STORED, EventState.STORED]

    def test_version_taken(self, live: Live) -> None:
        """Another event with a version that was accepted before is a conflict, also after that was stored."""
        live.store(version=1)
        with pytest.raises(Conflict) as refused:
            live.publish(version=1)
        assert refused.value.reason == "version_taken"
