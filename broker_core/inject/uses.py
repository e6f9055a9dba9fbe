"""One use of a value under way, and what is told of it: audit row, span, failure record. Imports no library."""

from __future__ import annotations

from dataclasses import dataclass, field

from opentelemetry.trace import Span

from broker_core.audit import Intent, Outcome, Result
from broker_core.errors import (
    BrokerError,
    ClientGone,
    InjectionRefused,
    KeyServiceError,
    Receipt,
    Refused,
    Transient,
    UpstreamError,
)
from broker_core.model import FoundBy
from broker_core.ports import Candidate, Failure


@dataclass
class OneUse:
    """One use, from its committed intent to its outcome: what is known so far for the audit row."""

    intent: Intent
    secret: Candidate
    is_begun: bool = False  # the key was asked
    is_sent: bool = False  # the value may have gone to the upstream
    receipt: Receipt = field(default_factory=Receipt)
    status: int | None = None
    redactions: int | None = None

    def result(self, outcome: Outcome, code: str = "", aws_code: str = "") -> Result:
        return Result(outcome, code, aws_code, self.receipt, self.status, self.redactions)

    def failed(self, error: BrokerError) -> Result:
        """How it ended, by the error that ended it."""
        if isinstance(error, KeyServiceError):
            self.receipt = error.receipt
            outcome = Outcome.FAILED if isinstance(error, Transient) else Outcome.REFUSED
            return self.result(outcome, error.state.value, error.aws_code)
        if isinstance(error, UpstreamError):
            is_withheld = error.reason == "response_withheld"
            return self.result(Outcome.WITHHELD if is_withheld else Outcome.UPSTREAM_FAILED, error.reason)
        if self.is_sent and isinstance(error, ClientGone | Refused):
            return self.result(Outcome.ABANDONED, error.reason)
        return self.result(Outcome.REFUSED if isinstance(error, InjectionRefused) else Outcome.FAILED, error.reason)

    def abandoned(self) -> Result:
        """How it ended, when another use of the same call failed."""
        return self.result(Outcome.FAILED, "not_released" if self.is_begun else "not_asked")


def describe(current: Span, use: OneUse) -> None:
    intent = use.intent
    current.set_attribute("broker.audit", str(intent.id))
    current.set_attribute("broker.secret", str(intent.secret_id))
    current.set_attribute("broker.version", use.secret.version)
    current.set_attribute("broker.kind", use.secret.injection.kind.value)
    current.set_attribute("broker.cipher", intent.cipher.value)


def failure_of(use: OneUse, error: KeyServiceError) -> Failure:
    return Failure(
        workspace_id=use.intent.workspace_id,
        connection_id=use.intent.connection_id,
        secret_id=use.intent.secret_id,
        state=error.state,
        aws_code=error.aws_code,
        request_id=error.receipt.request_id,
        found_by=FoundBy.INJECT,
    )


def taken_for_ours(error: BrokerError) -> Transient:
    receipt = error.receipt if isinstance(error, KeyServiceError) else Receipt()
    return Transient("many customers' keys refuse at once, which is taken for a fault of ours", receipt=receipt)
