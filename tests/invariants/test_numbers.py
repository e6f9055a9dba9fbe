"""Every invariant of the map has a test of the same number, and every such test an invariant."""

from __future__ import annotations

import re
from pathlib import Path

import broker_core

ALL = {f"{number:02}" for number in range(1, 12)}


def test_the_map_lists_them() -> None:
    """INV-1 to INV-11."""
    assert {f"{int(number):02}" for number in re.findall(r"INV-(\d+)", broker_core.__doc__ or "")} == ALL


def test_each_has_its_file() -> None:
    """``test_inv_01.py`` to ``test_inv_11.py``, and no other."""
    files = {path.stem.removeprefix("test_inv_") for path in Path(__file__).parent.glob("test_inv_*.py")}
    assert files == ALL
