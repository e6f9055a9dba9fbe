"""The map in ``broker_core/__init__.py`` shows the house as it is."""

from __future__ import annotations

import pkgutil
import re

import pytest

import broker_core

MAP = broker_core.__doc__ or ""
MODULES = sorted(info.name for info in pkgutil.iter_modules(broker_core.__path__))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_on_the_map(module: str) -> None:
    """Who looks for something finds where it is."""
    assert re.search(rf"\b{module}\b", MAP)


@pytest.mark.parametrize("named", sorted(set(re.findall(r"\b([a-z_]+)(?:\.py|/)", MAP))))
def test_what_the_map_names_is_there(named: str) -> None:
    """As a module, as a part of one, or beside them."""
    assert named in {*MODULES, "callers", "scheduler", "workers", "tests", "invariants"}
