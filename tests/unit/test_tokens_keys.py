"""The platform's keys: which are taken, when they are asked for again, and who waits."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from broker_core.adapters.clock import SystemClock
from broker_core.api import jwks
from broker_core.api.jwks import FRESH_SECONDS, LEAST_SECONDS, MOST_WAITING, Jwks
from broker_core.errors import ConfigurationError, Unavailable
from tests.tokens import Platform, public_jwk, rsa_key
from tests.unit.test_tokens import Clock
from tests.waiting import wait_until

PLATFORM = Platform()


class Source:
    """Where a set comes from: counts how often it is asked, and can be away."""

    def __init__(self, *platforms: Platform) -> None:
        self.platforms = platforms
        self.asked = 0
        self.away = False

    def __call__(self) -> bytes:
        self.asked += 1
        if self.away:
            raise OSError("away")
        first, *others = self.platforms
        return first.jwks(*(public_jwk(other.key, kid=other.key_id) for other in others))


class TestAskingAgain:
    def test_nobody_is_asked_for_known_keys(self) -> None:
        """A set that is new is not asked for again."""
        source = Source(PLATFORM)
        keys = Jwks(source, Clock(0))
        assert all(keys.find(PLATFORM.key_id, "EdDSA") for _ in range(5))
        assert source.asked == 1

    def test_unknown_key_ids_are_bounded(self) -> None:
        """However many unknown key ids come, the platform is asked once in LEAST_SECONDS."""
        source, clock = Source(PLATFORM), Clock(0)
        keys = Jwks(source, clock)
        assert [keys.find(f"made-up-{n}", "EdDSA") for n in range(20)] == [None] * 20
        assert source.asked == 1
        clock.at += LEAST_SECONDS
        assert [keys.find(f"made-up-{n}", "EdDSA") for n in range(20)] == [None] * 20
        assert source.asked == 2

    def test_a_new_key_is_found(self) -> None:
        """A key that the platform begins to use is found with the first token that names it."""
        source, clock, second = Source(PLATFORM), Clock(0), Platform()
        keys = Jwks(source, clock)
        assert keys.find(PLATFORM.key_id, "EdDSA")
        source.platforms = (PLATFORM, second)
        clock.at += LEAST_SECONDS
        assert keys.find(second.key_id, "EdDSA")

    def test_a_withdrawn_key_goes(self) -> None:
        """A key that the platform withdraws is gone once the set was read again."""
        source, clock, second = Source(PLATFORM), Clock(0), Platform()
        keys = Jwks(source, clock)
        assert keys.find(PLATFORM.key_id, "EdDSA")
        source.platforms = (second,)
        clock.at += FRESH_SECONDS
        wait_until(lambda: keys.find(PLATFORM.key_id, "EdDSA") is None)

    def test_an_old_set_holds_while_the_platform_is_away(self) -> None:
        """While the platform does not answer, known keys go on counting; the failure is logged, with its class."""
        source, clock = Source(PLATFORM), Clock(0)
        keys = Jwks(source, clock)
        keys.check()
        source.away = True
        clock.at += FRESH_SECONDS
        with capture_logs() as logs:
            assert keys.find("other", "EdDSA") is None
        assert keys.find(PLATFORM.key_id, "EdDSA")
        assert logs == [
            {"event": "token_keys.unread", "log_level": "warning", "reason": "OSError", "kept": True},
        ]

    def test_no_set_yet(self) -> None:
        """Without a set nobody is unauthorized: the keys are unavailable, and asked for as seldom."""
        source, clock = Source(PLATFORM), Clock(0)
        source.away = True
        keys = Jwks(source, clock)
        for _ in range(3):
            with pytest.raises(Unavailable):
                keys.find(PLATFORM.key_id, "EdDSA")
            with pytest.raises(Unavailable):
                keys.check()
        assert source.asked == 1
        source.away = False
        clock.at += LEAST_SECONDS
        keys.check()
        assert keys.find(PLATFORM.key_id, "EdDSA")


class Slow:
    """A source that answers when it is told to."""

    def __init__(self, first: Callable[[], bytes]) -> None:
        self._first = first
        self.asked = 0
        self.go_on = threading.Event()

    def __call__(self) -> bytes:
        self.asked += 1
        if self.asked > 1:
            assert self.go_on.wait(20)
        return self._first()


class TestWaiting:
    def test_known_keys_wait_for_nobody(self) -> None:
        """While a set is being fetched, known keys are found at once, also when the set is old."""
        source, clock = Slow(PLATFORM.jwks), Clock(0)
        keys = Jwks(source, clock)
        keys.check()
        clock.at += FRESH_SECONDS
        assert keys.find(PLATFORM.key_id, "EdDSA")  # starts fetching, beside
        wait_until(lambda: source.asked == 2)
        assert keys.find(PLATFORM.key_id, "EdDSA")
        source.go_on.set()

    def test_one_flight(self) -> None:
        """Callers with unknown keys share one fetch; more than a few are not kept waiting."""
        source, clock = Slow(PLATFORM.jwks), Clock(0)
        keys = Jwks(source, clock)
        keys.check()
        clock.at += LEAST_SECONDS
        found: list[object] = []

        def ask() -> None:
            try:
                found.append(keys.find("made-up", "EdDSA"))
            except Unavailable as error:
                found.append(error)

        asking = [threading.Thread(target=ask) for _ in range(MOST_WAITING + 3)]
        for thread in asking:
            thread.start()
        wait_until(lambda: len(found) == 3)
        source.go_on.set()
        for thread in asking:
            thread.join()
        assert [type(each) for each in found[:3]] == [Unavailable] * 3
        assert found[3:] == [None] * MOST_WAITING
        assert source.asked == 2


class TestSets:
    @pytest.mark.parametrize(
        "entry",
        [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "k", "alg": "HS256"},
            {**public_jwk(PLATFORM.key), "kid": "k", "d": "c2VjcmV0"},
            {**public_jwk(PLATFORM.key), "kid": "k", "use": "enc"},
            {**public_jwk(PLATFORM.key), "kid": "k", "key_ops": ["sign"]},
            {**public_jwk(PLATFORM.key), "kid": "k", "alg": "RS256"},
            {**public_jwk(PLATFORM.key), "kid": 5},
            {**public_jwk(PLATFORM.key), "kid": "k", "x": 5},
            {**public_jwk(PLATFORM.key), "kid": "k", "x": "c2hvcnQ"},
            {"kty": "EC", "kid": "k"},
            {"kty": ["EC"], "kid": "k"},
            public_jwk(rsa_key(1024), kid="k"),
            public_jwk(ec.generate_private_key(ec.SECP384R1()), kid="k"),
            "no object",
        ],
    )
    def test_entries_that_are_not_used(self, entry: Any) -> None:
        """Symmetric, private, short, other and broken keys are passed over; the others of the set count."""
        taken = jwks.parse(json.dumps({"keys": [entry, public_jwk(PLATFORM.key, kid="good")]}).encode())
        assert list(taken) == ["good"]

    @pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"keys": {}}', b'{"keys": []}', b"[" * 99_999, b"\xff"])
    def test_no_sets(self, text: bytes) -> None:
        """What is no set, or holds no key for us, is refused."""
        with pytest.raises(ValueError, match="the set"):
            jwks.parse(text)

    def test_too_large(self) -> None:
        """A set of more than 256 KiB is refused."""
        with pytest.raises(ValueError, match="too large"):
            jwks.parse(PLATFORM.jwks() + b" " * jwks.LARGEST_SET)


class TestFiles:
    def test_a_file(self, tmp_path: Any) -> None:
        """The setting may name a file."""
        (tmp_path / "jwks.json").write_bytes(PLATFORM.jwks())
        assert jwks.from_setting(f"{tmp_path}/jwks.json", SystemClock()).find(PLATFORM.key_id, "EdDSA")

    @pytest.mark.parametrize("content", [None, b"{}", b"no json"])
    def test_a_file_that_is_none(self, tmp_path: Any, content: bytes | None) -> None:
        """A file that is not there or holds no key stops the start."""
        if content is not None:
            (tmp_path / "jwks.json").write_bytes(content)
        with pytest.raises(ConfigurationError, match="BROKER_TOKEN_JWKS must name"):
            jwks.from_setting(f"{tmp_path}/jwks.json", SystemClock())
