"""What requests and answers about connections and their set-up hold: the contract's field names, as ``schemas`` has
them for the rest. Reports are in ``byok_report_schemas``, proofs and re-encryptions in ``byok_run_schemas``.

A field of an answer that may be missing has the default None and is left out then; one without a default is always
there. What the sentences in ``whatToDo`` say stands with the use cases.
"""

from __future__ import annotations

from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import Field

from broker_core.api.bodies import Document
from broker_core.api.schemas import Moment
from broker_core.errors import KeyState
from broker_core.model import ConnectionStatus, StepOutcome, StepResult
from broker_core.ports import ConnectionView
from broker_core.revocation import Revocation
from broker_core.verification import STEPS

# described as JSON Schema has it, and judged by the use case, whose words say what is wrong and what to give instead
_Arn = Annotated[str, Field(json_schema_extra={"minLength": 20, "maxLength": 2048})]
_ExternalId = Annotated[
    str,
    Field(
        json_schema_extra={"pattern": r"^[A-Za-z0-9_+=,.@:/-]{16,1224}$"},
        description="Yours to choose; once a workspace has used it, it is never another's.",
    ),
]

# ---------------------------------------------------------------- connections


class ConnectRequest(Document):
    """A role that we may assume with the external id, and a key in the same account that it may use."""

    role_arn: _Arn
    external_id: _ExternalId
    key_arn: Annotated[_Arn, Field(description="The key's own ARN, not an alias.")]


class StepAnswer(Document):
    """One step of a verification. ``whatToDo``: where something is to be done."""

    name: str
    outcome: StepOutcome
    aws_code: str | None = None
    request_id: str | None = None
    what_to_do: str | None = None

    @classmethod
    def of(cls, step: StepResult) -> StepAnswer:
        """From the step."""
        return cls(
            name=step.name,
            outcome=step.outcome,
            aws_code=step.aws_code or None,
            request_id=step.request_id,
            what_to_do=step.what_to_do or None,
        )


class ConnectionAnswer(Document):
    """A connection. ``health``: ``unverified``, ``healthy``, ``flagged`` (the role lets in who must not get in) or the
    state of an open failure, since ``healthSince``. ``steps`` are the last verification's; ``notRun`` are those that a
    failed one kept from being taken, if any. ``verifiedAt``: when all were last passed."""

    id: UUID
    status: ConnectionStatus
    role_arn: str
    key_arn: str
    region: str
    external_id: str
    created_at: Moment
    verified_at: Moment | None = None
    health: str
    health_since: Moment | None = None
    steps: list[StepAnswer]
    not_run: list[str] = Field(default_factory=list)

    @classmethod
    def of(cls, view: ConnectionView) -> Self:
        """From the view."""
        return cls(**_connection(view))


class ListedConnectionAnswer(ConnectionAnswer):
    """One of a workspace's connections. ``neededBy``: how many secrets are under it; ``waiting``: how many values on
    their way in go under it as things are. ``retired`` means replaced, and it may still be needed; ``retiredAt``: when
    its owner retired it for good."""

    needed_by: int
    waiting: int
    retired_at: Moment | None = None

    @classmethod
    def of(cls, view: ConnectionView) -> Self:
        """From the view."""
        return cls(**_connection(view), needed_by=view.needed_by, waiting=view.waiting, retired_at=view.retired_at)


class ConnectionsAnswer(Document):
    """The current one first, then a pending one, then those that were replaced, newest first."""

    items: list[ListedConnectionAnswer]


def _connection(view: ConnectionView) -> dict[str, Any]:
    return {
        "id": view.id,
        "status": view.status,
        "role_arn": view.role_arn,
        "key_arn": view.key_arn,
        "region": view.region,
        "external_id": view.external_id,
        "created_at": view.created_at,
        "verified_at": view.verified_at,
        "health": view.health,
        "health_since": view.health_since,
        "steps": [StepAnswer.of(step) for step in view.steps],
        # steps are taken in their order, until one fails that the others build on
        "not_run": [step.name for step in STEPS[len(view.steps) :]] if view.steps else [],
    }


# ---------------------------------------------------------------- set-up


class WayAnswer(Document):
    """One way of revoking: what it stops, when, how it is undone, and how we then report the connection."""

    way: str
    stops: str
    when: str
    undo: str
    seen_as: KeyState

    @classmethod
    def of(cls, way: Revocation) -> WayAnswer:
        """From the way."""
        return cls(**vars(way))


class SetupAnswer(Document):
    """What to apply, and what to know before. ``keyArn`` null: a key is to be made. Where the account is not known,
    ARNs hold ``${ACCOUNT_ID}``: put yours."""

    workspace_id: str
    external_id: str
    role_name: str
    role_arn: str
    key_arn: str | None
    region: str | None
    strict: bool
    trust_policy: dict[str, Any]
    key_policy: dict[str, Any]
    how_to_apply: list[str]
    warnings: list[str]
    revocation: list[WayAnswer]
    not_stopped: list[str]
