"""Ed25519 signatures as JWS (RFC 7515, RFC 8037): ``ports.Signer``, and the check that needs no settings.

Promise: what is checked is exactly what was signed. A signature in another spelling of the same bytes is refused, so
that of a file that is accepted no byte can be another; and a JWS of another type or another key is refused, whatever
its own header says. Nothing of a key is ever in an error.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from broker_core.errors import ConfigurationError, Invalid

_ALGORITHM = "EdDSA"
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{86}")
_X = re.compile(r"[A-Za-z0-9_-]{43}")


class Ed25519Signer:
    """One private key. See ``ports.Signer``."""

    def __init__(self, pem: str) -> None:
        """``pem`` is PKCS #8. Raises ConfigurationError."""
        self._key = _private_key(pem)
        self._jws = jwt.PyJWS(algorithms=[_ALGORITHM])

    @property
    def public_key(self) -> Ed25519PublicKey:
        """What others check with."""
        return self._key.public_key()

    @property
    def key_id(self) -> str:
        """See ``ports.Signer``."""
        return thumbprint(self.public_key)

    def sign(self, payload: bytes, content_type: str) -> str:
        """See ``ports.Signer``."""
        headers = {"typ": content_type, "kid": self.key_id}
        return self._jws.encode(payload, self._key, algorithm=_ALGORITHM, headers=headers)


def verified(token: str, key: Ed25519PublicKey, content_type: str) -> bytes:
    """The payload of a JWS that this key signed. Raises Invalid (``signature``)."""
    if not _COMPACT.fullmatch(token):
        raise Invalid({"signature": "not a JWS in the compact form, or changed"})
    try:
        found = jwt.PyJWS(algorithms=[_ALGORITHM]).decode_complete(token, key, algorithms=[_ALGORITHM])
    except (jwt.PyJWTError, ValueError):
        raise Invalid({"signature": "not this key's, or the document was changed"}) from None
    # the last of 86 characters has four bits that say nothing: only the spelling that was signed counts
    if not token.endswith("." + _encoded(found["signature"])):
        raise Invalid({"signature": "changed"})
    if found["header"].get("typ") != content_type or found["header"].get("kid") != thumbprint(key):
        raise Invalid({"signature": "of another kind of document, or under another key's id"})
    payload: bytes = found["payload"]
    return payload


def read_public_key(text: str) -> Ed25519PublicKey:
    """A public key from PEM (SubjectPublicKeyInfo) or a JWK. Raises Invalid (``publicKey``)."""
    found: object = None
    with suppress(ValueError, RecursionError, UnsupportedAlgorithm):  # answered below
        if text.lstrip().startswith("{"):
            return _from_jwk(json.loads(text))
        found = load_pem_public_key(text.encode())
    if not isinstance(found, Ed25519PublicKey):
        raise Invalid({"publicKey": "not an Ed25519 public key as PEM or JWK"})
    return found


def public_pem(key: Ed25519PublicKey) -> str:
    """The key as PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def public_jwk(key: Ed25519PublicKey) -> dict[str, str]:
    """The key as a JWK, with its id."""
    return {**_members(key), "kid": thumbprint(key), "use": "sig", "alg": _ALGORITHM}


def thumbprint(key: Ed25519PublicKey) -> str:
    """RFC 7638, with SHA-256."""
    canonical = json.dumps(_members(key), sort_keys=True, separators=(",", ":"))
    return _encoded(hashlib.sha256(canonical.encode("ascii")).digest())


def _members(key: Ed25519PublicKey) -> dict[str, str]:
    return {"crv": "Ed25519", "kty": "OKP", "x": _encoded(key.public_bytes_raw())}


def _from_jwk(jwk: Mapping[str, Any]) -> Ed25519PublicKey:
    x = jwk.get("x")
    if (jwk.get("kty"), jwk.get("crv")) != ("OKP", "Ed25519") or not isinstance(x, str) or not _X.fullmatch(x):
        raise Invalid({"publicKey": "not an Ed25519 public key as PEM or JWK"})
    return Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(x + "="))


def _private_key(pem: str) -> Ed25519PrivateKey:
    found: object = None
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):  # answered below: its text could quote the key
        found = load_pem_private_key(pem.encode(), password=None)
    if not isinstance(found, Ed25519PrivateKey):
        raise ConfigurationError(
            "BROKER_SIGNING_KEY is no Ed25519 private key as PEM; `openssl genpkey -algorithm ed25519` makes one"
        )
    return found


def _encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")
