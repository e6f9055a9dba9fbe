"""Taking a value out of an answer."""

from __future__ import annotations

import base64
import html
import itertools
import json
import random
import re
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broker_core.inject.forms import forms
from broker_core.inject.redact import Redactor

TEXT = "p@ss/w\"o\\rd +<&>~'=!"
VALUE = TEXT.encode()
MASK = "«redacted:secret.db»".encode()

values = st.one_of(
    st.binary(min_size=8, max_size=40),
    st.text(min_size=8, max_size=30).map(lambda text: text.encode("utf-8")).filter(lambda value: len(value) >= 8),
    st.text(alphabet="ab", min_size=8, max_size=12).map(str.encode),  # overlaps with itself
)
fillers = st.one_of(st.binary(max_size=20), st.sampled_from([b"\n", b"a", b"ab" * 6, b"%", b"\\", b'{"k": "']))


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A value, and a body with some of its forms in it, whole and in part."""
    value = draw(values)
    known = sorted(forms(value))
    piece = st.sampled_from(known) | st.sampled_from(known).map(lambda form: form[: len(form) - 1]) | fillers
    return value, b"".join(draw(st.lists(piece, max_size=8)))


Nest = tuple[list[tuple[str, bytes]], bytes]


@st.composite
def nests(draw: st.DrawFn) -> Nest:
    """Values made of the same few parts, so that they begin, contain, repeat and overlap one another, and a body of
    them."""
    part = st.sampled_from([b"ab", b"abab", b"a", b"b", b"aaaaaaaa", b"abababab", b"x/y", b"%61"])
    texts = st.lists(part, min_size=4, max_size=9).map(b"".join).filter(lambda text: len(text) >= 8)
    drawn = draw(st.lists(texts, min_size=1, max_size=4, unique=True))
    values = [*drawn, *(text + drawn[0] for text in drawn[:1]), *(text[:8] for text in drawn[:2])]
    named = [(f"s{number}", value) for number, value in enumerate(values)]
    echoed = st.sampled_from([form for value in values for form in sorted(forms(value))])
    return named, b"".join(draw(st.lists(part | echoed | echoed.map(lambda form: form[3:]), max_size=12)))


def cut(body: bytes, at: list[int]) -> list[bytes]:
    places = sorted({min(place, len(body)) for place in at} | {0, len(body)})
    return [body[start:end] for start, end in itertools.pairwise(places)]


class TestForms:
    """Every form that an echo is known to have."""

    @pytest.mark.parametrize(
        "form",
        {
            "raw": VALUE,
            "percent": quote(VALUE, safe="").encode(),
            "percent, slash kept": quote(VALUE).encode(),
            "percent, lower case": "".join(
                c if c.isalnum() or c in "-._~" else f"%{ord(c):02x}" for c in TEXT
            ).encode(),
            "form": quote_plus(VALUE).encode(),
            "encodeURIComponent": quote(VALUE, safe="!'()*").encode(),
            "json": json.dumps(TEXT)[1:-1].encode(),
            "json with \\/": json.dumps(TEXT)[1:-1].replace("/", "\\/").encode(),
            "json by Go": json.dumps(TEXT)[1:-1]
            .replace("<", "\\u003c")
            .replace(">", "\\u003e")
            .replace("&", "\\u0026")
            .encode(),
            "json by .NET": json.dumps(TEXT)[1:-1]
            .replace('\\"', "\\u0022")
            .replace("+", "\\u002B")
            .replace("<", "\\u003C")
            .replace("&", "\\u0026")
            .replace(">", "\\u003E")
            .replace("'", "\\u0027")
            .encode(),
            "json in json": json.dumps(json.dumps(TEXT))[3:-3].encode(),
            "percent in percent": quote(quote(VALUE, safe=""), safe="").encode(),
            "form in percent": quote(quote_plus(VALUE), safe="").encode(),
            "html": html.escape(TEXT).encode(),
            "html by PHP": html.escape(TEXT).replace("&#x27;", "&#039;").encode(),
            "html by Go": html.escape(TEXT)
            .replace("&#x27;", "&#39;")
            .replace("&quot;", "&#34;")
            .replace("+", "&#43;")
            .encode(),
            "html by Mustache": html.escape(TEXT)
            .replace("=", "&#x3D;")
            .replace("/", "&#x2F;")
            .replace("&#x27;", "&#39;")
            .encode(),
            "hex": VALUE.hex().encode(),
            "HEX": VALUE.hex().upper().encode(),
        }.items(),
        ids=lambda item: item[0],
    )
    def test_pitfall_06_a_form_is_masked(self, form: tuple[str, bytes]) -> None:
        """The value is found however it was encoded."""
        assert Redactor([("db", VALUE)]).body(b"<" + form[1] + b">") == b"<" + MASK + b">"

    @pytest.mark.parametrize("before", [b"", b"u", b"us", b"use", b"user:"])
    @pytest.mark.parametrize("after", [b"", b"x", b"xy"])
    @pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
    def test_pitfall_06_base64_at_every_alignment(self, before: bytes, after: bytes, encode: object) -> None:
        """Inside a longer base64 text (``Basic`` credentials) no character that depends on the value alone is left."""
        assert callable(encode)
        masked = Redactor([("db", VALUE)]).body(encode(before + VALUE + after))

        # two characters at most at each edge are shared with the neighbours
        rest = masked.replace(MASK, b"")
        assert MASK in masked
        assert len(rest.rstrip(b"=")) <= len(encode(before)) + len(encode(after)) + 2

    @pytest.mark.parametrize("text", ["pässwörd-😀", "日本語のパスワード"])
    @pytest.mark.parametrize("upper", [False, True])
    def test_pitfall_06_json_of_other_scripts(self, text: str, upper: bool) -> None:
        """``\\uXXXX`` escapes, surrogate pairs and either case of their digits are found."""
        escaped = json.dumps(text)[1:-1]
        if upper:
            escaped = re.sub(r"(?<=\\u)[0-9a-f]{4}", lambda digits: digits[0].upper(), escaped)
        assert Redactor([("db", text.encode())]).body(escaped.encode()) == MASK

    @pytest.mark.parametrize(
        ("value", "echoed"),
        [
            (b"Bearer sk-live-0123456789", b"sk-live-0123456789"),
            (b"token  ghp_0123456789", b"ghp_0123456789"),
            (b"Basic " + base64.b64encode(b"user:pass:w0rd-1"), b"pass:w0rd-1"),
            (b"basic " + base64.b64encode(b"user:pass:w0rd-1"), b"user:pass:w0rd-1"),
            (b"Basic " + base64.b64encode(b"user:pass:w0rd-1"), base64.b64encode(b"user:pass:w0rd-1")),
            (b"session=0123456789abc", b"0123456789abc"),
            (b'Token token="0123456789abc"', b"0123456789abc"),
            (b"0123456789abc\n", b"0123456789abc"),
            (b"Bearer p@ss/word+1", quote(b"p@ss/word+1", safe="").encode()),
        ],
    )
    def test_pitfall_06_what_a_server_takes_out_of_it(self, value: bytes, echoed: bytes) -> None:
        """A server that parses what it was sent shows the credential without its scheme, name or white space."""
        assert Redactor([("db", value)]).body(b"invalid: " + echoed) == b"invalid: " + MASK

    @pytest.mark.parametrize("value", [b"Basic dXNlcjpw", b"Basic not/base64+at=all", b"theme=dark; id=12345678"])
    def test_other_parts_of_it_are_no_forms(self, value: bytes) -> None:
        """Nothing short, nothing that does not decode, and none of several pairs is a credential by itself."""
        assert all(len(form) >= 8 for form in forms(value))
        assert b"12345678" not in forms(value)

    @pytest.mark.parametrize("echoed", [b"line one line two", b"line oneline two"])
    def test_pitfall_06_several_lines_on_one(self, echoed: bytes) -> None:
        """A header holds no line break: what a server makes of one is found."""
        assert Redactor([("db", b"line one\nline two")]).text(echoed.decode()) == "[redacted:secret.db]"

    def test_pitfall_06_a_header_loses_its_controls(self) -> None:
        """They are dropped from an answer's headers before those are looked through."""
        assert Redactor([("db", b"sk-live\x01-0123")]).text("sk-live-0123") == "[redacted:secret.db]"

    def test_the_rendered_form_keeps_its_scheme(self) -> None:
        """``Bearer`` is no secret: what is masked in it is the value."""
        assert Redactor([("db", VALUE)]).body(b"Bearer " + VALUE) == b"Bearer " + MASK

    @pytest.mark.parametrize("size", range(8))
    def test_a_value_under_8_bytes_has_no_form(self, size: int) -> None:
        """Not the raw one, and none of the longer ones."""
        assert forms(b"a" * size) == frozenset()

    @given(values)
    def test_no_form_is_shorter_than_8_bytes(self, value: bytes) -> None:
        """So that no mask shreds ordinary text."""
        assert min(map(len, forms(value))) >= 8

    def test_headers_have_an_ascii_mask(self) -> None:
        """A header is Latin-1 text; its mask is ASCII."""
        assert Redactor([("db", b"12345678")]).text("t=12345678; x=é") == "t=[redacted:secret.db]; x=é"


class TestWholeBody:
    """What comes out of a whole body."""

    @given(bodies())
    def test_no_form_survives(self, drawn: tuple[bytes, bytes]) -> None:
        """Between the masks there is no form of the value, whatever stood there."""
        value, body = drawn
        assume(not any(form in MASK for form in forms(value)))
        for part in Redactor([("db", value)]).body(body).split(MASK):
            assert not any(form in part for form in forms(value))

    @given(st.binary(max_size=60), values)
    def test_other_text_is_untouched(self, body: bytes, value: bytes) -> None:
        """A body without a form comes out as it is."""
        assume(not any(form in body for form in forms(value)))
        assert Redactor([("db", value)]).body(body) == body

    def test_overlapping_occurrences_are_one(self) -> None:
        """No tail of an occurrence that began inside another is left."""
        redactor = Redactor([("db", b"abababab")])

        assert redactor.body(b"x" + b"ab" * 7 + b"y") == b"x" + MASK + b"y"
        assert redactor.count == 1

    def test_pitfall_07_the_longer_of_two_values_wins(self) -> None:
        """One value that begins another does not leave the other's tail."""
        redactor = Redactor([("short", b"12345678"), ("long", b"12345678-abcdefgh")])

        assert redactor.body(b"12345678-abcdefgh 12345678").decode() == (
            "«redacted:secret.long» «redacted:secret.short»"
        )

    def test_a_self_similar_body_costs_no_more(self) -> None:
        """A megabyte of one letter is one occurrence, found in large steps."""
        assert Redactor([("db", b"a" * 64)]).body(b"a" * 1_000_000) == MASK

    def test_closing_forgets(self) -> None:
        """After the answer the forms are gone, and nothing passes that was not looked through."""
        redactor = Redactor([("db", VALUE)])
        redactor.close()

        with pytest.raises(RuntimeError):
            redactor.body(VALUE)
        assert not redactor.finds_in(VALUE)

    def test_repr_shows_nothing(self) -> None:
        """A redactor holds values: its repr is a constant."""
        assert repr(Redactor([("db", VALUE)])) == "<Redactor>"


class TestStream:
    """The machine, chunk by chunk."""

    @given(bodies(), st.lists(st.integers(0, 400), max_size=12))
    def test_pitfall_07_any_split_is_the_whole(self, drawn: tuple[bytes, bytes], at: list[int]) -> None:
        """However the body is cut, what comes out is what the whole body gives, with the same count."""
        value, body = drawn
        whole, cutting = Redactor([("db", value)]), Redactor([("db", value)])
        machine = cutting.stream()
        pieces = [machine.feed(chunk) for chunk in cut(body, at)]

        assert b"".join([*pieces, machine.finish()]) == whole.body(body)
        assert cutting.count == whole.count

    @given(bodies(), st.lists(st.integers(0, 400), max_size=12), values)
    def test_two_values_in_any_split(self, drawn: tuple[bytes, bytes], at: list[int], other: bytes) -> None:
        """The same with two values, of which one may begin the other."""
        value, body = drawn
        named = [("a", value), ("b", value + other)]
        machine = Redactor(named).stream()
        pieces = [machine.feed(chunk) for chunk in cut(body + value + other, at)]

        assert b"".join([*pieces, machine.finish()]) == Redactor(named).body(body + value + other)

    @given(st.binary(min_size=1, max_size=300).filter(lambda body: b"\n" not in body))
    def test_what_is_held_back_is_constant(self, body: bytes) -> None:
        """Always the longest form less one, whether or not it could become an occurrence: timing tells nothing."""
        redactor = Redactor([("db", b"12345678")])
        machine, out = redactor.stream(), 0
        for at in range(len(body)):
            out += len(machine.feed(body[at : at + 1]))
            assert out == max(0, at + 1 - redactor.hold_back)

    @pytest.mark.parametrize("text", [VALUE[:-1], b"another-text-here.."], ids=["a beginning", "something else"])
    def test_pitfall_07_a_beginning_is_let_go_when_anything_is(self, text: bytes) -> None:
        """What could become the value leaves in the same steps as what could not: the times tell no byte of it."""
        assert len(text) == len(VALUE) - 1
        machine = Redactor([("db", VALUE)]).stream()
        fed = text + b"." * 500

        assert [len(machine.feed(fed[at : at + 1])) for at in range(len(fed))] == [
            int(at >= max(map(len, forms(VALUE))) - 1) for at in range(len(fed))
        ]

    @given(nests(), st.data())
    def test_pitfall_07_values_that_overlap_repeat_and_nest(self, drawn: Nest, data: st.DataObject) -> None:
        """With any number of values inside, before and over one another, any split gives what the whole body gives."""
        named, body = drawn
        whole, cutting = Redactor(named), Redactor(named)
        at = data.draw(st.lists(st.integers(0, len(body)), max_size=20))
        machine = cutting.stream()
        pieces = [machine.feed(chunk) for chunk in cut(body, at)]

        assert b"".join([*pieces, machine.finish()]) == whole.body(body)
        assert cutting.count == whole.count

    @pytest.mark.parametrize("size", [1, 7, 4096])
    def test_the_largest_value_in_pieces(self, size: int) -> None:
        """64 KiB, echoed: found in pieces of any size (a search of all that is held back for each
        piece would not come to an end here)."""
        value = random.Random(1).randbytes(48_000).hex()[:65_536].encode()
        body = b"before" + value + b"after"
        machine = Redactor([("db", value)]).stream()

        out = b"".join(machine.feed(body[at : at + size]) for at in range(0, len(body), size)) + machine.finish()

        assert out == b"before" + MASK + b"after"

    @pytest.mark.parametrize("size", [1000, 10_000_000])
    def test_a_value_that_repeats_itself_costs_no_more(self, size: int) -> None:
        """A value with a long beginning that is its end too, echoed by an upstream that knows where it hurts."""
        value = b"a" * 30_000 + b"b" + b"a" * 30_000
        body = (value + b"a" * 60_000) * 2
        machine = Redactor([("db", value)]).stream()

        out = b"".join(machine.feed(body[at : at + size]) for at in range(0, len(body), size)) + machine.finish()

        assert out == (MASK + b"a" * 60_000) * 2

    def test_a_line_feed_lets_go(self) -> None:
        """An event stream is not kept waiting: no form crosses a line."""
        assert Redactor([("db", VALUE)]).stream().feed(b"data: 1\n") == b"data: 1\n"

    def test_a_line_feed_in_the_value_does_not_let_go(self) -> None:
        """A value of several lines is found across them."""
        machine = Redactor([("db", b"line one\nline two")]).stream()

        assert machine.feed(b"line one\n") + machine.feed(b"line two") + machine.finish() == MASK


class TestGuesses:
    """Whether a request already holds the value."""

    @pytest.mark.parametrize(
        "text",
        [
            b"plain-value",
            b"plain%2dvalue",
            b"plain-value".hex().encode(),
            base64.b64encode(b"abplain-value"),
            b"%70lain-value",
            b"\\u0070lain-value",
        ],
        ids=["raw", "percent", "hex", "base64", "partly percent", "partly json"],
    )
    def test_finds(self, text: bytes) -> None:
        """In any form, also one that is only partly encoded."""
        assert Redactor([("db", b"plain-value")]).finds_in(b"q=" + text)

    @pytest.mark.parametrize("form", sorted(forms(VALUE)))
    def test_finds_every_form(self, form: bytes) -> None:
        """Whatever is masked in an answer is found in a request."""
        assert Redactor([("db", VALUE)]).finds_in(b"q: " + form + b".")

    def test_does_not_find_what_is_not_there(self) -> None:
        """A part of the value is not the value."""
        assert not Redactor([("db", VALUE)]).finds_in(VALUE[:-1])
