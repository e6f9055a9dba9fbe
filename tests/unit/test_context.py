"""The encryption context: golden vectors, since every blob depends on them for ever."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_core.context import EncryptionContext, associated_data, for_canary, for_secret

CONNECTION = UUID("0190a0b0-0000-7000-8000-000000000001")
_contexts = st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=3).map(EncryptionContext)


def test_of_a_secret() -> None:
    """Workspace, name and version, as text."""
    assert dict(for_secret("ws_1", "git/hub", 12)) == {
        "axiorank:workspace": "ws_1",
        "axiorank:secret": "git/hub",
        "axiorank:version": "12",
    }


def test_of_a_canary() -> None:
    """Workspace and connection."""
    assert dict(for_canary("ws_1", CONNECTION)) == {
        "axiorank:workspace": "ws_1",
        "axiorank:canary": "0190a0b0-0000-7000-8000-000000000001",
    }


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (
            for_secret("ws_1", "github", 1),
            b'{"axiorank:secret":"github","axiorank:version":"1","axiorank:workspace":"ws_1"}',
        ),
        (
            for_canary("ws_1", CONNECTION),
            b'{"axiorank:canary":"0190a0b0-0000-7000-8000-000000000001","axiorank:workspace":"ws_1"}',
        ),
        (EncryptionContext({"b": 'q"', "a": "é"}), b'{"a":"\\u00e9","b":"q\\""}'),
        (EncryptionContext({}), b"{}"),
    ],
)
def test_as_bytes(context: EncryptionContext, expected: bytes) -> None:
    """Golden: stored blobs are bound to exactly these bytes."""
    assert associated_data(context) == expected


def test_it_cannot_be_changed() -> None:
    """What was built is what is used."""
    with pytest.raises(TypeError):
        for_secret("ws_1", "github", 1)["axiorank:secret"] = "other"  # type: ignore[index]


@given(_contexts, _contexts)
def test_no_two_contexts_are_the_same_bytes(one: EncryptionContext, other: EncryptionContext) -> None:
    """Different pairs give different bytes, equal ones equal bytes whatever their order."""
    assert (associated_data(one) == associated_data(other)) == (dict(one) == dict(other))
    assert associated_data(EncryptionContext(dict(reversed(list(one.items()))))) == associated_data(one)


@given(st.text(max_size=6), st.text(max_size=6), st.integers(1, 99), st.text(max_size=6), st.text(max_size=6))
def test_no_two_secrets_share_a_context(workspace: str, name: str, version: int, other: str, name2: str) -> None:
    """Neither another workspace, nor another name, nor another version."""
    mine = associated_data(for_secret(workspace, name, version))
    assert mine != associated_data(for_secret(workspace, name, version + 1))
    assert (mine == associated_data(for_secret(other, name2, version))) == ((workspace, name) == (other, name2))
