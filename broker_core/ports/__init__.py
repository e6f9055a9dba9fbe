"""What the use cases need of the outside, as Protocols. Each has a real adapter and a fake, held to one contract suite.

Promises stand in the docstrings here and nowhere else. A module for each part of the outside; all names are imported
from here. Imports only what is below (model, injection, context, audit, secret, errors); no library.

Time limits: every call that can wait takes ``seconds``, the most that it may take in all, its own retries included.
"""

from broker_core.ports.clock import Clock
from broker_core.ports.keys import KeyService, KeyUse, Opened, Permit, PlatformCipher, Sealed
from broker_core.ports.limits import GuessLog, Limit, Limiter
from broker_core.ports.moves import DueMove, MoveOutcome, MoveStore, Reencryption, Stuck
from broker_core.ports.notices import Answer, Delivery, DueNotice, NoticeStore, Notifier
from broker_core.ports.owning import (
    Affected,
    AffectedConnection,
    AffectedSecret,
    ByokStore,
    ConnectionView,
    FailureView,
    OwnerStore,
    SecretView,
    StoredBlob,
    Use,
)
from broker_core.ports.proofs import Ask, AskKind, Beside, DueItem, Proof, ProofItem, ProofOutcome, ProofStore, Signer
from broker_core.ports.reports import Cover, CoveredSecret, Drilled, DrilledSecret, OverdueSecret, ReportStore
from broker_core.ports.taking_in import (
    Accepted,
    Attempt,
    CustodyStore,
    Draft,
    Housekeeping,
    IntakeStore,
    ReconcileStore,
    Ring,
)
from broker_core.ports.upstream import Destination, Patience, Upstream, UpstreamAnswer, UpstreamLine, WireRequest
from broker_core.ports.using import (
    AuditStore,
    Candidate,
    DueCheck,
    DueProbe,
    Failure,
    FailureLog,
    InjectStore,
    SweepStore,
)
from broker_core.ports.waiting import ClaimBox, Queue

__all__ = [
    "Accepted",
    "Affected",
    "AffectedConnection",
    "AffectedSecret",
    "Answer",
    "Ask",
    "AskKind",
    "Attempt",
    "AuditStore",
    "Beside",
    "ByokStore",
    "Candidate",
    "ClaimBox",
    "Clock",
    "ConnectionView",
    "Cover",
    "CoveredSecret",
    "CustodyStore",
    "Delivery",
    "Destination",
    "Draft",
    "Drilled",
    "DrilledSecret",
    "DueCheck",
    "DueItem",
    "DueMove",
    "DueNotice",
    "DueProbe",
    "Failure",
    "FailureLog",
    "FailureView",
    "GuessLog",
    "Housekeeping",
    "InjectStore",
    "IntakeStore",
    "KeyService",
    "KeyUse",
    "Limit",
    "Limiter",
    "MoveOutcome",
    "MoveStore",
    "NoticeStore",
    "Notifier",
    "Opened",
    "OverdueSecret",
    "OwnerStore",
    "Patience",
    "Permit",
    "PlatformCipher",
    "Proof",
    "ProofItem",
    "ProofOutcome",
    "ProofStore",
    "Queue",
    "ReconcileStore",
    "Reencryption",
    "ReportStore",
    "Ring",
    "Sealed",
    "SecretView",
    "Signer",
    "StoredBlob",
    "Stuck",
    "SweepStore",
    "Upstream",
    "UpstreamAnswer",
    "UpstreamLine",
    "Use",
    "WireRequest",
]
