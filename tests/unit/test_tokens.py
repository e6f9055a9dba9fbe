"""Tokens: what counts, and every way in which one does not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from broker_core.api.jwks import Jwks
from broker_core.api.tokens import LONGEST_TOKEN, Caller, Role, TokenVerifier
from broker_core.errors import Unauthorized
from tests.tokens import AUDIENCE, ISSUER, LEFT_OUT, Platform, rsa_key


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, at: float | None = None) -> None:
        self.at = time.time() if at is None else at

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)

    def monotonic(self) -> float:
        return self.at


NOW = int(time.time())


def platform_of(*key: Any, **given: Any) -> Platform:
    """A platform whose clock stands still, too."""
    return Platform(*key, **given, seconds=lambda: NOW)


PLATFORM = platform_of()


def verifier(platform: Platform = PLATFORM, clock: Clock | None = None) -> TokenVerifier:
    clock = clock or Clock(NOW)
    return TokenVerifier(Jwks(platform.jwks, clock), issuer=ISSUER, audience=AUDIENCE, clock=clock)


def refusal(token: str, platform: Platform = PLATFORM) -> str:
    """Why a token does not count; the words hold no part of it."""
    with pytest.raises(Unauthorized) as caught:
        verifier(platform).verify(token)
    assert not any(part and part in str(caught.value) for part in token.split("."))
    assert caught.value.__context__ is None
    return caught.value.message


def segment(content: Any) -> str:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


class TestWhatCounts:
    @pytest.mark.parametrize("prefix", ["", "axr_tok_"])
    def test_a_service(self, prefix: str) -> None:
        """A service's token says workspace, subject, token id and scopes; the prefix may be there."""
        token = prefix + PLATFORM.token(
            workspace="ws_7", sub="gateway", jti="t-1", scope="broker:inject broker:events", iat=NOW, exp=NOW + 900
        )
        scopes = frozenset({"broker:inject", "broker:events"})
        assert verifier().verify(token) == Caller("ws_7", "gateway", "t-1", scopes, None)

    @pytest.mark.parametrize("role", list(Role))
    def test_a_person(self, role: Role) -> None:
        """A person's token says their role."""
        caller = verifier().verify(PLATFORM.token(role=role.value))
        assert (caller.role, caller.scopes) == (role, frozenset())

    @pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
    def test_algorithms(self, algorithm: str) -> None:
        """Each of the three algorithms counts."""
        key: Any = {"EdDSA": ed25519.Ed25519PrivateKey.generate, "RS256": rsa_key}.get(
            algorithm, lambda: ec.generate_private_key(ec.SECP256R1())
        )()
        platform = platform_of(key, algorithm)
        assert verifier(platform).verify(platform.token()).subject == "user-1"

    def test_audiences(self) -> None:
        """A token may be for several audiences, ours among them."""
        assert verifier().verify(PLATFORM.token(aud=["other", AUDIENCE])).subject == "user-1"

    def test_without_key_id(self) -> None:
        """A token without ``kid`` is tried with the set's only key of its algorithm."""
        assert verifier().verify(PLATFORM.token(headers={"kid": LEFT_OUT})).subject == "user-1"

    @pytest.mark.parametrize("claims", [{"exp": NOW - 29}, {"nbf": NOW + 29}, {"iat": NOW + 29, "exp": NOW + 60}])
    def test_clocks_apart(self, claims: dict[str, int]) -> None:
        """Clocks may be 30 seconds apart."""
        assert verifier().verify(PLATFORM.token(**{"iat": NOW - 60, "exp": NOW + 60, **claims})).subject == "user-1"

    def test_roles_cover(self) -> None:
        """Each role covers those before it, and none after it."""
        order = [Role.VIEWER, Role.MEMBER, Role.ADMIN, Role.OWNER]
        assert [[a.covers(b) for b in order] for a in order] == [[j <= i for j in range(4)] for i in range(4)]


class TestSignatures:
    def test_none(self) -> None:
        """``none`` is no algorithm."""
        token = f"{segment({'alg': 'none', 'kid': PLATFORM.key_id})}.{segment(PLATFORM.claims())}."
        assert refusal(token) == "the token is not signed with EdDSA, ES256 or RS256"

    @pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "PS256", "ES384", "RS512", "Ed25519", ["EdDSA"], 5])
    def test_other_algorithms(self, algorithm: Any) -> None:
        """No other algorithm counts, however it is written."""
        head, _, rest = PLATFORM.token().partition(".")
        assert head
        assert "not signed with" in refusal(f"{segment({'alg': algorithm, 'kid': PLATFORM.key_id})}.{rest}")

    @pytest.mark.parametrize("form", ["pem", "raw"])
    def test_hs256_with_the_public_key(self, form: str) -> None:
        """The public key, which everybody has, is no shared secret."""
        public = PLATFORM.key.public_key()
        secret = (
            public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            if form == "pem"
            else public.public_bytes_raw()
        )
        signed = f"{segment({'alg': 'HS256', 'kid': PLATFORM.key_id})}.{segment(PLATFORM.claims())}"
        mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        assert "not signed with" in refusal(f"{signed}.{segment(mac)}")

    def test_another_key(self) -> None:
        """Another key under the platform's key id does not count."""
        stranger = platform_of(key_id=PLATFORM.key_id)
        assert refusal(stranger.token()) == "the token's signature does not hold, or it is no JWT"

    def test_unknown_key_id(self) -> None:
        """A key id that the platform does not have does not count, even with the platform's key."""
        assert "a key that is not the platform's" in refusal(PLATFORM.token(headers={"kid": "other"}))

    def test_a_key_of_another_kind(self) -> None:
        """A key is used for its own algorithm only: an RSA key's id does not verify EdDSA."""
        platform = platform_of(rsa_key(), "RS256")
        stranger = platform_of(key_id=platform.key_id)
        assert "a key that is not the platform's" in refusal(stranger.token(), platform)

    @pytest.mark.parametrize("header", ["jwk", "jku", "x5u", "x5c"])
    def test_keys_that_a_token_brings(self, header: str) -> None:
        """What a token says about its own key is not looked at."""
        stranger = platform_of()
        value = json.loads(stranger.jwks())["keys"][0] if header == "jwk" else "https://attacker.test/jwks"
        token = stranger.token(headers={header: value, "kid": PLATFORM.key_id})
        assert refusal(token) == "the token's signature does not hold, or it is no JWT"

    @pytest.mark.parametrize(
        "header", [{"crit": ["exp"]}, {"crit": []}, {"b64": False, "crit": ["b64"]}, {"b64": True}]
    )
    def test_extensions(self, header: dict[str, Any]) -> None:
        """Headers that ask for an extension are refused."""
        head = {"alg": "EdDSA", "kid": PLATFORM.key_id, **header}
        _, claims, signature = PLATFORM.token().split(".")
        assert "extension" in refusal(f"{segment(head)}.{claims}.{signature}")

    def test_changed_claims(self) -> None:
        """A claim that is changed breaks the signature."""
        head, _, signature = PLATFORM.token(role="viewer").split(".")
        assert "signature" in refusal(f"{head}.{segment(PLATFORM.claims(role='owner'))}.{signature}")

    def test_two_keys_without_key_id(self) -> None:
        """Without ``kid`` nothing is guessed: two keys of the algorithm are none."""
        other = json.loads(platform_of().jwks())["keys"][0]
        clock = Clock(NOW)
        keys = Jwks(lambda: PLATFORM.jwks(other), clock)
        with pytest.raises(Unauthorized, match="not the platform's"):
            TokenVerifier(keys, issuer=ISSUER, audience=AUDIENCE, clock=clock).verify(
                PLATFORM.token(headers={"kid": LEFT_OUT})
            )


class TestClaims:
    @pytest.mark.parametrize("name", ["iss", "aud", "exp", "sub", "jti", "workspace"])
    def test_missing(self, name: str) -> None:
        """Each required claim is required."""
        words = refusal(PLATFORM.token(**{name: LEFT_OUT}))
        assert "the token lacks a claim" in words or f"the token's {name} is missing" in words

    def test_neither_scope_nor_role(self) -> None:
        """One of scope and role is required."""
        assert refusal(PLATFORM.token(role=LEFT_OUT)) == "the token has neither a scope nor a role"

    @pytest.mark.parametrize(
        ("claims", "words"),
        [
            ({"iss": "https://other.test"}, "the token is from another issuer"),
            ({"iss": ISSUER + "/"}, "the token is from another issuer"),
            ({"aud": "other"}, "the token is for another audience"),
            ({"aud": ["a", "b"]}, "the token is for another audience"),
            ({"aud": []}, "the token lacks a claim: iss, aud, exp, sub and jti are required"),
            ({"exp": NOW - 30, "iat": NOW - 60}, "the token has expired"),
            ({"nbf": NOW + 31}, "the token is not valid yet"),
            ({"iat": NOW + 31, "exp": NOW + 60}, "the token is not valid yet"),
            ({"iat": NOW, "exp": NOW + 931}, "the token lives longer than 15 minutes: mint a short-lived one"),
            ({"iat": LEFT_OUT, "exp": NOW + 931}, "the token lives longer than 15 minutes: mint a short-lived one"),
            ({"iat": NOW - 3600, "exp": NOW + 60}, "the token lives longer than 15 minutes: mint a short-lived one"),
            ({"workspace": "../other"}, "the token's workspace is no workspace id"),
            ({"workspace": "ws 1"}, "the token's workspace is no workspace id"),
            ({"role": "root"}, "the token's role is none of viewer, member, admin, owner"),
            ({"role": ["owner"]}, "the token's role is none of viewer, member, admin, owner"),
            ({"scope": ["broker:inject"]}, "the token's scope is missing, or is no text of 1 to 1024 characters"),
            ({"scope": " "}, "the token has neither a scope nor a role"),
            ({"jti": ""}, "the token's jti is missing, or is no text of 1 to 256 characters"),
            ({"jti": 7}, "the token's jti is missing, or is no text of 1 to 256 characters"),
            ({"sub": "a\nb"}, "the token's sub is missing, or is no text of 1 to 256 characters"),
        ],
    )
    def test_wrong(self, claims: dict[str, Any], words: str) -> None:
        """Each claim that is wrong is named, without what it held."""
        assert refusal(PLATFORM.token(**claims)) == words

    @pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
    @pytest.mark.parametrize("value", [True, -1, 1e30, float("inf"), float("nan")])
    def test_no_times(self, name: str, value: Any) -> None:
        """A time is a finite number that is not negative."""
        head = segment({"alg": "EdDSA", "kid": PLATFORM.key_id})
        signed = f"{head}.{segment(PLATFORM.claims(**{name: value}))}"
        token = f"{signed}.{segment(PLATFORM.key.sign(signed.encode()))}"
        assert refusal(token).startswith(f"the token's {name} is no time")

    def test_the_clock_is_an_argument(self) -> None:
        """The same token counts until its end by the given clock, and not after."""
        clock = Clock(NOW)
        checked = verifier(clock=clock)
        token = PLATFORM.token(iat=NOW, exp=NOW + 60)
        assert checked.verify(token)
        clock.at = NOW + 91
        with pytest.raises(Unauthorized, match="expired"):
            checked.verify(token)


class TestMalformed:
    def test_too_long(self) -> None:
        """A token of more than 8192 characters is not even parsed."""
        assert "too long" in refusal(PLATFORM.token(padding="x" * LONGEST_TOKEN))

    @given(st.text(max_size=300))
    def test_any_text(self, text: str) -> None:
        """Any text is refused, and as nothing but Unauthorized."""
        with pytest.raises(Unauthorized):
            verifier().verify(text)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=8,
        ),
        st.sampled_from(["header", "claims"]),
        st.booleans(),
    )
    def test_any_json(self, content: Any, place: str, merged: bool) -> None:
        """Any JSON as header or as (well signed) claims is refused, and as nothing but Unauthorized."""
        head: Any = {"alg": "EdDSA", "kid": PLATFORM.key_id}
        claims: Any = PLATFORM.claims(workspace=LEFT_OUT)
        if place == "header":
            head = content
        else:
            claims = {**claims, **content} if merged and isinstance(content, dict) else content
        signed = f"{segment(head)}.{segment(claims)}"
        with pytest.raises(Unauthorized):
            verifier().verify(f"{signed}.{segment(PLATFORM.key.sign(signed.encode()))}")

    @given(st.integers(0, 2000), st.binary(min_size=1, max_size=3))
    def test_damaged(self, place: int, damage: bytes) -> None:
        """A token that is damaged anywhere is refused, or reads as it did before."""
        token = PLATFORM.token(iat=NOW, jti="t-1", exp=NOW + 60)
        at = place % len(token)
        text = token[:at] + damage.decode("latin-1") + token[at + len(damage) :]
        try:
            caller = verifier().verify(text)
        except Unauthorized:
            return
        assert (caller.workspace_id, caller.role, caller.token_id) == ("ws_1", Role.OWNER, "t-1")

    @pytest.mark.parametrize("curve", ["Ed448", "P-384"])
    def test_keys_of_other_curves(self, curve: str) -> None:
        """Keys of other curves in the set are not used."""
        key: Any = ed448.Ed448PrivateKey.generate() if curve == "Ed448" else ec.generate_private_key(ec.SECP384R1())
        algorithm = "EdDSA" if curve == "Ed448" else "ES384"
        token = jwt.encode(PLATFORM.claims(), key, algorithm, headers={"kid": "k"})
        assert refusal(token)
