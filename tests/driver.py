"""A broker process that does what a test tells it: JSON lines in, JSON lines out, logs and spans on stderr.

It is set up as every process of ours (``start_process``), so what it logs is what production logs. ``Driver`` is the
test's end of it. A value that comes out of the legitimate door (an environment) comes out on stdout.
"""

from __future__ import annotations

import base64
import dataclasses
import gc
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Self, cast
from uuid import UUID

ROOT = Path(__file__).parent.parent
EVERY_LOGGER = ROOT / "tests" / "every_logger"


class Driver:
    """The test's end. A context manager."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """``environment``: the settings; PATH, TMPDIR and the import path are added."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**kept, "PYTHONPATH": str(ROOT), **environment},
        )
        self._said: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __call__(self, what: str, **given: Any) -> dict[str, Any]:
        """Do one thing; the answer, ``{"error": code, "text": …}`` where the broker raised one of its errors."""
        stdin, stdout = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        stdin.write(json.dumps({"what": what, **given}).encode() + b"\n")
        stdin.flush()
        line = stdout.readline()
        assert line, f"the driver ended:\n{self.said.decode(errors='replace')[-4000:]}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def said(self) -> bytes:
        """All that it wrote to stderr so far."""
        return b"".join(self._said)

    def close(self) -> None:
        """Let it end in order: what it has to say, it has said then."""
        cast(IO[bytes], self._process.stdin).close()
        code = self._process.wait(30)
        self._reader.join(30)
        for stream in (self._process.stdout, self._process.stderr):
            cast(IO[bytes], stream).close()
        assert code == 0, self.said.decode(errors="replace")[-4000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        for line in cast(IO[bytes], self._process.stderr):
            self._said.append(line)


# ---------------------------------------------------------------- the process


def main() -> None:
    """Answer until stdin ends."""
    from broker_core.bootstrap import build_app
    from broker_core.observability import start_process
    from broker_core.settings import Settings

    finish = start_process("axiorank-driver", os.environ)
    app = build_app(Settings.from_environment(os.environ))
    try:
        for line in sys.stdin:
            sys.stdout.write(json.dumps(_answer(app, json.loads(line))) + "\n")
            sys.stdout.flush()
    finally:
        app.close()
        finish()


def _answer(app: Any, asked: dict[str, Any]) -> dict[str, Any]:
    from broker_core.errors import BrokerError

    does: Callable[..., dict[str, Any]] = _DOES[asked.pop("what")]
    try:
        return does(app, **asked)
    except BrokerError as error:
        return {"error": error.reason, "text": str(error)}


def _workspace(app: Any, workspace: str) -> dict[str, Any]:
    app.store.put_workspace(workspace, "enterprise")
    return {}


def _connect(app: Any, workspace: str, role: str, external_id: str, key: str) -> dict[str, Any]:
    return {"id": str(app.byok.connect(workspace, role, external_id, key).connection.id)}


def _publish(app: Any, document: dict[str, Any]) -> dict[str, Any]:
    from broker_core import events

    receipt = app.intake.accept(events.parse(json.dumps(document)), workspace_id=document["data"]["workspaceId"])
    return {"id": str(receipt.id)}


def _event(app: Any, workspace: str, event: str) -> dict[str, Any]:
    return {"state": app.store.event(workspace, UUID(event)).state.value}


def _send(app: Any, call: dict[str, Any]) -> dict[str, Any]:
    from broker_core.inject.call import Call

    answer = app.injector.send(Call(**(call | {"body": base64.b64decode(call.get("body", ""))})))
    shown = dataclasses.asdict(answer) | {"body": base64.b64encode(answer.body).decode()}
    return shown | {"audit_id": str(answer.audit_id)}


def _stream(app: Any, call: dict[str, Any], pieces: int | None) -> dict[str, Any]:
    """``pieces``: how many are read before it is given up; None for all."""
    from broker_core.inject.call import Call

    answer = app.injector.stream(Call(**call))
    for _ in itertools.islice(answer.chunks(), pieces):
        pass
    answer.close()
    return {"status": answer.status}


def _over_http(app: Any, inverted: str, workspace: str, agent: str, target: str) -> dict[str, Any]:
    """A value, which comes inverted: created, created again, given where none may be, sent as no JSON, injected."""
    from tests.live import Live, RecordingQueue
    from tests.web import web_on

    value = bytes(255 - byte for byte in bytes.fromhex(inverted)).decode()
    fields = {"name": "over-http", "secret": value, "injectionKind": "bearer", "targetHost": target, "agentId": agent}
    asked = {"agentId": agent, "secret": "over-http", "request": {"url": f"https://{target}/echo"}}
    live = Live(app, cast(Any, None), cast(Any, None), {}, RecordingQueue(), workspace)
    with web_on(live) as web:
        answers = [web.post("/broker-secrets", json=fields, role="admin")]
        app.custody.run(UUID(answers[0].json()["eventId"]))
        answers.append(web.post("/broker-secrets", json=fields, role="admin"))
        answers.append(web.post("/broker-secrets", json={**fields, "agentId": value, value: value}, role="admin"))
        answers.append(web.post("/broker-secrets", content=json.dumps(fields)[:-1].encode(), role="admin"))
        answers.append(web.post("/inject", json=asked, scope="broker:inject"))
        return {"statuses": [answer.status_code for answer in answers]}


def _environment(app: Any, workspace: str, agent: str) -> dict[str, Any]:
    from broker_core.inject.call import Call

    return {"variables": dict(app.injector.environment(Call(workspace, agent, None)).variables)}


def _reconcile(app: Any) -> dict[str, Any]:
    app.reconcile()
    return {}


def _reachable(app: Any, inverted: str, plant: bool = False) -> dict[str, Any]:
    """How many objects that Python can reach hold a value. It comes inverted, so that asking does not plant it."""
    needle = bytes(255 - byte for byte in bytes.fromhex(inverted))
    text = needle.decode()
    planted = [needle + b"."] if plant else []
    gc.unfreeze()  # what a start has taken out of the collector's sight
    gc.collect()
    seen = {id(needle), id(text)}
    count = 0
    for container in gc.get_objects():
        for held in gc.get_referents(container):
            if isinstance(held, bytes | bytearray | str) and id(held) not in seen:
                seen.add(id(held))
                count += (text if isinstance(held, str) else needle) in held
    del planted
    return {"count": count}


_DOES: dict[str, Callable[..., dict[str, Any]]] = {
    "workspace": _workspace,
    "connect": _connect,
    "publish": _publish,
    "event": _event,
    "send": _send,
    "stream": _stream,
    "over_http": _over_http,
    "environment": _environment,
    "reconcile": _reconcile,
    "reachable": _reachable,
}

if __name__ == "__main__":
    main()
