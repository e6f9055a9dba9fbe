"""The tree of errors: every class has a code, and none carries a payload."""

from __future__ import annotations

import pytest

from broker_core import errors
from broker_core.errors import BrokerError, KeyServiceError, KeyState, Receipt


def classes() -> list[type[BrokerError]]:
    """Every class of the module."""
    return [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, BrokerError)]


def example(kind: type[BrokerError]) -> BrokerError:
    """One error of a class."""
    if kind is errors.RateLimited:
        return errors.RateLimited("message", 1)
    return kind({"field": "message"}) if kind is errors.Invalid else kind("message")


@pytest.mark.parametrize("kind", classes())
def test_every_class_has_a_code(kind: type[BrokerError]) -> None:
    """A word that stands in answers, audit rows and logs."""
    reason = example(kind).reason
    assert reason
    assert reason == reason.lower()
    assert " " not in reason


@pytest.mark.parametrize("kind", classes())
def test_str_is_code_and_message(kind: type[BrokerError]) -> None:
    """And nothing else."""
    error = example(kind)
    assert str(error) == f"{error.reason}: {error.message}"


@pytest.mark.parametrize("kind", classes())
def test_no_class_has_room_for_a_payload(kind: type[BrokerError]) -> None:
    """The attributes are the ones that are known here: codes, ids, names of fields."""
    known = {"message", "reason", "fields", "state", "aws_code", "receipt", "mapped", "retry_after"}
    assert set(vars(example(kind))) <= known


@pytest.mark.parametrize("kind", classes())
def test_every_class_says_who_reacts(kind: type[BrokerError]) -> None:
    """The picture on top of the module shows all of them."""
    assert kind.__doc__
    assert kind.__name__ in (errors.__doc__ or "")


def test_a_code_may_be_given() -> None:
    """One class, several codes."""
    assert errors.Conflict("taken", code="version_taken").reason == "version_taken"
    assert errors.Conflict("taken").reason == "conflict"


def test_invalid_names_its_fields() -> None:
    """Message and fields say the same."""
    error = errors.Invalid({"a": "wrong", "b": "missing"})
    assert (error.message, error.fields) == ("a: wrong; b: missing", {"a": "wrong", "b": "missing"})


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        (errors.Denied, KeyState.ACCESS_DENIED),
        (errors.Misconfigured, KeyState.MISCONFIGURED),
        (errors.Integrity, KeyState.INTEGRITY),
        (errors.Transient, KeyState.TRANSIENT),
    ],
)
def test_a_key_error_has_a_state(kind: type[KeyServiceError], state: KeyState) -> None:
    """Its code is its state."""
    error = kind("message")
    assert (error.state, error.reason, error.receipt) == (state, state.value, Receipt())


@pytest.mark.parametrize("state", KeyState)
def test_a_denial_keeps_the_state_that_it_is_given(state: KeyState) -> None:
    """Six states are denials, each with its own code."""
    assert errors.Denied("message", state=state).reason == state.value
