"""The CloudEvents that come in: parsed, checked, and their value taken out of reach. And the notices that go out.

CloudEvents 1.0, structured JSON (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md).
Every problem of an event is reported at once, by field and never with what was given: a wrong field may hold the value.
Pure; imports the model, injection, secret and errors.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NoReturn
from uuid import UUID

from broker_core.errors import Invalid
from broker_core.injection import ID, LARGEST_VALUE, NAME, Injection, Kind
from broker_core.model import ROTATION_POLICY, EventType
from broker_core.secret import Plaintext

#: bytes; the largest value in base64 and JSON escapes, and everything else an event can hold
LARGEST_EVENT = 512 * 1024
#: half of what the column holds: our own doors count on from the highest version that a producer gave
LARGEST_VERSION = 2**62
#: the source of events that come from our own doors: no producer may take their ids
OWN_SOURCE = "axiorank:broker-secrets"
_DATA_FIELDS = frozenset(
    """workspaceId version value valueBase64 injectionKind bindingKey targetHost mcpServerId agentId
    rotationPolicy""".split()
)
_INJECTION_FIELDS = ("injectionKind", "bindingKey", "targetHost", "mcpServerId", "agentId")


@dataclass(frozen=True)
class IncomingEvent:
    """An event as it came, checked. ``value`` is None only for ``secret.deleted``.

    ``injection`` is None for a deletion, and for a rotation that keeps the fields in place.
    """

    id: str
    source: str
    type: EventType
    time: datetime | None
    name: str
    workspace_id: str
    version: int | None
    injection: Injection | None
    rotation_policy: str | None
    value: Plaintext | None = field(repr=False)


def parse(body: bytes | str) -> IncomingEvent:
    """Parse one event from JSON. Raises Invalid: code ``invalid_json`` for what is no JSON object (duplicate names
    included: two readers could see two events), ``too_large``, or ``invalid`` with the fields."""
    if len(body) > LARGEST_EVENT:
        raise Invalid({"event": f"larger than {LARGEST_EVENT} bytes"}, code="too_large")
    try:
        text = body if isinstance(body, str) else body.decode("utf-8")
        document = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except (ValueError, RecursionError):
        document = None
    if document is None:
        # not raised inside the handler: json's exceptions hold the whole text, and would stay in ``__context__``
        raise Invalid({"event": "not a JSON object in UTF-8 with unique names"}, code="invalid_json")
    return from_document(document)


def from_document(document: object) -> IncomingEvent:
    """The same, from a JSON document that was parsed already."""
    if not isinstance(document, dict):
        raise Invalid({"event": "not a JSON object"}, code="invalid_json")
    reader = _Reader(document)
    data = reader.data()
    kind = reader.event_type()
    event = IncomingEvent(
        id=reader.text(document, "id", 256),
        source=reader.source(),
        type=kind or EventType.DELETED,  # an unknown one asks for no more fields; the event is refused anyway
        time=reader.time(),
        name=reader.matching(document, "subject", NAME, "1 to 128 of letters, digits, space, . _ : / @ + = -"),
        workspace_id=reader.matching(data, "workspaceId", ID, "1 to 64 of A-Z a-z 0-9 _ -", prefix="data."),
        version=reader.version(data),
        injection=reader.injection(data, kind) if kind else None,
        rotation_policy=reader.policy(data),
        value=reader.value(data, kind) if kind else None,
    )
    reader.finish(event)
    return event


class _Reader:
    """Collects what is wrong while it reads."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self.problems: dict[str, str] = {}
        if document.get("specversion") != "1.0":
            self.problems["specversion"] = 'give "1.0"'

    def data(self) -> Mapping[str, Any]:
        data = self._document.get("data")
        if not isinstance(data, dict):
            self.problems["data"] = "give an object"
            return {}
        if data.keys() - _DATA_FIELDS:
            # its name is not repeated: a producer's mistake can make a name of the value
            self.problems["data.(another field)"] = f"unknown; the fields are {', '.join(sorted(_DATA_FIELDS))}"
        return data

    def event_type(self) -> EventType | None:
        given = self._document.get("type")
        if isinstance(given, str) and given in set(EventType):
            return EventType(given)
        self.problems["type"] = f"unknown; give one of {', '.join(EventType)}"
        return None

    def text(self, within: Mapping[str, Any], name: str, longest: int) -> str:
        given = within.get(name)
        if isinstance(given, str) and 1 <= len(given) <= longest and given.isprintable():
            return given
        self.problems[name] = f"give 1 to {longest} printable characters"
        return ""

    def source(self) -> str:
        given = self.text(self._document, "source", 256)
        if given == OWN_SOURCE:
            self.problems["source"] = "is reserved for AxioRank itself; give a name of your own"
        return given

    def matching(
        self, within: Mapping[str, Any], name: str, pattern: re.Pattern[str], what: str, prefix: str = ""
    ) -> str:
        given = within.get(name)
        if isinstance(given, str) and pattern.fullmatch(given):
            return given
        self.problems[prefix + name] = f"give {what}"
        return ""

    def time(self) -> datetime | None:
        given = self._document.get("time")
        if given is None:
            return None
        try:
            parsed = datetime.fromisoformat(given) if isinstance(given, str) else None
        except ValueError:
            parsed = None
        if parsed is None or parsed.tzinfo is None:
            self.problems["time"] = "give RFC 3339 with a zone, as 2026-01-31T12:00:00Z"
        return parsed

    def version(self, data: Mapping[str, Any]) -> int | None:
        given = data.get("version")
        if isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= LARGEST_VERSION:
            return given
        self.problems["data.version"] = f"give an integer from 1 to {LARGEST_VERSION}"
        return None

    def policy(self, data: Mapping[str, Any]) -> str | None:
        given = data.get("rotationPolicy")
        if given is None or (isinstance(given, str) and ROTATION_POLICY.fullmatch(given)):
            return given
        self.problems["data.rotationPolicy"] = 'give days, as "90d", or leave it out'
        return None

    def injection(self, data: Mapping[str, Any], event_type: EventType) -> Injection | None:
        given = {name: data.get(name) for name in _INJECTION_FIELDS}
        if event_type is EventType.DELETED:
            self._no_injection(given)
            return None
        if event_type is EventType.ROTATED and not any(value is not None for value in given.values()):
            return None
        return self._injection_from(given)

    def _no_injection(self, given: Mapping[str, Any]) -> None:
        for name, value in given.items():
            if value is not None:
                self.problems[f"data.{name}"] = "leave it out of a deletion"

    def _injection_from(self, given: Mapping[str, Any]) -> Injection | None:
        wrong = [name for name, value in given.items() if not isinstance(value, str | None)]
        for name in wrong:
            self.problems[f"data.{name}"] = "give text"
        kind = given["injectionKind"]
        if not isinstance(kind, str) or kind not in set(Kind):
            self.problems["data.injectionKind"] = f"give one of {', '.join(Kind)}; fields change all together"
            return None
        if wrong:
            return None
        injection = Injection(Kind(kind), *(given[name] for name in _INJECTION_FIELDS[1:]))
        self.problems |= {f"data.{name}": why for name, why in injection.problems().items()}
        return injection

    def value(self, data: Mapping[str, Any], event_type: EventType) -> Plaintext | None:
        given = [name for name in ("value", "valueBase64") if data.get(name) is not None]
        if event_type is EventType.DELETED:
            for name in given:
                self.problems[f"data.{name}"] = "leave it out of a deletion"
            return None
        if len(given) != 1:
            self.problems["data.value"] = "give value (text) or valueBase64 (bytes), one of them"
            return None
        return self._decoded(given[0], data[given[0]])

    def _decoded(self, name: str, text: Any) -> Plaintext | None:
        raw = _bytes_of(name, text)
        if raw is None:
            self.problems[f"data.{name}"] = "give text" if name == "value" else "give standard base64 with padding"
        elif not 1 <= len(raw) <= LARGEST_VALUE:
            self.problems[f"data.{name}"] = f"1 to {LARGEST_VALUE} bytes"
        else:
            return Plaintext(raw)
        return None

    def finish(self, event: IncomingEvent) -> None:
        """Raise what was collected; the value is wiped first."""
        if self.problems:
            if event.value is not None:
                event.value.wipe()
            raise Invalid(self.problems)


def _bytes_of(name: str, text: Any) -> bytes | None:
    if not isinstance(text, str):
        return None
    try:
        raw = text.encode("utf-8") if name == "value" else base64.b64decode(text, validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        return None
    # b64decode takes surplus padding and stray bits; a value has one form
    return raw if name == "value" or base64.b64encode(raw).decode("ascii") == text else None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError
    return document


def _no_constants(_: str) -> NoReturn:
    raise ValueError


# ---------------------------------------------------------------- what goes out


class NoticeType(StrEnum):
    """What owners are told of, by way of the platform."""

    CONNECTION_FAILING = "byok.connection_failing"
    CONNECTION_RECOVERED = "byok.connection_recovered"
    NEEDS_REPROVISION = "broker_secret.needs_reprovision"
    ROTATION_DUE = "broker_secret.rotation_due"


#: the fields of each notice's ``data``; all are always there. ``failureId`` is the same in failing and in recovered
NOTICE_FIELDS: Mapping[NoticeType, tuple[str, ...]] = {
    NoticeType.CONNECTION_FAILING: (
        *("connectionId", "failureId", "keyArn", "state", "awsCode", "requestId", "since", "foundBy"),
        *("secretCount", "secrets", "whatToDo"),
    ),
    NoticeType.CONNECTION_RECOVERED: ("connectionId", "failureId", "keyArn", "since", "announcedAt"),
    NoticeType.NEEDS_REPROVISION: ("secretId", "name", "version", "eventId", "state", "reason", "whatToDo"),
    NoticeType.ROTATION_DUE: ("secretId", "name", "version", "rotationPolicy", "dueAt", "whatToDo"),
}


@dataclass(frozen=True)
class Notice:
    """One notice, never with a value. ``data`` has the fields of its type; ``id`` stays the same however often it is
    sent."""

    id: UUID
    type: NoticeType
    time: datetime
    workspace_id: str
    data: Mapping[str, Any]

    def body(self) -> bytes:
        """The JSON document that is sent: the same bytes for the same notice."""
        document = {
            "id": str(self.id),
            "type": self.type.value,
            "time": self.time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "workspaceId": self.workspace_id,
            "data": dict(self.data),
        }
        return json.dumps(document, separators=(",", ":")).encode("ascii")
