"""``broker dev``: the local stack, running until it is told to stop."""

from __future__ import annotations

import json
import os
import shlex
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from broker_core.dev.aws import CustomerAccount
from broker_core.dev.stack import CUSTOMER_ACCOUNT, PROGRAMS, LocalStack, webhook_environment
from broker_core.dev.wiring import app_on
from broker_core.signals import Stop

WORKSPACE, EXTERNAL_ID = "ws_local", "local-external-id-1"


def serve(env_file: Path | None, say: Callable[[str], None]) -> None:
    """Start the stack and its processes, connect a workspace to a customer's key, and wait until a signal ends it."""
    with (
        Stop(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as stop,
        LocalStack.start(**webhook_environment()) as stack,
        written(env_file, stack.environment),
    ):
        stack.run(*PROGRAMS)
        customer = stack.customer(EXTERNAL_ID)
        with app_on(stack) as app:
            app.store.put_workspace(WORKSPACE, "enterprise")
            found = app.byok.connect(WORKSPACE, customer.role_arn, customer.external_id, customer.key_arn)
            if not found.is_current:
                raise RuntimeError(f"the sample customer's key does not pass {[step.name for step in found.failed()]}")
        for line in _introduction(stack, customer, env_file):
            say(line)
        stop.wait()
        say("stopping")


def _introduction(stack: LocalStack, customer: CustomerAccount, env_file: Path | None) -> list[str]:
    shown = str(env_file) if env_file else "FILE (start with --env-file FILE)"
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "shell",
        "type": "secret.created",
        "subject": "sample",
        "data": {
            "workspaceId": WORKSPACE,
            "version": 1,
            "value": "sample-value-1",
            "injectionKind": "bearer",
            "targetHost": f"localhost:{stack.upstream.port}",
            "agentId": "agent-1",
        },
    }
    return [
        "the local stack is running; everything is on loopback, in temporary directories, and gone at the end",
        f"  PostgreSQL  {stack.postgres.url}",
        f"  queue       {stack.queue.url}",
        f"  claims      {stack.claims.url}",
        f"  AWS double  {stack.aws.endpoint}   (account {CUSTOMER_ACCOUNT}, secret key: test)",
        f"  upstream    {stack.upstream.url}   (it records; /echo answers with what it received)",
        f"  web         {stack.web_url}/api/v1   (OpenAPI: /api/openapi.json; `broker token` mints its tokens)",
        f"  notices     to {stack.environment['BROKER_WEBHOOK_URL']}   (`broker webhook listen` shows them)",
        f"  workspace   {WORKSPACE}, connected to {customer.key_arn}",
        "try it, in another shell:",
        f"  set -a; . {shown}; set +a",
        f"  echo {shlex.quote(json.dumps(event))} | broker event --wait 10",
        f"  broker inject --workspace {WORKSPACE} --agent agent-1 {stack.upstream.url}/echo",
        f"  TOKEN=$(broker token --workspace {WORKSPACE} --role owner)",
        f'  curl -H "Authorization: Bearer $TOKEN" {stack.web_url}/api/v1/byok/connection',
        "^C ends it",
    ]


@contextmanager
def written(path: Path | None, environment: Mapping[str, str]) -> Iterator[None]:
    """The settings as a file for shells, for as long as the stack runs. It replaces what is at the path: a file that
    others may read keeps its mode when it is written to, and a link leads elsewhere."""
    if path is None:
        yield
        return
    lines = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:  # mode 0600
        file.write("\n".join(lines) + "\n")
    os.replace(file.name, path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
