"""The nouns: workspace, connection, secret, event; their states and the legal moves between them.

Pure: no clock, no I/O. Imports only ``errors``, ``aws_names`` and ``injection``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from broker_core.aws_names import KEY_ARN, ROLE_ARN, is_alias, is_region
from broker_core.errors import Invalid
from broker_core.injection import Injection


class Plan(StrEnum):
    """What a workspace pays for. BYOK is connected on ``enterprise`` only."""

    FREE = "free"
    TEAM = "team"
    ENTERPRISE = "enterprise"


class CipherName(StrEnum):
    """What encrypted a blob; stands in the blob's own column."""

    KMS = "kms"
    KMS_ENVELOPE = "kms-envelope"
    PLATFORM = "platform"


class Purpose(StrEnum):
    """What a use of a key is for; part of the RoleSessionName that the customer's CloudTrail shows."""

    ENCRYPT = "encrypt"
    INJECT = "inject"
    CHECK = "check"
    PROBE = "probe"
    VERIFY = "verify"
    PROOF = "proof"


class EventType(StrEnum):
    """CloudEvents ``type``."""

    CREATED = "secret.created"
    ROTATED = "secret.rotated"
    DELETED = "secret.deleted"


class EventState(StrEnum):
    """Where an event is. Two states wait, five are an end."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    STORED = "stored"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"
    UNREADABLE = "unreadable"
    DELETED = "deleted"

    @property
    def is_end(self) -> bool:
        """An end is final, and its one-time key is gone."""
        return self not in WAITING


WAITING = frozenset({EventState.ACCEPTED, EventState.REFUSED})

#: from → to; an end has no way out. ``accepted → accepted`` is a retry, ``refused → accepted`` never happens by itself
TRANSITIONS: Mapping[EventState, frozenset[EventState]] = {
    EventState.ACCEPTED: frozenset(EventState),
    EventState.REFUSED: frozenset(EventState) - {EventState.ACCEPTED},
    **{state: frozenset() for state in EventState if state not in WAITING},
}


class ConnectionStatus(StrEnum):
    """``pending`` until verified, then ``current``; ``retired`` once replaced or disconnected (old blobs still use
    it)."""

    PENDING = "pending"
    CURRENT = "current"
    RETIRED = "retired"


class SecretStatus(StrEnum):
    """What an owner sees of a secret."""

    PENDING = "pending"
    ACTIVE = "active"
    AFFECTED = "affected"
    RECHECKING = "rechecking"
    NEEDS_REPROVISION = "needs_reprovision"
    UNBOUND = "unbound"


class StepOutcome(StrEnum):
    """How a step of a verification ended. A warning hinders nothing."""

    OK = "ok"
    FAILED = "failed"
    WARNING = "warning"


@dataclass(frozen=True)
class StepResult:
    """What one step of a verification showed. ``what_to_do``: one sentence for the owner; empty where all is well."""

    name: str
    outcome: StepOutcome
    aws_code: str = ""
    request_id: str | None = None
    what_to_do: str = ""


class FoundBy(StrEnum):
    """How a failure was found."""

    INJECT = "inject"
    PROBE = "probe"
    CHECK = "check"


@dataclass(frozen=True)
class Connection:
    """A workspace's BYOK setting. Immutable: a change makes a new one, and old blobs keep pointing at theirs."""

    id: UUID
    workspace_id: str
    role_arn: str
    external_id: str = field(repr=False)
    key_arn: str

    @property
    def region(self) -> str:
        """The key's Region, for both STS and KMS."""
        return parse_key_arn(self.key_arn).region


@dataclass(frozen=True)
class Setting:
    """What encrypts a workspace's next value: a connection, or None for the platform cipher.

    ``version`` counts every change; custody stores only under the version that it encrypted under.
    """

    workspace_id: str
    version: int
    connection: Connection | None


@dataclass(frozen=True)
class Blob:
    """What is stored of a value. For ``kms`` exactly the KMS CiphertextBlob."""

    cipher: CipherName
    ciphertext: bytes = field(repr=False)


@dataclass(frozen=True)
class Event:
    """An accepted event, without its value."""

    id: UUID
    workspace_id: str
    secret_id: UUID
    source: str
    event_id: str
    type: EventType
    name: str
    version: int
    state: EventState
    injection: Injection | None
    rotation_policy: str | None
    claim_id: str | None
    reason: str | None
    accepted_at: datetime
    held_until: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True)
class KeyArn:
    """The parts of a symmetric key's ARN."""

    partition: str
    region: str
    account: str
    key_id: str

    @property
    def is_multi_region(self) -> bool:
        """``mrk-`` keys exist in several Regions at once; disabling one leaves the others."""
        return self.key_id.startswith("mrk-")


#: days between rotations, as owners write them: ``90d``
ROTATION_POLICY = re.compile(r"[1-9][0-9]{0,3}d")
_EXTERNAL_ID = re.compile(r"[\w+=,.@:/-]{16,1224}", re.ASCII)


def parse_key_arn(arn: str) -> KeyArn:
    """Parse and check a KMS key's ARN. Raises Invalid (``keyArn``); an alias or a bare key id is refused, since what an
    alias points at can change without us seeing it."""
    found = KEY_ARN.fullmatch(arn)
    if found is None:
        why = "an alias is refused; give" if is_alias(arn) else "not a KMS key ARN; give"
        raise Invalid({"keyArn": f"{why} the key's own ARN, arn:aws:kms:REGION:ACCOUNT:key/KEY-ID"})
    return KeyArn(*found.groups())


def check_connection(role_arn: str, key_arn: str, external_id: str) -> KeyArn:
    """Check that role, key and external id can belong together; returns the key's parts.

    Raises Invalid naming ``keyArn``, ``roleArn`` or ``externalId``: partition and account of role and key must be the
    same, and the Region one of that partition.
    """
    key = parse_key_arn(key_arn)
    if not is_region(key.region, key.partition):
        raise Invalid({"keyArn": f"partition {key.partition} has no Region {key.region}; give the key's own ARN"})
    check_role(role_arn, external_id, key.partition, key.account)
    return key


def check_role(role_arn: str, external_id: str, partition: str, account: str) -> None:
    """Check a role and its external id for a key of this partition and account. Raises Invalid as above."""
    role = ROLE_ARN.fullmatch(role_arn)
    if role is None:
        raise Invalid({"roleArn": "not an IAM role ARN; give arn:aws:iam::ACCOUNT:role/NAME"})
    if role[1] != partition:
        raise Invalid({"roleArn": f"is in partition {role[1]}, the key in {partition}; give a role beside the key"})
    if role[2] != account:
        raise Invalid({"roleArn": "is in another account than the key; give a role in the key's account"})
    if not _EXTERNAL_ID.fullmatch(external_id):
        raise Invalid({"externalId": "16 to 1224 of A-Z a-z 0-9 _ + = , . @ : / - (as IAM allows)"})


@dataclass(frozen=True)
class SecretFacts:
    """What the status of a secret is derived from."""

    has_blob: bool
    is_bound: bool
    is_waiting: bool
    lost_its_value: bool
    failing: bool
    healed_unchecked: bool


def status_of(facts: SecretFacts) -> SecretStatus:
    """The one status that an owner sees; what needs the owner's action comes first.

    ``lost_its_value``: the highest event ended expired or unreadable. ``failing``: an open failure of its own, or of
    its connection. ``healed_unchecked``: its connection healed after its last check.
    """
    if facts.failing and facts.has_blob:
        return SecretStatus.AFFECTED
    if facts.lost_its_value:
        return SecretStatus.NEEDS_REPROVISION
    if not facts.has_blob:
        return SecretStatus.PENDING if facts.is_waiting else SecretStatus.NEEDS_REPROVISION
    if not facts.is_bound:
        return SecretStatus.UNBOUND
    return SecretStatus.RECHECKING if facts.healed_unchecked else SecretStatus.ACTIVE


def rotation_due(policy: str | None, created_at: datetime, rotated_at: datetime | None) -> datetime | None:
    """When a secret should be rotated next: its policy's days after it last was, or else was created; None without a
    policy. ``policy`` is one that ``ROTATION_POLICY`` matches."""
    return (rotated_at or created_at) + timedelta(days=int(policy.removesuffix("d"))) if policy else None
