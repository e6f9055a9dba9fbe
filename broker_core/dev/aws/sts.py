"""STS: AssumeRole and GetCallerIdentity, answered here and never by moto.

Promise: the trust policy decides, external id included; across accounts the caller's identity policy must allow too;
a root user assumes nothing; the limits of the API reference hold (900 s to the role's maximum, session policy of
2,048 characters and a packed size). Credentials are random and known only to `identity`. This module imports no
other service.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from broker_core.dev.aws.decide import Caller, Request, refusal, sentence
from broker_core.dev.aws.identity import Identities, Session
from broker_core.dev.aws.inbound import Inbound, base_context
from broker_core.dev.aws.policy import Kind, MalformedPolicy, Policy, parse
from broker_core.dev.aws.trail import Call
from broker_core.dev.aws.wire import Answer, AwsError, tags, xml_answer
from broker_core.dev.aws.world import RoleView, World

_ROLE_ARN = re.compile(r"arn:aws:iam::[0-9]{12}:role/[\w+=,.@/-]{1,576}")
_SESSION_NAME = re.compile(r"[\w+=,.@-]{2,64}")
_EXTERNAL_ID = re.compile(r"[\w+=,.@:/-]{2,1224}")
_MIN_SECONDS, _MAX_SECONDS, _CHAINED_SECONDS = 900, 43_200, 3600
_POLICY_CHARACTERS = 2048
_PACKED_LIMIT = 1024
"""AWS packs a policy into a binary form of an undocumented size; this stands for it, over a deflated text."""

_KNOWN = frozenset("Action Version RoleArn RoleSessionName DurationSeconds ExternalId Policy".split())


@dataclass(frozen=True)
class _Wish:
    """The parameters of an AssumeRole, each valid on its own."""

    role_arn: str
    name: str
    seconds: int | None
    external_id: str | None
    policy: Policy | None
    packed_percent: int | None


class Sts:
    """The STS endpoint. `clock` gives Unix seconds, `randomness` so many random bytes."""

    def __init__(
        self, world: World, identities: Identities, clock: Callable[[], float], randomness: Callable[[int], bytes]
    ) -> None:
        self._world = world
        self._identities = identities
        self._clock = clock
        self._randomness = randomness

    def answer(self, inbound: Inbound, caller: Caller, call: Call) -> Answer:
        """Raises AwsError."""
        if inbound.action == "GetCallerIdentity":
            return _who_am_i(inbound, caller)
        if inbound.action != "AssumeRole":
            raise AwsError("InvalidAction", "The double answers AssumeRole and GetCallerIdentity.")
        wish = _wish(inbound)
        role = self._permitted(wish, inbound, caller)
        session = self._open(wish, role, caller)
        call.response = _recorded(session)
        return xml_answer("AssumeRole", _granted(session, wish), inbound.request_id)

    def _permitted(self, wish: _Wish, inbound: Inbound, caller: Caller) -> RoleView:
        if caller.is_root:
            raise AwsError("AccessDenied", "Roles may not be assumed by root accounts.")
        context = base_context(caller, inbound.region, self._clock())
        context["sts:rolesessionname"] = (wish.name,)
        if wish.external_id is not None:
            context["sts:externalid"] = (wish.external_id,)
        request = Request("sts:AssumeRole", wish.role_arn, wish.role_arn.split(":")[4], context)
        role = self._world.role(wish.role_arn)
        if role is None or refusal(request, caller, role.trust) is not None:
            raise AwsError("AccessDenied", sentence(request, caller, ""))
        return role

    def _open(self, wish: _Wish, role: RoleView, caller: Caller) -> Session:
        longest = _CHAINED_SECONDS if caller.kind == "AssumedRole" else role.max_session
        seconds = wish.seconds or min(3600, longest)
        if seconds > longest:
            raise AwsError(
                "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
            )
        now = self._clock()
        session = Session(
            access_key="ASIA" + base64.b32encode(self._randomness(10)).decode(),
            secret=base64.b64encode(self._randomness(30)).decode(),
            token="IQoJb3JpZ2luX2Vj" + base64.b64encode(self._randomness(192)).decode(),
            role_arn=role.arn,
            role_id=role.role_id,
            account=role.account,
            arn=f"arn:aws:sts::{role.account}:assumed-role/{role.name}/{wish.name}",
            name=wish.name,
            policy=wish.policy,
            issued_at=now,
            expires_at=now + seconds,
        )
        self._identities.open(session)
        return session


def _wish(inbound: Inbound) -> _Wish:
    unknown = next((name for name in inbound.params if name not in _KNOWN), None)
    if unknown:
        raise AwsError("ValidationError", f"The double does not know the parameter {unknown}.")
    policy = inbound.text("Policy")
    percent = None if policy is None else _packed_percent(policy)
    external_id = inbound.text("ExternalId")
    if external_id is not None:
        _require(_EXTERNAL_ID, external_id, "externalId")
    return _Wish(
        role_arn=_require(_ROLE_ARN, inbound.required("RoleArn"), "roleArn"),
        name=_require(_SESSION_NAME, inbound.required("RoleSessionName"), "roleSessionName"),
        seconds=_seconds(inbound.text("DurationSeconds")),
        external_id=external_id,
        policy=None if policy is None else _parsed(policy),
        packed_percent=percent,
    )


def _require(pattern: re.Pattern[str], value: str, name: str) -> str:
    if pattern.fullmatch(value) is None:
        raise AwsError(
            "ValidationError", f"1 validation error detected: Value at '{name}' failed to satisfy its constraint"
        )
    return value


def _seconds(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or not _MIN_SECONDS <= int(text) <= _MAX_SECONDS:
        bound = f"between {_MIN_SECONDS} and {_MAX_SECONDS}"
        raise AwsError("ValidationError", f"1 validation error detected: 'durationSeconds' must have a value {bound}")
    return int(text)


def _parsed(text: str) -> Policy:
    try:
        return parse(text, Kind.SESSION)
    except MalformedPolicy as refused:
        raise AwsError("MalformedPolicyDocument", str(refused)) from None


def _packed_percent(text: str) -> int:
    if not 1 <= len(text) <= _POLICY_CHARACTERS:
        raise AwsError(
            "ValidationError",
            "1 validation error detected: Value at 'policy' failed to satisfy constraint: "
            f"Member must have length less than or equal to {_POLICY_CHARACTERS}",
        )
    percent = -(-len(zlib.compress(text.encode())) * 100 // _PACKED_LIMIT)
    if percent > 100:
        raise AwsError(
            "PackedPolicyTooLarge", f"Packed policy consumes {percent}% of allotted space, please use smaller policy."
        )
    return percent


def _granted(session: Session, wish: _Wish) -> str:
    credentials = {
        "AccessKeyId": session.access_key,
        "SecretAccessKey": session.secret,
        "SessionToken": session.token,
        "Expiration": _stamp(session.expires_at),
    }
    user = {"AssumedRoleId": f"{session.role_id}:{session.name}", "Arn": session.arn}
    packed = {} if wish.packed_percent is None else {"PackedPolicySize": str(wish.packed_percent)}
    return (
        f"<Credentials>{tags(credentials)}</Credentials><AssumedRoleUser>{tags(user)}</AssumedRoleUser>{tags(packed)}"
    )


def _recorded(session: Session) -> dict[str, object]:
    """What CloudTrail keeps of the answer: the halves that are not secret."""
    return {
        "credentials": {"accessKeyId": session.access_key, "expiration": _stamp(session.expires_at)},
        "assumedRoleUser": {"assumedRoleId": f"{session.role_id}:{session.name}", "arn": session.arn},
    }


def _who_am_i(inbound: Inbound, caller: Caller) -> Answer:
    user_id = f"{caller.unique_id}:{caller.session_name}" if caller.session_name else caller.unique_id
    facts = {"Arn": caller.arn, "UserId": caller.account if caller.is_root else user_id, "Account": caller.account}
    return xml_answer("GetCallerIdentity", tags(facts), inbound.request_id)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def recorded_parameters(inbound: Inbound) -> dict[str, object]:
    """CloudTrail's `requestParameters`."""
    names = {"RoleArn": "roleArn", "RoleSessionName": "roleSessionName", "ExternalId": "externalId", "Policy": "policy"}
    kept: dict[str, object] = {to: inbound.params[name] for name, to in names.items() if name in inbound.params}
    seconds = str(inbound.params.get("DurationSeconds", ""))
    return kept | ({"durationSeconds": int(seconds)} if seconds.isdigit() else {})
