"""Finding many texts in data that comes in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_core.inject.search import Finder, Text, Texts

texts = st.lists(st.text(alphabet="ab", min_size=8, max_size=20).map(str.encode), min_size=1, max_size=5, unique=True)
data = st.lists(st.text(alphabet="ab", max_size=40).map(str.encode) | st.sampled_from([b"a" * 30, b"ab" * 20, b"|"]))


def covered(wanted: list[bytes], pieces: list[bytes], few: int) -> set[int]:
    """Every position that an occurrence covers, with ``few`` as the border between the two ways of looking."""
    known = Texts(Text(text, number) for number, text in enumerate(wanted))
    known.few = few
    finder = Finder(known)
    for piece in pieces:
        finder.feed(piece)
    return {at for start, end, _ in finder.spans(finder.end) for at in range(start, end)}


def naively(wanted: list[bytes], whole: bytes) -> set[int]:
    return {
        at
        for text in wanted
        for start in range(len(whole))
        if whole.startswith(text, start)
        for at in range(start, start + len(text))
    }


@pytest.mark.parametrize("few", [0, 1_000_000], ids=["searching", "looking at each end"])
@given(texts, data)
def test_both_ways_find_the_same(few: int, wanted: list[bytes], pieces: list[bytes]) -> None:
    """Whatever the pieces are, and whichever way they are looked through: all that is there and nothing else."""
    assert covered(wanted, pieces, few) == naively(wanted, b"".join(pieces))


def test_a_long_text_is_not_searched_at_few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """There ``find`` takes as long as the text is for each of them, where the text repeats itself."""
    searched: list[int] = []
    monkeypatch.setattr(Finder, "_search", lambda _self, new: searched.append(new))
    finder = Finder(Texts([Text(b"a" * 10_000 + b"b" + b"a" * 10_000, 0)]))
    for size in (1, 2000, 2048, 2049):
        finder.feed(b"a" * size)

    assert searched == [2049]


@given(texts, data)
def test_starts_come_in_order_and_the_longest_first(wanted: list[bytes], pieces: list[bytes]) -> None:
    """So that whoever masks them can take them as they come."""
    known = Texts(Text(text, number) for number, text in enumerate(wanted))
    finder = Finder(known)
    for piece in pieces:
        finder.feed(piece)
    found = [(start, -len(wanted[meaning])) for start, _, meaning in finder.spans(finder.end)]

    assert found == sorted(found)


def test_what_was_let_go_is_not_held() -> None:
    """A finder keeps what its user has not let go, at the same positions."""
    finder = Finder(Texts([Text(b"12345678", 0)]))
    finder.feed(b"01234")
    finder.feed(b"56789")
    finder.let_go(4)

    assert (finder.offset, finder.end, finder.held(4, 10)) == (4, 10, b"456789")


def test_closed_texts_let_nothing_pass() -> None:
    """What cannot be looked through any more is refused, not passed on."""
    known = Texts([Text(b"12345678", 0)])
    finder = Finder(known)
    known.close()

    with pytest.raises(RuntimeError):
        finder.feed(b"12345678")


def test_repr_shows_no_text() -> None:
    """What is looked for is the value."""
    known = Texts([Text(b"12345678", 0)])

    assert "1234" not in repr(known) + repr(known.all)
