"""What the sample upstream receives and answers: the types, and its built-in routes. Imports nothing of the project."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl


@dataclass(frozen=True)
class Received:
    """One request as it arrived. Holds what was injected, so its repr shows neither headers, query nor body."""

    method: str
    path: str
    query: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)

    def header(self, name: str) -> str | None:
        """The first header of that name, in any case."""
        return next(iter(self.headers_named(name)), None)

    def headers_named(self, name: str) -> list[str]:
        """Every value of that header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """The query's parameters, decoded, in order."""
        return parse_qsl(self.query, keep_blank_values=True)


@dataclass(frozen=True)
class Response:
    """A correct answer. ``body`` as bytes is sent with its length, as an iterable of bytes in chunks as they come."""

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | Iterable[bytes] = b""


@dataclass(frozen=True)
class RawResponse:
    """These bytes, status line included, then the connection is closed (``reset``: by RST)."""

    chunks: Iterable[bytes] = ()
    reset: bool = False


Route = Callable[[Received], Response | RawResponse]


def as_json(document: object, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(status, [("Content-Type", "application/json")], json.dumps(document).encode())


def _echo(request: Received) -> Response:
    return as_json(_description(request))


def _description(request: Received) -> dict[str, object]:
    return {
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "headers": [list(pair) for pair in request.headers],
        "body": request.body.decode("utf-8", "replace"),
    }


def _gzip(request: Received) -> Response:
    plain = json.dumps(_description(request)).encode()
    headers = [("Content-Type", "application/json"), ("Content-Encoding", "gzip")]
    return Response(200, headers, gzip.compress(plain))


def _redirect(request: Received) -> Response:
    return Response(302, [("Location", dict(request.parameters).get("to", "/"))], b"")


def _sse(request: Received) -> Response:
    count = int(dict(request.parameters).get("events", "3"))
    events = (f"id: {n}\ndata: {json.dumps({'n': n})}\n\n".encode() for n in range(count))
    return Response(200, [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")], events)


def _slow(request: Received) -> Response:
    asked = dict(request.parameters)
    chunks, seconds = int(asked.get("chunks", "3")), float(asked.get("seconds", "0.1"))

    def drip() -> Iterator[bytes]:
        for number in range(chunks):
            time.sleep(seconds)
            yield f"chunk {number}\n".encode()

    return Response(200, [("Content-Type", "text/plain")], drip())


def _reset(_: Received) -> RawResponse:
    return RawResponse(reset=True)


BUILT_IN: dict[str, Route] = {
    "/echo": _echo,
    "/gzip": _gzip,
    "/redirect": _redirect,
    "/sse": _sse,
    "/slow": _slow,
    "/reset": _reset,
}
