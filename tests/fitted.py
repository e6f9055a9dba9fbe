"""Cases of schemathesis, made to fit a live workspace: what it made up stays wherever anything may stand.

A made-up id leads to a 404, a made-up host to a 422: what lies behind them would never be asked. Only cases that keep
to the document are changed, and none is made anything but legal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from broker_core.dev.aws import CustomerAccount
from tests.live import AGENT, Live


@dataclass
class Workspace:
    """A workspace with a secret, a variable, an event that waits; and a connection where ``customer`` is given."""

    live: Live
    value: str
    ids: Mapping[str, str]
    customer: CustomerAccount | None

    def fit(self, case: Any) -> None:
        """Change a case."""
        path = case.path.removeprefix("/api/v1")
        if "id" in case.path_parameters and (found := self._id(path)) is not None:
            case.path_parameters = {**case.path_parameters, "id": found}
        change = _CHANGES.get(case.operation.definition.raw["operationId"])
        if change is not None and isinstance(case.body, dict):
            case.body = change(self, case.body)
        if path == "/proxy":
            case.headers = type(case.headers)({**case.headers, **self._proxied()})

    def _id(self, path: str) -> str | None:
        return next((found for prefix, found in self.ids.items() if path.startswith(prefix)), None)

    def _proxied(self) -> dict[str, str]:
        url = f"https://{self.live.target}/echo"
        return {"Axiorank-Upstream-Url": url, "Axiorank-Agent-Id": AGENT, "Axiorank-Secret": "github"}

    @property
    def _fields(self) -> dict[str, Any]:
        """Where the sample upstream gets a value."""
        return {
            "injectionKind": "bearer",
            "bindingKey": None,
            "targetHost": self.live.target,
            "agentId": AGENT,
            "mcpServerId": None,
        }

    def _event(self, body: dict[str, Any]) -> dict[str, Any]:
        made = self.live.event(f"secret-{uuid4().hex}", value=self.value)
        kept: dict[str, Any] = {name: body[name] for name in ("id", "time") if name in body}
        return {**made, **kept, "id": f"{uuid4().hex}{body['id']}"[:256]}

    def _created(self, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, **self._fields, "secret": self.value}

    def _injected(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = {**body["request"], "url": f"https://{self.live.target}/echo", "method": "POST", "headers": []}
        asked = {name: each for name, each in asked.items() if name != "bodyEncoding"}
        return {"agentId": AGENT, "secret": "github", "request": asked}

    def _environment(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"agentId": AGENT}

    def _connected(self, body: dict[str, Any]) -> dict[str, Any]:
        assert self.customer is not None
        return {
            "roleArn": self.customer.role_arn,
            "externalId": self.customer.external_id,
            "keyArn": self.customer.key_arn,
        }


_CHANGES: Mapping[str, Callable[[Workspace, dict[str, Any]], dict[str, Any]]] = {
    "acceptEvent": Workspace._event,
    "createSecret": Workspace._created,
    "rotateSecret": Workspace._created,
    "inject": Workspace._injected,
    "injectEnvironment": Workspace._environment,
    "connect": Workspace._connected,
}
