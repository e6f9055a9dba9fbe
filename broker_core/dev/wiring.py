"""An App on the local stack, in this process: its AWS credentials come from the stack, not from the environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import botocore.session

from broker_core.adapters.aws_clients import AwsClients
from broker_core.bootstrap import App, aws_options, build_app
from broker_core.dev.stack import LocalStack
from broker_core.settings import Settings


def clients_for(environment: Mapping[str, str]) -> AwsClients:
    """AWS clients that use an environment's credentials and endpoint."""
    session = botocore.session.Session()
    session.set_credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    return AwsClients(aws_options(Settings.from_environment(environment)), session)


@contextmanager
def app_on(stack: LocalStack, on_wait: Callable[[str], None] = lambda operation: None) -> Iterator[App]:
    """An App with the stack's settings, closed at the end."""
    app = build_app(
        Settings.from_environment(stack.environment), clients=clients_for(stack.environment), on_wait=on_wait
    )
    try:
        yield app
    finally:
        app.close()
