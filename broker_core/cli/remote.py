"""The environment of a stdio server, asked of a broker over HTTP: for a machine that has a token and no settings.

The token and the values go to the named server and nobody else: https with the certificate checked, or http to a
literal loopback address; nothing is followed, retried or proxied, whatever the environment says. Errors name a status
and a code, never a token, a value or text of the other side. Of the adapters it imports the trust alone.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from broker_core.adapters.tls import client_context
from broker_core.errors import BrokerError, InjectionRefused, Invalid, Refused, Unavailable
from broker_core.inject.url import Address, parse_url
from broker_core.injection import Injection, Kind, value_problem

PATH = "/api/v1/inject/environment"
#: seconds for each wait
PATIENCE = 60
LARGEST_ANSWER = 16 * 1024 * 1024
LONGEST_TOKEN = 16_384
_TOKEN = re.compile(rf"[A-Za-z0-9._~+/=-]{{1,{LONGEST_TOKEN}}}")  # RFC 6750; http.client would quote a bad one
_CODE = re.compile(r"[a-z_]{1,64}")
_WHAT_TO_DO = {
    "unauthorized": ": get a new token; it lives for 15 minutes at most",
    "forbidden": ": the token needs the scope broker:environment",
}


@dataclass(frozen=True)
class RemoteBroker:
    """A broker's HTTP surface, by its root URL."""

    url: str
    token: str = field(repr=False)
    ca_file: str | None = None

    def environment(self, agent_id: str | None, mcp_server_id: str | None) -> dict[str, str]:
        """Every variable that is bound to the caller. Raises Invalid, Refused, Unavailable, ConfigurationError."""
        if not _TOKEN.fullmatch(self.token):
            raise Invalid({"--token-file": "holds no bearer token"})
        asked = {"agentId": agent_id, "mcpServerId": mcp_server_id}
        body = json.dumps({name: value for name, value in asked.items() if value is not None})
        return _variables(self._answer(_address(self.url), body))

    def _answer(self, address: Address, body: str) -> bytes:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        with closing(self._connection(address)) as connection:
            try:
                connection.request("POST", address.target.rstrip("/") + PATH, body, headers)
                response = connection.getresponse()
                status, answer = response.status, response.read(LARGEST_ANSWER + 1)
                if response.length and len(answer) <= LARGEST_ANSWER:
                    raise http.client.IncompleteRead(b"")
            except ssl.SSLCertVerificationError:
                raise Refused("the server's certificate is not trusted; see --ca-file", code="server_tls") from None
            except (OSError, http.client.HTTPException):
                raise Unavailable("the server cannot be reached, or broke off") from None
        if status != 200:
            raise _refusal(status, answer)
        return answer

    def _connection(self, address: Address) -> http.client.HTTPConnection:
        there = address.destination
        if not there.tls:
            return http.client.HTTPConnection(there.host, there.port, timeout=PATIENCE)
        context = client_context(self.ca_file, named="--ca-file")
        return http.client.HTTPSConnection(there.host, there.port, timeout=PATIENCE, context=context)


def _address(url: str) -> Address:
    try:
        address = parse_url(url)
    except Invalid as problem:
        raise Invalid({"--server": problem.fields["url"]}) from None
    except InjectionRefused:
        raise Invalid({"--server": "https, or http to a literal loopback address"}) from None
    if "?" in address.target:
        raise Invalid({"--server": "the root of the HTTP surface, without a query"})
    return address


def _refusal(status: int, answer: bytes) -> BrokerError:
    """By the other side's code, if it gave one: nothing else of what it wrote is shown."""
    document = _document(answer)
    given = document.get("error") if isinstance(document, dict) else None
    code = given if isinstance(given, str) and _CODE.fullmatch(given) else "refused"
    if status == 429 or status >= 500:
        return Unavailable(f"the server answered {status}; try again", code=None if code == "refused" else code)
    return Refused(f"the server answered {status}{_WHAT_TO_DO.get(code, '')}", code=code)


def _variables(answer: bytes) -> dict[str, str]:
    document = _document(answer)
    found = document.get("environment") if isinstance(document, dict) else None
    if not isinstance(found, Mapping) or not all(_is_fit(name, value) for name, value in found.items()):
        raise Refused("the server's answer is no environment", code="server_answer")
    return dict(found)


def _document(answer: bytes) -> Any:
    try:
        return json.loads(answer) if len(answer) <= LARGEST_ANSWER else None
    except (ValueError, RecursionError):
        return None


def _is_fit(name: str, value: object) -> bool:
    """What could be a variable's at all: a server cannot set PATH here either."""
    try:
        text = value.encode("utf-8") if isinstance(value, str) else b""
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    bound = Injection(Kind.STDIO_ENV, name, None, None, None).problems()
    return "bindingKey" not in bound and value_problem(Kind.STDIO_ENV, memoryview(text)) is None
