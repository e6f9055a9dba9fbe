"""An agent behind the broker, for the tests of pitfalls: all that it gets back, and a search for the value in it."""

from __future__ import annotations

import re
import socket
import traceback
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from broker_core.errors import BrokerError
from broker_core.inject.call import Call
from tests.live import AGENT, Live
from tests.sentinel import Search, Sentinel, text_sentinel

NAME = "github"
_FRAME = re.compile(rb"\r\n[0-9a-f]+\r\n", re.IGNORECASE)


def everything_of(error: BaseException) -> bytes:
    """All that could be printed of an error, and of what hangs on it."""
    texts = [*traceback.format_exception(error), repr(error), repr(error.__dict__)]
    for hanging in (error.__cause__, error.__context__):
        if hanging is not None:
            texts.append(everything_of(hanging).decode())
    return "\n".join(texts).encode()


@dataclass
class Agent:
    """One agent of a workspace with one secret for the sample upstream. ``url``: the root of the HTTP surface that it
    calls, with ``token``; without one it has the use cases only."""

    live: Live
    url: str = ""
    token: str = field(default="", repr=False)
    value: Sentinel = field(default_factory=lambda: text_sentinel("credential", pieces=1))

    def keep(self, **injection: Any) -> None:
        """Store the value: a bearer, where nothing else is said."""
        if injection:
            injection = {"targetHost": self.live.target, "agentId": AGENT, **injection}
        self.live.store(NAME, value=self.value.value.decode(), **injection)

    def call(self, path: str, **changed: Any) -> Call:
        """What it asks for."""
        fields: dict[str, Any] = {"agent_id": AGENT, "mcp_server_id": None, "url": f"https://{self.live.target}{path}"}
        return Call(**({"workspace_id": self.live.workspace} | fields | changed))

    def buffered(self, path: str, **changed: Any) -> bytes:
        """All that comes back of a whole answer, or of a refusal."""
        try:
            answer = self.live.app.injector.send(self.call(path, **changed))
        except BrokerError as error:
            return everything_of(error)
        return _head(answer.reason, answer.headers) + answer.body + repr(answer).encode()

    def streamed(self, path: str, **changed: Any) -> bytes:
        """All that comes back of a stream, until it ends or breaks off."""
        seen = b""
        try:
            with closing(self.live.app.injector.stream(self.call(path, **changed))) as answer:
                seen = _head(answer.reason, answer.headers) + repr(answer).encode()
                for chunk in answer.chunks():
                    seen += chunk
        except BrokerError as error:
            return seen + everything_of(error)
        return seen

    def proxied(self, path: str) -> bytes:
        """Every byte that comes over the socket from ``/proxy`` until it is closed, and the same with chunks joined."""
        there = urlsplit(self.url)
        lines = [
            *("GET /api/v1/proxy HTTP/1.1", f"Host: {there.netloc}", "Connection: close"),
            *(f"Authorization: Bearer {self.token}", f"Axiorank-Agent-Id: {AGENT}"),
            f"Axiorank-Upstream-Url: https://{self.live.target}{path}",
        ]
        with socket.create_connection((there.hostname, there.port), 30) as connection:
            connection.sendall("\r\n".join((*lines, "", "")).encode())
            with connection.makefile("rb") as answer:
                sent = answer.read()
        return sent + _FRAME.sub(b"", sent)

    def leaks(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Of the hostile routes: those of which a form of the value came back, whole, streamed or over HTTP."""
        ways = [self.buffered, self.streamed, *([self.proxied] if self.url else [])]
        found = {f"{way.__name__} {name}": self._found(way, name) for name in names for way in ways}
        return {name: forms for name, forms in found.items() if forms}

    def _found(self, way: Callable[[str], bytes], name: str) -> list[str]:
        return Search([self.value])(name, way(f"/hostile/{name}"))


def _head(reason: str, headers: Iterable[tuple[str, str]]) -> bytes:
    return "\n".join((reason, *(f"{name}: {text}" for name, text in headers), "")).encode()
