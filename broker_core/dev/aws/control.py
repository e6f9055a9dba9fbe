"""The reserved path `/_double/…`: faults, propagation and trail for whoever runs the double as a process of its own.

    POST   /_double/faults       a Fault as JSON          DELETE: all away, what hangs is released
    POST   /_double/propagation  {"seconds": 30 | null}   null: changes wait for /_double/propagate
    POST   /_double/propagate    every change is in force
    POST   /_double/expire-keys  keys pending deletion are gone, as after their waiting period
    GET    /_double/trail?account=…   {"records": […]} in CloudTrail's shape        DELETE: emptied
    GET    /_double/health

Promise: answered only to a request whose Host is loopback, so that a page in a browser cannot steer it by a name of
its own. This module imports `faults`, `trail` and `world`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from moto.kms.models import kms_backends

from broker_core.dev.aws.faults import Fault, Faults
from broker_core.dev.aws.trail import Trail
from broker_core.dev.aws.world import World

PREFIX = "/_double/"
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_MAX_BODY = 64 * 1024


class Control:
    """WSGI: its own paths here, all others to `inner`."""

    def __init__(self, inner: Callable[..., Iterable[bytes]], faults: Faults, trail: Trail, world: World) -> None:
        self._inner = inner
        self._faults = faults
        self._trail = trail
        self._world = world

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not environ["PATH_INFO"].startswith(PREFIX):
            return self._inner(environ, start_response)
        host = environ.get("HTTP_HOST", "")
        status, answer = (403, {"error": "forbidden"})
        if host.rpartition(":")[0] in _LOOPBACK or host in _LOOPBACK:
            status, answer = self._serve(environ)
        body = json.dumps(answer).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(f"{status} -", headers)
        return [body]

    def _serve(self, environ: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        what = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO'].removeprefix(PREFIX)}"
        try:
            body = json.loads(
                environ["wsgi.input"].read(min(int(environ.get("CONTENT_LENGTH") or 0), _MAX_BODY)) or b"{}"
            )
            return self._do(what, body, parse_qs(environ.get("QUERY_STRING", "")))
        except (TypeError, ValueError):
            return 400, {"error": "invalid"}

    def _do(self, what: str, body: Mapping[str, Any], query: Mapping[str, list[str]]) -> tuple[int, dict[str, Any]]:
        match what:
            case "POST faults":
                context = tuple(body["context"]) if body.get("context") else None
                self._faults.add(Fault(**{**body, "context": context}))
            case "DELETE faults":
                self._faults.clear()
            case "POST propagation":
                self._world.hold(body.get("seconds"))
            case "POST propagate":
                self._world.propagate()
            case "POST expire-keys":
                expire_keys(self._world)
            case "DELETE trail":
                self._trail.clear()
            case "GET trail":
                return 200, {"records": self._trail.records(query.get("account", [""])[0])}
            case "GET health":
                pass
            case _:
                return 404, {"error": "not_found"}
        return 200, {"ok": True}


def expire_keys(world: World) -> None:
    """Destroys every key that is pending deletion."""
    for account, regions in list(kms_backends.items()):
        for region, backend in list(regions.items()):
            for key in [key for key in backend.keys.values() if key.key_state == "PendingDeletion"]:
                backend.delete_key(key.id)
                world.publish_key(account, region, key.id)
