"""Pitfall 16: names that lead to addresses that are not an upstream's, judged where the broker connects."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from broker_core.adapters.clock import SystemClock
from broker_core.adapters.egress import Egress
from broker_core.adapters.upstream import HttpsUpstream
from broker_core.dev.upstream import SampleUpstream
from broker_core.errors import InjectionRefused
from tests.live import AGENT, Live
from tests.pitfalls.agent import NAME

#: a private or multicast address that `ipaddress.is_global` calls fine on some Python
NOT_PUBLIC = ["224.0.0.1", "fec0::1", "0.0.0.0", "::", "10.0.0.1", "64:ff9b::a00:1", "::10.0.0.1", "2002:a00:1::"]
METADATA = [
    *["169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254"],
    # and in other clothing: NAT64, compatible, mapped, 6to4
    *["64:ff9b::a9fe:a9fe", "::169.254.169.254", "::ffff:169.254.169.254", "2002:a9fe:a9fe::"],
]


def resolving(*answers: Sequence[str]) -> tuple[Callable[..., Any], list[str]]:
    """A resolver that gives these addresses, one list for each question, and what it was asked."""
    asked: list[str] = []

    def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        addresses = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        families = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [(families[ip_address(text).version], socket.SOCK_STREAM, 6, "", (text, port)) for text in addresses]

    return resolve, asked


def live_on(live_with: Callable[..., Live], upstream: SampleUpstream, resolve: Callable[..., Any]) -> Live:
    """A workspace whose secret goes to ``upstream.test``, which resolves as the test says; 127.0.0.0/8 is allowed."""
    egress = Egress(["127.0.0.0/8"], resolve)
    live = live_with(upstream=HttpsUpstream(egress, SystemClock(), str(upstream.ca_file)))
    live.connect(live.customer())
    live.store(NAME, injectionKind="bearer", targetHost=f"upstream.test:{upstream.port}", agentId=AGENT)
    live.aws.trail.clear()
    return live


def send(live: Live) -> int:
    return live.send(NAME, url=f"https://upstream.test:{live.upstream.port}/echo").status


@pytest.mark.parametrize("address", [*METADATA, *NOT_PUBLIC])
def test_pitfall_16_no_upstream_is_there(address: str) -> None:
    """Metadata services, private and special addresses are refused, in whatever clothing."""
    assert not Egress().passes(ip_address(address))


@pytest.mark.parametrize("address", METADATA)
def test_pitfall_16_no_setting_allows_metadata(address: str) -> None:
    """A metadata service stays refused where everything is allowed."""
    assert not Egress(["0.0.0.0/0", "::/0"]).passes(ip_address(address))


@pytest.mark.parametrize("bad", ["10.0.0.1", "169.254.169.254", "::1"])
def test_pitfall_16_one_bad_answer_refuses_all(
    live_with: Callable[..., Live], upstream: SampleUpstream, bad: str
) -> None:
    """Of several answers every one must pass: nothing is connected to, and the key is not asked."""
    resolve, _ = resolving(["127.0.0.1", bad])
    live = live_on(live_with, upstream, resolve)
    with pytest.raises(InjectionRefused) as refused:
        send(live)
    assert refused.value.reason == "destination_blocked"
    assert (live.upstream.connections_accepted, live.aws.trail.calls) == (0, ())


def test_pitfall_16_a_name_is_resolved_once(live_with: Callable[..., Live], upstream: SampleUpstream) -> None:
    """The address that was judged is the one that is connected to: a second answer is never asked for."""
    resolve, asked = resolving(["127.0.0.1"], ["169.254.169.254"])
    live = live_on(live_with, upstream, resolve)
    assert (send(live), asked) == (200, ["upstream.test"])


def test_pitfall_16_the_certificate_is_for_the_name(live_with: Callable[..., Live], upstream: SampleUpstream) -> None:
    """At the pinned address the name is asked for, and checked."""
    live = live_on(live_with, upstream, resolving(["127.0.0.1"])[0])
    send(live)
    assert live.upstream.server_names == ["upstream.test"]
