"""Lists that are asked for in pages: some of a list, and where the rest begins. Imports nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Page(Generic[_Item]):
    """Some of a list, oldest id first. ``next``: the cursor of what follows, None at the end."""

    items: Sequence[_Item]
    next: UUID | None


def page_of(found: Sequence[_Item], limit: int, id_of: Callable[[_Item], UUID]) -> Page[_Item]:
    """``found`` has one more than ``limit``, if there is one more."""
    items = found[:limit]
    return Page(items, id_of(items[-1]) if len(found) > limit else None)
