"""``/inject``: one upstream request with a secret on it, buffered. ``/inject/environment``: what a stdio server gets.

Headers are lists of ``[name, value]`` pairs both ways, since some come more than once (``Set-Cookie``) and must not be
joined; a request may give an object instead. A body is text where it is UTF-8, else base64: ``bodyEncoding`` says.
"""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import Field

from broker_core import telemetry
from broker_core.api.bodies import Document, StrictRoute
from broker_core.api.callers import Caller, allow
from broker_core.api.described import problems
from broker_core.api.parameters import OnSurface
from broker_core.api.schemas import SubjectId
from broker_core.errors import Invalid
from broker_core.inject.call import BrokeredEnvironment, BrokeredResponse, Call

router = APIRouter(route_class=StrictRoute, tags=["inject"])

_Pair = Annotated[list[str], Field(min_length=2, max_length=2)]


class Encoding(StrEnum):
    """How a body stands in a JSON document."""

    UTF8 = "utf-8"
    BASE64 = "base64"


class UpstreamRequest(Document):
    """The request as the agent made it, without any credential. ``{{secret:NAME}}`` in one header or in one string of a
    JSON body selects a secret and is removed."""

    method: Annotated[str, Field(description="GET, HEAD, POST, PUT, PATCH or DELETE")] = "GET"
    url: Annotated[str, Field(description="https, absolute, percent-encoded")]
    headers: Annotated[list[_Pair] | dict[str, str], Field(description="[name, value] pairs, or an object")] = Field(
        default_factory=list
    )
    body: str | None = None
    body_encoding: Encoding = Encoding.UTF8

    def pairs(self) -> list[tuple[str, str]]:
        """The headers, in order."""
        if isinstance(self.headers, dict):
            return list(self.headers.items())
        return [(name, text) for name, text in self.headers]

    def content(self) -> bytes:
        """The body. Raises Invalid."""
        text = self.body or ""
        if self.body_encoding is Encoding.UTF8:
            return text.encode("utf-8")
        with suppress(ValueError, binascii.Error):
            return base64.b64decode(text, validate=True)
        raise Invalid({"request.body": "not base64, as bodyEncoding says"})


class InjectRequest(Document):
    """Who asks (``agentId``, ``mcpServerId`` or both), and for what. ``secret`` names one, where several would fit."""

    agent_id: SubjectId | None = None
    mcp_server_id: SubjectId | None = None
    secret: str | None = None
    request: UpstreamRequest


class EnvironmentRequest(Document):
    """Who asks: ``agentId``, ``mcpServerId`` or both."""

    agent_id: SubjectId | None = None
    mcp_server_id: SubjectId | None = None


class InjectAnswer(Document):
    """The upstream's answer, redacted, whatever its status; redirects are not followed."""

    status: int
    headers: list[_Pair]
    body: str
    body_encoding: Encoding
    audit_id: UUID

    @classmethod
    def of(cls, answer: BrokeredResponse) -> InjectAnswer:
        """From the use case's."""
        try:
            body, encoding = answer.body.decode("utf-8"), Encoding.UTF8
        except UnicodeDecodeError:
            body, encoding = base64.b64encode(answer.body).decode("ascii"), Encoding.BASE64
        return cls(
            status=answer.status,
            headers=[[name, text] for name, text in answer.headers],
            body=body,
            body_encoding=encoding,
            audit_id=answer.audit_id,
        )


class EnvironmentAnswer(Document):
    """Variables for one stdio server, and the audit row of each. They stay with that process until it ends."""

    environment: dict[str, str]
    audit_ids: list[UUID]

    @classmethod
    def of(cls, answer: BrokeredEnvironment) -> EnvironmentAnswer:
        """From the use case's."""
        return cls(environment=dict(answer.variables), audit_ids=list(answer.audit_ids))


@router.post("/inject", responses=problems(400, 413, 422, 424, 502, 504))
def inject(
    caller: Annotated[Caller, Depends(allow(scope="broker:inject"))], surface: OnSurface, body: InjectRequest
) -> InjectAnswer:
    """Send one request with the caller's secret on it, and answer with what came back."""
    content = body.request.content()
    surface.rates.room(caller.workspace_id)
    call = Call(
        caller.workspace_id,
        body.agent_id,
        body.mcp_server_id,
        body.request.method,
        body.request.url,
        body.request.pairs(),
        content,
        secret=body.secret,
        traceparent=telemetry.traceparent(),
    )
    answer = surface.app.injector.send(call)
    surface.rates.passed(caller.workspace_id, len(content) + len(answer.body))
    return InjectAnswer.of(answer)


@router.post("/inject/environment", responses=problems(400, 413, 422, 424))
def inject_environment(
    caller: Annotated[Caller, Depends(allow(scope="broker:environment"))], surface: OnSurface, body: EnvironmentRequest
) -> EnvironmentAnswer:
    """Every variable that is bound to the caller, all or none; empty where none is bound."""
    call = Call(caller.workspace_id, body.agent_id, body.mcp_server_id, traceparent=telemetry.traceparent())
    return EnvironmentAnswer.of(surface.app.injector.environment(call))
