"""IAM: moto keeps it, the guard says who may, and publishes what changed.

Promise: a trust policy that names a principal that does not exist is refused, as by AWS; after every change the view
that decisions are made on is brought up to date (see `world`). This module imports no other service.
"""

from __future__ import annotations

from broker_core.dev.aws.decide import Caller, Request, refusal, sentence
from broker_core.dev.aws.inbound import Inbound, base_context
from broker_core.dev.aws.moto_app import MotoApp
from broker_core.dev.aws.policy import Kind, MalformedPolicy
from broker_core.dev.aws.wire import Answer, AwsError
from broker_core.dev.aws.world import World

_READS = ("Get", "List", "Simulate", "Generate")
_TRUST = {"CreateRole": "AssumeRolePolicyDocument", "UpdateAssumeRolePolicy": "PolicyDocument"}


class Iam:
    """The IAM endpoint."""

    def __init__(self, world: World, moto: MotoApp) -> None:
        self._world = world
        self._moto = moto

    def answer(self, inbound: Inbound, caller: Caller, now: float) -> Answer:
        """Raises AwsError."""
        self._authorise(inbound, caller, now)
        if inbound.action in _TRUST:
            self._check_trust(inbound.required(_TRUST[inbound.action]))
        answer = self._moto.ask(inbound, caller.account, inbound.body)
        if answer.status < 400 and not inbound.action.startswith(_READS):
            self._publish(inbound, caller.account)
        return answer

    def _authorise(self, inbound: Inbound, caller: Caller, now: float) -> None:
        context = base_context(caller, inbound.region, now)
        request = Request(f"iam:{inbound.action}", "*", caller.account, context)
        reason = refusal(request, caller, None)
        if reason is not None:
            raise AwsError("AccessDenied", sentence(request, caller, reason))

    def _check_trust(self, document: str) -> None:
        try:
            self._world.bind(document, Kind.TRUST)
        except MalformedPolicy as refused:
            raise AwsError("MalformedPolicyDocument", str(refused)) from None

    def _publish(self, inbound: Inbound, account: str) -> None:
        role, user = inbound.text("RoleName"), inbound.text("UserName")
        if role:
            self._world.publish_role(account, role)
        if user:
            self._world.publish_user(account, user)
        if not role and not user:
            self._world.publish_account(account)
