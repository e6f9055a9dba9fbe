"""The platform's public keys (RFC 7517), from a file or a URL, kept for a while.

The promise: a token cannot make us ask the platform more than once in ``LEAST_SECONDS``; a key that is known is found
without waiting for anybody; while the platform does not answer, the last set holds. Keys are public: what may be read
here, and what is refused (private and symmetric keys, short RSA keys), is decided once, when a set is read.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from broker_core import telemetry
from broker_core.adapters.exchange import Endpoint
from broker_core.errors import BrokerError, ConfigurationError, Unavailable
from broker_core.ports import Clock

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey
#: by ``kid``; each key for one algorithm only
Keys = Mapping[str | None, tuple[tuple[str, PublicKey], ...]]

#: bytes of a set, and keys in it
LARGEST_SET = 256 * 1024
MOST_KEYS = 100
#: seconds: how long a set is taken as new; how long until we ask again at the soonest; how long one answer may take
FRESH_SECONDS = 300.0
LEAST_SECONDS = 10.0
FETCH_SECONDS = 3.0
#: seconds of it for each address that is tried (of three the first two may be dead), and until the next bytes come
CONNECT_SECONDS, WAIT_SECONDS = 1.0, 2.0
#: how many callers with an unknown key may wait for a set at a time: tokens are made up faster than sets are fetched
MOST_WAITING = 4


class Jwks:
    """A ``tokens.KeySet`` that reads itself again when it is old, or when a token names a key that it does not hold."""

    def __init__(self, read: Callable[[], bytes], clock: Clock) -> None:
        """``read``: fetches the set, within FETCH_SECONDS; raises OSError, ValueError or urllib3's HTTPError."""
        self._read = read
        self._clock = clock
        self._keys: Keys = {}
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._flight = threading.Lock()
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)

    def check(self) -> None:
        """Raise Unavailable while there is no set; asks for one, as seldom as anybody else."""
        if not self._keys and not self.refresh():
            raise Unavailable("the platform's token keys cannot be read now")

    def find(self, key_id: str | None, algorithm: str) -> PublicKey | None:
        """The key for a token. A token without ``kid`` gets the only key of its algorithm, if there is but one.

        Raises Unavailable where there is no set yet, or many wait for a new one.
        """
        key = self._known(key_id, algorithm)
        if key is not None:
            if self._is_old() and self._may_try():
                threading.Thread(target=self.refresh, name="jwks", daemon=True).start()
            return key
        self._refresh_for_stranger()
        if not self._keys:
            raise Unavailable("the platform's token keys cannot be read now")
        return self._known(key_id, algorithm)

    def refresh(self) -> bool:
        """Read the set again, unless somebody does or did just now; whether there is a set then."""
        if self._flight.acquire(blocking=False):
            try:
                self._fly()
            finally:
                self._flight.release()
        return bool(self._keys)

    def _known(self, key_id: str | None, algorithm: str) -> PublicKey | None:
        keys = self._keys
        named = keys.get(key_id, ()) if key_id is not None else [pair for pairs in keys.values() for pair in pairs]
        fitting = [key for fits, key in named if fits == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    def _refresh_for_stranger(self) -> None:
        """Wait for a new set, our own or another caller's."""
        if not self._may_try() and not self._flight.locked():
            return
        if not self._waiting.acquire(blocking=False):
            raise Unavailable("the platform's token keys are being read: try again")
        try:
            if self._flight.acquire(timeout=2 * FETCH_SECONDS):
                try:
                    self._fly()
                finally:
                    self._flight.release()
        finally:
            self._waiting.release()

    def _fly(self) -> None:
        """Read, holding the flight's lock; known keys never ask for it."""
        if not self._may_try():
            return
        self._tried_at = self._clock.monotonic()
        failure: str | None = None
        try:
            self._keys = parse(self._read())
            self._read_at = self._clock.monotonic()
        except (OSError, ValueError, HTTPError, BrokerError) as error:
            failure = type(error).__name__
        if failure is not None:
            telemetry.log().warning("token_keys.unread", reason=failure, kept=bool(self._keys))

    def _is_old(self) -> bool:
        return self._read_at is None or self._clock.monotonic() - self._read_at >= FRESH_SECONDS

    def _may_try(self) -> bool:
        return self._tried_at is None or self._clock.monotonic() - self._tried_at >= LEAST_SECONDS


def parse(text: bytes) -> Keys:
    """The usable keys of a set. Raises ValueError if it is no set or has none."""
    found: dict[str | None, tuple[tuple[str, PublicKey], ...]] = {}
    if len(text) > LARGEST_SET:
        raise ValueError("the set is too large")
    document = _json(text)
    entries = document.get("keys") if isinstance(document, dict) else None
    for entry in entries[:MOST_KEYS] if isinstance(entries, list) else []:
        pair = _key(entry) if isinstance(entry, dict) else None
        if pair is not None:
            key_id = entry.get("kid")
            found[key_id] = (*found.get(key_id, ()), pair)
    if not found:
        raise ValueError("the set holds no key for EdDSA, ES256 or RS256")
    return found


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the set is no JSON") from None


def _key(entry: Mapping[str, Any]) -> tuple[str, PublicKey] | None:
    """A public key and the one algorithm that it is for; None for what is not for us."""
    if entry.get("use", "sig") != "sig" or not isinstance(entry.get("kid"), str | None) or "d" in entry:
        return None
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    algorithm = _ALGORITHM.get(str(entry.get("kty")))
    if algorithm is None or entry.get("alg", algorithm) != algorithm:
        return None
    try:
        key = jwt.PyJWK(dict(entry), algorithm=algorithm).key
    except Exception:  # noqa: BLE001 - a key that breaks the library, whatever way, is no key for us
        return None
    return (algorithm, key) if _fits(algorithm, key) else None


#: a key's kind decides the algorithm: a token, or a set, cannot choose another (RFC 8725, 3.1)
_ALGORITHM = {"OKP": "EdDSA", "EC": "ES256", "RSA": "RS256"}


def _fits(algorithm: str, key: Any) -> bool:
    match algorithm:
        case "EdDSA":
            return isinstance(key, Ed25519PublicKey)
        case "ES256":
            return isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
        case _:
            return isinstance(key, RSAPublicKey) and key.key_size >= 2048


# ---------------------------------------------------------------- where sets come from


def from_setting(setting: str, clock: Clock, ca_file: str | None = None) -> Jwks:
    """The set that BROKER_TOKEN_JWKS names. A file is read at once, and must hold a key: raises ConfigurationError.

    A URL may answer later; the system's CAs are trusted there, and those of ``ca_file``.
    """
    if not setting.startswith("/"):
        return Jwks(_fetching(setting, ca_file), clock)
    try:
        parse(_file(setting))
    except (OSError, ValueError):
        raise ConfigurationError(
            "BROKER_TOKEN_JWKS must name a readable JSON Web Key Set with an Ed25519, P-256 or RSA (2048 bits) key"
        ) from None
    return Jwks(lambda: _file(setting), clock)


def _file(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(LARGEST_SET + 1)


def _fetching(url: str, ca_file: str | None) -> Callable[[], bytes]:
    try:
        endpoint = Endpoint(url, ca_file, connect_seconds=CONNECT_SECONDS, wait_seconds=WAIT_SECONDS)
    except ValueError:
        raise ConfigurationError("BROKER_TOKEN_JWKS must be https:// off loopback, or the path of a file") from None
    return lambda: endpoint.request("GET", _HEADERS, _set_in, seconds=FETCH_SECONDS)


def _set_in(answer: BaseHTTPResponse) -> bytes:
    if answer.status != 200:
        raise ValueError("the platform answered with another status")
    return answer.read(LARGEST_SET + 1)


_HEADERS = {
    "Accept": "application/jwk-set+json, application/json",
    "Accept-Encoding": "identity",
    "Connection": "close",
}
