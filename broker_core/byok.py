"""Setting BYOK up and taking it down; what owners see of failures.

A new connection encrypts nothing until it has shown that it works: it is written as pending, verified step by step
(``verification``), and made current in one compare-and-set on the version of the setting that was read at the start.
Whatever goes wrong on the way, the old setting stays. Losing Enterprise stops connecting and never changes a cipher;
disconnecting is always allowed. Imports no AWS or database library.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from broker_core import telemetry
from broker_core.canary import Canaries
from broker_core.errors import Conflict, Forbidden
from broker_core.model import Connection, Plan, StepOutcome, StepResult, check_connection
from broker_core.ports import Affected, AuditStore, ByokStore, Clock, ConnectionView, KeyService
from broker_core.verification import Verified, Verifier


@dataclass(frozen=True)
class Verification:
    """What an attempt to connect, or to verify again, has shown. ``not_run``: the steps that a failed one kept from
    being taken. ``is_current``: whether this connection encrypts what comes next."""

    connection: Connection
    steps: Sequence[StepResult]
    not_run: Sequence[str]
    passed: bool
    is_current: bool
    verified_at: datetime

    def failed(self) -> Sequence[StepResult]:
        """The steps that failed, in their order."""
        return [step for step in self.steps if step.outcome is StepOutcome.FAILED]


class Byok:
    """Use case: connect, verify, disconnect, and say what is affected."""

    def __init__(
        self,
        store: ByokStore,
        audit: AuditStore,
        keys: KeyService,
        clock: Clock,
        new_id: Callable[[], UUID],
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._verifier = Verifier(Canaries(audit, keys, new_id), clock, random)

    def connect(self, workspace_id: str, role_arn: str, external_id: str, key_arn: str) -> Verification:
        """Make a key the one that encrypts every new and rotated secret, once it has passed every step.

        Where a step fails nothing is enabled: what was current stays, and the new connection stays pending with its
        steps, for its owner to see, until the next attempt takes its place.
        Raises NotFound, Forbidden (``plan_required``), Invalid, Conflict (the external id is not to be had, or the
        setting changed meanwhile) or Unavailable.
        """
        self._require_plan(workspace_id)
        key = check_connection(role_arn, key_arn, external_id)
        before = self._store.setting(workspace_id)
        connection = Connection(self._new_id(), workspace_id, role_arn, external_id, key_arn)
        with self._span("byok.connect", connection):
            self._store.add_pending(connection)
            verified = self._verifier.verify(connection)
            if verified.passed:
                self._enable(connection, verified, before.version)
            else:
                self._note(connection, verified)
        if verified.passed and key.is_multi_region:
            telemetry.log().warning(
                "byok.multi_region_key", workspace_id=workspace_id, connection_id=str(connection.id)
            )
        return self._report(connection, verified, is_current=verified.passed)

    def verify(self, workspace_id: str) -> Verification:
        """Take every step again with the current connection, which stays what it is, whatever they show.

        Raises NotFound, Forbidden (``plan_required``), Conflict (not connected) or Unavailable.
        """
        self._require_plan(workspace_id)
        connection = self._store.setting(workspace_id).connection
        if connection is None:
            raise Conflict("BYOK is not connected")
        with self._span("byok.verify", connection):
            verified = self._verifier.verify(connection)
            self._note(connection, verified)
        return self._report(connection, verified, is_current=True)

    def connections(self, workspace_id: str) -> Sequence[ConnectionView]:
        """The workspace's connections: the current one first, then a pending one, then what is retired, newest first.

        Raises NotFound or Unavailable.
        """
        return self._store.connections(workspace_id)

    def disconnect(self, workspace_id: str) -> None:
        """Let the platform cipher encrypt what comes; what is stored stays under its key. On every plan.

        Raises NotFound, Conflict (not connected) or Unavailable.
        """
        self._store.disconnect(workspace_id)

    def retire(self, workspace_id: str, connection_id: UUID) -> None:
        """Retire an older connection for good, once nothing is under it. It stays listed, and its external id stays the
        workspace's; its canary stays too (random bytes, evidence of what was verified), and is not asked about any
        more. On every plan.

        Raises NotFound, Conflict (it is current or pending, or secrets are under it) or Unavailable.
        """
        self._store.retire(workspace_id, connection_id)

    def affected(self, workspace_id: str) -> Affected:
        """What cannot be decrypted now for a reason on the customer's side. Raises NotFound or Unavailable."""
        return self._store.affected(workspace_id)

    # ------------------------------------------------------------ steps of the above

    def _require_plan(self, workspace_id: str) -> None:
        if self._store.plan_of(workspace_id) != Plan.ENTERPRISE:
            raise Forbidden("connecting a key of your own is part of the Enterprise plan", code="plan_required")

    def _enable(self, connection: Connection, verified: Verified, setting_version: int) -> None:
        if verified.canary is None:
            raise RuntimeError("a verification that was passed has left no canary")
        if not self._store.make_current(connection, verified.canary, setting_version, verified.steps):
            self._require_plan(connection.workspace_id)
            raise Conflict("the setting changed while this key was being tried; nothing was enabled: try again")

    def _note(self, connection: Connection, verified: Verified) -> None:
        self._store.note_verification(connection, verified.steps, passed=verified.passed, flag=verified.lets_others_in)

    def _report(self, connection: Connection, verified: Verified, *, is_current: bool) -> Verification:
        return Verification(
            connection, verified.steps, verified.not_run, verified.passed, is_current, self._clock.now()
        )

    def _span(self, name: str, connection: Connection) -> AbstractContextManager[object]:
        return telemetry.span(name, broker__workspace=connection.workspace_id, broker__connection=str(connection.id))
