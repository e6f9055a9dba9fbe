"""The platform's handle, ``{{secret:NAME}}``: it selects a secret by name and is removed. Pure.

It is never a template that a value is put into: an agent could then send any secret anywhere. Whoever writes one where
it does not count believes that it does, or tries what happens: both are told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from broker_core.errors import InjectionRefused
from broker_core.inject.call import Call
from broker_core.inject.readings import readings
from broker_core.injection import NAME

MARKER = b"{{secret:"
_HANDLE = re.compile(rb"\{\{secret:(" + NAME.pattern.encode("ascii") + rb")\}\}")


def take_handle(call: Call) -> Call:
    """The call with its handle moved into ``secret`` and removed from the request.

    One handle, inside one header's value (the header goes as a whole) or one string of a JSON body (the handle goes).
    Raises InjectionRefused (``handle_misplaced``) for a handle anywhere else, in any reading (escaped, as UTF-16), for
    a second one, half a one, or one beside ``secret``. A body in pieces is not looked at here: no handle may stand in
    it, and ``screen`` sees to that.
    """
    values = [text.encode("utf-8", "replace") for _, text in call.headers]
    body = call.body if isinstance(call.body, bytes) else b""
    counts = [_count(text) for text in (*values, body)]
    if sum(map(_count, _forbidden(call))) or sum(counts) > 1 or (sum(counts) and call.secret is not None):
        raise misplaced()
    if not sum(counts):
        return call
    at = counts.index(1)
    if at < len(values):
        headers = [pair for number, pair in enumerate(call.headers) if number != at]
        return replace(call, headers=tuple(headers), secret=_name(values[at]))
    return replace(call, body=_without_handle(body), secret=_name(body))


def misplaced() -> InjectionRefused:
    """The refusal."""
    return InjectionRefused(
        "a handle stands once, in one header's value or one string of a JSON body sent as a whole, and not beside "
        "`secret`",
        code="handle_misplaced",
    )


def _forbidden(call: Call) -> Iterator[bytes]:
    yield call.url.encode("utf-8", "replace")
    yield from (name.encode("utf-8", "replace") for name, _ in call.headers)


def _count(text: bytes) -> int:
    """How many handles begin there: 1 only for a single one that is written as it is, which no reading adds to."""
    plain, *others = (reading.count(MARKER) for reading in readings(text))
    return plain if all(other == plain for other in others) else 2


def _name(text: bytes) -> str:
    found = _HANDLE.search(text)
    if found is None:
        raise misplaced()
    return found[1].decode("ascii")


def _without_handle(body: bytes) -> bytes:
    """The body, byte for byte, without the handle, which must stand in a string that is a value, not a key."""
    try:
        document = json.loads(body, object_pairs_hook=_Pairs)
        in_values = sum(text.count(MARKER.decode()) for text in _strings(document))
    except (ValueError, RecursionError):
        raise misplaced() from None
    if in_values != 1:
        raise misplaced()
    return _HANDLE.sub(b"", body, count=1)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it is written, repeated names and all: some server reads the first, some the last."""


def _strings(value: object) -> Iterator[str]:
    """The string values of a JSON document; names are not values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, _Pairs):
        for _, inner in value:
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
