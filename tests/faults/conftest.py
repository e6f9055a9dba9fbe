"""Servers of a test's own, to be killed and restarted; the AWS double and the upstream are xdist's worker's
and survive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from broker_core.dev.aws import AwsDouble
    from broker_core.dev.stack import LocalStack
    from broker_core.dev.upstream import SampleUpstream


@pytest.fixture
def stack(aws: AwsDouble, upstream: SampleUpstream) -> Iterator[LocalStack]:
    """A local stack with a PostgreSQL and two Valkeys that nobody else uses. (One AWS double runs in a process.)"""
    from broker_core.dev.postgres import Postgres
    from broker_core.dev.stack import LocalStack
    from broker_core.dev.valkey import Valkey
    from migrations import runner
    from tests.live import settings_for

    aws.faults.clear()
    with ExitStack() as opened:
        postgres = opened.enter_context(Postgres.start())
        queue = opened.enter_context(Valkey.start(persistent=True))
        claims = opened.enter_context(Valkey.start(persistent=False))
        opened.callback(aws.faults.clear)
        runner.upgrade(postgres.url)
        environment = settings_for(postgres.url, queue.url, claims.url, aws, upstream)
        with LocalStack(postgres, queue, claims, aws, upstream, environment, _closing=opened.pop_all()) as started:
            yield started
