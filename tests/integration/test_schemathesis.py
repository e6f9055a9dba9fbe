"""The HTTP surface under schemathesis: what its document allows and what it does not, 5,000 requests of a fixed seed.

Every check of schemathesis is on, and one of ours: no answer holds any form of a value that is stored or was just
sent. The requests are made in this process, on the real parts; a fifth of them has no token, or none that counts. Half
of those that keep to the document are made to fit the workspace (its ids, its upstream): the others end at a look-up.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from operator import or_
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.python import asgi
from structlog.testing import capture_logs

from tests.drawn import INDEPENDENT
from tests.fitted import Workspace
from tests.live import AGENT, Live
from tests.sentinel import Search, text_sentinel
from tests.web import Web, web_on

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"
KEY = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
SEED = 20_261_124
#: requests in all; of them those that schemathesis makes of each schema's every bound, whatever one wants (1,862 when
#: this was written; a test adds them up)
WANTED, AT_BOUNDS = 5_000, 1_860
OPERATIONS = [
    operation["operationId"]
    for item in json.loads(DOCUMENT.read_text(encoding="utf-8"))["paths"].values()
    for method, operation in item.items()
    if method != "parameters"
]
SHARE = -(-(WANTED - AT_BOUNDS) // len(OPERATIONS)) + 2
#: what asks the AWS double a dozen times each, and is always the same question
COSTLY = {"verifyConnection": 10}

#: a request can keep to the document and yet break a rule that no schema says: what the fields mean together, that an
#: ARN or a host is one, that a cursor is one of ours
MORE_RULES = (
    "acceptEvent createSecret rotateSecret inject injectEnvironment connect getSetup getCoverage"
    " proxyGet proxyPut proxyPost proxyDelete proxyHead proxyPatch"
).split()
POSITIVE = ["2xx", "3xx", "401", "403", "404", "409", "424", "429"]
#: 413 is how a body that is too large is refused
NEGATIVE = ["400", "401", "403", "404", "405", "409", "413", "422", "429"]

CONFIG: dict[str, Any] = {
    "seed": SEED,
    "generation": {"max-examples": SHARE, "database": "none", "no-shrink": True},
    "checks": {
        "positive_data_acceptance": {"expected-statuses": POSITIVE},
        "negative_data_rejection": {"expected-statuses": NEGATIVE},
    },
    "phases": {
        # what it would learn from answers depends on which tests ran before
        "fuzzing": {"extra-data-sources": {"responses": False}, "error-feedback": {"enabled": False}},
        "stateful": {"enabled": False},
    },
    "operations": [
        {
            "include-operation-id": MORE_RULES,
            "checks": {"positive_data_acceptance": {"expected-statuses": [*POSITIVE, "422"]}},
        },
        *({"include-operation-id": name, "generation": {"max-examples": most}} for name, most in COSTLY.items()),
    ],
}


class Served:
    """The application of the test that runs: schemathesis is told once, when tests are collected, whom it asks."""

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError  # nothing to open or close: `web_on` does
        await self.app(scope, receive, send)


def remembered(look_up: Callable[..., Any]) -> Callable[..., Any]:
    """What the configuration says of an operation: else it is put together anew several times for each request."""
    found: dict[tuple[str | None, str | None], Any] = {}

    @wraps(look_up)
    def look_up_once(*, operation: Any = None, **phase: str | None) -> Any:
        key = operation and operation.label, phase.get("phase")
        if key not in found:
            found[key] = look_up(operation=operation, **phase)
        return found[key]

    return look_up_once


SERVED = Served()
schema = schemathesis.openapi.from_path(DOCUMENT, config=SchemathesisConfig.from_dict(CONFIG))
schema.app = SERVED
for look_up in ("generation_for", "phases_for", "checks_config_for"):
    setattr(schema.config, look_up, remembered(getattr(schema.config, look_up)))


@dataclass
class Target:
    """The surface, and what was asked of it."""

    web: Web
    workspace: Workspace
    check: Any
    count: int = 0
    operation: str = ""
    _tokens: dict[str, str] = field(default_factory=dict, repr=False)

    def headers(self, case: Any) -> dict[str, str]:
        """A token that may do this. schemathesis replaces it where it means to; where it broke a request by leaving it
        out alone, it stays out."""
        if _broken_by_no_token(case):
            return {}
        (demand,) = case.operation.definition.raw["security"][0].values()
        if demand[0] not in self._tokens:
            claim = "scope" if ":" in demand[0] else "role"
            self._tokens[demand[0]] = self.web.token(**{claim: demand[0]})
        return {"Authorization": f"Bearer {self._tokens[demand[0]]}"}


def no_value(search: Search) -> Any:
    """A check of schemathesis: nothing of what is searched for stands in the answer's headers or body."""

    def holds_no_value(_context: Any, response: Any, _case: Any) -> None:
        head = "\n".join(f"{name}: {text}" for name, texts in response.headers.items() for text in texts)
        assert search("the answer", head.encode() + b"\n" + response.content) == []

    return holds_no_value


@pytest.fixture
def one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """One client for all requests of a test: schemathesis makes one for each, which looks for proxies of ours."""
    client = asgi.get_client(SERVED)
    client.trust_env = False

    def without_cookies(*_of: Any, **_options: Any) -> asgi.ASGIClient:
        client.cookies.clear()
        return client

    monkeypatch.setattr(asgi, "get_client", without_cookies)


@pytest.fixture
def target(live_with: Any, way_out: Any, request: pytest.FixtureRequest, one_client: None) -> Iterator[Target]:
    """One for each operation."""
    limits = {f"BROKER_RATE_{each}_PER_MINUTE": "1000000" for each in ("INJECT", "EVENTS", "OTHER")}
    live: Live = live_with({**limits, "BROKER_SIGNING_KEY": KEY}, upstream=way_out)
    sentinel = text_sentinel("stored")
    workspace = furnished(live, sentinel.value.decode(), with_key="/byok" in request.node.name)
    with web_on(live) as web, capture_logs() as logs:
        SERVED.app = web.api
        search = Search([sentinel])
        target = Target(web, workspace, no_value(search))
        yield target
    assert target.count >= COSTLY.get(target.operation, SHARE)
    assert len(logs) >= target.count
    assert search("the log", json.dumps(logs, default=str).encode()) == []


def furnished(live: Live, value: str, *, with_key: bool) -> Workspace:
    """A workspace to ask about."""
    customer = live.customer() if with_key else None
    ids = {"/workspaces/": live.workspace}
    if customer:
        ids["/byok/connections/"] = str(live.connect(customer).id)
    live.store(value=value)
    live.store("variable", value="plain-text", injectionKind="stdio_env", bindingKey="PLAIN", agentId=AGENT)
    ids["/broker-secrets/"] = str(live.candidate().secret_id)
    ids["/events/"] = str(live.publish("waits", value=value).id)
    if customer:
        ids["/byok/lockout-proof/"] = str(live.app.proofs.start(live.workspace, None, asked_by="tests").id)
    return Workspace(live, value, ids, customer)


@schema.parametrize()
@settings(deadline=None, suppress_health_check=list(HealthCheck), backend=INDEPENDENT)
def test_operation(case: Any, target: Target) -> None:
    """No 5xx, no answer that the document does not describe, nothing let in that it does not allow, no value."""
    target.count += 1
    target.operation = case.operation.definition.raw["operationId"]
    if target.count % 2 and not _breaks_the_document(case):
        target.workspace.fit(case)
    case.call_and_validate(headers=target.headers(case), additional_checks=[target.check])


def _breaks_the_document(case: Any) -> bool:
    return case.meta is None or case.meta.generation.mode.is_negative


def _broken_by_no_token(case: Any) -> bool:
    """Whether nothing else is wrong with it: a name in a query that nobody knows is no reason to refuse."""
    done = getattr(case.meta.phase.data, "mutations", ()) if case.meta else ()
    of_token = [each.keywords == ("required",) and each.original_value == ["Authorization"] for each in done]
    harmless = [each.keywords == ("additionalProperties",) for each in done]
    return any(of_token) and all(map(or_, of_token, harmless))


def test_so_many_requests_are_made(request: pytest.FixtureRequest) -> None:
    """There are enough of them, where every operation is asked."""
    found = [item for item in request.session.items if item.name.startswith("test_operation[")]
    at_bounds = sum(len(item.obj.hypothesis_explicit_examples) for item in found)  # type: ignore[attr-defined]
    drawn = sum(COSTLY.get(name, SHARE) for name in OPERATIONS)
    assert len(found) < len(OPERATIONS) or at_bounds + drawn >= WANTED


def test_the_check_sees_a_value() -> None:
    """An answer with the value in any form, in a header or in the body, does not pass."""
    sentinel = text_sentinel("stored")
    value = sentinel.value.decode()
    for headers, content in (
        ({}, json.dumps({"a": value}).encode()),
        ({}, base64.b64encode(b"a:" + sentinel.value)),
        ({"link": [f"<https://a/{quote(value)}>"]}, b""),
    ):
        with pytest.raises(AssertionError):
            no_value(Search([sentinel]))(None, SimpleNamespace(headers=headers, content=content), None)
