"""A request's body that is looked through while it passes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broker_core.errors import ClientGone, InjectionRefused, Invalid, RateLimited
from broker_core.inject.forms import forms
from broker_core.inject.readings import READINGS, Reader
from broker_core.inject.redact import Redactor
from broker_core.inject.screen import Screen, screened

VALUE = b"plain-value+with/more"
HANDLE = b"{{secret:github}}"


def screen(value: bytes = VALUE) -> Screen:
    return Screen(Redactor([("db", value)]).texts, lambda: InjectionRefused("found", code="no_binding"))


def cut(body: bytes, at: list[int]) -> list[bytes]:
    places = sorted({min(place, len(body)) for place in at} | {0, len(body)})
    return [body[start:end] for start, end in itertools.pairwise(places)]


def passed(body: list[bytes], value: bytes = VALUE, length: int | None = None, most: int = 1 << 30) -> bytes:
    return b"".join(screened(body, screen(value), length, most))


def written(value: bytes) -> dict[str, bytes]:
    """Ways to write a text that some server undoes."""
    return {
        "as it is": value,
        "percent": quote(value, safe="").encode(),
        "percent, all of it": "".join(f"%{octet:02x}" for octet in value).encode(),
        "form": quote_plus(value).encode(),
        "json": "".join(f"\\u00{octet:02x}" for octet in value).encode(),
        "partly json": value[:3] + f"\\u00{value[3]:02X}".encode() + value[4:],
        "UTF-16": value.decode().encode("utf-16-le"),
        "UTF-32": value.decode().encode("utf-32-be"),
        "hex": value.hex().encode(),
    }


class TestReadings:
    """The readings, in pieces."""

    @given(
        st.lists(st.sampled_from([b"%", b"%4", b"1", b"\\", b"\\u", b"00", b"4", b"+", b"=", b"\0", b"x", b"\n"])),
        st.lists(st.integers(0, 40)),
        st.sampled_from(READINGS),
    )
    def test_any_split_reads_as_the_whole(self, parts: list[bytes], at: list[int], reading: object) -> None:
        """Escapes that were cut in two are undone all the same."""
        assert reading in READINGS
        reader, body = Reader(reading), b"".join(parts)  # type: ignore[arg-type]  # hypothesis hides the type

        assert b"".join([*map(reader.read, cut(body, at)), reader.rest()]) == reading.read(body)  # type: ignore[attr-defined]  # as above


class TestScreen:
    """What passes and what does not."""

    @given(st.lists(st.binary(max_size=3000), max_size=6))
    def test_other_bodies_pass_byte_for_byte(self, body: list[bytes]) -> None:
        """Looking changes nothing."""
        assume(b"{{secret:" not in b"".join(body))  # hypothesis draws constants of the code, too
        assert passed(body) == b"".join(body)

    @pytest.mark.parametrize("way", written(VALUE))
    @pytest.mark.parametrize("size", [1, 5, 100_000])
    def test_pitfall_10_a_form_is_refused_before_it_went(self, way: str, size: int) -> None:
        """However it is written and cut: the exchange ends, and no byte of the form had been let go (of UTF-16 and
        UTF-32 the last was not)."""
        before, form = b"filler " * 1000, written(VALUE)[way]
        body, went = before + form + b"after", list[bytes]()
        passing = screened([body[at : at + size] for at in range(0, len(body), size)], screen(), None, 1 << 30)

        with pytest.raises(InjectionRefused, match="found"):
            went.extend(passing)  # of a list: it keeps what came before the error

        assert bool(went) is (size < len(before))
        gone = b"".join(went)
        assert before.startswith(gone) or (way.startswith("UTF") and form not in gone)

    def test_pitfall_10_the_longest_form_escaped_to_the_last_byte(self) -> None:
        """It is complete before its first byte goes."""
        longest = max(forms(VALUE), key=len)
        body, went = "".join(f"\\u00{octet:02x}" for octet in longest).encode(), list[bytes]()

        with pytest.raises(InjectionRefused, match="found"):
            went.extend(screened(cut(body, [*range(len(body))]), screen(), None, 9999))

        assert went == []

    @given(st.sampled_from(sorted(forms(VALUE))), st.binary(max_size=40), st.lists(st.integers(0, 500), max_size=12))
    def test_every_form_is_found_in_any_split(self, form: bytes, around: bytes, at: list[int]) -> None:
        """As a whole body's is."""
        with pytest.raises(InjectionRefused, match="found"):
            passed(cut(around + form + around, at))

    @pytest.mark.parametrize("way", [way for way in written(HANDLE) if way != "hex"])
    @pytest.mark.parametrize("size", [1, 100_000])
    @pytest.mark.parametrize("value", [VALUE, b"short"])
    def test_pitfall_14_a_handle_is_refused(self, way: str, size: int, value: bytes) -> None:
        """It selects nothing there: whoever wrote it is told, whatever the value is."""
        body = b'{"a": "' + written(HANDLE)[way] + b'"}'

        with pytest.raises(InjectionRefused) as refused:
            passed([body[at : at + size] for at in range(0, len(body), size)], value)
        assert refused.value.reason == "handle_misplaced"

    def test_pitfall_26_no_more_than_the_hold_back_is_kept(self) -> None:
        """A body of any length passes through a buffer of one."""
        looking, went, sent = screen(), 0, 0
        most = 6 * max(map(len, forms(VALUE)))
        for _ in range(2000):
            went += len(looking.feed(b"0123456789"))
            sent += 10
            assert sent - went <= most

    def test_closing_forgets(self) -> None:
        """Nothing passes afterwards."""
        looking = screen()
        looking.close()

        with pytest.raises(RuntimeError):
            looking.feed(b"anything")


class TestLengthAndEnd:
    """How a body is counted, and how it may end."""

    def test_more_than_was_said_is_refused(self) -> None:
        """Else the rest would be read as a request of its own."""
        with pytest.raises(Invalid) as refused:
            passed([b"1234", b"5"], length=4)
        assert refused.value.reason == "too_large"

    def test_less_than_was_said_is_a_body_that_broke_off(self) -> None:
        """The upstream must not take it for the whole."""
        with pytest.raises(ClientGone):
            passed([b"123"], length=4)

    def test_pitfall_26_more_than_is_allowed_is_refused(self) -> None:
        """A body of unknown length is bounded while it passes."""
        with pytest.raises(Invalid) as refused:
            passed([b"12"] * 10, most=19)
        assert refused.value.reason == "too_large"

    def test_what_the_callers_body_raises_is_not_passed_on(self) -> None:
        """It means that the caller is gone; its text could quote the body."""

        def breaks() -> Iterator[bytes]:
            yield b"half"
            raise OSError("sentinel")

        with pytest.raises(ClientGone) as gone:
            list(screened(breaks(), screen(), None, 100))
        assert (gone.value.__cause__, gone.value.__context__) == (None, None)

    def test_an_error_of_ours_is_passed_on(self) -> None:
        """A limit that the surface counts by ends the exchange under its own name."""

        def limited() -> Iterator[bytes]:
            yield b"half"
            raise RateLimited("too much", 1)

        with pytest.raises(RateLimited):
            list(screened(limited(), screen(), None, 100))
