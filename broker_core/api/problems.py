"""How errors are answered: one JSON shape, with a header that tells them from an upstream's answers.

The promise (INV-1): an answer holds a code, words of ours and names of fields. Never what was sent, and never the text
of a foreign exception.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from broker_core import errors, telemetry
from broker_core.api.bodies import Document, Wrong

#: tells an error of ours from an answer of an upstream, which never has it
MARK = "Axiorank-Broker-Error"
#: where the code of an error's answer stands in the ASGI scope, for the log line
CODE = "axiorank.code"
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
#: wrong fields that an answer names: a caller can make up any number of them
MOST_FIELDS = 20
#: seconds; parts that are away come back, and KMS throttles by the second
RETRY_AFTER = 2

Answer = tuple[int, dict[str, Any], dict[str, str]]


def answer_for(error: errors.BrokerError) -> Answer:
    """Status, body and headers for an error of ours."""
    status, code, message, headers = _meaning(error)
    body: dict[str, Any] = {"error": code, "message": message}
    if (audit_id := getattr(error, "audit_id", None)) is not None:
        body["auditId"] = str(audit_id)
    if isinstance(error, errors.Invalid):
        body["fields"] = dict(error.fields)
    return status, body, {MARK: "true", **headers}


def _meaning(error: errors.BrokerError) -> tuple[int, str, str, dict[str, str]]:
    status, headers = 500, {}
    later = {"Retry-After": str(RETRY_AFTER)}
    match error:
        case errors.Unauthorized():
            # RFC 9110, 15.5.2: a 401 names the scheme
            status, headers = 401, {"WWW-Authenticate": "Bearer"}
        case errors.Invalid():
            status = {"invalid_json": 400, "too_large": 413}.get(error.reason, 422)
        case errors.NotFound():
            status = 404
        case errors.Conflict():
            status = 409
        case errors.RateLimited():
            status, headers = 429, {"Retry-After": str(error.retry_after)}
        case errors.Refused():
            status = 403
        case errors.Transient():
            return 503, "key_service_unavailable", "the key service did not answer in time: try again", later
        case errors.KeyServiceError():
            # an agent learns no more; the admin sees the state
            return 424, "secret_unavailable", "the secret cannot be decrypted now: ask an administrator", {}
        case errors.Unavailable():
            status, headers = 503, later
        case errors.UpstreamError():
            status = 504 if error.reason == "upstream_timeout" else 502
        case errors.ConfigurationError():
            telemetry.log().error("http.unconfigured", exception=telemetry.shape_of(error))
            return 503, "unavailable", "this installation lacks a setting for that: tell its operator", later
        case _:
            return 500, "internal", "a mistake of ours; nothing is known about its cause here", {}
    return status, error.reason, error.message, headers


def install(api: FastAPI) -> None:
    """Answer every error in that shape."""
    api.add_exception_handler(errors.BrokerError, _broker_error)
    api.add_exception_handler(RequestValidationError, _validation_error)
    api.add_exception_handler(HTTPException, _http_error)


def response_for(error: errors.BrokerError, scope: Scope) -> Response:
    """The answer as a response; its code is noted in the request's scope."""
    return _response(scope, *answer_for(error))


def _response(scope: Scope, status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    scope[CODE] = body["error"]
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Response(text, status, dict(headers), media_type="application/json")


async def _broker_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.BrokerError)  # noqa: S101 - registered for it
    return response_for(error, request.scope)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    return response_for(errors.Invalid(_fields(error.errors())), request.scope)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    status, headers = error.status_code, {MARK: "true"}
    code, message = {
        404: ("not_found", "there is nothing at this path"),
        405: ("method_not_allowed", "this path has other methods: see Allow"),
        413: ("too_large", "larger than this path takes"),
    }.get(status, ("invalid", "the request cannot be read"))
    if status == 405:
        headers["Allow"] = ", ".join(_methods(request))
    return _response(request.scope, status, {"error": code, "message": message}, headers)


def _methods(request: Request) -> list[str]:
    """Every method that the path has: each may be a route of its own."""
    routes = request.app.router.routes
    found = [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return sorted({*found, "HEAD"}) if "GET" in found else found


# ---------------------------------------------------------------- fields


def _fields(problems: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {_place(problem): _words(problem) for problem in problems[:MOST_FIELDS]}


def _place(problem: Mapping[str, Any]) -> str:
    """Where: names of ours and positions. A name that the caller made up can be the value itself, and is not shown."""
    source, *path = problem["loc"]
    known = _names() if source == "body" else set(path)
    parts = [str(part) if isinstance(part, int) or part in known else "(another field)" for part in path]
    return ".".join(parts) or str(source)


def _names() -> set[str]:
    names: set[str] = set()
    models: list[type[Document]] = [Document]
    while models:
        model = models.pop()
        models += model.__subclasses__()
        names |= {field.alias or name for name, field in model.model_fields.items()}
    return names


def _words(problem: Mapping[str, Any]) -> str:
    """What to do, in words of ours: the library's can quote the input (``uuid_parsing`` does)."""
    kind, context = str(problem["type"]), problem.get("ctx", {})
    if isinstance(context.get("error"), Wrong):
        return str(context["error"])
    if kind in ("enum", "literal_error"):
        return f"give one of {context['expected']}"
    for name, words in (("min_length", "at least {} long"), ("max_length", "at most {} long")):
        if name in context:
            return words.format(context[name])
    for name in ("ge", "gt", "le", "lt"):
        if name in context:
            return {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}[name].format(
                context[name]
            )
    if "pattern" in context:
        return f"does not match {context['pattern']}"
    return _KINDS.get(kind) or _KINDS.get(kind.rpartition("_")[0]) or "not acceptable"


_KINDS: Mapping[str, str] = {
    "missing": "is required",
    "extra_forbidden": "is no field of this request",
    "string": "give a text",
    "int": "give a whole number",
    "int_from": "give a whole number",
    "float": "give a number",
    "bool": "give true or false",
    "list": "give a list",
    "dict": "give an object",
    "model": "give an object",
    "model_attributes": "give an object",
    "uuid": "give a UUID",
    "datetime": "give a time as RFC 3339 writes it",
    "datetime_from_date": "give a time as RFC 3339 writes it",
    "timezone": "give a time with its offset",
}
