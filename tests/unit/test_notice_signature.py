"""The signature of a notice: a fixed vector, and everything that must not pass."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_core.errors import Unauthorized
from broker_core.notice_signature import TOLERANCE_SECONDS, check, signature

SECRET, OTHER = "whsec-0123456789abcdef", "whsec-fedcba9876543210"
BODY = b'{"id":"1"}'
NOW = 1_767_225_600
HEADER = signature([SECRET], NOW, BODY)


def reason(*args: object, **options: object) -> str:
    """Why it is refused."""
    with pytest.raises(Unauthorized) as error:
        check(*args, **options)  # type: ignore[arg-type]  # the tests give what a stranger could
    return error.value.reason


def test_the_format() -> None:
    """Time, a dot and the body, under HMAC-SHA256, in small hex digits."""
    mac = hmac.digest(SECRET.encode(), b"1767225600." + BODY, "sha256").hex()
    assert signature([SECRET], NOW, BODY) == f"t=1767225600,v1={mac}"


@pytest.mark.parametrize("apart", [0, TOLERANCE_SECONDS, -TOLERANCE_SECONDS])
def test_in_time(apart: int) -> None:
    """Clocks may be five minutes apart, either way."""
    check([SECRET], HEADER, BODY, NOW + apart)


@pytest.mark.parametrize("apart", [TOLERANCE_SECONDS + 1, -TOLERANCE_SECONDS - 1, 86_400])
def test_out_of_time(apart: int) -> None:
    """What was captured is worth nothing later; nor is what pretends to come from the future."""
    assert reason([SECRET], HEADER, BODY, NOW + apart) == "too_old"


@pytest.mark.parametrize(
    ("secrets", "header", "body"),
    [
        ([OTHER], HEADER, BODY),
        ([SECRET], HEADER, BODY + b" "),
        ([SECRET], HEADER.replace("t=1767225600", "t=1767225601"), BODY),
        ([SECRET], HEADER.replace("t=1767225600", "t=01767225600"), BODY),
        ([SECRET], f"t={NOW},v1={'0' * 64}", BODY),
        ([], HEADER, BODY),
    ],
    ids=["secret", "body", "time", "time written otherwise", "mac", "no secret"],
)
def test_a_signature_of_something_else(secrets: list[str], header: str, body: bytes) -> None:
    """The secret, the body and the time are all signed."""
    assert reason(secrets, header, body, NOW) == "bad_signature"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "v1=" + "0" * 64,
        f"t={NOW}",
        f"t={NOW},t={NOW},v1={'0' * 64}",
        f"t=-1,v1={'0' * 64}",
        f"t=1e9,v1={'0' * 64}",
        f"t=١,v1={'0' * 64}",
        f"t={NOW},v1={'0' * 63}",
        f"t={NOW},v1={'A' * 64}",
        f"t={NOW},v2={'0' * 64}",
        f"t={NOW};v1={'0' * 64}",
        f"t={'9' * 13},v1={'0' * 64}",
    ],
)
def test_what_is_no_header(header: str) -> None:
    """One time, and at least one v1 of 64 small hex digits."""
    assert reason([SECRET], header, BODY, NOW) == "malformed_signature"


def test_while_a_secret_is_exchanged() -> None:
    """A header with both signatures passes under either secret, and a receiver may try both."""
    both = signature([SECRET, OTHER], NOW, BODY)
    assert both.count("v1=") == 2
    check([SECRET], both, BODY, NOW)
    check([OTHER], both, BODY, NOW)
    check([OTHER, SECRET], HEADER, BODY, NOW)


def test_parts_of_another_name() -> None:
    """May come one day, and are left alone."""
    check([SECRET], f"v0=x,{HEADER},v2=y, z", BODY, NOW)


@given(header=st.text(max_size=300), body=st.binary(max_size=50))
def test_whatever_comes(header: str, body: bytes) -> None:
    """It is refused in one of the ways that are known, and nothing else is raised."""
    assert reason([SECRET], header, body, NOW) in {"malformed_signature", "bad_signature"}


def test_a_refusal_shows_nothing() -> None:
    """Neither what was given nor what it should have been."""
    with pytest.raises(Unauthorized) as error:
        check([SECRET], f"t={NOW},v1={'1' * 64}", BODY, NOW)
    assert "1" * 64 not in str(error.value)
    assert HEADER.split("v1=")[1] not in str(error.value)
