"""Who makes a request: root users, users with access keys, and role sessions.

Promise: a 12-digit account id is an access key of that account's root user, with the secret `test`; it is how tests
and the demo act as a customer. A session ends at its time, and when its role is gone. A wrong token is an invalid
one. This module imports `world`, `decide`, `policy` and `wire`.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass

from broker_core.dev.aws.decide import Caller
from broker_core.dev.aws.policy import Policy, root_arn
from broker_core.dev.aws.wire import AwsError
from broker_core.dev.aws.world import World

ROOT_SECRET = "test"  # noqa: S105 - the double's fixed word, not a credential of anyone's
_ACCOUNT = re.compile(r"[0-9]{12}")
_PRUNE_EVERY = 4096


@dataclass(frozen=True, repr=False)
class Session:
    """The credentials that one AssumeRole gave. Times are Unix seconds."""

    access_key: str
    secret: str
    token: str
    role_arn: str
    role_id: str
    account: str
    arn: str
    name: str
    policy: Policy | None
    issued_at: float
    expires_at: float

    def __repr__(self) -> str:
        return f"<Session {self.arn}>"


class Identities:
    """Access key id → caller and secret. `clock` gives Unix seconds."""

    def __init__(self, world: World, clock: Callable[[], float]) -> None:
        self._world = world
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._opened = 0

    def open(self, session: Session) -> None:
        """Makes a session's credentials valid."""
        self._sessions[session.access_key] = session
        self._opened += 1
        if self._opened % _PRUNE_EVERY == 0:
            self._prune(self._clock())

    def _prune(self, now: float) -> None:
        # one by one and in place: what another thread opens meanwhile stays
        for key, session in list(self._sessions.items()):
            if session.expires_at <= now:
                self._sessions.pop(key, None)

    def look_up(self, access_key: str, token: str) -> tuple[Caller, str]:
        """The caller and the secret its signature must have been made with.

        Raises AwsError: InvalidClientTokenId, ExpiredToken.
        """
        if _ACCOUNT.fullmatch(access_key):
            arn = root_arn(access_key)
            return Caller(access_key, arn, arn, arn, access_key, "Root"), ROOT_SECRET
        if access_key.startswith("ASIA"):
            return self._session_caller(self._sessions.get(access_key), token)
        return self._user_caller(access_key)

    def _user_caller(self, access_key: str) -> tuple[Caller, str]:
        owner = self._world.access_keys.get(access_key)
        user = self._world.user(owner.user_arn) if owner else None
        if owner is None or user is None:
            raise _invalid()
        caller = Caller(user.account, user.arn, user.arn, user.user_id, access_key, "IAMUser", user.policies)
        return caller, owner.secret

    def _session_caller(self, session: Session | None, token: str) -> tuple[Caller, str]:
        if session is None or not hmac.compare_digest(session.token.encode(), token.encode()):
            raise _invalid()
        if self._clock() >= session.expires_at:
            raise AwsError("ExpiredToken", "The security token included in the request is expired")
        role = self._world.role(session.role_arn)
        if role is None or role.role_id != session.role_id:
            raise _invalid()
        caller = Caller(
            account=session.account,
            arn=session.arn,
            principal_arn=session.role_arn,
            unique_id=session.role_id,
            access_key=session.access_key,
            kind="AssumedRole",
            identity=role.policies,
            session=session.policy,
            session_name=session.name,
            issued_at=session.issued_at,
        )
        return caller, session.secret


def _invalid() -> AwsError:
    return AwsError("InvalidClientTokenId", "The security token included in the request is invalid.")
