"""The double as a server: `AwsDouble().start()`, `.endpoint`, `.close()`, or a `with` block.

Promise: it listens on a loopback address and refuses any other; keep-alive and TCP_NODELAY as AWS has them; quiet.
moto's state is global to the process, so one double runs at a time in a process, and starting it empties that state:
test runs that share one keep apart by using fresh random account ids (`fresh_account_id`), xdist workers by having
one each.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from types import TracebackType
from typing import Any, ClassVar

from cheroot import server as http
from cheroot import wsgi

from broker_core.dev.aws import moto_app
from broker_core.dev.aws.account import Account, Accounts
from broker_core.dev.aws.control import Control, expire_keys
from broker_core.dev.aws.faults import Dropped, Faults
from broker_core.dev.aws.guard import Guard
from broker_core.dev.aws.trail import Trail

_THREADS = 32
_KEEP_ALIVE_CONNECTIONS = 1024
#: longer than a test run leaves a client alone: one that sends while its connection is being closed gets no answer
_IDLE_SECONDS = 3600
_BACKLOG = 256
_NEXT_REQUEST_SECONDS = 0.005


class _Connection(http.HTTPConnection):
    """A connection that can be torn off: closed with a reset and not with a farewell."""

    torn = False

    def communicate(self) -> bool:
        """Several requests in a row without a trip through the selector, which costs more than a decrypt."""
        while super().communicate():  # type: ignore[no-untyped-call]  # cheroot's stubs
            if not self.rfile.has_data() and not self._has_more():
                return True
        return False

    def _has_more(self) -> bool:
        """Whether another request arrives at once. (``select.select`` fails above descriptor 1023.)"""
        watch = select.poll()
        watch.register(self.socket, select.POLLIN)
        return bool(watch.poll(_NEXT_REQUEST_SECONDS * 1000))

    def close(self) -> None:
        """What a client that is gone did not read is dropped: writing it at the end would only fail, loudly."""
        super().close()
        self.wfile._write_buf.clear()

    def _close_kernel_socket(self) -> None:
        if not self.torn:
            super()._close_kernel_socket()  # type: ignore[misc]  # cheroot's stubs leave it out
            return
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Gateway(wsgi.Gateway_10):
    """cheroot's WSGI gateway, which also knows `Dropped`."""

    def respond(self) -> None:
        try:
            super().respond()
        except Dropped:
            self.req.conn.torn = True
            self.req.close_connection = True
            self.req.sent_headers = True  # nothing more may be written: the reset is the answer


class _Server(wsgi.Server):
    """Quiet, with room for every keep-alive connection of a test run."""

    ConnectionClass = _Connection
    keep_alive_conn_limit = _KEEP_ALIVE_CONNECTIONS

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        """Nothing: a traceback could hold a body."""


class AwsDouble:
    """KMS, STS and IAM on loopback.

    `wall` gives Unix seconds and `monotonic` seconds that only go forward; tests pass their own to let sessions expire.
    Raises ValueError for an address that is not loopback, RuntimeError if this process already runs one.
    """

    _running: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        region: str = "eu-west-1",
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        randomness: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if not ip_address(host).is_loopback:
            raise ValueError("the double serves nothing but loopback")
        self.region = region
        self._address = (host, port)
        self._clocks = (wall, monotonic, randomness)
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def start(self) -> AwsDouble:
        """Listens; returns itself."""
        if not AwsDouble._running.acquire(blocking=False):
            raise RuntimeError("one double per process: moto's state is global")
        try:
            self._listen()
        except BaseException:
            AwsDouble._running.release()
            raise
        return self

    def _listen(self) -> None:
        moto_app.reset()
        self._guard = Guard(*self._clocks)
        app = Control(self._guard, self._guard.faults, self._guard.trail, self._guard.world)
        self._server = _Server(
            self._address, app, numthreads=_THREADS, request_queue_size=_BACKLOG, timeout=_IDLE_SECONDS
        )
        self._server.gateway = _Gateway
        listening: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, args=(listening,), name="aws-double", daemon=True)
        self._thread.start()
        refused = listening.get()
        if refused is not None:
            raise refused
        self._accounts = Accounts(self.endpoint, self.region)

    def _serve(self, listening: queue.SimpleQueue[BaseException | None]) -> None:
        """Prepared in the daemon thread too: cheroot's workers inherit that, and a forgotten `close` hangs nobody."""
        try:
            self._server.prepare()
        except OSError as refused:
            listening.put(refused)
            return
        listening.put(None)
        self._server.serve()

    def close(self) -> None:
        """Releases what hangs, stops, and frees the port. May be called twice."""
        if self._server is None:
            return
        self._guard.faults.close()
        self._accounts.close()
        self._server.stop()
        if self._thread is not None:
            self._thread.join()
        self._server = self._thread = None
        AwsDouble._running.release()

    def __enter__(self) -> AwsDouble:
        return self if self._server is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`, for `endpoint_url` of KMS, STS and IAM."""
        return f"http://{self._address[0]}:{self._server.bind_addr[1]}"

    @property
    def faults(self) -> Faults:
        return self._guard.faults

    @property
    def trail(self) -> Trail:
        return self._guard.trail

    def account(self, account_id: str) -> Account:
        """That account, with its root user's powers."""
        return self._accounts.get(account_id)

    def hold_changes(self, seconds: float | None = None) -> None:
        """From now on changes are in force after `seconds`, None: only when `propagate` is called; 0: at once."""
        self._guard.world.hold(seconds)

    def propagate(self) -> None:
        """Every change that is on its way is in force."""
        self._guard.world.propagate()

    def expire_keys(self) -> None:
        """Keys that are pending deletion are gone, as after their waiting period."""
        expire_keys(self._guard.world)
