"""What endpoints take in the same words: who may call them, what they stand on, which page of a list is asked for."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Query

from broker_core.administer import LARGEST_PAGE
from broker_core.api.callers import Caller, Role, allow
from broker_core.api.surface import Surface, surface_of

Admin = Annotated[Caller, Depends(allow(role=Role.ADMIN))]
Owner = Annotated[Caller, Depends(allow(role=Role.OWNER))]
OnSurface = Annotated[Surface, Depends(surface_of)]

Cursor = Annotated[UUID | None, Query(description="`nextCursor` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=LARGEST_PAGE)]
