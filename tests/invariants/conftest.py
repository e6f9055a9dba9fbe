"""An App that has one of everything that asks a key, for the invariants that hold over all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.key_uses import with_one_of_everything
from tests.live import Live


@pytest.fixture(scope="session")
def signing_key() -> str:
    """A key for proofs."""
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture
def used(live_with: Callable[..., Live], way_out: Any, signing_key: str) -> Live:
    """A workspace in which each of ``KEY_USES`` has something to do."""
    live = live_with({"BROKER_SIGNING_KEY": signing_key}, upstream=way_out)
    with_one_of_everything(live)
    return live
