"""The ways in which a customer takes their key back: what each one stops, when, and how it is undone.

What owners, the set-up's documents and the drill say about revoking stands here once. Pure; imports only ``errors``.

AWS says itself that changes need time: IAM's and KMS's are eventually consistent.
https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html#troubleshoot_general_eventual-consistency
https://docs.aws.amazon.com/kms/latest/developerguide/accessing-kms.html#programming-eventual-consistency
"""

from __future__ import annotations

from dataclasses import dataclass

from broker_core.errors import KeyState

_SPREAD = "once AWS has spread the change: seconds, at times minutes"


@dataclass(frozen=True)
class Revocation:
    """One way. Sentences for an owner; ``seen_as`` is the state in which the broker then reports the connection."""

    way: str
    stops: str
    when: str
    undo: str
    seen_as: KeyState


def ways(reuse_seconds: int) -> tuple[Revocation, ...]:
    """Every way, the recommended one first. ``reuse_seconds``: how long this installation shares sessions; 0: never."""
    everyone = "Every decrypt and every encrypt with this key, by AxioRank and by anybody else."
    ours = "Every decrypt and every encrypt by AxioRank."
    by_key = f"The next use {_SPREAD}. KMS judges each call, so shared sessions delay nothing."
    by_session = f"The next use {_SPREAD}; {_sessions(reuse_seconds)}"
    return (
        Revocation("disable the key", everyone, by_key, "Enable the key.", KeyState.KEY_DISABLED),
        Revocation(
            "remove the role's statement from the key policy",
            f"{ours} Only where no other statement lets it in: with a `root`, `kms:*` statement an IAM policy of the"
            " role that allows kms:Decrypt still lets it decrypt.",
            by_key,
            "Put the statement back.",
            KeyState.ACCESS_DENIED,
        ),
        Revocation(
            "remove our account from the role's trust policy, or change its external id",
            f"New sessions of the role, and so {ours[0].lower()}{ours[1:]}",
            by_session,
            "Put the trust policy back.",
            KeyState.ROLE_REFUSED,
        ),
        Revocation(
            "delete the role",
            f"New sessions of the role, and so {ours[0].lower()}{ours[1:]}",
            by_session,
            "Make the role again, and put the key policy again: to AWS a role of the same name is another principal.",
            KeyState.ROLE_REFUSED,
        ),
        Revocation(
            "schedule the key's deletion",
            f"{everyone} For good once the waiting period of 7 to 30 days is over: nobody can read those values again.",
            by_key,
            "Within the waiting period: cancel the deletion, then enable the key. After it: never.",
            KeyState.KEY_PENDING_DELETION,
        ),
    )


def not_stopped() -> tuple[str, ...]:
    """What no way of revoking stops."""
    return (
        "A use that AWS has already answered runs to its end: a request that was sent stays sent.",
        "What a stdio server has in its environment stays there until that process ends.",
        "Values that are not under this key: stored before it was connected, or under an older connection.",
        "A value that was accepted and is not encrypted yet: it is held, cannot be used, and goes when its time is up.",
        "What an upstream does with a credential that it was sent: to end that, revoke the credential there.",
    )


def _sessions(reuse_seconds: int) -> str:
    if reuse_seconds == 0:
        return "a session that was opened before serves its one use, at most 10 seconds, and no other."
    return (
        f"sessions that were opened before are shared for up to {reuse_seconds} seconds here"
        f" (BROKER_STS_REUSE_SECONDS), so at most that much later."
    )
