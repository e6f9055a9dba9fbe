"""Who calls: a short-lived JWT of the platform's, checked here against the platform's public keys.

The promise: nothing in a token is believed before its signature holds, and the signature is made with one of three
asymmetric algorithms under a key of that algorithm's own kind (RFC 8725, 3.1 and 3.2). What the token says about where
keys are (``jku``, ``x5u``, ``jwk``, ``x5c``) is not looked at. No message repeats any part of a token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import jwt

from broker_core.errors import Unauthorized
from broker_core.injection import ID
from broker_core.ports import Clock

#: may stand before a token, so that scanners for leaked credentials know it
PREFIX = "axr_tok_"
ALGORITHMS = frozenset({"EdDSA", "ES256", "RS256"})
#: characters; the platform's tokens have some 600
LONGEST_TOKEN = 8192
#: seconds; how long a token may live, and how far the clocks of two machines may be apart
LONGEST_LIFE = 15 * 60
LEEWAY = 30

#: what the library raises for what is no token, its own class or not
_BROKEN = (jwt.PyJWTError, ValueError, TypeError, AttributeError, RecursionError)


class Role(StrEnum):
    """What a person may do in a workspace; each covers those before it."""

    VIEWER = "viewer"
    MEMBER = "member"
    ADMIN = "admin"
    OWNER = "owner"

    def covers(self, other: Role) -> bool:
        """Whether whoever has this role may do what ``other`` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True)
class Caller:
    """Who a verified token speaks for. The workspace comes from here and from nowhere else."""

    workspace_id: str
    subject: str
    token_id: str
    scopes: frozenset[str]
    role: Role | None


class KeySet(Protocol):
    """The platform's public keys."""

    def find(self, key_id: str | None, algorithm: str) -> Any:
        """The key for a token's ``kid`` and ``alg``, None if there is none. Raises Unavailable if it cannot be known
        now."""

    def check(self) -> None:
        """Raise Unavailable while there are no keys."""


class TokenVerifier:
    """Checks tokens. Safe for threads."""

    def __init__(self, keys: KeySet, *, issuer: str, audience: str, clock: Clock) -> None:
        self.keys = keys
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._jwt = jwt.PyJWT()

    def verify(self, bearer: str) -> Caller:
        """The caller that a token (without ``Bearer``) speaks for.

        Raises Unauthorized, which says what is wrong with it, and Unavailable where the keys cannot be had.
        """
        token = bearer.removeprefix(PREFIX)
        if len(token) > LONGEST_TOKEN or not token.isascii():
            raise Unauthorized("the token is too long, or is no JWT")
        claims = self._signed(token)
        self._check_times(claims)
        return _caller(claims)

    def _signed(self, token: str) -> Mapping[str, Any]:
        key_id, algorithm = _header(token)
        key = self.keys.find(key_id, algorithm)
        if key is None:
            raise Unauthorized("the token is signed with a key that is not the platform's")
        problem = "the token's signature does not hold, or it is no JWT"
        try:
            return self._jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                # the times are checked below, by a clock that is an argument
                options={
                    "require": ["iss", "aud", "exp", "sub", "jti"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_sub": False,
                    "verify_jti": False,
                },
            )
        except jwt.MissingRequiredClaimError:
            problem = "the token lacks a claim: iss, aud, exp, sub and jti are required"
        except jwt.InvalidAudienceError:
            problem = "the token is for another audience"
        except jwt.InvalidIssuerError:
            problem = "the token is from another issuer"
        except _BROKEN:
            pass
        # not raised inside the handlers: the library's errors can quote the token
        raise Unauthorized(problem)

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now = self._clock.now().timestamp()
        ends = _time(claims, "exp", math.nan)
        begins = _time(claims, "iat", now)
        if now >= ends + LEEWAY:
            raise Unauthorized("the token has expired")
        if max(begins, _time(claims, "nbf", now)) > now + LEEWAY:
            raise Unauthorized("the token is not valid yet")
        if ends - begins > LONGEST_LIFE + LEEWAY:
            raise Unauthorized("the token lives longer than 15 minutes: mint a short-lived one")


def _header(token: str) -> tuple[str | None, str]:
    """``kid`` and ``alg``. Raises Unauthorized."""
    header: Mapping[str, Any] | None = None
    with suppress(*_BROKEN):
        header = jwt.get_unverified_header(token)
    if header is None or "crit" in header or "b64" in header:
        raise Unauthorized("the token is no JWT, or asks for an extension (crit, b64)")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise Unauthorized("the token is not signed with EdDSA, ES256 or RS256")
    if key_id is not None and not isinstance(key_id, str):
        raise Unauthorized("the token's kid is no text")
    return key_id, algorithm


def _time(claims: Mapping[str, Any], name: str, default: float) -> float:
    """A NumericDate (RFC 7519, 2): any finite number, in seconds. Raises Unauthorized."""
    given = claims.get(name, default)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 2**53:
        raise Unauthorized(f"the token's {name} is no time")
    return float(given)


def _caller(claims: Mapping[str, Any]) -> Caller:
    workspace = _text(claims, "workspace", 64)
    if not ID.fullmatch(workspace):
        raise Unauthorized("the token's workspace is no workspace id")
    scopes = frozenset(_text(claims, "scope", 1024).split(" ")) - {""} if "scope" in claims else frozenset()
    role = claims.get("role")
    if role is not None and (not isinstance(role, str) or role not in list(Role)):
        raise Unauthorized("the token's role is none of viewer, member, admin, owner")
    if not scopes and role is None:
        raise Unauthorized("the token has neither a scope nor a role")
    return Caller(
        workspace, _text(claims, "sub", 256), _text(claims, "jti", 256), scopes, None if role is None else Role(role)
    )


def _text(claims: Mapping[str, Any], name: str, longest: int) -> str:
    given = claims.get(name)
    if not isinstance(given, str) or not 1 <= len(given) <= longest or not given.isprintable():
        raise Unauthorized(f"the token's {name} is missing, or is no text of 1 to {longest} characters")
    return given
