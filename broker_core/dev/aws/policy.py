"""IAM policy documents: parsed strictly once, asked often.

Promise: `parse` refuses what AWS refuses (syntax, unknown elements and operators, a principal where none belongs),
so that a test can rely on MalformedPolicyDocument; a parsed `Policy` is immutable. `bind` puts the unique id of a
role or user in the place of its ARN, as AWS does when a policy is stored: a role that is deleted and made again
under the same name is another principal. This module decides nothing (see `decide`), and imports only `conditions`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

from broker_core.dev.aws.conditions import Context, glob, known, met

_ELEMENTS = frozenset("Sid Effect Principal NotPrincipal Action NotAction Resource NotResource Condition".split())
_PRINCIPAL_KINDS = frozenset(("AWS", "Service", "Federated", "CanonicalUser"))
_ACCOUNT = re.compile(r"[0-9]{12}")


class MalformedPolicy(ValueError):
    """The document is not a policy; the text says why, and quotes nothing of it but element names."""


class Kind(StrEnum):
    """Where a policy stands: it says which elements it must and must not have."""

    IDENTITY = "identity"
    SESSION = "session"
    KEY = "key"
    TRUST = "trust"


@dataclass(frozen=True)
class Statement:
    """One statement. Of each pair (actions and not_actions, …) at most one is set."""

    allow: bool
    principals: frozenset[str]
    not_principals: frozenset[str]
    actions: tuple[str, ...]
    not_actions: tuple[str, ...]
    resources: tuple[str, ...]
    not_resources: tuple[str, ...]
    conditions: tuple[tuple[str, str, tuple[str, ...]], ...]

    def names(self, who: frozenset[str]) -> bool:
        """Whether the caller, who answers to the names in `who`, is meant."""
        if self.not_principals:
            return not (self.not_principals & who)
        return "*" in self.principals or not self.principals.isdisjoint(who)

    def applies(self, action: str, resource: str, context: Context) -> bool:
        """Whether action, resource and every condition match."""
        return (
            _selected(self.actions, self.not_actions, action.lower())
            and _selected(self.resources, self.not_resources, resource)
            and all(met(operator, key, wanted, context) for operator, key, wanted in self.conditions)
        )


@dataclass(frozen=True)
class Policy:
    """A parsed document."""

    statements: tuple[Statement, ...]

    def matching(self, allow: bool, action: str, resource: str, context: Context) -> Iterator[Statement]:
        """The statements of one effect that apply to a request, whoever makes it."""
        return (s for s in self.statements if s.allow is allow and s.applies(action, resource, context))

    def principals(self) -> frozenset[str]:
        """Every principal it names, `*` included."""
        return frozenset[str]().union(*(s.principals | s.not_principals for s in self.statements))

    def bind(self, resolve: Callable[[str], str | None]) -> Policy:
        """With every role and user ARN replaced by its unique id.

        Raises MalformedPolicy if `resolve` does not know one: AWS refuses principals that do not exist.
        """
        return Policy(
            tuple(
                replace(s, principals=_bound(s.principals, resolve), not_principals=_bound(s.not_principals, resolve))
                for s in self.statements
            )
        )


@lru_cache(maxsize=2048)
def parse(text: str, kind: Kind) -> Policy:
    """A document of that kind. Raises MalformedPolicy."""
    try:
        document = json.loads(text)
    except ValueError:
        raise MalformedPolicy("The policy is not in the valid JSON format.") from None
    if not isinstance(document, dict) or not set(document) <= {"Version", "Id", "Statement"}:
        raise MalformedPolicy("Syntax errors in policy.")
    if document.get("Version", "2008-10-17") not in ("2012-10-17", "2008-10-17"):
        raise MalformedPolicy("The policy must contain a valid version string.")
    statements = document.get("Statement", ())
    if isinstance(statements, dict):
        statements = [statements]
    if not statements or not isinstance(statements, list):
        raise MalformedPolicy("Syntax errors in policy.")
    return Policy(tuple(_statement(entry, kind) for entry in statements))


def _statement(entry: Any, kind: Kind) -> Statement:
    if not isinstance(entry, dict) or not set(entry) <= _ELEMENTS or entry.get("Effect") not in ("Allow", "Deny"):
        raise MalformedPolicy("Syntax errors in policy.")
    _check_pairs(entry, kind)
    actions, not_actions = _strings(entry.get("Action")), _strings(entry.get("NotAction"))
    if not all(a == "*" or ":" in a for a in actions + not_actions):
        raise MalformedPolicy("Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.")
    return Statement(
        allow=entry["Effect"] == "Allow",
        principals=_principals(entry.get("Principal")),
        not_principals=_principals(entry.get("NotPrincipal")),
        actions=tuple(a.lower() for a in actions),
        not_actions=tuple(a.lower() for a in not_actions),
        resources=_strings(entry.get("Resource")),
        not_resources=_strings(entry.get("NotResource")),
        conditions=_conditions(entry.get("Condition", {})),
    )


def _check_pairs(entry: dict[str, Any], kind: Kind) -> None:
    has_principal = ("Principal" in entry) + ("NotPrincipal" in entry)
    has_resource = ("Resource" in entry) + ("NotResource" in entry)
    wants_principal = kind in (Kind.KEY, Kind.TRUST)
    if has_principal != int(wants_principal) or has_resource != int(kind is not Kind.TRUST):
        raise MalformedPolicy("Policy document has a missing or prohibited Principal or Resource.")
    if ("Action" in entry) + ("NotAction" in entry) != 1:
        raise MalformedPolicy("Policy statement must contain actions.")


def _strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise MalformedPolicy("Syntax errors in policy.")
    return tuple(values)


def _principals(value: Any) -> frozenset[str]:
    """An account id and the ARN of its root are the same principal."""
    if value is None or value == "*":
        return frozenset(["*"] if value else [])
    if not isinstance(value, dict) or not value or not set(value) <= _PRINCIPAL_KINDS:
        raise MalformedPolicy("Policy contains a statement with one or more invalid principals.")
    names: Iterable[str] = (name for values in value.values() for name in _strings(values))
    return frozenset(root_arn(name) if _ACCOUNT.fullmatch(name) else name for name in names)


def _conditions(block: Any) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    if not isinstance(block, dict) or not all(isinstance(lines, dict) for lines in block.values()):
        raise MalformedPolicy("Syntax errors in policy.")
    if not all(known(operator) for operator in block):
        raise MalformedPolicy("Invalid Condition type.")
    return tuple(
        (operator, key.lower(), _strings(wanted)) for operator, lines in block.items() for key, wanted in lines.items()
    )


def _selected(wanted: tuple[str, ...], unwanted: tuple[str, ...], value: str) -> bool:
    """A statement without either (a trust policy's resource) selects everything."""
    if unwanted:
        return not _any_of(unwanted).fullmatch(value)
    return not wanted or wanted == ("*",) or _any_of(wanted).fullmatch(value) is not None


@lru_cache(maxsize=4096)
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{glob(pattern).pattern})" for pattern in patterns), re.DOTALL)


def _bound(names: frozenset[str], resolve: Callable[[str], str | None]) -> frozenset[str]:
    bound = {name: resolve(name) for name in names}
    if None in bound.values():
        raise MalformedPolicy("Policy contains a statement with one or more invalid principals.")
    return frozenset(name for name in bound.values() if name)


def root_arn(account: str) -> str:
    """The principal that stands for a whole account."""
    return f"arn:aws:iam::{account}:root"
