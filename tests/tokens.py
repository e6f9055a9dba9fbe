"""The platform's side of tokens, for tests: keys, the set that holds their public halves, and any token at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://platform.test", "axiorank-broker"
#: leave a claim out: ``platform.token(jti=LEFT_OUT)``
LEFT_OUT: Any = object()


@cache
def rsa_key(size: int = 2048) -> rsa.RSAPrivateKey:
    """An RSA key; they take long to make."""
    return rsa.generate_private_key(65537, size)


def public_jwk(key: Any, **members: Any) -> dict[str, Any]:
    """The public half of a private key as a JWK."""
    algorithms = {
        ed25519.Ed25519PrivateKey: OKPAlgorithm,
        ec.EllipticCurvePrivateKey: ECAlgorithm,
        rsa.RSAPrivateKey: RSAAlgorithm,
    }
    algorithm: Any = next(found for kind, found in algorithms.items() if isinstance(key, kind))
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), **members}


@dataclass
class Platform:
    """Whoever signs tokens."""

    key: Any = field(default_factory=ed25519.Ed25519PrivateKey.generate)
    algorithm: str = "EdDSA"
    key_id: str = field(default_factory=lambda: f"key-{uuid4().hex[:8]}")
    seconds: Callable[[], float] = time.time

    def jwks(self, *others: dict[str, Any]) -> bytes:
        """The set of public keys."""
        return json.dumps({"keys": [public_jwk(self.key, kid=self.key_id), *others]}).encode()

    def claims(self, **claims: Any) -> dict[str, Any]:
        """Claims that count, but for those that are named: ``scope="broker:inject"``, ``role="owner"``, …"""
        now = int(self.seconds())
        usual = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "user-1",
            "jti": uuid4().hex,
            "iat": now,
            "exp": now + 300,
            "workspace": "ws_1",
        }
        if not {"scope", "role"} & claims.keys():
            usual["role"] = "owner"
        return {name: value for name, value in {**usual, **claims}.items() if value is not LEFT_OUT}

    def token(self, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A signed token."""
        all_headers = {"kid": self.key_id, **(headers or {})}
        kept = {name: value for name, value in all_headers.items() if value is not LEFT_OUT}
        return jwt.encode(self.claims(**claims), self.key, self.algorithm, headers=kept)
