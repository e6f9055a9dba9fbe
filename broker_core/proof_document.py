"""What a lockout proof says, as one JSON document to be signed; and reading it back, for who checks it.

The wording is the product here: what is shown, what is not, and who else can confirm it. It holds names, ids, times and
AWS's codes, never a value and never a blob. Pure: no clock, no I/O.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from broker_core.errors import Invalid, KeyState
from broker_core.model import Connection, parse_key_arn
from broker_core.policies import Policy
from broker_core.ports import Ask, Beside, ProofItem, ProofOutcome

#: the JWS header's ``typ``, and the document's ``format``
CONTENT_TYPE = "vnd.axiorank.lockout-proof+json"
FORMAT = "axiorank-lockout-proof/1"


def _paragraphs(text: str) -> tuple[str, ...]:
    return tuple(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


(MULTI_REGION,) = _paragraphs("""
This is a multi-Region key (mrk-…). What is shown here holds for the replica in this Region alone, the only one that
AxioRank asks; revoking or disabling it here leaves the key's replicas in other Regions as they are.
""")
SHOWS = _paragraphs("""
For each secret, AxioRank asked AWS KMS at the times given, as it does to use the secret: with the connection's role and
external id, the same key, the same encryption context, and a session policy that allows kms:Decrypt on this key under
that context, so that it was not AxioRank's own policy that denied.

First by a dry run, which gives no plaintext. Where it would have worked nothing else was asked, and the secret is
listed as still_decrypts.

Where the dry run was denied, by a real kms:Decrypt. Listed as locked_out is a secret only if your side denied that,
too.

AWS gave each answer a request id. What KMS denied stands in your own CloudTrail, under that id and the session name
given here. A refused AssumeRole is written by AWS to the caller's account alone, so your CloudTrail cannot confirm it
(it shows no session and no Decrypt of that name).
""")
DOES_NOT_SHOW = _paragraphs("""
Values that were decrypted before: in the memory of a process that was using one at that moment, and in the environment
of a stdio server that was started before, until it ends.

What an upstream does with a credential that it was sent. To end that, revoke the credential there.

Values that are not under this connection's key: see notCovered. Values that are on their way in are held in memory-only
storage until they are stored or expire; older connections need a revocation of their own; secrets under the platform
cipher are readable to AxioRank.

Old backups: a value that was once stored under the platform cipher stays in backups of that time. Rotate it to a new
credential.

The time after. Whoever may change the key's or the role's policy can let AxioRank in again; only your CloudTrail shows
whether that happened.

Changes that AWS was still spreading, which takes seconds and at times minutes. An answer is that of its moment.

What other principals of your account may do with the key, and what other roles of yours AxioRank might assume: it was
asked as this connection's role only.

More than AxioRank's word. The signature shows that this is AxioRank's statement and unchanged; independent evidence is
your CloudTrail, as far as it can confirm.
""")
(OWN_SIDE_NOT_SHOWN,) = _paragraphs("""
Whose side refused the role. Where the answer is role_refused, AxioRank had no control role of its own that would have
shown, at that moment, that its side of AssumeRole worked: a fault of AxioRank's own AWS set-up could give the same
answer. Disable the key, or take the role out of its policy, to have KMS itself deny.
""")


@dataclass(frozen=True)
class ProofDocument:
    """A finished proof. ``session_policy`` is the text that the session for ``policy_of`` was bound to; those for the
    others differ in the secret's name and version alone, or not at all where sessions are shared.
    ``has_control_role``: whether a refused role was taken for the customer's no only while our own could be assumed."""

    id: UUID
    asked_by: str
    connection: Connection
    started_at: datetime
    ended_at: datetime
    policy_of: str
    session_policy: Policy = field(repr=False)
    secrets: Sequence[ProofItem] = field(repr=False)
    beside: Beside
    has_control_role: bool = False

    @property
    def totals(self) -> Mapping[ProofOutcome, int]:
        """How many secrets of each outcome, every outcome named."""
        return _totals([secret.outcome for secret in self.secrets if secret.outcome])

    @property
    def is_locked_out(self) -> bool:
        """See ``is_locked_out``."""
        return is_locked_out(self.totals, self.beside.stored_meanwhile)

    def to_json(self) -> bytes:
        """The document, as it is signed."""
        return json.dumps(self._plain(), separators=(",", ":"), ensure_ascii=True).encode("ascii")

    def _plain(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "id": str(self.id),
            "workspace": self.connection.workspace_id,
            "askedBy": self.asked_by,
            "startedAt": rfc3339(self.started_at),
            "endedAt": rfc3339(self.ended_at),
            "isLockedOut": self.is_locked_out,
            "totals": {outcome.value: count for outcome, count in self.totals.items()},
            "connection": _connection(self.connection),
            "sessionPolicy": {"ofSecret": self.policy_of, "policy": self.session_policy},
            "secrets": [_secret(secret) for secret in self.secrets],
            "notCovered": _beside(self.beside, self.connection.key_arn),
            "shows": SHOWS,
            "doesNotShow": [*DOES_NOT_SHOW, *([OWN_SIDE_NOT_SHOWN] if self._may_be_ours() else [])],
        }

    def _may_be_ours(self) -> bool:
        refused = any(ask.state is KeyState.ROLE_REFUSED for secret in self.secrets for ask in secret.asks)
        return refused and not self.has_control_role


def is_locked_out(totals: Mapping[ProofOutcome, int], stored_meanwhile: int) -> bool:
    """Whether a proof shows what it is for: of what is still under the connection's key something was asked, all of it
    was, and all of it was denied."""
    shown = totals[ProofOutcome.LOCKED_OUT] > 0 and stored_meanwhile == 0
    return shown and totals[ProofOutcome.STILL_DECRYPTS] == totals[ProofOutcome.NOT_SHOWN] == 0


@dataclass(frozen=True)
class Summary:
    """What who checks a document is told."""

    id: str
    workspace: str
    key_arn: str
    started_at: str
    ended_at: str
    is_locked_out: bool
    totals: Mapping[str, int]
    stored_meanwhile: int
    not_covered: Mapping[str, int]  # what the connection's lockout says nothing of
    multi_region_warning: str
    own_side_warning: str
    not_locked_out: Sequence[str]  # names of secrets that still decrypt, or of which nothing was shown


def payload_of(jws: str) -> bytes:
    """What a JWS of our own says, unchecked: for showing what we signed."""
    body = jws.split(".")[1]
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))


def read(payload: bytes) -> Mapping[str, Any]:
    """A signed payload as the JSON that it is. Raises Invalid for what is no such document."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _not_a_proof()
    return document


def summary(document: Mapping[str, Any]) -> Summary:
    """What a document says, counted anew from its secrets: its own totals are not believed.

    Raises Invalid where they disagree, or where it is not shaped as one.
    """
    try:
        outcomes = [(str(secret["name"]), ProofOutcome(secret["outcome"])) for secret in document["secrets"]]
        totals = _totals([outcome for _, outcome in outcomes])
        stored_meanwhile = int(document["notCovered"]["storedMeanwhile"])
        locked_out = is_locked_out(totals, stored_meanwhile)
        agrees = document["totals"] == totals and document["isLockedOut"] is locked_out
        found = Summary(
            id=str(document["id"]),
            workspace=str(document["workspace"]),
            key_arn=str(document["connection"]["keyArn"]),
            started_at=str(document["startedAt"]),
            ended_at=str(document["endedAt"]),
            is_locked_out=locked_out,
            totals={outcome.value: count for outcome, count in totals.items()},
            stored_meanwhile=stored_meanwhile,
            not_covered=_not_covered(document["notCovered"]),
            multi_region_warning=str(document["connection"].get("warning", "")),
            own_side_warning=OWN_SIDE_NOT_SHOWN if OWN_SIDE_NOT_SHOWN in document["doesNotShow"] else "",
            not_locked_out=[name for name, outcome in outcomes if outcome in _OPEN],
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _not_a_proof() from None
    if not agrees:
        raise Invalid({"document": "its totals are not those of its secrets"})
    return found


def rfc3339(moment: datetime) -> str:
    """A time as documents have it."""
    return moment.isoformat().replace("+00:00", "Z")


_OPEN = frozenset({ProofOutcome.STILL_DECRYPTS, ProofOutcome.NOT_SHOWN})


def _totals(outcomes: Sequence[ProofOutcome]) -> dict[ProofOutcome, int]:
    counted = Counter(outcomes)
    return {outcome: counted[outcome] for outcome in ProofOutcome}


def _not_covered(beside: Mapping[str, Any]) -> dict[str, int]:
    return {
        "valuesOnTheirWay": int(beside["valuesOnTheirWay"]),
        "platformSecrets": int(beside["platformSecrets"]),
        "underOtherConnections": sum(int(other["secrets"]) for other in beside["otherConnections"]),
    }


def _connection(connection: Connection) -> dict[str, Any]:
    key = parse_key_arn(connection.key_arn)
    plain = {
        "id": str(connection.id),
        "roleArn": connection.role_arn,
        "keyArn": connection.key_arn,
        "region": key.region,
    }
    return plain | ({"warning": MULTI_REGION} if key.is_multi_region else {})


def _secret(item: ProofItem) -> dict[str, Any]:
    return {
        "id": str(item.secret_id),
        "name": item.name,
        "version": item.version,
        "outcome": item.outcome.value if item.outcome else None,
        "note": item.note,
        "at": rfc3339(item.settled_at) if item.settled_at else None,
        "asked": [_ask(ask) for ask in item.asks],
    }


def _ask(ask: Ask) -> dict[str, Any]:
    return {
        "how": ask.kind.value,
        "at": rfc3339(ask.at),
        "auditId": str(ask.audit_id),
        "answer": ask.state.value if ask.state else "allowed",
        "awsCode": ask.aws_code,
        "sessionName": ask.receipt.session_name,
        "assumeRoleRequestId": ask.receipt.assume_request_id,
        "kmsRequestId": ask.receipt.kms_request_id,
        "inYourCloudTrail": ask.receipt.kms_request_id is not None,
    }


def _beside(beside: Beside, key_arn: str) -> dict[str, Any]:
    return {
        "storedMeanwhile": beside.stored_meanwhile,
        "valuesOnTheirWay": beside.on_their_way,
        "ofThoseHeld": beside.held,
        "platformSecrets": beside.platform_secrets,
        "otherConnections": [
            {"id": str(connection_id), "keyArn": other, "isSameKey": other == key_arn, "secrets": secrets}
            for connection_id, other, secrets in beside.other_connections
        ],
    }


def _not_a_proof() -> Invalid:
    return Invalid({"document": "no lockout proof that this program knows"})
