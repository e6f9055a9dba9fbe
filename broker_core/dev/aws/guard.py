"""The guard: the WSGI application that every request passes.

Promise: signature first, then faults, then the service's own decision; moto never sees a request that was not
allowed. Each answer has its own `x-amzn-RequestId`, each call is in the trail once. Bodies are never logged. This
module ties the services together; it knows no policy and no cryptography itself.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from broker_core.dev.aws import inbound as incoming
from broker_core.dev.aws import sts
from broker_core.dev.aws.blob import BadBlob, key_arn_of
from broker_core.dev.aws.decide import Caller
from broker_core.dev.aws.faults import Faults, Subject
from broker_core.dev.aws.iam import Iam
from broker_core.dev.aws.identity import Identities
from broker_core.dev.aws.inbound import Inbound
from broker_core.dev.aws.kms import Crypto
from broker_core.dev.aws.kms_admin import KmsAdmin
from broker_core.dev.aws.kms_gate import Gate
from broker_core.dev.aws.moto_app import MotoApp
from broker_core.dev.aws.trail import Call, Trail
from broker_core.dev.aws.wire import Answer, AwsError, error_answer
from broker_core.dev.aws.world import World

StartResponse = Callable[[str, list[tuple[str, str]]], Any]
_MAX_BODY = 1024 * 1024
_CONTEXTS = ("EncryptionContext", "SourceEncryptionContext")
#: what CloudTrail keeps of a KMS or IAM request; no plaintext and no ciphertext is among it
_RECORDED = {
    name: name[0].lower() + name[1:]
    for name in (
        "EncryptionContext SourceEncryptionContext DestinationEncryptionContext KeyId SourceKeyId DestinationKeyId "
        "KeySpec NumberOfBytes GranteePrincipal Operations AliasName TargetKeyId PendingWindowInDays DryRun "
        "DryRunModifiers RoleName UserName PolicyName Policy PolicyDocument AssumeRolePolicyDocument"
    ).split()
}


@dataclass
class Guard:
    """KMS, STS and IAM behind one door. `clock` gives Unix seconds, `randomness` so many random bytes."""

    clock: Callable[[], float]
    monotonic: Callable[[], float]
    randomness: Callable[[int], bytes]
    trail: Trail = field(default_factory=Trail)

    def __post_init__(self) -> None:
        self.faults = Faults(self.monotonic)
        self.world = World(self.monotonic)
        moto, gate = MotoApp(), Gate(self.world, self.clock)
        self._identities = Identities(self.world, self.clock)
        self._crypto = Crypto(gate, self.randomness)
        self._admin = KmsAdmin(self.world, gate, moto)
        self._sts = sts.Sts(self.world, self._identities, self.clock, self.randomness)
        self._iam = Iam(self.world, moto)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        request_id = str(uuid.uuid4())
        answer = self._answer(environ, request_id)
        start_response(
            f"{answer.status} {HTTPStatus(answer.status).phrase}",
            [
                ("Content-Type", answer.content_type),
                ("Content-Length", str(len(answer.body))),
                ("x-amzn-RequestId", request_id),
            ],
        )
        return [answer.body]

    def _answer(self, environ: dict[str, Any], request_id: str) -> Answer:
        service = ""
        try:
            inbound = _read(environ, request_id)
            service = inbound.service
            return self._recorded(inbound)
        except AwsError as error:
            service = service or ("kms" if environ.get("HTTP_X_AMZ_TARGET") else "sts")
            return error_answer(service, error.named_for(service), request_id)

    def _recorded(self, inbound: Inbound) -> Answer:
        """The answer, and whatever it is one entry in the trail; none for what was dropped before any work."""
        call = _new_call(inbound, self.clock())
        try:
            answer = self._served(inbound, call)
        except AwsError as error:
            named = error.named_for(inbound.service)
            call.error_code, call.error_message = named.code, named.message
            self.trail.add(call)
            raise
        self.trail.add(call)
        if self.faults:
            self.faults.apply(_subject(call), after=True)
        return answer

    def _served(self, inbound: Inbound, call: Call) -> Answer:
        caller = incoming.verified(inbound, self._identities, self.clock())
        _note_caller(call, caller)
        if self.faults:
            self.faults.apply(_subject(call), after=False)
        if inbound.service == "sts":
            return self._sts.answer(inbound, caller, call)
        if inbound.service == "iam":
            return self._iam.answer(inbound, caller, self.clock())
        if self._crypto.serves(inbound.action):
            return self._crypto.answer(inbound, caller, call)
        return self._admin.answer(inbound, caller, call, self.clock())


def _read(environ: dict[str, Any], request_id: str) -> Inbound:
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > _MAX_BODY:
        raise AwsError("RequestEntityTooLarge", "The request is too large.", 413)
    headers = {name[5:].lower().replace("_", "-"): value for name, value in environ.items() if name.startswith("HTTP_")}
    headers["content-type"] = environ.get("CONTENT_TYPE", "")
    headers["content-length"] = environ.get("CONTENT_LENGTH", "")
    body = environ["wsgi.input"].read(length) if length else b""
    return incoming.read(environ["REQUEST_METHOD"], environ["REQUEST_URI"], headers, body, request_id)


def _new_call(inbound: Inbound, now: float) -> Call:
    params = inbound.params
    if inbound.service == "sts":
        kept = sts.recorded_parameters(inbound)
    else:
        kept = {_RECORDED[name]: value for name, value in params.items() if name in _RECORDED}
    context: dict[str, Any] = next((params[name] for name in _CONTEXTS if isinstance(params.get(name), dict)), {})
    return Call(
        service=inbound.service,
        event_name=inbound.action,
        request_id=inbound.request_id,
        time=now,
        region=inbound.region,
        access_key=inbound.claim.access_key,
        user_agent=inbound.headers.get("user-agent", ""),
        key_arn=_named_key(inbound),
        role_arn=str(params["RoleArn"]) if "RoleArn" in params else None,
        session_name=str(params["RoleSessionName"]) if "RoleSessionName" in params else None,
        encryption_context={str(k): str(v) for k, v in context.items()},
        dry_run=params.get("DryRun") is True,
        parameters=kept,
    )


def _named_key(inbound: Inbound) -> str | None:
    """The key that the request means as far as it says so itself, by ARN or by its blob."""
    named = inbound.params.get("KeyId") or inbound.params.get("SourceKeyId")
    if isinstance(named, str):
        return named if named.startswith("arn:") and ":key/" in named else None
    return _key_of_blob(inbound.params.get("CiphertextBlob"))


def _key_of_blob(text: object) -> str | None:
    try:
        return key_arn_of(base64.b64decode(text)) if isinstance(text, str) else None
    except (BadBlob, ValueError):
        return None


def _note_caller(call: Call, caller: Caller) -> None:
    call.caller = caller
    if caller.kind == "AssumedRole" and call.role_arn is None:
        call.role_arn, call.session_name = caller.principal_arn, caller.session_name


def _subject(call: Call) -> Subject:
    return Subject(call.action, call.owner, call.key_arn, call.role_arn, tuple(call.encryption_context.items()))
