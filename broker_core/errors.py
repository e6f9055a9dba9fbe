"""Every error of the broker, and who reacts to each how.

    BrokerError                     a fault of ours where it is none of these: 500, the operator looks at the log
    ├── ConfigurationError          the operator mends a setting; the process does not start (exit 78), or answers 503
    ├── Refused                     the caller changes the request; never retried
    │   ├── Invalid                 422 (or 400 invalid_json, 413 too_large), names the fields
    │   ├── NotFound                404, also for what belongs to another workspace
    │   ├── Conflict                409: name_taken, version_taken, conflict
    │   ├── Unauthorized            401: no token, or none that counts
    │   ├── Forbidden               403: forbidden, plan_required
    │   ├── RateLimited             429, with the seconds to wait
    │   └── InjectionRefused        403: nothing was assumed, decrypted or sent
    ├── KeyServiceError             the key could not be used; `state` says whose side it is on. An agent sees 424
    │   ├── Denied                  the customer's side said no: affected, no retry in seconds
    │   ├── Misconfigured           the owner or the operator mends a setting; nobody is "affected"
    │   ├── Integrity               blob, context and key do not belong together: alarm the operator
    │   │   └── WrongKey            the same: KMS used another key than the stored one
    │   └── Transient               503, try again (a worker does, within seconds); never "affected"
    │       └── Busy                the same, and nothing was asked: this connection has its share of uses under way
    ├── Unavailable                 503: one of our own parts is away; try again (a worker does), nothing was lost
    │   └── AuditUnavailable        the intent could not be written, so nothing was released
    ├── UpstreamError               502/504: the one request was not answered; it is never sent twice
    └── ClientGone                  nobody waits for the answer any more: nothing is answered

A few modules have a kind of their own of one of these (the store's ``Taken``, ``NotAnswering`` of ``limits``,
``NotStarted`` of ``exec``): whoever catches it is beside it, for everybody else it is its parent.

An error carries a code, ids and field names. It never carries a value, a header, a body or the text of a foreign
exception: such text can hold a value (INV-1). Raise with ``from None`` wherever the cause could.
This module imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar
from uuid import UUID


class KeyState(StrEnum):
    """Why a key could not be used. The first six are the customer's side (INV-8)."""

    ACCESS_DENIED = "access_denied"
    ROLE_REFUSED = "role_refused"
    KEY_DISABLED = "key_disabled"
    KEY_PENDING_DELETION = "key_pending_deletion"
    KEY_STATE = "key_state"
    KEY_GONE = "key_gone"
    INTEGRITY = "integrity"
    MISCONFIGURED = "misconfigured"
    TRANSIENT = "transient"


#: the states that make a secret "affected"; the others blame nobody
CUSTOMER_SIDE = (
    KeyState.ACCESS_DENIED,
    KeyState.ROLE_REFUSED,
    KeyState.KEY_DISABLED,
    KeyState.KEY_PENDING_DELETION,
    KeyState.KEY_STATE,
    KeyState.KEY_GONE,
)


class Denier(StrEnum):
    """Whose explicit deny AWS names in an answer: the allow that an owner gives elsewhere does not help against it."""

    KEY_POLICY = "key_policy"
    IDENTITY_POLICY = "identity_policy"
    BOUNDARY = "permissions_boundary"
    ORGANIZATION = "organization_policy"


@dataclass(frozen=True)
class Receipt:
    """What AWS gave as evidence of one use: ids only, for the audit row."""

    session_name: str | None = None
    assume_request_id: str | None = None
    kms_request_id: str | None = None

    @property
    def request_id(self) -> str | None:
        """Of the last call that was answered: KMS's, or else that of AssumeRole."""
        return self.kms_request_id or self.assume_request_id


class BrokerError(Exception):
    """The root. ``str`` is the code and the public message, nothing else."""

    code: ClassVar[str] = "internal"
    #: the audit row that says more, where there is one
    audit_id: UUID | None = None

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = code or self.code

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class ConfigurationError(BrokerError):
    """A setting is missing or wrong. The message names it and says what to do."""

    code = "configuration"


class Refused(BrokerError):
    """The request cannot be served as it is."""

    code = "refused"


class Invalid(Refused):
    """One or more fields are wrong; ``fields`` maps each to what is wrong and what to do."""

    code = "invalid"

    def __init__(self, fields: Mapping[str, str], *, code: str | None = None) -> None:
        super().__init__("; ".join(f"{name}: {why}" for name, why in fields.items()), code=code)
        self.fields = dict(fields)


class NotFound(Refused):
    """It does not exist, for this workspace."""

    code = "not_found"


class Conflict(Refused):
    """Something else is already there: ``name_taken``, ``version_taken`` or ``conflict``."""

    code = "conflict"


class Unauthorized(Refused):
    """No token, or none that counts. The message says why, and quotes nothing of it."""

    code = "unauthorized"


class Forbidden(Refused):
    """This caller may not: ``forbidden`` or ``plan_required``."""

    code = "forbidden"


class RateLimited(Refused):
    """More than this workspace may in this time. ``retry_after``: whole seconds, at least 1."""

    code = "rate_limited"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = max(1, retry_after)


class InjectionRefused(Refused):
    """``no_binding``, ``ambiguous_binding``, ``host_mismatch``, ``destination_blocked``, ``handle_misplaced`` or
    ``method_refused``. Nothing was sent, and nothing assumed or decrypted (INV-6); but for a request that already
    held a form of the value (``handle_misplaced``), which can only be seen after the decrypt, and where its body comes
    in pieces (which may hold a handle too) only while it is sent."""

    code = "no_binding"


class KeyServiceError(BrokerError):
    """A key could not be used. ``aws_code`` is AWS's own error code, ``receipt`` the request ids so far."""

    def __init__(
        self, message: str, *, state: KeyState | None = None, aws_code: str = "", receipt: Receipt = Receipt()
    ) -> None:
        super().__init__(message, code=(state or self.default_state).value)
        self.state = state or self.default_state
        self.aws_code = aws_code
        self.receipt = receipt

    default_state: ClassVar[KeyState] = KeyState.TRANSIENT


class Denied(KeyServiceError):
    """The customer's side said no. ``denier``: whose explicit deny it was, where AWS named it."""

    default_state = KeyState.ACCESS_DENIED
    denier: Denier | None = None


class Misconfigured(KeyServiceError):
    """The set-up is wrong; the owner or the operator mends it."""

    default_state = KeyState.MISCONFIGURED


class Integrity(KeyServiceError):
    """Blob, context and key do not belong together. Never the customer's doing."""

    default_state = KeyState.INTEGRITY


class WrongKey(Integrity):
    """KMS did as it was told, with another key than the stored one."""


class Transient(KeyServiceError):
    """It may work in a moment. ``mapped`` is False for an AWS code that our table does not know."""

    default_state = KeyState.TRANSIENT

    def __init__(
        self,
        message: str,
        *,
        aws_code: str = "",
        receipt: Receipt = Receipt(),
        mapped: bool = True,
    ) -> None:
        super().__init__(message, aws_code=aws_code, receipt=receipt)
        self.mapped = mapped


class Busy(Transient):
    """The connection has as many uses under way as it may. Nothing was asked of AWS, so it is no sign of trouble."""


class Unavailable(BrokerError):
    """One of our own parts (PostgreSQL, Redis) is away."""

    code = "unavailable"


class AuditUnavailable(Unavailable):
    """The audit intent could not be committed, so nothing was assumed, decrypted or released (INV-5)."""

    code = "audit_unavailable"


class UpstreamError(BrokerError):
    """``upstream_unreachable``, ``upstream_tls``, ``upstream_timeout`` or ``response_withheld``."""

    code = "upstream_unreachable"


class ClientGone(BrokerError):
    """The caller went away: what was under way for them was ended. Nobody is there to be told."""

    code = "client_gone"
