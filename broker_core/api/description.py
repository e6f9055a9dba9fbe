"""The application's OpenAPI document: what FastAPI makes of the routes, and what it cannot say.

Names for generators, who may call what, one definition of each error, ``/proxy``. The document that is checked in
(docs/openapi.json, by ``document``) and the one that is served are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic.alias_generators import to_camel

from broker_core.api import described
from broker_core.api.callers import Allow
from broker_core.api.passage import PROXY

_HTTP = frozenset({"get", "put", "post", "delete", "head", "patch", "options"})


def operation_id(route: APIRoute) -> str:
    """What generated clients call it: ``createSecret``, ``getCoverage``. From the endpoint's name; one that reads is
    named after what it gives."""
    name = route.name
    if route.methods == {"GET"} and not name.startswith("list_"):
        name = f"get_{name}"
    return to_camel(name)


class Described(FastAPI):
    """An application that describes itself."""

    def openapi(self) -> dict[str, Any]:
        """The document."""
        if self.openapi_schema is None:
            demands = {operation_id(route): _demands(route) for route in _api_routes(self.router.routes)}
            self.openapi_schema = _completed(super().openapi(), demands)
        return self.openapi_schema


def _api_routes(routes: Any) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif router := getattr(route, "original_router", None):  # one that was included
            yield from _api_routes(router.routes)


def _demands(route: APIRoute) -> list[dict[str, list[str]]]:
    """Security requirements: any one of them suffices (OpenAPI 3.1, 4.8.30: for a bearer, the roles)."""
    gates = [each.call for each in route.dependant.dependencies if isinstance(each.call, Allow)]
    return [{"token": [str(each)]} for gate in gates for each in (gate.scope, gate.role) if each is not None]


def _completed(document: dict[str, Any], demands: Mapping[str, list[dict[str, list[str]]]]) -> dict[str, Any]:
    components = document["components"]
    components["schemas"]["CloudEvent"] = described.CLOUD_EVENT
    components["securitySchemes"].update(described.PROXY_SCHEME)
    answers: dict[str, Any] = {}
    for operation in _operations(document):
        operation["security"] = demands[operation["operationId"]]
        operation["responses"] = {
            status: _once(status, answer, answers) for status, answer in operation["responses"].items()
        }
    components["responses"] = dict(sorted({**answers, **described.proxy_answers()}.items()))
    components["schemas"] = dict(sorted(components["schemas"].items()))
    document["paths"][PROXY] = described.proxy_path()
    whole: dict[str, Any] = _whole_numbers(document)
    return whole


def _operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for item in document["paths"].values():
        yield from (operation for method, operation in item.items() if method in _HTTP)


def _once(status: str, answer: Any, answers: dict[str, Any]) -> Any:
    """An error's answer that is the same wherever it is: a reference to it."""
    if int(status) < 400:
        return answer
    name = described.component_of(status)
    return {"$ref": f"#/components/responses/{name}"} if answers.setdefault(name, answer) == answer else answer


def _whole_numbers(part: Any) -> Any:
    """FastAPI's model of a schema makes a float of every bound."""
    if isinstance(part, Mapping):
        return {name: _whole_numbers(each) for name, each in part.items()}
    if isinstance(part, list):
        return [_whole_numbers(each) for each in part]
    return int(part) if isinstance(part, float) and part.is_integer() else part
