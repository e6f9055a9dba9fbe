"""The decision: may this caller do this to that resource?

Promise: AWS's policy evaluation for one account and across accounts (IAM User Guide, "Policy evaluation logic"; KMS
Developer Guide, "Key policies"):

- an explicit deny in any policy wins;
- a resource policy that names the principal allows on its own, in the resource's account; one that names the account's
  root only lets the identity policies of that account decide;
- across accounts both sides must allow;
- a session policy is an intersection: it never adds, unless the resource policy names the very session.

The reasons are AWS's words, because callers tell a missing allow in a session policy (theirs to mend) from one in
the key policy (the customer's). This module imports only `policy` and `conditions`.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker_core.dev.aws.conditions import Context
from broker_core.dev.aws.policy import Policy, Statement, root_arn

_ELSEWHERE = (
    "because the resource does not exist in this Region, no resource-based policies allow access, "
    "or a resource-based policy explicitly denies access"
)


@dataclass(frozen=True)
class Caller:
    """Who makes a request. `unique_id` is what stored policies are bound to; for root it is the root ARN itself.

    `arn` is what AWS prints (for a session the assumed-role ARN); `principal_arn` is the role's or user's own.
    """

    account: str
    arn: str
    principal_arn: str
    unique_id: str
    access_key: str
    kind: str
    """`Root`, `IAMUser` or `AssumedRole`, as CloudTrail writes it."""
    identity: tuple[Policy, ...] = ()
    session: Policy | None = None
    session_name: str = ""
    issued_at: float = 0.0

    @property
    def is_root(self) -> bool:
        return self.kind == "Root"


@dataclass(frozen=True)
class Request:
    """What is asked for. `owner` is the account of the resource."""

    action: str
    resource: str
    owner: str
    context: Context


def refusal(request: Request, caller: Caller, resource_policy: Policy | None, granted: bool = False) -> str | None:
    """None if allowed, else the end of AWS's sentence. `granted`: a KMS grant covers the request.

    `resource_policy` None means that the action has no resource policy (`kms:ListKeys`, all of IAM).
    """
    denied = _denial(request, caller, resource_policy)
    if denied:
        return f"with an explicit deny in {denied} policy"
    if resource_policy is None:
        if caller.account != request.owner:
            return _ELSEWHERE
        return _identity_gap(request, caller) or _session_gap(request, caller)
    allows = _applicable(resource_policy, True, request)
    direct = granted or _named(allows, caller.unique_id)
    delegated = _named(allows, root_arn(caller.account))
    session_named = not caller.is_root and _named(allows, caller.arn, everyone=False)
    if caller.account != request.owner:
        if not (direct or delegated or session_named):
            return _ELSEWHERE
        return _identity_gap(request, caller) or _session_gap(request, caller)
    if session_named:
        return None
    if direct:
        return _session_gap(request, caller)
    if not delegated:
        return f"because no resource-based policy allows the {request.action} action"
    return _identity_gap(request, caller) or _session_gap(request, caller)


def sentence(request: Request, caller: Caller, reason: str) -> str:
    """AWS's message for an access denied."""
    tail = f" {reason}" if reason else ""
    return f"User: {caller.arn} is not authorized to perform: {request.action} on resource: {request.resource}{tail}"


def _denial(request: Request, caller: Caller, resource_policy: Policy | None) -> str | None:
    everyone = frozenset([caller.arn, caller.unique_id, caller.principal_arn, root_arn(caller.account)])
    if resource_policy is not None and any(s.names(everyone) for s in _applicable(resource_policy, False, request)):
        return "a resource-based"
    if any(_applicable(policy, False, request) for policy in caller.identity):
        return "an identity-based"
    if caller.session is not None and _applicable(caller.session, False, request):
        return "a session"
    return None


def _identity_gap(request: Request, caller: Caller) -> str | None:
    if caller.is_root or any(_applicable(policy, True, request) for policy in caller.identity):
        return None
    return f"because no identity-based policy allows the {request.action} action"


def _session_gap(request: Request, caller: Caller) -> str | None:
    if caller.session is None or _applicable(caller.session, True, request):
        return None
    return f"because no session policy allows the {request.action} action"


def _applicable(policy: Policy, allow: bool, request: Request) -> list[Statement]:
    return list(policy.matching(allow, request.action, request.resource, request.context))


def _named(statements: list[Statement], name: str, everyone: bool = True) -> bool:
    """`everyone` False: only a statement that names this very principal, not one for `*`."""
    who = frozenset([name])
    return any(s.names(who) for s in statements if everyone or ("*" not in s.principals and not s.not_principals))
