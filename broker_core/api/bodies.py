"""How request bodies are read: strict JSON, bounded in size, parts and time, and only of callers who were let in.

Strict: UTF-8, names once, finite numbers, no lone surrogates, at most 32 levels deep; whatever the content type says,
since nothing else is ever read. What the parsers complain about never leaves: their errors hold the whole text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import anyio
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from starlette.types import Scope

from broker_core.api.callers import Allow
from broker_core.api.shares import shares_of
from broker_core.errors import Invalid
from broker_core.events import LARGEST_EVENT

#: bytes of a body; a value of 64 KiB in base64 and with every character escaped is well below
LARGEST = LARGEST_EVENT
#: `inject` carries the body of the upstream request: 10 MiB, in base64
LARGEST_INJECT = 16 * 1024 * 1024
DEEPEST = 32
#: names and items in a document: a request with the 100 headers that it may have at most has some 300
MOST_PARTS = 4000
#: seconds until a body is there, all of it
BODY_SECONDS = 30.0


def most_for(path: str) -> int | None:
    """How many bytes the body of a request to ``path`` may have; None: the endpoint counts for itself."""
    return {"/api/v1/inject": LARGEST_INJECT, "/api/v1/proxy": None}.get(path, LARGEST)


class Document(BaseModel):
    """A request's or an answer's JSON object: camelCase names, no others, never shown in errors."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )


class Wrong(ValueError):
    """Raised by a validator of ours, with words for the caller that hold nothing of the input."""


async def whole(request: Request) -> bytes:
    """The body. Raises Invalid for a caller who is too slow, ClientDisconnect for one who leaves."""
    with anyio.move_on_after(BODY_SECONDS):
        return await request.body()
    raise Invalid({"body": f"was not all there within {BODY_SECONDS:g} s"})


def parse(body: bytes) -> Any:
    """A JSON document, strictly. Raises Invalid (``invalid_json``)."""
    check_parts(body)
    try:
        document = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_never, parse_float=_finite
        )
        _check(document)
    except (ValueError, RecursionError):
        document = _NOTHING
    if document is _NOTHING:
        # not raised inside the handler: json's exceptions hold the whole text, and would stay in ``__context__``
        raise Invalid(
            {"body": f"not JSON in UTF-8 with unique names, finite numbers and at most {DEEPEST} levels"},
            code="invalid_json",
        )
    return document


def check_parts(body: bytes) -> None:
    """Count names and items before anything is made of them: as objects they take up to a hundred times their text.
    What stands in a text is no part. Raises Invalid (``invalid_json``)."""
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"")
    # a name and a text have four quotes: only then is it cheap to take the texts out
    if bare.count(b'"') <= 4 * MOST_PARTS:
        outside = b"".join(bare.split(b'"')[::2])
        if sum(map(outside.count, (b",", b"[", b"{"))) <= MOST_PARTS:
            return
    raise Invalid({"body": f"more than {MOST_PARTS} names and items"}, code="invalid_json")


_NOTHING = object()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError
    return document


def _never(_: str) -> NoReturn:
    raise ValueError


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _check(document: Any) -> None:
    """Depth, and text that is no Unicode. Raises ValueError."""
    level, found = 0, [document]
    while found:
        level += 1
        if level > DEEPEST:
            raise ValueError
        below: list[Any] = []
        for each in found:
            if isinstance(each, dict):
                below += each.keys()
                below += each.values()
            elif isinstance(each, list):
                below += each
            elif isinstance(each, str) and not each.isascii():
                each.encode("utf-8")  # a lone surrogate (`\\ud800`) raises UnicodeEncodeError, a ValueError
        found = below


class StrictRoute(APIRoute):
    """A route that lets the caller in first, then reads the body, then checks its fields; all of it within the share of
    the caller's workspace."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override] # FastAPI says Coroutine
        """Wrap FastAPI's own handler."""
        handle = super().get_route_handler()
        # a route without `allow(…)`, or with two, does not start
        (gate,) = [each.call for each in self.dependant.dependencies if isinstance(each.call, Allow)]
        reads = self.body_field is not None
        parameters = {each.alias for each in self.dependant.query_params}
        headers = {each.alias for each in self.dependant.header_params}

        async def strict(request: Request) -> Response:
            caller = await gate(request)
            _check_parameters(request, parameters, headers)
            async with shares_of(request.app.state).held(caller.workspace_id):
                if reads:
                    body = await whole(request)
                    request = _Read(request.scope, body, parse(body) if body else None)
                return await handle(request)

        return strict


def _check_parameters(request: Request, known: set[str], headers: set[str]) -> None:
    """A misspelt filter would answer another question, and one that is there twice two of them. Raises Invalid, which
    repeats no name that the caller made up."""
    given = [name for name, _ in request.query_params.multi_items()]
    problems = {name: "give it once" for name in known if given.count(name) > 1}
    problems |= {name: "give it once" for name in headers if len(request.headers.getlist(name)) > 1}
    if set(given) - known:
        problems["(another parameter)"] = "is no parameter of this request"
    if problems:
        raise Invalid(problems)


class _Read(Request):
    """A request whose body was read and parsed."""

    def __init__(self, scope: Scope, body: bytes, document: Any) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        super().__init__({**scope, "headers": [*headers, (b"content-type", b"application/json")]})
        self._bytes = body
        self._document = document

    async def body(self) -> bytes:
        """The body as it came."""
        return self._bytes

    async def json(self) -> Any:
        """The document."""
        return self._document
