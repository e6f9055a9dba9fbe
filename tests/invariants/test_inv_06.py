"""INV-6: host, binding and TLS are settled before a decrypt.

Each wrong destination, caller or certificate is refused, and neither STS nor KMS heard of it. All on real servers.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from broker_core.dev.upstream import SampleUpstream
from broker_core.errors import BrokerError
from broker_core.inject.call import Call
from tests.live import AGENT, Live
from tests.web import Web


@pytest.fixture
def live(live: Live) -> Live:
    """One bearer under a customer's key, for the sample upstream's host and port."""
    return _with_bearer(live)


def _with_bearer(live: Live) -> Live:
    live.connect(live.customer())
    live.store()
    return live


def _refusal(live: Live, **call: Any) -> str:
    """How a call is refused, buffered and streamed alike, after making sure that it cost nothing."""
    calls, requests = live.aws.trail.calls, list(live.upstream.requests)
    streamed = {"url": f"https://{live.target}/echo", **{name: each for name, each in call.items() if name != "name"}}
    with pytest.raises(BrokerError) as refused:
        live.send(**call)
    with pytest.raises(BrokerError) as refused_too:
        _stream(live, **streamed, secret=call.get("name", "github"))
    assert live.aws.trail.calls == calls
    assert live.upstream.requests == requests
    assert refused.value.reason == refused_too.value.reason
    return refused.value.reason


def _stream(live: Live, **call: Any) -> None:
    given = {"workspace_id": live.workspace, "agent_id": AGENT, "mcp_server_id": None} | call
    live.app.injector.stream(Call(**given)).close()


@dataclass(frozen=True)
class Wrong:
    """A call that must be refused, and how; ``url`` gets the upstream's port."""

    reason: str
    url: str = "https://localhost:{port}/echo"
    agent: str = AGENT
    secret: str | None = "github"
    workspace: str | None = None


CALLS = {
    "another host": Wrong("host_mismatch", "https://upstream.test:{port}/echo"),
    "the host's address": Wrong("host_mismatch", "https://127.0.0.1:{port}/echo"),
    "a subdomain": Wrong("host_mismatch", "https://evil.localhost:{port}/echo"),
    "the host as a user": Wrong("invalid", "https://localhost@evil.example:{port}/echo"),
    "the host with a final dot": Wrong("invalid", "https://localhost.:{port}/echo"),
    "another port": Wrong("host_mismatch", "https://localhost:1/echo"),
    "the default port": Wrong("host_mismatch", "https://localhost/echo"),
    "plain http": Wrong("destination_blocked", "http://localhost:{port}/echo"),
    "another agent": Wrong("no_binding", agent="agent-2"),
    "another workspace": Wrong("no_binding", workspace="ws_other"),
    "an unknown name": Wrong("no_binding", secret="unknown"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_costs_no_call_to_aws(live: Live, name: str) -> None:
    """A destination or a caller that the value is not bound to is refused before the key is asked."""
    wrong = CALLS[name]

    reason = _refusal(
        live,
        name=wrong.secret,
        url=wrong.url.format(port=live.upstream.port),
        agent_id=wrong.agent,
        workspace_id=wrong.workspace or live.workspace,
    )

    assert reason == wrong.reason


#: of those above, what an HTTP caller can ask for
ASKED = {name: wrong for name, wrong in CALLS.items() if wrong.workspace is None}


@pytest.mark.parametrize("path", ["/inject", "/proxy"])
@pytest.mark.parametrize("name", ASKED)
def test_nor_does_it_over_http(live: Live, web: Web, name: str, path: str) -> None:
    """By either endpoint."""
    wrong, calls = ASKED[name], live.aws.trail.calls
    url = wrong.url.format(port=live.upstream.port)
    body = {"agentId": wrong.agent, "secret": wrong.secret, "request": {"url": url}}
    headers = {
        "Axiorank-Upstream-Url": url,
        "Axiorank-Agent-Id": wrong.agent,
        **({"Axiorank-Secret": wrong.secret} if wrong.secret else {}),
    }

    answer = web.post(path, json=body, headers=headers, scope="broker:inject")

    assert answer.json()["error"] == wrong.reason
    assert (live.aws.trail.calls, live.upstream.requests) == (calls, [])


def test_an_environment_for_somebody_else_costs_no_call_to_aws(live: Live) -> None:
    """Variables have no host: the binding to agent and server is what there is, and it is settled first."""
    live.store("variable", injectionKind="stdio_env", bindingKey="TOKEN", mcpServerId="server-1")
    calls = live.aws.trail.calls

    given = [
        live.app.injector.environment(Call(workspace, agent, server)).variables
        for workspace, agent, server in (
            (live.workspace, AGENT, None),
            (live.workspace, None, "server-2"),
            (live.workspace, "server-1", None),
            ("ws_other", None, "server-1"),
        )
    ]

    assert given == [{}] * 4
    assert live.aws.trail.calls == calls


def test_an_ambiguous_call_costs_no_call_to_aws(live: Live) -> None:
    """With two secrets that fit and no name, nobody guesses."""
    live.store("gitlab")

    assert _refusal(live, name=None) == "ambiguous_binding"


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fd00:ec2::254]",
        "10.0.0.1",
        "192.168.1.1",
        "[::ffff:169.254.169.254]",
        "0.0.0.0",
        "[fe80::1]",
    ],
)
def test_a_blocked_address_costs_no_call_to_aws(live: Live, host: str) -> None:
    """Even where an owner bound the value to it: private and metadata addresses are not reached."""
    live.store("inside", injectionKind="bearer", targetHost=host, agentId=AGENT)

    assert _refusal(live, name="inside", url=f"https://{host}/") == "destination_blocked"


def test_a_name_that_resolves_inside_costs_no_call_to_aws(live_with: Callable[..., Live]) -> None:
    """Where loopback is not allowed, ``localhost`` is blocked by what it resolves to."""
    live = _with_bearer(live_with({"BROKER_EGRESS_ALLOW": ""}))

    assert _refusal(live) == "destination_blocked"


@pytest.fixture
def another(upstream: SampleUpstream) -> Iterator[Callable[..., SampleUpstream]]:
    """Starts further upstreams, each wrong in its way."""
    with ExitStack() as opened:
        yield lambda *names, **how: opened.enter_context(SampleUpstream.start(names or ("localhost",), **how))


@pytest.mark.parametrize(
    ("names", "how"),
    [
        ((), {}),
        ((), {"certificate": "self-signed"}),
        ((), {"certificate": "expired"}),
        (("upstream.test",), {}),
        ((), {"tls": False}),
    ],
    ids=["unknown CA", "self-signed", "expired", "another name", "no TLS"],
)
def test_a_bad_certificate_costs_no_call_to_aws(
    live_with: Callable[..., Live],
    another: Callable[..., SampleUpstream],
    upstream: SampleUpstream,
    names: tuple[str, ...],
    how: dict[str, Any],
) -> None:
    """TLS is finished and the certificate checked for the name, before the key is asked."""
    wrong = another(*names, **how)
    trusted = wrong if names or how else upstream
    live = _with_bearer(live_with({"BROKER_EGRESS_CA_FILE": str(trusted.ca_file)}, to=wrong))

    assert _refusal(live) == "upstream_tls"


def test_an_upstream_that_is_away_costs_no_call_to_aws(live: Live) -> None:
    """Nobody listens: said so, without a decrypt."""
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        target = f"localhost:{taken.getsockname()[1]}"
        live.store("away", injectionKind="bearer", targetHost=target, agentId=AGENT)

        assert _refusal(live, name="away", url=f"https://{target}/") == "upstream_unreachable"


def test_the_right_call_is_what_the_others_are_measured_by(live: Live) -> None:
    """The same call with nothing wrong costs one AssumeRole and one Decrypt, and arrives; streamed as much
    again."""
    before = len(live.aws.trail.calls)

    assert live.send().status == 200
    _stream(live, url=f"https://{live.target}/echo", secret="github")

    assert [call.action for call in live.aws.trail.calls[before:]] == ["sts:AssumeRole", "kms:Decrypt"] * 2
