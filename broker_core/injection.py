"""Where and how a value may be put on a request: the kinds, their names and their destinations.

Checked when a value is accepted and checked again when it is used: a row that was changed behind our back must not
widen anything. Pure; imports only ``errors``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import idna

from broker_core.errors import Invalid


class Kind(StrEnum):
    """``injectionKind``."""

    HTTP_HEADER = "http_header"
    BEARER = "bearer"
    QUERY = "query"
    STDIO_ENV = "stdio_env"


#: kinds that go to an upstream over HTTP, and so need a targetHost
HTTP_KINDS = frozenset({Kind.HTTP_HEADER, Kind.BEARER, Kind.QUERY})

#: ids of workspaces, agents and MCP servers; safe in an IAM condition
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: secret names: no outer space; safe in an IAM condition (no * ? $ that IAM would expand)
NAME = re.compile(r"(?! )[A-Za-z0-9 ._:/@+=-]{1,128}(?<! )")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110 token
_PARAMETER_NAME = re.compile(r"[A-Za-z0-9._~\[\]-]{1,128}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")  # POSIX 8.1

#: headers that steer the connection or the message's framing: a value there could split requests (RFC 9110 §7.6.1)
RESERVED_HEADERS = frozenset(
    """host content-length content-encoding content-type transfer-encoding connection keep-alive expect te trailer
    trailers upgrade via forwarded date cookie2 http2-settings accept-encoding range if-range""".split()
)
#: variables that change which code a process runs, rather than hand it a credential
RESERVED_VARIABLES = frozenset(
    """PATH HOME SHELL IFS ENV BASH_ENV PS4 PYTHONPATH PYTHONSTARTUP PYTHONHOME NODE_OPTIONS NODE_PATH PERL5LIB PERL5OPT
    RUBYOPT RUBYLIB JAVA_TOOL_OPTIONS JDK_JAVA_OPTIONS CLASSPATH GIT_SSH GIT_SSH_COMMAND GCONV_PATH
    SSLKEYLOGFILE""".split()
)

#: values shorter than this are not redacted (a short mask target would shred ordinary text); a warning says so
SHORTEST_REDACTED = 8
LARGEST_VALUE = 65_536


@dataclass(frozen=True)
class Injection:
    """How one secret is injected, and for whom. At least one of ``mcp_server_id`` and ``agent_id`` is set."""

    kind: Kind
    binding_key: str | None
    target_host: str | None
    mcp_server_id: str | None
    agent_id: str | None

    def problems(self) -> dict[str, str]:
        """What is wrong, by the event's field name; empty when all is well."""
        return {**self._binding_problem(), **self._target_problem(), **self._subject_problem()}

    def _binding_problem(self) -> dict[str, str]:
        if self.kind is Kind.BEARER:
            return {} if self.binding_key is None else {"bindingKey": "leave it out for bearer"}
        if self.binding_key is None:
            return {"bindingKey": f"required for {self.kind.value}: {_BINDING_MEANS[self.kind]}"}
        return _binding_key_problem(self.kind, self.binding_key)

    def _target_problem(self) -> dict[str, str]:
        if self.kind is Kind.STDIO_ENV:
            return {} if self.target_host is None else {"targetHost": "leave it out for stdio_env"}
        if self.target_host is None:
            return {"targetHost": f"required for {self.kind.value}: the one host that may receive the value"}
        try:
            parse_target(self.target_host)
        except Invalid as problem:
            return problem.fields
        return {}

    def _subject_problem(self) -> dict[str, str]:
        given = {"mcpServerId": self.mcp_server_id, "agentId": self.agent_id}
        if not any(given.values()):
            return {"mcpServerId": "give mcpServerId, agentId or both: who may use the value"}
        return {
            name: "1 to 64 of A-Z a-z 0-9 _ -"
            for name, value in given.items()
            if value is not None and not ID.fullmatch(value)
        }


_BINDING_MEANS: Mapping[Kind, str] = {
    Kind.HTTP_HEADER: "the header's name",
    Kind.QUERY: "the parameter's name",
    Kind.STDIO_ENV: "the variable's name",
}


def _binding_key_problem(kind: Kind, key: str) -> dict[str, str]:
    if kind is Kind.HTTP_HEADER:
        lowered = key.lower()
        if not _HEADER_NAME.fullmatch(key):
            return {"bindingKey": "not a header name (RFC 9110 token)"}
        if lowered in RESERVED_HEADERS or lowered.startswith(("proxy-", "axiorank-", "sec-")):
            return {"bindingKey": "this header steers the connection and is reserved; use another"}
    elif kind is Kind.QUERY and not _PARAMETER_NAME.fullmatch(key):
        return {"bindingKey": "a parameter name is 1 to 128 of A-Z a-z 0-9 . _ ~ [ ] -"}
    elif kind is Kind.STDIO_ENV:
        if not _VARIABLE_NAME.fullmatch(key):
            return {"bindingKey": "a variable name is a letter or _, then letters, digits or _"}
        if key in RESERVED_VARIABLES or key.startswith(("LD_", "DYLD_", "AXIORANK_", "BROKER_")):
            return {"bindingKey": "this variable changes how programs run and is reserved; use another"}
    return {}


def normalise_host(host: str) -> str:
    """One normal form of a host name or literal address: IDNA-ASCII, lower case; an IPv6 address without brackets.

    Raises Invalid (``targetHost``) for anything that resolvers read as an address in disguise (``0x7f.1``,
    ``2130706433``, full-width digits), for a trailing dot, and for what IDNA 2008 does not allow.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return ipaddress.ip_address(bare).compressed
    except ValueError:
        pass
    try:
        ascii_host = idna.encode(host, uts46=False, std3_rules=True).decode("ascii") if not host.isascii() else host
    except idna.IDNAError:
        raise Invalid({"targetHost": "not a host name"}) from None
    lowered = ascii_host.lower()
    if not _HOST.fullmatch(lowered) or _NUMERIC_LABEL.fullmatch(lowered.rsplit(".", 1)[-1]):
        raise Invalid(
            {"targetHost": "not a host name: letters, digits and hyphens in labels, no port tricks, no final dot"}
        )
    return lowered


_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
# the last label of a name is never a number, in any base: such text is an address to getaddrinfo (WHATWG URL §3.5)
_NUMERIC_LABEL = re.compile(r"\d+|0x[0-9a-f]*")
_TARGET = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]/@?#\\\s%]+)(?::(?P<port>[1-9][0-9]{0,4}))?")


def parse_target(target: str) -> tuple[str, int | None]:
    """``targetHost`` as (normal host, port or None). Raises Invalid naming ``targetHost``."""
    found = _TARGET.fullmatch(target)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and port > 65535):
        raise Invalid({"targetHost": "a host, or host:port; no scheme, path, user or spaces"})
    return normalise_host(found["host"]), port


def value_problem(kind: Kind | None, value: memoryview) -> str | None:
    """What makes a value unfit for its kind, without quoting it; None when it is fit.

    ``kind`` is None for a rotation of a name never created: only the length can be judged then. A header value is
    visible ASCII with inner spaces or tabs, so that it cannot end the header (RFC 9110 §5.5).
    """
    if not 1 <= len(value) <= LARGEST_VALUE:
        return f"1 to {LARGEST_VALUE} bytes"
    if kind in (Kind.HTTP_HEADER, Kind.BEARER):
        return _header_value_problem(value)
    return _variable_problem(value) if kind is Kind.STDIO_ENV else None


def _variable_problem(value: memoryview) -> str | None:
    if 0 in value.tolist():
        return "a NUL cannot stand in an environment variable"
    try:
        str(value, "utf-8")
    except UnicodeDecodeError:
        return "not UTF-8: an environment is handed over as text"
    return None


def _header_value_problem(value: memoryview) -> str | None:
    edges = {value[0], value[-1]}
    if value[-1] in b"\r\n":
        return "ends with a line break, which a header cannot hold: trim it (often a file's last newline)"
    if edges & {0x20, 0x09}:
        return "begins or ends with a space or tab, which a header cannot hold: trim it"
    if any(octet != 0x09 and not 0x20 <= octet <= 0x7E for octet in value):
        return "holds CR, LF, NUL or another non-printing or non-ASCII byte, which a header cannot hold"
    return None
