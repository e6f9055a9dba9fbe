"""Condition blocks of IAM policies: does this request meet them?

Promise: the operators and set qualifiers that key, trust, identity and session policies for KMS and STS use, with
AWS's rules for a key that is absent (IAM User Guide, "IAM JSON policy elements: Condition operators"). An operator
that is not known here makes a policy malformed when it is put; it is never silently true. Policy variables
(`${aws:username}`) are not expanded. This module imports nothing of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache

Context = Mapping[str, tuple[str, ...]]
"""What is known of a request: lower-case condition key → its values. An absent key is not in it."""

Test = Callable[[str, str], bool]


@lru_cache(maxsize=4096)
def glob(pattern: str) -> re.Pattern[str]:
    """IAM's `*` and `?`, and nothing else, as a compiled expression."""
    return re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern), re.DOTALL)


def _like(value: str, wanted: str) -> bool:
    return glob(wanted).fullmatch(value) is not None


def _arn_like(value: str, wanted: str) -> bool:
    """Each of the six colon-separated parts on its own, so that `*` does not cross a colon."""
    have, want = value.split(":", 5), wanted.split(":", 5)
    return len(have) == len(want) and all(_like(h, w) for h, w in zip(have, want, strict=True))


def _moment(text: str) -> datetime:
    if text.isdigit():
        return datetime.fromtimestamp(int(text), UTC)
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _dates(test: Callable[[datetime, datetime], bool]) -> Test:
    return lambda value, wanted: test(_moment(value), _moment(wanted))


def _numbers(test: Callable[[float, float], bool]) -> Test:
    return lambda value, wanted: test(float(value), float(wanted))


_POSITIVE: dict[str, Test] = {
    "StringEquals": lambda value, wanted: value == wanted,
    "StringEqualsIgnoreCase": lambda value, wanted: value.lower() == wanted.lower(),
    "StringLike": _like,
    "ArnEquals": _arn_like,
    "ArnLike": _arn_like,
    "Bool": lambda value, wanted: value.lower() == wanted.lower(),
    "DateEquals": _dates(lambda a, b: a == b),
    "DateLessThan": _dates(lambda a, b: a < b),
    "DateLessThanEquals": _dates(lambda a, b: a <= b),
    "DateGreaterThan": _dates(lambda a, b: a > b),
    "DateGreaterThanEquals": _dates(lambda a, b: a >= b),
    "NumericEquals": _numbers(lambda a, b: a == b),
    "NumericLessThan": _numbers(lambda a, b: a < b),
    "NumericLessThanEquals": _numbers(lambda a, b: a <= b),
    "NumericGreaterThan": _numbers(lambda a, b: a > b),
    "NumericGreaterThanEquals": _numbers(lambda a, b: a >= b),
}
_NEGATED = {
    "StringNotEquals": "StringEquals",
    "StringNotEqualsIgnoreCase": "StringEqualsIgnoreCase",
    "StringNotLike": "StringLike",
    "ArnNotEquals": "ArnEquals",
    "ArnNotLike": "ArnLike",
    "DateNotEquals": "DateEquals",
    "NumericNotEquals": "NumericEquals",
}


def known(operator: str) -> bool:
    """Whether `operator`, with its qualifier and suffix, is one that `met` understands."""
    _, base, _ = _split(operator)
    return base == "Null" or base in _POSITIVE or base in _NEGATED


def met(operator: str, key: str, wanted: tuple[str, ...], context: Context) -> bool:
    """Whether one line of a condition block holds. `key` is compared without regard to case, as AWS does."""
    qualifier, base, if_exists = _split(operator)
    values = context.get(key.lower(), ())
    if base == "Null":
        return any((wish.lower() == "true") == (not values) for wish in wanted)
    if not values and (if_exists or qualifier == "ForAllValues"):
        return True
    if not values and qualifier == "ForAnyValue":
        return False
    results = [_holds(base, value, wanted) for value in values]
    if qualifier == "ForAllValues":
        return all(results)
    return any(results) if results else base in _NEGATED


def _holds(base: str, value: str, wanted: tuple[str, ...]) -> bool:
    """One value against all wanted ones: any for a positive operator, none for a negated one."""
    test = _POSITIVE[_NEGATED.get(base, base)]
    try:
        hit = any(test(value, wish) for wish in wanted)
    except ValueError:  # a number or date that is none: no match, as in AWS
        hit = False
    return hit != (base in _NEGATED)


@lru_cache(maxsize=256)
def _split(operator: str) -> tuple[str, str, bool]:
    """`ForAllValues:StringEqualsIfExists` → (`ForAllValues`, `StringEquals`, True)."""
    qualifier, _, base = operator.rpartition(":")
    if qualifier not in ("", "ForAllValues", "ForAnyValue"):
        return qualifier, "", False
    return qualifier, base.removesuffix("IfExists"), base.endswith("IfExists")
