"""``Plaintext``: showing, copying or comparing a value is a type error; it has one use."""

from __future__ import annotations

import copy
import json
import operator
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from broker_core.secret import Plaintext

VALUE = b"hunter2-hunter2"

#: ``Any``: most of these are what a type checker refuses, too
REFUSED: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "format": format,
    "f-string": lambda value: f"{value}",
    "f-string with a specification": lambda value: f"{value:>20}",
    "percent": lambda value: "%s" % value,  # noqa: UP031 - what is tested
    "str.format": lambda value: "{}".format(value),  # noqa: UP032 - what is tested
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": lambda value: memoryview(value),
    "iteration": iter,
    "list": list,
    "unpacking": lambda value: [*value],
    "join": lambda value: b"".join(value),
    "len": len,
    "index": lambda value: value[0],
    "slice": lambda value: value[:],
    "in": lambda value: b"h" in value,
    "addition": lambda value: b"" + value,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy inside": lambda value: copy.deepcopy({"value": value}),
    "json": json.dumps,
    "json inside": lambda value: json.dumps({"value": value}),
    "hash": hash,
    "dict key": lambda value: {value: 1},
    "int": int,
    "vars": vars,
    **{f"pickle {number}": partial(pickle.dumps, protocol=number) for number in range(pickle.HIGHEST_PROTOCOL + 1)},
}
for _compare in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge):
    for _other in (VALUE, Plaintext(VALUE), None):
        REFUSED[f"{_compare.__name__} {type(_other).__name__}"] = partial(
            lambda compare, other, value: compare(value, other), _compare, _other
        )


@pytest.mark.parametrize("way", REFUSED)
def test_it_is_refused(way: str) -> None:
    """Each way to show, copy or compare is a TypeError, whose text holds nothing."""
    with pytest.raises(TypeError) as error:
        REFUSED[way](Plaintext(VALUE))
    assert VALUE.decode() not in repr(error.value)


def test_its_repr_is_constant() -> None:
    """The same for every value, on its own and inside others."""
    assert repr(Plaintext(VALUE)) == repr(Plaintext(b"x")) == "<Plaintext>"
    assert f"{[Plaintext(VALUE)]}" == "[<Plaintext>]"


def test_it_is_true() -> None:
    """Whether there is a value is no question about it."""
    assert bool(Plaintext(b"\x00"))


def test_reveal_gives_the_value() -> None:
    """For the length of the block."""
    with Plaintext(VALUE).reveal() as view:
        assert bytes(view) == VALUE


def test_the_view_is_read_only() -> None:
    """Nobody changes a value on its way."""
    with Plaintext(VALUE).reveal() as view, pytest.raises(TypeError):
        view[0] = 0


def test_the_buffer_is_zeroed_after_the_block() -> None:
    """An adopted buffer holds zeros, and so does every view that was kept."""
    buffer = bytearray(VALUE)
    with Plaintext(buffer).reveal() as view:
        kept = view
    assert bytes(buffer) == bytes(kept) == bytes(len(VALUE))


def test_the_buffer_is_zeroed_when_the_block_fails() -> None:
    """An exception is no way out."""
    buffer = bytearray(VALUE)
    with pytest.raises(KeyError), Plaintext(buffer).reveal():
        raise KeyError
    assert buffer == bytes(len(VALUE))


def test_bytes_are_copied() -> None:
    """What a caller gave as bytes is its own."""
    value = Plaintext(VALUE)
    value.wipe()
    assert VALUE == b"hunter2-hunter2"


def test_it_has_one_use() -> None:
    """A second reveal is a ValueError."""
    value = Plaintext(VALUE)
    with value.reveal():
        pass
    with pytest.raises(ValueError, match="already used"), value.reveal():
        pass


def test_it_has_one_use_at_a_time() -> None:
    """Also within the first."""
    value = Plaintext(VALUE)
    with value.reveal(), pytest.raises(ValueError, match="already used"), value.reveal():
        pass


def test_wiping_zeroes_without_a_use() -> None:
    """After it there is nothing to reveal."""
    buffer = bytearray(VALUE)
    value = Plaintext(buffer)
    value.wipe()
    assert buffer == bytes(len(VALUE))
    with pytest.raises(ValueError, match="wiped"), value.reveal():
        pass


def test_wiping_is_safe_at_any_time() -> None:
    """Twice, and inside the block."""
    value = Plaintext(VALUE)
    with value.reveal() as view:
        value.wipe()
        assert bytes(view) == bytes(len(VALUE))
    value.wipe()


def test_it_takes_no_attributes() -> None:
    """Nothing can be hung onto it."""
    with pytest.raises(AttributeError):
        Plaintext(VALUE).note = "x"  # type: ignore[attr-defined]
