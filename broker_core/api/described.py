"""What OpenAPI says beside the models: tokens, errors with their headers and codes; the CloudEvent, which has its own
parser; ``/proxy``, which no model fits. Descriptions only: nothing here is what a request is checked by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from broker_core.api.bodies import Document
from broker_core.events import LARGEST_VERSION
from broker_core.injection import LARGEST_VALUE, Kind
from broker_core.model import EventType

ABOUT = """\
Keeps the credentials that AI agents need, and puts one on the single upstream request that needs it.

**Tokens.** Every request has a short-lived JWT of the platform's, `Authorization: Bearer …`. It speaks for one
workspace, and has scopes (services) or a role (people: `viewer`, `member`, `admin`, `owner`, each covers those before
it). The security requirement of each operation names the scope or the least role; any one of them suffices.

**Errors.** Every error of ours is a `Problem` with the header `Axiorank-Broker-Error: true`, which no upstream's
answer has. Beside those of an operation there are 404 `not_found` for a path that does not exist, 405
`method_not_allowed` with `Allow`, and 500 `internal`, a mistake of ours. More codes may come: treat one that you do not
know as its status says. After 429 and 503 come again when `Retry-After` seconds have passed. A secret that is created
or rotated is safe to send again with the same `Idempotency-Key`, an event with the same `source` and `id`.

**Lists** are `{items, nextCursor}`, oldest id first; the audit log is lines of JSON, and its next cursor a header.

The same paths without `/v1` are this version.
"""


class Problem(Document):
    """Every error of ours. ``fields`` says for each field what is wrong with it."""

    error: Annotated[str, Field(description="The code: see the answer's status. More may come.")]
    message: Annotated[str, Field(description="For people; never any part of what was sent.")]
    audit_id: Annotated[UUID | None, Field(description="The use in the audit log that says more.")] = None
    fields: dict[str, str] | None = None


#: names of the answers in the document, and which codes each can have
_ERRORS: Mapping[int, tuple[str, str]] = {
    400: ("NoJson", "`invalid_json`: the body is no JSON object, or not in UTF-8, or has a name twice."),
    401: ("Unauthorized", "`unauthorized`: no token, or not one that is accepted here."),
    403: (
        "Forbidden",
        (
            "`forbidden`: the token has not the scope or role. `plan_required`: it is not in the workspace's plan. For"
            " injections, of which nothing was sent then: `no_binding`: no secret fits caller and host."
            " `ambiguous_binding`: more than one does; name it. `host_mismatch`: the secret is for another host."
            " `destination_blocked`: https only, and no address that may not be reached. `handle_misplaced`: a"
            " `{{secret:NAME}}` where none may be, or the value itself. `method_refused`."
        ),
    ),
    404: ("NotFound", "`not_found`: it does not exist, for this workspace."),
    409: (
        "Conflict",
        (
            "`conflict`: it cannot be done as things are, or is being done. `name_taken`: a secret of this name exists."
            " `version_taken`: another event has this version."
        ),
    ),
    413: ("TooLarge", "`too_large`: the body, or a value in it."),
    422: ("Invalid", "`invalid`, with `fields`."),
    424: ("SecretUnavailable", "`secret_unavailable`: it cannot be decrypted now, and only its admins see why."),
    429: ("RateLimited", "`rate_limited`: more than this workspace may; come again after `Retry-After` seconds."),
    502: (
        "UpstreamFailed",
        (
            "`upstream_unreachable`; `upstream_tls`: its certificate or TLS is not acceptable; `response_withheld`: its"
            " answer cannot be shown to be free of the value. The request is never sent twice."
        ),
    ),
    503: (
        "Unavailable",
        (
            "`unavailable`: a part of ours is away; nothing was kept. `key_service_unavailable`: AWS did not answer in"
            " time. `audit_unavailable`: the use could not be written down, so nothing was released. Come again after"
            " `Retry-After` seconds."
        ),
    ),
    504: ("UpstreamTimeout", "`upstream_timeout`: the upstream did not answer in time. It is never asked twice."),
}
_MARK = {
    "description": "An error of the broker, and no upstream's.",
    "required": True,
    "schema": {"type": "string", "enum": ["true"]},
}
_RETRY_AFTER = {"description": "Seconds.", "required": True, "schema": {"type": "integer", "minimum": 1}}
_AUTHENTICATE = {"description": "The scheme.", "required": True, "schema": {"type": "string", "enum": ["Bearer"]}}
_PROBLEM = {"$ref": "#/components/schemas/Problem"}
#: statuses that every endpoint with a token can answer
_ALWAYS = (401, 403, 429, 503)


def problems(*statuses: int, beside_json: bool = False) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of an endpoint: these error statuses, and those that every endpoint has. ``beside_json``: of one
    whose good answers are no JSON document; FastAPI would say of its errors that they are none either."""
    body: dict[str, Any] = {"model": Problem}
    if beside_json:
        body = {"content": {"application/json": {"schema": _PROBLEM}}}
    return {status: {**_problem(status), **body} for status in sorted({*statuses, *_ALWAYS})}


def component_of(status: str) -> str:
    """The name that an error's answer has in the document."""
    return _ERRORS[int(status)][0]


def _problem(status: int) -> dict[str, Any]:
    headers = {"Axiorank-Broker-Error": _MARK}
    if status in (429, 503):
        headers["Retry-After"] = _RETRY_AFTER
    if status == 401:
        headers["WWW-Authenticate"] = _AUTHENTICATE
    return {"description": _ERRORS[status][1], "headers": headers}


_TEXT = {"type": "string"}
_ID = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
#: a CloudEvents 1.0 object as ``broker_core.events`` reads it: said here for readers, checked there
CLOUD_EVENT: Mapping[str, Any] = {
    "title": "CloudEvent",
    "type": "object",
    "description": "A CloudEvents 1.0 object. `secret.created` and `secret.rotated` bring a value, in `value` or in"
    " `valueBase64`; the injection fields change all together, and a deletion has none of these.",
    "required": ["specversion", "id", "source", "type", "subject", "data"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "minLength": 1, "maxLength": 256},
        "source": {"type": "string", "minLength": 1, "maxLength": 256},
        "type": {"type": "string", "enum": [kind.value for kind in EventType]},
        "time": {"type": "string", "format": "date-time"},
        "subject": {**_TEXT, "minLength": 1, "maxLength": 128, "description": "The secret's name."},
        "data": {
            "type": "object",
            "required": ["workspaceId", "version"],
            "additionalProperties": False,
            "properties": {
                "workspaceId": {**_ID, "description": "The token's workspace."},
                "version": {"type": "integer", "minimum": 1, "maximum": LARGEST_VERSION},
                "value": {
                    **_TEXT,
                    "format": "password",
                    "writeOnly": True,
                    "minLength": 1,
                    "maxLength": LARGEST_VALUE,
                    "description": "Text, at most 64 KiB in UTF-8.",
                },
                "valueBase64": {
                    **_TEXT,
                    "format": "password",
                    "writeOnly": True,
                    "contentEncoding": "base64",
                    "description": "The same for bytes.",
                },
                "injectionKind": {"type": "string", "enum": [kind.value for kind in Kind]},
                "bindingKey": _TEXT,
                "targetHost": _TEXT,
                "mcpServerId": _ID,
                "agentId": _ID,
                "rotationPolicy": {**_TEXT, "pattern": "^[1-9][0-9]{0,3}d$"},
            },
        },
    },
}

# ---------------------------------------------------------------- /proxy

_PROXY_TOKEN = "proxyToken"  # noqa: S105 - its name in the document
PROXY_SCHEME: Mapping[str, Any] = {
    _PROXY_TOKEN: {
        "type": "apiKey",
        "in": "header",
        "name": "Axiorank-Authorization",
        "description": "`Bearer` and the token, where `Authorization` is meant for the upstream.",
    }
}
_AUDIT_ID = {
    "Axiorank-Audit-Id": {
        "description": "The use in the audit log. Only an upstream's answer has it.",
        "schema": {"type": "string", "format": "uuid"},
    }
}
_ANYTHING: Mapping[str, Any] = {"*/*": {}}
_METHODS = ("get", "put", "post", "delete", "head", "patch")
_WITH_BODY = ("put", "post", "delete", "patch")
_PROXY_ERRORS = (400, 401, 403, 413, 422, 424, 429, 502, 503, 504)


def proxy_path() -> dict[str, Any]:
    """The path item of ``/proxy``: every method that an upstream may be asked with, and any body."""
    return {"parameters": _PROXY_HEADERS, **{method: _proxied(method) for method in _METHODS}}


def _proxied(method: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": ["inject"],
        "summary": f"Proxy {method.upper()}",
        "description": "Send this request, with the caller's secret on it, to `Axiorank-Upstream-Url`; the answer is"
        " streamed and redacted. Every other header and the body go on as they are; what begins with `Axiorank-` and"
        " whichever header held the token do not. An error of ours has `Axiorank-Broker-Error`, an answer of the"
        " upstream, whatever its status, `Axiorank-Audit-Id`; one that breaks off ends without its end.",
        "operationId": f"proxy{method.capitalize()}",
        "security": [{"token": ["broker:inject"]}, {_PROXY_TOKEN: ["broker:inject"]}],
        "responses": {
            **{str(status): {"$ref": f"#/components/responses/{_both(status)}"} for status in _PROXY_ERRORS},
            "default": {
                "description": "The upstream's answer, redacted.",
                "headers": _AUDIT_ID,
                "content": _ANYTHING,
            },
        },
    }
    if method in _WITH_BODY:
        operation["requestBody"] = {"description": "What the upstream gets.", "content": _ANYTHING}
    return operation


def proxy_answers() -> dict[str, Any]:
    """What ``proxy_path`` refers to."""
    return {_both(status): _ours_or_theirs(status) for status in _PROXY_ERRORS}


def _both(status: int) -> str:
    return f"{_ERRORS[status][0]}OrUpstream"


def _ours_or_theirs(status: int) -> dict[str, Any]:
    described = _problem(status)
    headers = {name: {**each, "required": False} for name, each in described["headers"].items()}
    return {
        "description": f"{described['description']} Or the upstream's own answer of this status.",
        "headers": {**headers, **_AUDIT_ID},
        "content": {"application/json": {"schema": {"anyOf": [_PROBLEM, {}]}}, **_ANYTHING},
    }


def _proxy_header(name: str, description: str, *, required: bool = False, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": required,
        "description": description,
        "schema": {**_TEXT, **schema},
    }


_PROXY_HEADERS = [
    _proxy_header("Axiorank-Upstream-Url", "Where the request goes: https, absolute.", required=True, format="uri"),
    _proxy_header("Axiorank-Agent-Id", "Who asks: this, the next, or both.", pattern=_ID["pattern"]),
    _proxy_header("Axiorank-Mcp-Server-Id", "The MCP server that asks.", pattern=_ID["pattern"]),
    _proxy_header("Axiorank-Secret", "Which secret, where several would fit."),
]
