"""KMS, everything that is not encryption: decided here, done by moto, then published.

Promise: the key policy decides for administrators as for users; what a key's state forbids is refused (Developer
Guide, "Key states of AWS KMS keys"); a key policy that names nobody real, or would lock its own administrator out,
is refused; every operation that knows `DryRun` honours it. This module imports no other service.
"""

from __future__ import annotations

import json
from typing import Any

from broker_core.dev.aws.decide import Caller, Request, refusal
from broker_core.dev.aws.inbound import Inbound, base_context
from broker_core.dev.aws.kms_gate import Ask, Gate, require_enabled, require_not_pending, require_usage
from broker_core.dev.aws.moto_app import MotoApp
from broker_core.dev.aws.policy import Kind, MalformedPolicy
from broker_core.dev.aws.trail import Call
from broker_core.dev.aws.wire import Answer, AwsError
from broker_core.dev.aws.world import KeyView, World

_WITHOUT_KEY = frozenset("CreateKey ListKeys ListAliases GenerateRandom ListRetirableGrants".split())
#: allowed in every state
_ANY_STATE = frozenset(
    "DeleteAlias DescribeKey GetKeyPolicy GetKeyRotationStatus GetPublicKey ListAliases ListGrants ListKeyPolicies "
    "ListKeyRotations ListResourceTags PutKeyPolicy RetireGrant RevokeGrant".split()
)
#: allowed unless the key waits for its deletion
_UNLESS_PENDING = frozenset(
    "CreateAlias DisableKey EnableKey ScheduleKeyDeletion TagResource UntagResource UpdateAlias "
    "UpdateKeyDescription".split()
)
_CRYPTOGRAPHIC = frozenset(
    "Sign Verify GenerateMac VerifyMac DeriveSharedSecret GenerateDataKeyPair "
    "GenerateDataKeyPairWithoutPlaintext".split()
)
_READS = ("Describe", "Get", "List", "Sign", "Verify", "Generate")
_KEY_NAMES = ("KeyId", "TargetKeyId", "AliasName")


class KmsAdmin:
    """The rest of the KMS endpoint."""

    def __init__(self, world: World, gate: Gate, moto: MotoApp) -> None:
        self._world = world
        self._gate = gate
        self._moto = moto

    def answer(self, inbound: Inbound, caller: Caller, call: Call, now: float) -> Answer:
        """Raises AwsError."""
        ask = Ask(inbound, caller, call)
        if inbound.action in _WITHOUT_KEY and not inbound.params.get("KeyId"):
            return self._without_key(ask, now)
        reference = next((str(inbound.params[n]) for n in _KEY_NAMES if inbound.params.get(n)), None)
        if reference is None:
            raise AwsError(
                "ValidationException", "Value at 'keyId' failed to satisfy constraint: Member must not be null"
            )
        key = self._gate.authorised(ask, reference, inbound.action, ask.encryption_context())
        _require_state(key, inbound.action)
        ask.stop_if_dry_run()
        if inbound.action == "PutKeyPolicy":
            self._check_policy(ask, key.account, inbound.required("Policy"), now)
        return self._done_by_moto(inbound, key)

    def _without_key(self, ask: Ask, now: float) -> Answer:
        self._gate.allowed_without_key(ask)
        inbound, account = ask.inbound, ask.caller.account
        if inbound.action != "CreateKey":
            return self._moto.ask(inbound, account, inbound.body)
        if inbound.params.get("Policy"):
            self._check_policy(ask, account, inbound.required("Policy"), now)
        body = {"KeyUsage": "ENCRYPT_DECRYPT"} | dict(inbound.params)
        answer = self._moto.ask(inbound, account, json.dumps(body).encode())
        if answer.status < 400:
            metadata = json.loads(answer.body)["KeyMetadata"]
            ask.call.key_arn = metadata["Arn"]
            self._world.publish_key(account, inbound.region, metadata["KeyId"])
        return answer

    def _done_by_moto(self, inbound: Inbound, key: KeyView) -> Answer:
        """moto wants bare key ids (its DisableKey answers 500 to an ARN)."""
        body: dict[str, Any] = dict(inbound.params)
        body |= {name: key.key_id for name in ("KeyId", "TargetKeyId") if body.get(name)}
        answer = self._moto.ask(inbound, key.account, json.dumps(body).encode())
        if answer.status < 400 and not inbound.action.startswith(_READS):
            region = inbound.params.get("ReplicaRegion", inbound.region)
            self._world.publish_key(key.account, region, key.key_id)
        return answer

    def _check_policy(self, ask: Ask, account: str, text: str, now: float) -> None:
        """Raises AwsError MalformedPolicyDocumentException."""
        try:
            policy = self._world.bind(text, Kind.KEY)
        except MalformedPolicy as refused:
            raise AwsError("MalformedPolicyDocumentException", str(refused)) from None
        request = Request("kms:PutKeyPolicy", "*", account, base_context(ask.caller, ask.inbound.region, now))
        bypass = ask.inbound.params.get("BypassPolicyLockoutSafetyCheck") is True
        if not bypass and refusal(request, ask.caller, policy) is not None:
            raise AwsError(
                "MalformedPolicyDocumentException",
                "The new key policy will not allow you to update the key policy in the future.",
            )


def _require_state(key: KeyView, action: str) -> None:
    if action in _ANY_STATE:
        return
    if action == "CancelKeyDeletion":
        if key.state != "PendingDeletion":
            raise AwsError("KMSInvalidStateException", f"{key.arn} is not pending deletion.")
    elif action in _UNLESS_PENDING:
        require_not_pending(key)
    else:
        require_enabled(key)
    if action in _CRYPTOGRAPHIC:
        require_usage(key, action)
