"""An agent with a stored secret, on real servers."""

from __future__ import annotations

import pytest

from tests.live import Live
from tests.pitfalls.agent import Agent
from tests.web import Web


@pytest.fixture
def agent(live: Live) -> Agent:
    """An agent whose secret is a bearer for the sample upstream."""
    agent = Agent(live)
    agent.keep()
    return agent


@pytest.fixture
def http_agent(web: Web) -> Agent:
    """The same, and it calls the HTTP surface over a socket."""
    agent = Agent(web.live, web.serve(), web.token(scope="broker:inject"))
    agent.keep()
    return agent
