"""What the guard believes about keys, roles and users: moto's state, compiled, and possibly late.

moto stores IAM and KMS; this is the view of it that decisions are made on. After every change the guard publishes
the object that changed. Normally the new view is in force at once; `hold` makes changes wait for a time or for
`propagate`, as AWS needs seconds to minutes to spread one. What is new (a key, a role made for the first time) is
visible at once.

Promise: a stored policy is bound to the unique ids that its principals had when it was put, so that a role made
again under the same name is another principal. Decisions read immutable views and take no lock. This module imports
moto's models, `policy` and nothing else of ours.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from moto.iam.models import iam_backends
from moto.kms.models import kms_backends

from broker_core.dev.aws.policy import Kind, MalformedPolicy, Policy, parse

_PARTITION = "aws"
_PRINCIPAL = re.compile(r"arn:aws:iam::([0-9]{12}):(role|user)/(.+)")
_LITERAL = re.compile(
    r"\*|arn:aws:iam::[0-9]{12}:root|arn:aws:sts::[0-9]{12}:assumed-role/.+|[a-z0-9.-]+\.amazonaws\.com"
)


@dataclass(frozen=True)
class Grant:
    """A KMS grant: who may do what, under which context."""

    grantee: str
    operations: frozenset[str]
    constraints: dict[str, dict[str, str]]


@dataclass(frozen=True)
class KeyView:
    """A KMS key as decisions see it. `material` is its 32 secret bytes."""

    arn: str
    key_id: str
    account: str
    policy: Policy
    state: str
    usage: str
    spec: str
    material: bytes
    grants: tuple[Grant, ...]

    def __repr__(self) -> str:
        return f"<KeyView {self.arn} {self.state}>"


@dataclass(frozen=True)
class RoleView:
    """An IAM role. `max_session` is in seconds."""

    arn: str
    role_id: str
    name: str
    account: str
    trust: Policy
    policies: tuple[Policy, ...]
    max_session: int


@dataclass(frozen=True)
class UserView:
    """An IAM user."""

    arn: str
    user_id: str
    account: str
    policies: tuple[Policy, ...]


@dataclass(frozen=True)
class LongTermKey:
    """An active access key of a user."""

    user_arn: str
    secret: str

    def __repr__(self) -> str:
        return f"<LongTermKey of {self.user_arn}>"


View = TypeVar("View")


class _Shelf(Generic[View]):
    """Views by ARN, with the changes that are still on their way."""

    def __init__(self) -> None:
        self.views: dict[str, View] = {}

    def install(self, arn: str, view: View | None) -> None:
        if view is None:
            self.views.pop(arn, None)
        else:
            self.views[arn] = view


class World:
    """The current views. `clock` gives seconds that only go forward."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._keys: _Shelf[KeyView] = _Shelf()
        self._roles: _Shelf[RoleView] = _Shelf()
        self._users: _Shelf[UserView] = _Shelf()
        self._bound: dict[tuple[str, str], tuple[str, Policy]] = {}
        self.access_keys: dict[str, LongTermKey] = {}
        self._lock = threading.Lock()
        self._pending: deque[tuple[float, Callable[[], None]]] = deque()
        self._delay = 0.0

    # -- reading ---------------------------------------------------------------------------------------------------

    def key(self, arn: str) -> KeyView | None:
        return self._settled(self._keys).get(arn)

    def role(self, arn: str) -> RoleView | None:
        return self._settled(self._roles).get(arn)

    def user(self, arn: str) -> UserView | None:
        return self._settled(self._users).get(arn)

    def _settled(self, shelf: _Shelf[View]) -> dict[str, View]:
        if self._pending:
            self._install_due(self._clock())
        return shelf.views

    # -- changes on their way ---------------------------------------------------------------------------------------

    def hold(self, seconds: float | None) -> None:
        """From now on a change is in force after `seconds`; None: only when `propagate` is called; 0: at once."""
        self._delay = math.inf if seconds is None else seconds

    def propagate(self) -> None:
        """Puts every change in force that is still on its way."""
        self._install_due(math.inf)

    def _install_due(self, now: float) -> None:
        with self._lock:
            while self._pending and self._pending[0][0] <= now:
                self._pending.popleft()[1]()

    def _publish(self, shelf: _Shelf[View], arn: str, view: View | None) -> None:
        with self._lock:
            if (not self._delay and not self._pending) or arn not in shelf.views:
                shelf.install(arn, view)
            else:
                self._pending.append((self._clock() + self._delay, lambda: shelf.install(arn, view)))

    # -- publishing -------------------------------------------------------------------------------------------------

    def publish_key(self, account: str, region: str, key_id: str) -> None:
        """After a change of a key; a key that is gone is taken away."""
        arn = f"arn:{_PARTITION}:kms:{region}:{account}:key/{key_id}"
        key = kms_backends[account][region].keys.get(key_id)
        self._publish(self._keys, arn, None if key is None else self._key_view(key))

    def publish_role(self, account: str, name: str) -> None:
        """After a change of a role."""
        roles = iam_backends[account][_PARTITION].roles.values()
        role = next((role for role in roles if role.name == name), None)
        if role is not None:
            self._publish(self._roles, role.arn, self._role_view(role))
            return
        for arn, view in list(self._roles.views.items()):
            if (view.account, view.name) == (account, name):
                self._publish(self._roles, arn, None)

    def publish_user(self, account: str, name: str) -> None:
        """After a change of a user or of its groups."""
        arn, user = _find_user(account, name)
        view = None if user is None else UserView(arn, user.id, account, tuple(_user_policies(account, user)))
        self._publish(self._users, arn, view)
        active = [key for key in (user.access_keys if user else []) if key.status == "Active"]
        keys = {key.access_key_id: LongTermKey(arn, key.secret_access_key) for key in active}
        # one by one and in place: another thread may publish another user
        for key, owner in list(self.access_keys.items()):
            if owner.user_arn == arn and key not in keys:
                self.access_keys.pop(key, None)
        self.access_keys.update(keys)

    def publish_account(self, account: str) -> None:
        """After a change that may touch many (managed policies, groups)."""
        backend = iam_backends[account][_PARTITION]
        for role in list(backend.roles.values()):
            self.publish_role(account, role.name)
        for name in list(backend.users):
            self.publish_user(account, name)

    def bind(self, text: str, kind: Kind) -> Policy:
        """A key or trust policy with the ids of its principals as they are now. Raises MalformedPolicy."""
        return parse(text, kind).bind(unique_id)

    def _key_view(self, key: Any) -> KeyView:
        return KeyView(
            arn=key.arn,
            key_id=key.id,
            account=key.account_id,
            policy=self._bound_policy(key.arn, key.id, key.policy, Kind.KEY),
            state=key.key_state,
            usage=key.key_usage or "ENCRYPT_DECRYPT",
            spec=key.key_spec,
            material=key.key_material,
            grants=tuple(
                Grant(g.grantee_principal, frozenset(g.operations), g.constraints or {}) for g in key.grants.values()
            ),
        )

    def _role_view(self, role: Any) -> RoleView:
        return RoleView(
            arn=role.arn,
            role_id=role.id,
            name=role.name,
            account=role.account_id,
            trust=self._bound_policy(role.arn, role.id, role.assume_role_policy_document, Kind.TRUST),
            policies=tuple(_parsed(role)),
            max_session=int(role.max_session_duration or 3600),
        )

    def _bound_policy(self, arn: str, unique: str, text: str, kind: Kind) -> Policy:
        """Bound anew only when the text was put anew: other changes must not move its principals to new ids.

        Identity, not equality: putting the same text again does bind it anew.
        """
        stored = self._bound.get((arn, unique))
        if stored is None or stored[0] is not text:
            stored = self._bound[arn, unique] = (text, self.bind(text, kind))
        return stored[1]


def unique_id(principal: str) -> str | None:
    """What a stored policy keeps for a principal: a role's or user's id; the text itself for what has none."""
    match = _PRINCIPAL.fullmatch(principal)
    if match is None:
        return principal if _LITERAL.fullmatch(principal) else _known_id(principal)
    account, kind, path = match.groups()
    name = path.rpartition("/")[2]
    backend = iam_backends[account][_PARTITION]
    owners: list[Any] = list(backend.roles.values() if kind == "role" else backend.users.values())
    return next((str(owner.id) for owner in owners if owner.name == name and owner.arn == principal), None)


def _known_id(principal: str) -> str | None:
    """A principal given by its unique id, as AWS shows one whose ARN is gone: only if it still exists."""
    backends = [backends[_PARTITION] for backends in list(iam_backends.values())]
    owners: list[Any] = [owner for backend in backends for owner in [*backend.roles.values(), *backend.users.values()]]
    return principal if any(owner.id == principal for owner in owners) else None


def _find_user(account: str, name: str) -> tuple[str, Any]:
    user = iam_backends[account][_PARTITION].users.get(name)
    return (user.arn, user) if user else (f"arn:{_PARTITION}:iam::{account}:user/{name}", None)


def _user_policies(account: str, user: Any) -> list[Policy]:
    groups = iam_backends[account][_PARTITION].get_groups_for_user(user.name)
    return [policy for holder in (user, *groups) for policy in _parsed(holder)]


def _parsed(holder: Any) -> list[Policy]:
    """Inline and managed policies of a role, user or group; a document that moto took and AWS would not is skipped."""
    texts = [*holder.policies.values(), *(_default_text(managed) for managed in holder.managed_policies.values())]
    found = []
    for text in texts:
        try:
            found.append(parse(text if isinstance(text, str) else json.dumps(text), Kind.IDENTITY))
        except MalformedPolicy:
            continue
    return found


def _default_text(managed: Any) -> str:
    return next((v.document for v in managed.versions if v.version_id == managed.default_version_id), "")
