"""What owners are told: one plain sentence for each way in which a set-up does not work."""

from __future__ import annotations

import pytest

from broker_core import advice
from broker_core.errors import Denied, Denier, Integrity, KeyServiceError, KeyState, Misconfigured, Transient
from broker_core.policies import Extra

KINDS = {KeyState.INTEGRITY: Integrity, KeyState.MISCONFIGURED: Misconfigured, KeyState.TRANSIENT: Transient}


def error_of(state: KeyState, aws_code: str = "") -> KeyServiceError:
    """What the key service raises for a state."""
    if state is KeyState.TRANSIENT:
        return Transient("no", aws_code=aws_code)
    return KINDS.get(state, Denied)("no", state=state, aws_code=aws_code)


def denied_by(denier: Denier | None) -> Denied:
    error = Denied("no")
    error.denier = denier
    return error


def is_plain(sentence: str) -> bool:
    """One line that ends, with nothing left to fill in."""
    return sentence.endswith(".") and "\n" not in sentence and not {"{", "}"} & set(sentence)


@pytest.mark.parametrize("action", ["kms:Encrypt", "kms:Decrypt", "sts:AssumeRole"])
@pytest.mark.parametrize("state", list(KeyState))
def test_every_state_has_a_sentence_while_verifying(state: KeyState, action: str) -> None:
    """The table is total."""
    assert is_plain(advice.on_verifying(error_of(state), action))


def test_every_denier_has_its_own_place_to_look() -> None:
    """An explicit deny is told from a missing allow, by whose it is, and names the action."""
    told = {advice.on_verifying(denied_by(denier), "kms:Decrypt") for denier in (None, *Denier)}
    assert len(told) == len(Denier) + 1
    assert all("kms:Decrypt" in sentence and is_plain(sentence) for sentence in told)


@pytest.mark.parametrize(("aws_code", "may_be_a_typo"), [("", True), ("ThrottlingException", False)])
def test_a_silence_may_be_a_regions_that_is_none(aws_code: str, may_be_a_typo: bool) -> None:
    """Nothing answers in a Region that does not exist; what answers is there."""
    told = advice.on_verifying(error_of(KeyState.TRANSIENT, aws_code), "sts:AssumeRole")
    assert ("Region" in told) is may_be_a_typo


@pytest.mark.parametrize("extra", list(Extra))
def test_everything_beyond_the_two_is_named(extra: Extra) -> None:
    """Whether it is allowed or was not learnt."""
    for sentence in (advice.on_extra(extra), advice.on_unknown_extra(extra, Transient("away"))):
        assert extra.value in sentence
        assert is_plain(sentence)


@pytest.mark.parametrize(
    ("error", "is_ours"),
    [
        (error_of(KeyState.MISCONFIGURED, "AccessDeniedException"), True),
        (error_of(KeyState.MISCONFIGURED, "PackedPolicyTooLarge"), True),
        (error_of(KeyState.MISCONFIGURED), True),
        (error_of(KeyState.MISCONFIGURED, "InvalidKeyUsageException"), False),
        (error_of(KeyState.MISCONFIGURED, "RegionDisabledException"), False),
        (error_of(KeyState.ACCESS_DENIED, "AccessDeniedException"), False),
    ],
)
def test_what_is_ours_is_said_to_be(error: KeyServiceError, is_ours: bool) -> None:
    """An owner is not sent to look for a fault of ours, and we are not told of theirs."""
    assert advice.is_ours(error) is is_ours
    assert ("fault is ours" in advice.on_verifying(error, "kms:Encrypt")) is is_ours
