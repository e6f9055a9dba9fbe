"""The local stack's stand-in for the platform's token service: a key in a temporary directory, and tokens signed with
it.

A token is minted only for the stack that made the key: the settings name its public set, the private half lies beside
it under a fixed name, and both say that they are local. An installation that trusts the platform's keys trusts none of
these. Imports ``places`` and the JWT library.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from jwt.algorithms import OKPAlgorithm

from broker_core.dev import places
from broker_core.errors import ConfigurationError
from broker_core.settings import Settings

ISSUER, AUDIENCE = "https://local-stack.invalid", "axiorank-broker"
_SET, _PRIVATE = "local-stack-jwks.json", "local-stack-private-key.pem"
#: what the broker's ``api.tokens`` expects before a token, so that scanners find leaked ones
_PREFIX = "axr_tok_"


@dataclass(frozen=True)
class LocalTokens:
    """A key and its set, in a directory that goes away with the stack."""

    directory: Path

    @classmethod
    def start(cls) -> Self:
        """Make them. The private half is for its owner's eyes."""
        directory = places.fresh("tokens")
        key = Ed25519PrivateKey.generate()
        (directory / _SET).write_text(
            json.dumps({"keys": [{**_jwk(key), "kid": uuid4().hex, "alg": "EdDSA", "use": "sig"}]})
        )
        with open(os.open(directory / _PRIVATE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cls(directory)

    @property
    def environment(self) -> dict[str, str]:
        """The settings that make a broker trust it."""
        return {
            "BROKER_TOKEN_JWKS": str(self.directory / _SET),
            "BROKER_TOKEN_ISSUER": ISSUER,
            "BROKER_TOKEN_AUDIENCE": AUDIENCE,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        places.remove(self.directory)


def mint(
    settings: Settings, workspace: str, *, scopes: Sequence[str], role: str | None, minutes: int, now: datetime
) -> str:
    """A token for the local stack that the settings lead to. Raises ConfigurationError where they lead elsewhere."""
    key, key_id = _key(settings)
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "local",
        "jti": uuid4().hex,
        "iat": int(now.timestamp()),
        "exp": int(now.timestamp()) + minutes * 60,
        "workspace": workspace,
    }
    if scopes:
        claims["scope"] = " ".join(scopes)
    if role is not None:
        claims["role"] = role
    return _PREFIX + jwt.encode(claims, key, "EdDSA", headers={"kid": key_id})


def _key(settings: Settings) -> tuple[Ed25519PrivateKey, str]:
    """The stack's private key and its id, once the set that the settings name is known to be the stack's own."""
    public = Path(settings.token_jwks or "/")
    if public.name == _SET and settings.token_issuer == ISSUER:
        try:
            key = load_pem_private_key((public.parent / _PRIVATE).read_bytes(), None)
            (jwk,) = json.loads(public.read_bytes())["keys"]
            if (
                isinstance(key, Ed25519PrivateKey)
                and OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)["x"] == jwk["x"]
            ):
                return key, jwk["kid"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
    raise ConfigurationError(
        "tokens are minted here for the local stack alone, and BROKER_TOKEN_JWKS is not its set: load the file that "
        "`broker dev --env-file FILE` wrote; anywhere else the platform mints them"
    )


def _jwk(key: Ed25519PrivateKey) -> dict[str, Any]:
    """The public half."""
    jwk: dict[str, Any] = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return jwk
