"""Statements that claim rows: a shape that PostgreSQL cannot run more often than once."""

from __future__ import annotations

import re

import pytest

from broker_core.adapters.store import custody, notices, sweep

STATEMENTS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": text
    for module in (custody, notices, sweep)
    for name, text in vars(module).items()
    if isinstance(text, str) and "SKIP LOCKED" in text and "UPDATE " in text.split("SELECT")[0]
}


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_what_is_claimed_is_selected_once(name: str) -> None:
    """``IN (SELECT … LIMIT n … SKIP LOCKED)`` may be run for each row, and then claims more than n; an ARRAY is
    evaluated once. (One probe round of many claimed two connections under a limit of one.)"""
    assert re.search(r"= ANY\(ARRAY\(\s+SELECT", STATEMENTS[name])


def test_there_are_statements_to_look_at() -> None:
    """The rounds of the reconciler and of the probes."""
    assert {"custody._EXPIRE", "custody._CLOSE_UNKNOWN", "custody._TO_RING", "sweep._DUE_PROBES"} <= set(STATEMENTS)
