"""Small ways in which a hostile or unlucky moment could cost more than it should."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from typing import Any
from uuid import uuid4

import pytest

from broker_core import events
from broker_core.adapters.aws_clients import MOST_CLIENTS, AwsClients, AwsOptions
from broker_core.adapters.egress import Egress
from broker_core.adapters.platform_cipher import PlatformKeyring
from broker_core.inject.call import BrokeredResponse, Call
from broker_core.inject.kinds import passing, prepare, with_parameter
from broker_core.inject.redact import Redactor
from broker_core.inject.url import parse_url
from broker_core.observability import configure_logging
from broker_core.ports import Destination
from broker_core.settings_checks import Unacceptable, platform_keys

VALUE = b"sk-live/0123+4567=="


class TestFindingAValueInARequest:
    """The agent chooses the body, while the value is in memory."""

    @pytest.mark.parametrize("piece", [b"%", b"%%4", b"%41", b"\\u0041", b"%41a"], ids=repr)
    def test_takes_no_step_of_python_for_each_escape(self, piece: bytes) -> None:
        """A body that is made of escapes, or of what only looks like them, is no way to keep a worker busy."""
        redactor = Redactor([("github", VALUE)])
        data, calls = piece * 10_000, 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            redactor.finds_in(data)
        finally:
            sys.setprofile(before)
        assert calls < 1000

    @pytest.mark.parametrize(
        "written",
        [
            b"%" + VALUE.hex("%").encode(),
            b"%%" + VALUE.hex("%").encode(),
            b"%zz%" + VALUE.hex("%").upper().encode() + b"%",
            b"%73k-live%2F0123%2b4567%3D=",
            "".join(f"\\u00{byte:02X}" for byte in VALUE).encode(),
            b"\\u00" + "".join(f"\\u00{byte:02x}" for byte in VALUE).encode(),
        ],
        ids=repr,
    )
    def test_still_finds_it_escaped(self, written: bytes) -> None:
        """Escapes are undone wherever they stand, between others and beside broken ones."""
        assert Redactor([("github", VALUE)]).finds_in(b"a=" + written + b"&b")


class TestResolving:
    """The threads that wait for a resolver are bounded."""

    def test_a_thread_that_cannot_start_gives_its_place_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A machine out of threads for a moment resolves names again later."""

        def resolve(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
            return [(2, 1, 6, "", ("93.184.215.14", 443))]

        egress = Egress(resolve=resolve, most_lookups=1)

        def no_thread(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as out_of_threads:
            out_of_threads.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(RuntimeError):
                egress.addresses(Destination("api.example.com", 443), 20.0)
        assert egress.addresses(Destination("api.example.com", 443), 20.0) == ["93.184.215.14"]


class TestShowing:
    """What a careless line of code could print."""

    def test_an_answer_shows_no_header_and_no_reason(self) -> None:
        """A value under 8 bytes is not redacted, so an answer's repr must not show where it can stand."""
        answer = BrokeredResponse(200, "short12", [("X-Echo", "short12")], b"short12", uuid4())
        assert "short12" not in repr(answer)

    def test_a_log_stream_that_fails_shows_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Python's own answer to a handler's failure is to print the record's arguments."""

        class Full(io.StringIO):
            def write(self, _: str) -> int:
                raise OSError(28, "No space left on device")

        errors = io.StringIO()
        monkeypatch.setattr(sys, "stderr", errors)
        monkeypatch.setattr(logging, "raiseExceptions", True)
        root = logging.getLogger()
        monkeypatch.setattr(root, "handlers", [])
        level = root.level
        try:
            configure_logging(Full())
            logging.getLogger("a.library").error("failed: %s", "s3ntinel-value")
        finally:
            root.setLevel(level)
        assert "s3ntinel" not in errors.getvalue()


class TestPlatformKeys:
    """One rule for key ids, wherever it is asked."""

    def test_a_key_id_that_settings_accept_makes_a_keyring(self) -> None:
        """What passes the check of settings does not stop the worker afterwards."""
        key = "A" * 43 + "="
        assert PlatformKeyring.parse(platform_keys(f"{'k' * 32}:{key}"))
        with pytest.raises(Unacceptable):
            platform_keys(f"{'k' * 33}:{key}")


class TestFramingInDisguise:
    """CGI and WSGI servers hand X_Y and X-Y on as one variable."""

    @pytest.mark.parametrize(
        "name", ["Transfer_Encoding", "Content_Length", "Proxy_Authorization", "axiorank_agent-id"]
    )
    def test_a_header_spelt_with_underscores_is_dropped_like_its_twin(self, name: str) -> None:
        """No spelling of a header that is ours, or of one connection only, is sent."""
        call = Call("ws_1", "agent-1", None, url="https://api.example.com/", headers=[(name, "1"), ("Kept", "1")])
        assert prepare(call, parse_url(call.url), 1).headers == [("Kept", "1")]
        assert passing([("X_Kept", json.dumps(1))]) == [("X_Kept", "1")]


class TestParametersInDisguise:
    """PHP makes ``_`` of an opening bracket that nothing closes, as it does of a dot and a space."""

    @pytest.mark.parametrize("other", ["api[key", "api%5Bkey", "api_key[", "API[KEY"])
    def test_an_opening_bracket_for_an_underscore_is_the_same_parameter(self, other: str) -> None:
        """The caller's variant is removed."""
        assert with_parameter(f"/?{other}=theirs&kept=1", "api_key", b"ours") == "/?kept=1&api_key=ours"

    def test_another_name_stays(self) -> None:
        """A bracket elsewhere makes another name."""
        assert with_parameter("/?ap[ikey=1", "api_key", b"ours") == "/?ap[ikey=1&api_key=ours"


class TestRegions:
    """A key's ARN names its Region, and customers write ARNs."""

    def test_made_up_regions_do_not_fill_the_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However many Regions are named, so many clients are kept and no more."""
        clients = AwsClients(AwsOptions())
        monkeypatch.setattr(clients, "_make", lambda service, region, is_base: object())
        for number in range(MOST_CLIENTS * 2):
            clients.kms(f"eu-west-{number}")
        assert len(clients._clients) == MOST_CLIENTS
        assert clients.kms("eu-west-1") is clients.kms("eu-west-1")


class TestVersions:
    """Our own doors count on from the highest version that a producer gave."""

    def test_a_version_always_has_a_next_one(self) -> None:
        """The largest version that is accepted leaves room in the column: a producer's mistake stops no rotation."""
        assert events.LARGEST_VERSION + 1_000_000 < 2**63
