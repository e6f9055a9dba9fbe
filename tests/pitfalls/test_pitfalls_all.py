"""Every known pitfall has a test here that is named after it, and a line in SECURITY.md that says what is done."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
SECURITY = (HERE.parents[1] / "SECURITY.md").read_text()
#: the rows that we know: 1 to 28 of brokers that inject credentials, 30 to 46 of customer keys. 29 was never given
ROWS = [*range(1, 29), *range(30, 47)]
_NAME = re.compile(r"def test_pitfall_(\d\d)_\w+\(")
_ROW = re.compile(r"^\| (\d+) \|(.*)\|$", re.MULTILINE)


def test_every_row_has_a_test() -> None:
    """Each number stands in the name of a test in this directory, and no other number does."""
    named = {int(number) for path in HERE.glob("test_*.py") for number in _NAME.findall(path.read_text())}
    assert sorted(named) == ROWS


def test_every_row_is_in_security() -> None:
    """SECURITY.md has one line for each, in order: what goes wrong, what is done, and what is left (or a dash)."""
    _, _, table = SECURITY.partition("## What goes wrong in brokers, and what we do")
    lines = _ROW.findall(table.split("\n## ")[0])
    assert [int(number) for number, _ in lines] == ROWS
    for _, text in lines:
        wrong, done, left = (cell.strip() for cell in text.split(" | "))
        assert min(len(wrong), len(done)) > 10
        assert left == "–" or len(left) > 10
