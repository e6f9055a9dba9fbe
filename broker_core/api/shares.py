"""How many buffered requests one workspace may have under way in a process: each holds a thread while it waits for AWS
and for an upstream.

The promise: whatever one workspace asks for, half of the threads are left for its neighbours. Its share is taken before
its body is read, so it bounds what one workspace's bodies take of the memory too. Used on one event loop only, so
nothing is locked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anyio import Semaphore, move_on_after, to_thread
from starlette.datastructures import State

from broker_core.errors import RateLimited

#: seconds that a request waits for another of its workspace to end
WAIT_SECONDS = 2.0
#: seconds after which it is worth trying again
_AGAIN = 2


@dataclass
class _Share:
    room: Semaphore
    #: requests that hold a part of it or wait for one
    users: int = 0


class Shares:
    """The shares of the workspaces that have something under way."""

    def __init__(self, threads: float) -> None:
        self._half = max(1, int(threads // 2))
        self._shares: dict[str, _Share] = {}

    @asynccontextmanager
    async def held(self, workspace_id: str) -> AsyncIterator[None]:
        """Hold a part of the workspace's share for the block. Raises RateLimited where none comes free in time."""
        share = self._shares.setdefault(workspace_id, _Share(Semaphore(self._half)))
        share.users += 1
        try:
            await _take(share.room)
            try:
                yield
            finally:
                share.room.release()
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[workspace_id]


async def _take(room: Semaphore) -> None:
    with move_on_after(WAIT_SECONDS):
        await room.acquire()
        return
    raise RateLimited("this workspace has as much under way at a time as it may", _AGAIN)


def shares_of(state: State) -> Shares:
    """The shares of the threads that serve this event loop's requests."""
    if not hasattr(state, "shares"):
        state.shares = Shares(to_thread.current_default_thread_limiter().total_tokens)
    shares: Shares = state.shares
    return shares
