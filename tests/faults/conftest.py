"""A stack for the tests of a file: its servers and its processes are started once, and again what a test ended.

The servers are the run's. A file whose tests end servers has servers of its own: it overrides ``servers``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

from broker_core.bootstrap import App, build_app
from broker_core.dev.stack import LocalStack
from broker_core.settings import Settings
from tests.live import settings_for

if TYPE_CHECKING:
    from broker_core.adapters.aws_clients import AwsClients
    from broker_core.adapters.upstream import HttpsUpstream
    from broker_core.dev.aws import AwsDouble
    from broker_core.dev.upstream import SampleUpstream
    from tests.databases import KeptRedis


@dataclass(frozen=True)
class TheRuns:
    """A server of the run's: where it is, and no way to end it."""

    url: str


@pytest.fixture(scope="module")
def servers(
    database_url: str,
    empty: Callable[[], None],
    _queue_server: KeptRedis,
    _claims_server: KeptRedis,
    aws: AwsDouble,
    _upstream_server: SampleUpstream,
) -> Iterator[LocalStack]:
    """A stack on the servers of the run, empty when the file's first test begins."""
    empty()
    urls = database_url, _queue_server.emptied(), _claims_server.emptied()
    database, queue, claims = (cast(Any, TheRuns(url)) for url in urls)
    environment = settings_for(*urls, aws, _upstream_server)
    with LocalStack(database, queue, claims, aws, _upstream_server, environment) as stack:
        yield stack


@pytest.fixture
def stack(servers: LocalStack, upstream: SampleUpstream) -> Iterator[LocalStack]:
    """The file's stack. What earlier tests left in the database is there; their faults are not, so that a process that
    is stopped waits for nobody who hangs."""
    assert upstream is servers.upstream
    servers.aws.faults.clear()
    yield servers
    servers.aws.faults.clear()


@pytest.fixture
def app(stack: LocalStack, clients: AwsClients, way_out: HttpsUpstream) -> Iterator[App]:
    """An App on the stack, in this process."""
    opened = build_app(Settings.from_environment(stack.environment), clients=clients, upstream=way_out)
    yield opened
    opened.close()
