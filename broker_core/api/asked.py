"""What the headers of a request to ``/proxy`` say: to us, and to the upstream.

The promise (INV-7): no header of ours goes on, nor the one that held our token, nor any other that holds a copy of it.
A header of ours that comes twice is refused, since which one counts would be a matter of taste. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from broker_core.api.callers import bearer_of
from broker_core.api.tokens import PREFIX
from broker_core.errors import Invalid

Lines = Sequence[tuple[str, str]]

URL, AGENT, SERVER, SECRET = (f"axiorank-{name}" for name in ("upstream-url", "agent-id", "mcp-server-id", "secret"))
_TOKEN, _AUTHORIZATION = "axiorank-authorization", "authorization"

#: bytes of a JSON body that is read before the upstream is chosen, for the handle that may be in it
LARGEST_WITH_HANDLE = 65_536

_JSON = re.compile(r"application/(?:json|[!#$&^_.+a-z0-9-]+\+json)[ \t]*(?:;.*)?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """What the headers of a request say. ``headers`` are those that may go on."""

    own: dict[str, str] = field(repr=False)
    headers: Sequence[tuple[str, str]] = field(repr=False)
    #: None: nobody knows before it has ended
    body_length: int | None
    has_small_json: bool
    waits_for_continue: bool


def lines_of(raw: Iterable[tuple[bytes, bytes]]) -> Lines:
    """Headers as text, names in lower case."""
    return [(name.decode("latin-1").lower(), text.decode("latin-1")) for name, text in raw]


def bearer_in(headers: Lines) -> str:
    """The token, on which all else depends. Raises Unauthorized."""
    return bearer_of([text for name, text in headers if name == _holder(headers)])


def read_headers(headers: Lines) -> Asked:
    """Take our own headers from the caller's. Raises Unauthorized, Invalid."""
    held_it, token = _holder(headers), bearer_in(headers).removeprefix(PREFIX)
    own: dict[str, str] = {}
    for name, text in headers:
        if name in (URL, AGENT, SERVER, SECRET):
            if name in own:
                raise Invalid({name: "give it once"})
            own[name] = text
    if URL not in own:
        raise Invalid({URL: "required: where the request goes"})
    if token and token in own[URL]:
        raise Invalid({URL: "holds the token, which goes to nobody else"})
    given = dict(headers)
    length = None if "transfer-encoding" in given else int(given.get("content-length", "0"))
    return Asked(
        own,
        [(name, text) for name, text in headers if _may_go_on(name, text, held_it, token)],
        length,
        has_small_json=_is_small_json(given, length) and SECRET not in own,
        waits_for_continue="expect" in given,
    )


def _holder(headers: Lines) -> str:
    return _TOKEN if any(name == _TOKEN for name, _ in headers) else _AUTHORIZATION


def _may_go_on(name: str, text: str, held_it: str, token: str) -> bool:
    return not name.startswith("axiorank-") and name != held_it and token not in text


def _is_small_json(given: dict[str, str], length: int | None) -> bool:
    kind = given.get("content-type", "")
    return length is not None and 0 < length <= LARGEST_WITH_HANDLE and _JSON.fullmatch(kind) is not None
