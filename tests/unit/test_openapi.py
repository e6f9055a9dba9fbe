"""The OpenAPI document that is checked in is the application's, is valid, and describes every error."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from broker_core import errors
from broker_core.api import described, document
from broker_core.api.problems import answer_for

ROOT = Path(__file__).parents[2]
CHECKED_IN = ROOT / "docs" / "openapi.json"
HTTP = {"get", "put", "post", "delete", "head", "patch"}
#: raised by commands and start-up, never by what serves a request
NOT_SERVED = ("broker_core/cli/", "broker_core/dev/", "broker_core/notice_signature.py")


@pytest.fixture(scope="module")
def described_api() -> dict[str, Any]:
    """The document that is checked in."""
    found: dict[str, Any] = json.loads(CHECKED_IN.read_text(encoding="utf-8"))
    return found


def operations(api: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method, operation."""
    for path, item in api["paths"].items():
        yield from ((path, method, each) for method, each in item.items() if method in HTTP)


def test_it_is_the_applications() -> None:
    """A change of the HTTP surface comes with its new document."""
    same = CHECKED_IN.read_text(encoding="utf-8") == document.text()
    assert same, "the HTTP surface has changed: run `make openapi`, look at the difference, and check it in"


def test_it_is_valid(described_api: dict[str, Any]) -> None:
    """It is OpenAPI 3.1, with every reference, default and path parameter in order."""
    assert described_api["openapi"].startswith("3.1.")
    assert [each.message for each in OpenAPIV31SpecValidator(described_api).iter_errors()] == []


def test_operation_ids(described_api: dict[str, Any]) -> None:
    """Every operation has a name of its own that is a method's name in most languages."""
    ids = [each["operationId"] for _, _, each in operations(described_api)]
    assert len(set(ids)) == len(ids)
    assert [each for each in ids if not (each.isalpha() and each[0].islower() and len(each) <= 32)] == []


def test_tokens(described_api: dict[str, Any]) -> None:
    """Every operation takes a token, and says which scope or role it needs."""
    names = {"viewer", "member", "admin", "owner"}
    names |= {f"broker:{scope}" for scope in ("events", "inject", "environment", "platform")}
    for _, _, operation in operations(described_api):
        assert operation["security"]
        for requirement in operation["security"]:
            ((scheme, demands),) = requirement.items()
            assert scheme in described_api["components"]["securitySchemes"]
            assert set(demands) <= names
            assert demands


def test_errors_have_their_headers(described_api: dict[str, Any]) -> None:
    """Of each operation every error is described once, with the header that marks it and the one that says when to
    come again."""
    answers = described_api["components"]["responses"]
    for path, _, operation in operations(described_api):
        refused = {status: each for status, each in operation["responses"].items() if status[0] in "45"}
        assert {"401", "403", "429", "503"} <= refused.keys()
        for status, each in refused.items():
            headers = answers[each["$ref"].rpartition("/")[2]]["headers"]
            assert "Axiorank-Broker-Error" in headers
            assert ("Retry-After" in headers) == (status in ("429", "503"))
            assert ("Axiorank-Audit-Id" in headers) == path.endswith("/proxy")


def test_further_headers(described_api: dict[str, Any]) -> None:
    """The headers that are no error's are described: of idempotency, of the audit log's pages, of the proxy."""
    text = json.dumps(described_api)
    for name in ("Idempotency-Key", "Idempotent-Replayed", "x-axiorank-next-cursor", "Axiorank-Authorization"):
        assert f'"{name}"' in text


def test_every_code_is_described() -> None:
    """Each code that the program raises is described with the status that it is answered with."""
    raised = set(_classes()) | set(_literals())
    assert len(raised) > 20
    missing = {
        (status, body["error"])
        for error in raised
        for status, body, _ in [answer_for(_instance(*error))]
        if status != 500 and body["error"] != "client_gone" and not _is_described(status, body["error"])
    }
    assert missing == set()


def _is_described(status: int, code: str) -> bool:
    return status in described._ERRORS and f"`{code}`" in described._ERRORS[status][1]


def _instance(kind: str, code: str | None) -> errors.BrokerError:
    made: errors.BrokerError = getattr(errors, kind).__new__(getattr(errors, kind))
    made.message, made.reason = "", code or made.code
    made.__dict__.update(fields={}, retry_after=1)
    return made


def _classes() -> Iterator[tuple[str, None]]:
    """Every class that is raised as it is."""
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.BrokerError) and kind not in _ROOTS:
            yield name, None


#: two that are never raised as they are, and one that stops a process from starting
_ROOTS = (errors.BrokerError, errors.Refused, errors.ConfigurationError)


def _literals() -> Iterator[tuple[str, str]]:
    """Every code that is given where an error is made."""
    for path in sorted((ROOT / "broker_core").rglob("*.py")):
        if str(path.relative_to(ROOT)).startswith(NOT_SERVED):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and hasattr(errors, node.func.id):
                for given in node.keywords:
                    if given.arg == "code" and isinstance(given.value, ast.Constant):
                        yield node.func.id, str(given.value.value)
