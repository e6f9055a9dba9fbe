"""KMS's gate: which key is meant, who may use it, and is it in a state to be used?

Promise: no KMS operation, here or in moto, passes without `authorised`; `usable` adds key state and key usage. The
order and the words are AWS's. This module imports `world`, `decide`, `inbound`, `trail` and `wire`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from moto.kms.models import kms_backends

from broker_core.dev.aws.conditions import Context
from broker_core.dev.aws.decide import Caller, Request, refusal, sentence
from broker_core.dev.aws.inbound import Inbound, base_context
from broker_core.dev.aws.trail import Call
from broker_core.dev.aws.wire import AwsError
from broker_core.dev.aws.world import Grant, KeyView, World

_ARN = re.compile(r"arn:aws:kms:([a-z0-9-]+):([0-9]{12}):(key|alias)/(.+)")
_KEY_ID = re.compile(r"(mrk-[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_BY_CIPHERTEXT = "the resource associated with this ciphertext"
_NOT_THERE = (
    "because the resource does not exist in this Region, no resource-based policies allow access, "
    "or a resource-based policy explicitly denies access"
)
#: what a key must be made for; what is not named here needs a symmetric encryption key
_USAGE = {
    **dict.fromkeys(("Sign", "Verify"), "SIGN_VERIFY"),
    **dict.fromkeys(("GenerateMac", "VerifyMac"), "GENERATE_VERIFY_MAC"),
    **dict.fromkeys(("DeriveSharedSecret",), "KEY_AGREEMENT"),
}


@dataclass(frozen=True)
class Ask:
    """One KMS request with its caller, and the record of it that is being filled."""

    inbound: Inbound
    caller: Caller
    call: Call

    def encryption_context(self, name: str = "EncryptionContext") -> Mapping[str, str]:
        """Raises AwsError if it is not a map of strings."""
        context = self.inbound.params.get(name) or {}
        if not isinstance(context, dict) or not all(isinstance(v, str) for v in context.values()):
            raise AwsError("SerializationException", f"{name} is not a map of strings.")
        return context

    def ignores(self, modifier: str) -> bool:
        """Whether a dry run leaves a check out (`IGNORE_CIPHERTEXT`). Raises AwsError without `DryRun`."""
        modifiers = self.inbound.params.get("DryRunModifiers") or []
        if modifiers and not self.call.dry_run:
            raise AwsError("ValidationException", "DryRunModifiers can only be used when DryRun is true.")
        return modifier in modifiers

    def stop_if_dry_run(self) -> None:
        """Raises AwsError DryRunOperationException, the good answer of a dry run."""
        if self.call.dry_run:
            raise AwsError(
                "DryRunOperationException", "The request would have succeeded, but the DryRun option is set."
            )


class Gate:
    """`clock` gives Unix seconds."""

    def __init__(self, world: World, clock: Callable[[], float]) -> None:
        self._world = world
        self._clock = clock

    def usable(self, ask: Ask, reference: str, action: str, context: Mapping[str, str], found: bool = False) -> KeyView:
        """The key, if the caller may do this with it and it can be done. `found`: the blob named it, not the caller."""
        key = self.authorised(ask, reference, action, context, found)
        require_enabled(key)
        require_usage(key, action)
        return key

    def authorised(
        self, ask: Ask, reference: str, action: str, context: Mapping[str, str], found: bool = False
    ) -> KeyView:
        """The key, if the caller may. Raises AwsError NotFoundException, AccessDeniedException."""
        key = self._find(ask, reference, action, found)
        ask.call.key_arn = key.arn
        conditions = self._conditions(ask, key, reference, context)
        request = Request(f"kms:{action}", key.arn, key.account, conditions)
        granted = any(_covers(grant, ask.caller, action, context) for grant in key.grants)
        reason = refusal(request, ask.caller, key.policy, granted)
        if reason is not None:
            _deny(request, ask.caller, reason, found)
        return key

    def allowed_without_key(self, ask: Ask) -> None:
        """For operations that have no key (`ListKeys`, `CreateKey`). Raises AwsError."""
        context = base_context(ask.caller, ask.inbound.region, self._clock())
        request = Request(f"kms:{ask.inbound.action}", "*", ask.caller.account, context)
        reason = refusal(request, ask.caller, None)
        if reason is not None:
            _deny(request, ask.caller, reason, found=False)

    def _find(self, ask: Ask, reference: str, action: str, found: bool) -> KeyView:
        arn = self.resolve(reference, ask.caller.account, ask.inbound.region, found)
        key = self._world.key(arn) if arn else None
        if key is not None:
            return key
        if found or (arn or reference).split(":")[4:5] not in ([], [ask.caller.account]):
            _deny(Request(f"kms:{action}", arn or reference, "", {}), ask.caller, _NOT_THERE, found)
        if "alias/" in reference:
            raise AwsError("NotFoundException", f"Alias {arn or reference} is not found.")
        raise AwsError("NotFoundException", f"Key '{arn or reference}' does not exist")

    def resolve(self, reference: str, account: str, region: str, found: bool = False) -> str | None:
        """The ARN of the key that an id, ARN or alias means; None if an alias is unknown. Raises AwsError."""
        match = _ARN.fullmatch(reference)
        kind, name = ("alias", reference) if reference.startswith("alias/") else ("key", reference)
        if match is not None:
            home, account, kind, name = match.groups()
            if home != region and not (found and name.startswith("mrk-")):
                raise AwsError("NotFoundException", f"Invalid arn {home}")
        elif kind == "key" and _KEY_ID.fullmatch(reference) is None:
            raise AwsError("NotFoundException", "Invalid keyId.")
        if kind == "alias":
            alias = "alias/" + name.removeprefix("alias/")
            known = kms_backends[account][region].get_key_id_from_alias(alias)
            if known is None:
                return None
            name = known
        return f"arn:aws:kms:{region}:{account}:key/{name}"

    def _conditions(self, ask: Ask, key: KeyView, reference: str, context: Mapping[str, str]) -> Context:
        known = base_context(ask.caller, ask.inbound.region, self._clock())
        known |= {f"kms:encryptioncontext:{name}".lower(): (value,) for name, value in context.items()}
        if context:
            known["kms:encryptioncontextkeys"] = tuple(context)
        if "alias/" in reference:
            known["kms:requestalias"] = ("alias/" + reference.partition("alias/")[2],)
        known["kms:calleraccount"] = (ask.caller.account,)
        known["kms:keyspec"], known["kms:keyusage"] = (key.spec,), (key.usage,)
        return known | _of_grant(ask.inbound)


def require_enabled(key: KeyView) -> None:
    """Raises AwsError DisabledException, KMSInvalidStateException."""
    if key.state == "Disabled":
        raise AwsError("DisabledException", f"{key.arn} is disabled.")
    require_not_pending(key)
    if key.state != "Enabled":
        raise AwsError("KMSInvalidStateException", f"{key.arn} is {key.state}.")


def require_not_pending(key: KeyView) -> None:
    """Raises AwsError KMSInvalidStateException."""
    if key.state == "PendingDeletion":
        raise AwsError("KMSInvalidStateException", f"{key.arn} is pending deletion.")


def require_usage(key: KeyView, action: str) -> None:
    """Raises AwsError InvalidKeyUsageException. The double encrypts under symmetric keys only."""
    wanted = _USAGE.get(action)
    fits = key.usage == wanted if wanted else key.spec == "SYMMETRIC_DEFAULT"
    if not fits:
        raise AwsError(
            "InvalidKeyUsageException", f"{key.arn} key usage is {key.usage} which is not valid for {action}."
        )


def _of_grant(inbound: Inbound) -> dict[str, tuple[str, ...]]:
    if inbound.action != "CreateGrant":
        return {}
    operations = inbound.params.get("Operations") or []
    return {
        "kms:grantoperations": tuple(str(operation) for operation in operations),
        "kms:granteeprincipal": (str(inbound.params.get("GranteePrincipal", "")),),
    }


def _covers(grant: Grant, caller: Caller, action: str, context: Mapping[str, str]) -> bool:
    """Whether a grant gives this. Constraints: the context equals, or contains, the one of the grant."""
    if action not in grant.operations or grant.grantee not in (caller.arn, caller.principal_arn):
        return False
    exact = grant.constraints.get("EncryptionContextEquals")
    subset = grant.constraints.get("EncryptionContextSubset") or {}
    return (not exact or exact == dict(context)) and subset.items() <= dict(context).items()


def _deny(request: Request, caller: Caller, reason: str, found: bool) -> NoReturn:
    message = sentence(request, caller, reason)
    if found:
        message = message.replace(f"resource: {request.resource}", _BY_CIPHERTEXT)
    raise AwsError("AccessDeniedException", message)
