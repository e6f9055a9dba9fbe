"""What a workspace's admins do with its secrets, and the platform with workspaces.

Values go through ``Intake.accept``, as every event does: what is made here is an event of our own source, whose version
the store counts. An admin's idempotency key is that event's id, so a repeat is known and compared as every repeat of an
event is: the fields always, the value for as long as its claim is open. Nothing else is kept of a request.
Imports no database, Redis or HTTP library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from broker_core.errors import Invalid
from broker_core.events import OWN_SOURCE, IncomingEvent
from broker_core.export import Export, export
from broker_core.injection import NAME, Injection, Kind
from broker_core.intake import Intake, Receipt
from broker_core.model import ROTATION_POLICY, Event, EventType, Plan, SecretStatus
from broker_core.pages import Page, page_of
from broker_core.ports import ByokStore, IntakeStore, OwnerStore, SecretView, Use
from broker_core.secret import Plaintext

#: visible ASCII, so that it is one thing in every log and client
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
#: items of a list at a time
LARGEST_PAGE = 200
#: an event's field → the request's; a key that was used for another kind of request differs in the event's type
_NAMES = {"data.value": "secret", "subject": "name", "id": "Idempotency-Key", "type": "Idempotency-Key"}


@dataclass(frozen=True)
class Fields:
    """The injection fields as they were given; all None to keep those in place."""

    injection_kind: Kind | None = None
    binding_key: str | None = None
    target_host: str | None = None
    mcp_server_id: str | None = None
    agent_id: str | None = None

    def injection(self) -> Injection | None:
        """What they say together; None where none is given. Raises Invalid."""
        given = (self.binding_key, self.target_host, self.mcp_server_id, self.agent_id)
        if self.injection_kind is None:
            if any(each is not None for each in given):
                raise Invalid({"injectionKind": "the fields change only all together: give it with the others"})
            return None
        injection = Injection(self.injection_kind, *given)
        problems = injection.problems()
        if problems:
            raise Invalid(problems)
        return injection


@dataclass(frozen=True)
class NewSecret:
    """A secret to be created."""

    name: str
    value: Plaintext = field(repr=False)
    fields: Fields
    rotation_policy: str | None = None


class Administer:
    """Use case: create, rotate, change and delete secrets; look at them; make and end workspaces."""

    def __init__(
        self,
        intake: Intake,
        events: IntakeStore,
        secrets: OwnerStore,
        workspaces: ByokStore,
        new_id: Callable[[], UUID],
    ) -> None:
        self._intake = intake
        self._events = events
        self._secrets = secrets
        self._workspaces = workspaces
        self._new_id = new_id

    # ------------------------------------------------------------ values

    def create(self, workspace_id: str, secret: NewSecret, idempotency_key: str | None = None) -> Receipt:
        """Take in the first value of a name that is not in use. The value is used up, whatever happens.

        Raises Invalid (fields), NotFound (workspace), Conflict (``name_taken``; ``conflict`` while the same key is
        being served), RateLimited or Unavailable.
        """
        with _used_up(secret.value), _renamed():
            injection = secret.fields.injection()
            if injection is None:
                raise Invalid({"injectionKind": f"is required: one of {', '.join(Kind)}"})
            _check(NAME, secret.name, "name", "1 to 128 of letters, digits, space, . _ : / @ + = -")
            _check_policy(secret.rotation_policy)
            event = self._event(workspace_id, EventType.CREATED, secret.name, idempotency_key)
            event = replace(event, value=secret.value, injection=injection, rotation_policy=secret.rotation_policy)
            return self._intake.accept(
                event, workspace_id=workspace_id, must_be_new=True, is_exclusive=idempotency_key is not None
            )

    def rotate(
        self,
        workspace_id: str,
        secret_id: UUID,
        value: Plaintext,
        fields: Fields,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Take in a new value, with new injection fields if they are given. Raises as ``create``, and NotFound for the
        secret."""
        with _used_up(value), _renamed():
            injection = fields.injection()
            name = self._secrets.secret(workspace_id, secret_id).name
            event = self._event(workspace_id, EventType.ROTATED, name, idempotency_key)
            event = replace(event, value=value, injection=injection)
            return self._intake.accept(
                event, workspace_id=workspace_id, must_exist=True, is_exclusive=idempotency_key is not None
            )

    def delete(self, workspace_id: str, secret_id: UUID) -> Receipt:
        """End a secret: its blob, and what waits for it. Its name may be used again, with higher versions. Raises
        NotFound or Unavailable."""
        name = self._secrets.secret(workspace_id, secret_id).name
        event = self._event(workspace_id, EventType.DELETED, name, None)
        return self._intake.accept(event, workspace_id=workspace_id, must_exist=True)

    def discard(self, workspace_id: str, event_id: UUID) -> Event:
        """End an event that waits, and forget its value. Raises NotFound, Conflict (it has ended) or Unavailable."""
        return self._intake.discard(workspace_id, event_id)

    # ------------------------------------------------------------ metadata

    def secret(self, workspace_id: str, secret_id: UUID) -> SecretView:
        """One secret. Raises NotFound or Unavailable."""
        return self._secrets.secret(workspace_id, secret_id)

    def export(self, workspace_id: str, secret_id: UUID) -> Export:
        """One secret's ciphertext, and how its owner opens it without us. Raises NotFound, Conflict (it is not under a
        key of theirs) or Unavailable."""
        return export(*self._secrets.blob(workspace_id, secret_id))

    def secrets(
        self, workspace_id: str, *, status: SecretStatus | None = None, after: UUID | None = None, limit: int = 50
    ) -> Page[SecretView]:
        """The secrets, or those of one status. Raises NotFound (workspace) or Unavailable."""
        found = self._secrets.secrets(workspace_id, after=after, limit=limit + 1, status=status)
        return page_of(found, limit, lambda view: view.id)

    def set_rotation_policy(self, workspace_id: str, secret_id: UUID, policy: str | None) -> SecretView:
        """Change after how many days the value should be a new one (``90d``); None takes the policy away.

        Raises Invalid, NotFound or Unavailable.
        """
        _check_policy(policy)
        self._secrets.set_rotation_policy(workspace_id, secret_id, policy)
        return self._secrets.secret(workspace_id, secret_id)

    def event(self, workspace_id: str, event_id: UUID) -> Event:
        """Where an event is. Raises NotFound or Unavailable."""
        return self._events.event(workspace_id, event_id)

    def uses(
        self,
        workspace_id: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        after: UUID | None = None,
        limit: int = 50,
    ) -> Page[Use]:
        """The audit log, from ``since`` on and before ``until``. Raises Unavailable."""
        found = self._secrets.uses(workspace_id, after=after, limit=limit + 1, since=since, until=until)
        return page_of(found, limit, lambda use: use.intent.id)

    # ------------------------------------------------------------ workspaces

    def put_workspace(self, workspace_id: str, plan: Plan) -> None:
        """Create a workspace, or change its plan. Raises Conflict (it was deleted) or Unavailable."""
        self._workspaces.put_workspace(workspace_id, plan.value)

    def delete_workspace(self, workspace_id: str) -> None:
        """End a workspace: every blob goes, and what waits with its claim. Raises NotFound or Unavailable."""
        self._intake.forget(self._workspaces.delete_workspace(workspace_id))

    def _event(self, workspace_id: str, kind: EventType, name: str, idempotency_key: str | None) -> IncomingEvent:
        """An event of our own, without a value yet; its version is counted by the store."""
        if idempotency_key is not None:
            _check(IDEMPOTENCY_KEY, idempotency_key, "Idempotency-Key", "1 to 255 visible ASCII characters")
        return IncomingEvent(
            id=idempotency_key or str(self._new_id()),
            source=OWN_SOURCE,
            type=kind,
            time=None,
            name=name,
            workspace_id=workspace_id,
            version=None,
            injection=None,
            rotation_policy=None,
            value=None,
        )


@contextmanager
def _used_up(value: Plaintext) -> Iterator[None]:
    """A value has one use, also where it came to none."""
    try:
        yield
    finally:
        value.wipe()


@contextmanager
def _renamed() -> Iterator[None]:
    """Say what is wrong by the names of the request's fields instead of the event's."""
    try:
        yield
    except Invalid as error:
        fields = {_field(name): why for name, why in error.fields.items()}
        if "id" in error.fields:
            fields["Idempotency-Key"] = "was used for another request; give a new request a new key"
        raise Invalid(fields, code=error.reason) from None


def _field(name: str) -> str:
    return _NAMES.get(name, name.removeprefix("data."))


def _check(pattern: re.Pattern[str], given: str, field_name: str, what: str) -> None:
    if not pattern.fullmatch(given):
        raise Invalid({field_name: f"give {what}"})


def _check_policy(policy: str | None) -> None:
    if policy is not None:
        _check(ROTATION_POLICY, policy, "rotationPolicy", 'days, as "90d", or leave it out')
