"""Where the embedded servers keep their files, and as whom they run.

A temporary place is a fresh directory, for the owner only, under the system's temp, and goes away with its server. As
root nothing is kept below a home or the checkout, and PostgreSQL, which refuses to run as root, runs as ``nobody``: no
user is added to the system, and no permission of any existing directory is changed.

Imports nothing of the project.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import tempfile
from pathlib import Path


def fresh(name: str) -> Path:
    """A new, empty directory (mode 0700) under the system's temp."""
    return Path(tempfile.mkdtemp(prefix=f"broker-{name}-", dir=_temp())).resolve()


def for_sockets() -> Path:
    """A new, empty directory whose path is short and plain enough for a Unix socket, wherever ``TMPDIR`` points."""
    return Path(tempfile.mkdtemp(prefix="broker-socket-", dir="/tmp")).resolve()


def remove(directory: Path) -> None:
    """Remove a directory that ``fresh`` made."""
    shutil.rmtree(directory, ignore_errors=True)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, below the range that outgoing connections take theirs from."""
    for _ in range(100):
        port = secrets.choice(range(10_000, 20_000))
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port of 100 tried is free")


def account() -> tuple[int, int] | None:
    """(uid, gid) for servers that refuse root, or None if we are not root."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def give(directory: Path, to: tuple[int, int] | None) -> None:
    """Make the account the owner of a directory."""
    if to is not None:
        os.chown(directory, *to)


def open_to_all(path: Path) -> bool:
    """Whether any account may pass through every directory above ``path``."""
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def refuse_for_root(directory: Path) -> None:
    """Raises ValueError if we are root and the directory lies below a home or the directory we were started in."""
    if os.geteuid() != 0:
        return
    for forbidden in (Path.home(), Path("/home"), Path("/Users"), Path.cwd()):
        if forbidden != Path("/") and directory.resolve().is_relative_to(forbidden.resolve()):
            raise ValueError(f"as root the servers' data may not lie below {forbidden}: name a directory under /tmp")


def _temp() -> Path:
    """The system's temp; as root never one that other accounts cannot pass, or that lies in a home (``TMPDIR``)."""
    temp = Path(tempfile.gettempdir()).resolve()
    if os.geteuid() == 0 and not (open_to_all(temp / "x") and not temp.is_relative_to(Path.home())):
        return Path("/tmp").resolve()  # noqa: S108 - mkdtemp makes a private directory in it
    return temp
