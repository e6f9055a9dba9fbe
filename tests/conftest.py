"""The servers of a test run, and what a test may reach.

One PostgreSQL cluster per run, started by the process that the developer started (with xdist: the controller, which
hands the URL on); one database and two Valkeys per worker, emptied before each test that asks for them; one AWS double
and one sample upstream per worker. Tests that restart, fill, kill or search a server start their own
(``broker_core.dev``).

``BROKER_TEST_DATABASE_URL`` and ``BROKER_TEST_REDIS_URL`` name other servers instead of the embedded ones: the first
any database of a server where we may create databases as superuser, the second a Redis whose databases 0 to 15 are
ours.

Unit tests, and contract tests on a fake (parameter id ``fake``), reach no network at all. Every other test reaches this
machine only.
"""

from __future__ import annotations

import gc
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from broker_core.adapters.aws_clients import AwsClients
    from broker_core.adapters.upstream import HttpsUpstream
    from broker_core.dev.aws import AwsDouble
    from broker_core.dev.postgres import Postgres
    from broker_core.dev.stack import LocalStack
    from broker_core.dev.upstream import SampleUpstream
    from tests.databases import KeptClaims, KeptDatabase, KeptRedis
    from tests.live import Live
    from tests.web import Web

HERE = Path(__file__).parent
THIS_MACHINE = ["127.0.0.0/8", "127.0.0.1", "::1", "localhost"]
_cluster: pytest.StashKey[Postgres] = pytest.StashKey()
_run: pytest.StashKey[str] = pytest.StashKey()
#: tests of ten seconds and more
_LONG = re.compile(
    r"^tests/(faults/|invariants/test_inv_01"
    r"|integration/test_(demo|byok_story|documents.*test_try_it|web_process))"
)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Profiles of hypothesis; Unix sockets count as this machine (pytest-socket reads the option after us); an
    interrupt reaches the processes that tests start, where a shell that ran us in the background made it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.option.allow_unix_socket = True
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings.register_profile("default", deadline=None, suppress_health_check=slow)
    settings.register_profile("ci", deadline=None, suppress_health_check=slow, derandomize=True, print_blob=True)
    settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: two for each processor, since a test waits half of its time for a server, a process, a deadline. No
    more than eight: a Redis that is named has sixteen databases, and each worker takes two."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2 * processors, 8)


def pytest_unconfigure(config: pytest.Config) -> None:
    """In the process that the developer started: stop the cluster, or leave a named server as it was."""
    cluster, run = config.stash.get(_cluster, None), config.stash.get(_run, None)
    if cluster is not None:
        cluster.close()
    elif run is not None and "BROKER_TEST_DATABASE_URL" in os.environ:
        from broker_core.dev.postgres import drop_database
        from tests.databases import template_name

        drop_database(os.environ["BROKER_TEST_DATABASE_URL"], template_name(run))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In xdist's controller, for each worker: the run's server, unless only tests without servers were asked for."""
    node.config.stash[_run] = node.workerinput["testrunuid"]
    if not _only_units(node.config):
        node.workerinput["broker_database_server"] = _server_url(node.config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What each test may reach, by the directory it is in; and the long ones first, so that at the end of a run no
    worker is left with one of them while the others have nothing to do."""
    items.sort(key=lambda item: not _LONG.search(item.nodeid))
    for item in items:
        if HERE not in item.path.parents:
            continue
        room = item.path.relative_to(HERE).parts[0]
        # a contract suite runs on the fake, which needs no network, and on the real adapter, which does
        if room == "unit" or (room == "contracts" and "[fake" in item.name):
            item.add_marker(pytest.mark.disable_socket)
        elif not any(item.iter_markers("allow_hosts")):
            item.add_marker(pytest.mark.allow_hosts(THIS_MACHINE))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What is imported and collected stays to the end: the garbage collector goes through it neither meanwhile, which
    was two fifths of the time that this takes, nor again and again afterwards."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(100_000, 20, 100)


@pytest.fixture(autouse=True)
def hooks_put_back() -> Iterator[None]:
    """A command that a test runs here sets the process's exception hooks: pytest's own, which fail tests, come back."""
    before = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = before


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """The maintenance database of the run's one server, shared by all workers: create and drop databases of your own
    there, never stop it."""
    given = getattr(request.config, "workerinput", {}).get("broker_database_server")
    return str(given) if given else _server_url(request.config)


@pytest.fixture(scope="session")
def template_database(request: pytest.FixtureRequest, postgres_url: str, testrun_uid: str) -> str:
    """The name of a database with all migrations and no rows, to copy: ``CREATE DATABASE … TEMPLATE``."""
    from tests.databases import ensure_template

    if not hasattr(request.config, "workerinput"):
        request.config.stash[_run] = testrun_uid
    return ensure_template(postgres_url, testrun_uid)


@pytest.fixture(scope="session")
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """This worker's own migrated database. Not emptied between tests: ask for ``clean_database``."""
    from broker_core.dev.postgres import create_database, drop_database
    from tests.databases import sibling

    name = f"broker_test_{secrets.token_hex(6)}"
    create_database(postgres_url, name, template_database)
    yield sibling(postgres_url, name)
    drop_database(postgres_url, name)


@pytest.fixture(scope="session")
def empty(database_url: str) -> Iterator[Callable[[], None]]:
    """Empties this worker's database."""
    from tests.databases import Emptier

    emptier = Emptier(database_url)
    yield emptier
    emptier.close()


@pytest.fixture
def clean_database(database_url: str, empty: Callable[[], None]) -> str:
    """This worker's database, emptied before the test; ``postgresql+psycopg://…``."""
    empty()
    return database_url


@pytest.fixture(scope="session")
def _database(database_url: str) -> Iterator[KeptDatabase]:
    from tests.databases import KeptDatabase

    database = KeptDatabase(database_url)
    yield database
    database.end()


@pytest.fixture
def kept_database(_database: KeptDatabase) -> KeptDatabase:
    """This worker's database, over connections that are there already. Ask for ``clean_database``, too, to find it
    empty. A copy: a test may replace what it does."""
    return copy(_database)


@pytest.fixture
def queue_valkey(_queue_server: KeptRedis) -> str:
    """The URL of this worker's queue Redis (append-only file, noeviction), emptied before the test."""
    return _queue_server.emptied()


@pytest.fixture
def claims_valkey(_claims_server: KeptRedis) -> str:
    """The URL of this worker's claim Redis (nothing on disk), emptied before the test."""
    return _claims_server.emptied()


@pytest.fixture(scope="session")
def _queue_server(worker_id: str) -> Iterator[KeptRedis]:
    yield from _valkey(persistent=True, worker_id=worker_id)


@pytest.fixture(scope="session")
def _claims_server(worker_id: str) -> Iterator[KeptRedis]:
    yield from _valkey(persistent=False, worker_id=worker_id)


@pytest.fixture(scope="session")
def _claims(_claims_server: KeptRedis) -> Iterator[KeptClaims]:
    from tests.databases import KeptClaims

    claims = KeptClaims(_claims_server.url)
    yield claims
    claims.end()


@pytest.fixture(scope="session")
def aws() -> Iterator[AwsDouble]:
    """This worker's AWS double. Shared by its tests: use accounts, keys and roles of your own; clear what you set."""
    from broker_core.dev.aws import AwsDouble

    with AwsDouble() as double:
        yield double


@pytest.fixture(scope="session")
def _upstream_server() -> Iterator[SampleUpstream]:
    from broker_core.dev.upstream import SampleUpstream

    with SampleUpstream.start() as server:
        yield server


@pytest.fixture
def upstream(_upstream_server: SampleUpstream) -> SampleUpstream:
    """This worker's sample upstream (TLS), its records, counters and added routes cleared before the test."""
    _upstream_server.clear()
    return _upstream_server


def _server_url(config: pytest.Config) -> str:
    """The named server, or the embedded one, started once in this process."""
    named = os.environ.get("BROKER_TEST_DATABASE_URL")
    if named:
        return named
    cluster = config.stash.get(_cluster, None)
    if cluster is None:
        from broker_core.dev.postgres import Postgres

        cluster = config.stash[_cluster] = Postgres.start()
    return cluster.url


def _valkey(*, persistent: bool, worker_id: str) -> Iterator[KeptRedis]:
    from tests.databases import KeptRedis

    with ExitStack() as opened:
        named = os.environ.get("BROKER_TEST_REDIS_URL")
        if named:
            worker = int(worker_id.removeprefix("gw")) if worker_id.startswith("gw") else 0
            url = f"{named.rstrip('/').rsplit('/', 1)[0]}/{(worker * 2 + persistent) % 16}"
        else:
            from broker_core.dev.valkey import Valkey

            url = opened.enter_context(Valkey.start(persistent=persistent)).url
        yield opened.enter_context(closing(KeptRedis(url)))


def _only_units(config: pytest.Config) -> bool:
    """Whether every path on the command line lies in the unit tests. A wrong guess costs a worker its own server."""
    return all("unit" in Path(argument.split("::")[0]).parts for argument in config.args)


@pytest.fixture
def environment(
    clean_database: str, queue_valkey: str, claims_valkey: str, aws: AwsDouble, upstream: SampleUpstream
) -> dict[str, str]:
    """The settings of a process on this worker's servers, as environment variables."""
    from tests.live import settings_for

    return settings_for(clean_database, queue_valkey, claims_valkey, aws, upstream)


@pytest.fixture(scope="session")
def clients(aws: AwsDouble, _upstream_server: SampleUpstream) -> AwsClients:
    """Our account's clients, on this worker's AWS double."""
    from broker_core.dev.wiring import clients_for
    from tests.live import settings_for

    servers = "postgresql://localhost/unused", "redis://localhost:1", "redis://localhost:2"
    return clients_for(settings_for(*servers, aws, _upstream_server))


@pytest.fixture(scope="session")
def way_out(_upstream_server: SampleUpstream) -> HttpsUpstream:
    """The real way out, which trusts this worker's sample upstream."""
    from broker_core.adapters.clock import SystemClock
    from broker_core.adapters.egress import Egress
    from broker_core.adapters.upstream import HttpsUpstream

    return HttpsUpstream(Egress(["127.0.0.0/8", "::1/128"]), SystemClock(), str(_upstream_server.ca_file))


@pytest.fixture
def live_with(
    environment: dict[str, str],
    aws: AwsDouble,
    upstream: SampleUpstream,
    clients: AwsClients,
    _database: KeptDatabase,
    _claims: KeptClaims,
) -> Iterator[Callable[..., Live]]:
    """Makes a ``Live`` with settings changed or ports replaced: ``live_with({"BROKER_…": "…"}, keys=…)``. Its
    connections are the worker's, on the servers that ``environment`` names."""
    from broker_core.adapters.store import Store
    from broker_core.bootstrap import build_app
    from broker_core.settings import Settings
    from tests.live import Live, RecordingQueue

    with ExitStack() as opened:

        def make(changed: dict[str, str] | None = None, *, to: SampleUpstream = upstream, **ports: Any) -> Live:
            queue, changes = RecordingQueue(), {**environment, **(changed or {})}
            # copies: a test may replace what one of them does
            kept = {"queue": queue, "clients": clients, "store": Store(copy(_database)), "claims": copy(_claims)}
            app = build_app(Settings.from_environment(changes), **{**kept, **ports})
            opened.callback(app.close)
            made = Live(app, aws, to, changes, queue)
            app.store.put_workspace(made.workspace, "enterprise")
            return made

        aws.faults.clear()
        opened.callback(aws.faults.clear)
        yield make


@pytest.fixture
def live(live_with: Callable[..., Live], way_out: HttpsUpstream) -> Live:
    """An App on this worker's real servers, with a workspace of its own."""
    return live_with(upstream=way_out)


@pytest.fixture
def web(live: Live) -> Iterator[Web]:
    """The HTTP surface on ``live``, called in this process; ``web.serve()`` puts it on a socket."""
    from tests.web import web_on

    with web_on(live) as opened:
        yield opened


@pytest.fixture
def stack(aws: AwsDouble, upstream: SampleUpstream) -> Iterator[LocalStack]:
    """A local stack with a PostgreSQL and two Valkeys that nobody else uses. (One AWS double runs in a process.)"""
    from broker_core.dev.postgres import Postgres
    from broker_core.dev.stack import LocalStack, web_environment
    from broker_core.dev.tokens import LocalTokens
    from broker_core.dev.valkey import Valkey
    from migrations import runner
    from tests.live import settings_for

    aws.faults.clear()
    with ExitStack() as opened:
        postgres = opened.enter_context(Postgres.start())
        queue = opened.enter_context(Valkey.start(persistent=True))
        claims = opened.enter_context(Valkey.start(persistent=False))
        opened.callback(aws.faults.clear)
        tokens = opened.enter_context(LocalTokens.start())
        runner.upgrade(postgres.url)
        environment = settings_for(postgres.url, queue.url, claims.url, aws, upstream) | web_environment(tokens)
        with LocalStack(postgres, queue, claims, aws, upstream, environment, _closing=opened.pop_all()) as started:
            yield started
            aws.faults.clear()  # a worker that waits for a key would stop late
