"""Many injections at the same time, in one process: versions, sessions and revocation stay exact.

Threads start together behind a barrier, so that the calls overlap; which of them comes when is the machine's affair,
and nothing here depends on it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from broker_core.adapters import aws_clients
from broker_core.dev.aws import CustomerAccount
from broker_core.errors import BrokerError
from broker_core.inject.call import BrokeredResponse
from tests.waiting import wait_until

if TYPE_CHECKING:
    from broker_core.adapters.upstream import HttpsUpstream
    from tests.live import Live

MANY = 64
IN_FLIGHT = 500
#: seconds for one injection, and for one call of AWS's: hundreds wait for each other in this process
PATIENCE, AWS_PATIENCE = {"BROKER_UPSTREAM_SECONDS": "300"}, 120.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is given up is sent again, and then there is one more than these tests count."""
    monkeypatch.setattr(aws_clients, "READ_SECONDS", AWS_PATIENCE)


@dataclass(frozen=True)
class Tenant:
    """A workspace with a key of its own and one secret."""

    live: Live
    customer: CustomerAccount

    @property
    def key_arn(self) -> str:
        return self.customer.key_arn


def unhurried(live: Live) -> Live:
    """Let a use of a key take as long as the injection."""
    vars(live.app.injector._opener)["_key_seconds"] = AWS_PATIENCE
    return live


def tenants(live: Live, count: int) -> list[Tenant]:
    """So many workspaces of one App, each connected, each with a secret ``github`` whose value names it."""
    made = []
    for number in range(count):
        own = replace(live, workspace=f"{live.workspace}_{number}")
        live.app.store.put_workspace(own.workspace, "enterprise")
        customer = own.customer()
        own.connect(customer)
        own.store("github", value=f"value-of-tenant-{number}-1")
        made.append(Tenant(own, customer))
    return made


@contextmanager
def together(calls: list[Callable[[], Any]]) -> Iterator[list[Future[Any]]]:
    """Every call in a thread of its own, all at once."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        yield [pool.submit(run, call) for call in calls]


def seen_values(live: Live) -> Counter[str]:
    """How often the upstream got each value."""
    received = [dict(request.headers).get("Authorization", "") for request in live.upstream.requests]
    return Counter(text.removeprefix("Bearer ") for text in received)


@pytest.mark.parametrize(("reuse_seconds", "sessions"), [("0", 2 * MANY), ("900", 1 + MANY)], ids=["strict", "reuse"])
def test_each_of_many_gets_one_version_while_it_is_rotated(
    live_with: Callable[..., Live], way_out: HttpsUpstream, reuse_seconds: str, sessions: int
) -> None:
    """64 injections of one secret during a rotation, and one in each of 64 other workspaces: each is answered, with the
    old value or the new one and never anything else, its audit row names the version that was sent, and its session
    was its own, or in reuse mode its workspace's."""
    settings = {**PATIENCE, "BROKER_STS_REUSE_SECONDS": reuse_seconds}
    live = unhurried(live_with(settings, upstream=way_out, threads=4 * MANY))
    one, *others = tenants(live, 1 + MANY)

    def rotate() -> None:
        one.live.store("github", kind="secret.rotated", version=2, value="value-of-tenant-0-2")

    calls = [one.live.send] * MANY + [other.live.send for other in others]
    with together([*calls, rotate]) as answers:
        done: list[BrokeredResponse] = [answer.result() for answer in answers[:-1]]
        answers[-1].result()

    assert {answer.status for answer in done} == {200}
    sent = seen_values(live)
    of_one = {"value-of-tenant-0-1", "value-of-tenant-0-2"}
    assert sent.keys() - of_one == {f"value-of-tenant-{n}-1" for n in range(1, 1 + MANY)}
    assert sum(sent[value] for value in of_one) == MANY
    versions = Counter(use.intent.version for use in injections(one.live))
    assert versions == Counter({v: sent[f"value-of-tenant-0-{v}"] for v in (1, 2) if sent[f"value-of-tenant-0-{v}"]})
    decrypts = decrypts_of(live, [one, *others])
    assert (len(decrypts), len({call.session_name for call in decrypts})) == (2 * MANY, sessions)
    assert len({(call.session_name, call.key_arn) for call in decrypts}) == sessions  # none is for two keys
    workspaces = {tenant.key_arn: tenant.live.workspace for tenant in (one, *others)}
    assert all(call.encryption_context["axiorank:workspace"] == workspaces[call.key_arn] for call in decrypts)


def injections(live: Live) -> list[Any]:
    uses, after = [], None
    while page := live.app.store.uses(live.workspace, after=after, limit=200):
        uses += page
        after = page[-1].intent.id
    return [use for use in uses if use.intent.purpose.value == "inject"]


def decrypts_of(live: Live, tenants: list[Tenant]) -> list[Any]:
    keys = {tenant.key_arn for tenant in tenants}
    calls = live.aws.trail.of("kms:Decrypt")
    return [call for call in calls if call.key_arn in keys and (call.session_name or "").startswith("axiorank-inject-")]


def test_strict_mode_assumes_the_role_once_for_each(live_with: Callable[..., Live], way_out: HttpsUpstream) -> None:
    """As many AssumeRoles as injections, each for one Decrypt with the key and the context of its own workspace."""
    live = unhurried(live_with(PATIENCE, upstream=way_out, threads=4 * MANY))
    several = tenants(live, 8)

    with together([tenant.live.send for tenant in several] * 8) as answers:
        assert {answer.result().status for answer in answers} == {200}

    decrypts = decrypts_of(live, several)
    assert len(decrypts) == len({call.session_name for call in decrypts}) == MANY
    workspaces = {tenant.key_arn: tenant.live.workspace for tenant in several}
    assert all(call.encryption_context["axiorank:workspace"] == workspaces[call.key_arn] for call in decrypts)
    assumed = [call for call in live.aws.trail.of("sts:AssumeRole") if "-inject-" in (call.session_name or "")]
    roles = {tenant.customer.role_arn for tenant in several}
    assert sum(call.role_arn in roles for call in assumed) == MANY


def test_reuse_mode_shares_a_session_within_a_workspace_only(
    live_with: Callable[..., Live], way_out: HttpsUpstream
) -> None:
    """One AssumeRole for each workspace, whose misses shared one flight; no session decrypts under two keys, for two
    workspaces or for two purposes."""
    live = unhurried(live_with({**PATIENCE, "BROKER_STS_REUSE_SECONDS": "900"}, upstream=way_out, threads=4 * MANY))
    several = tenants(live, 8)

    with together([tenant.live.send for tenant in several] * 8) as answers:
        assert {answer.result().status for answer in answers} == {200}

    decrypts = decrypts_of(live, several)
    assert len(decrypts) == MANY
    used_for = {
        name: {
            (call.key_arn, call.encryption_context["axiorank:workspace"])
            for call in decrypts
            if call.session_name == name
        }
        for name in {call.session_name for call in decrypts}
    }
    assert len(used_for) == len(several)
    assert all(len(uses) == 1 for uses in used_for.values())
    others = {call.session_name for call in live.aws.trail.of("kms:Encrypt")}
    assert not others & used_for.keys()


@pytest.mark.parametrize("reuse_seconds", ["0", "900"])
def test_nothing_that_began_after_a_revocation_succeeds(
    live_with: Callable[..., Live], way_out: HttpsUpstream, reuse_seconds: str
) -> None:
    """500 injections are in flight when AWS applies the customer's change: those that begin afterwards are refused, in
    reuse mode too, since the key's policy is asked at every use."""
    live = unhurried(
        live_with({**PATIENCE, "BROKER_STS_REUSE_SECONDS": reuse_seconds}, upstream=way_out, threads=2 * IN_FLIGHT)
    )
    (tenant,) = tenants(live, 1)
    applied = threading.Event()
    begun_after: list[bool] = []
    answered: list[int] = []
    refused: list[str] = []

    def use() -> None:
        is_after = applied.is_set()
        try:
            status = tenant.live.send().status
        except BrokerError as error:
            refused.append(error.reason)
        else:
            answered.append(status)
            begun_after.append(is_after)

    def revoke() -> None:
        wait_until(lambda: len(answered) >= 20, deadline_seconds=120, what="some that were answered")
        tenant.customer.remove_role_from_key_policy()
        applied.set()
        for _ in range(20):
            use()

    with together([use] * IN_FLIGHT + [revoke]) as done:
        for one in done:
            one.result()

    assert len(answered) + len(refused) == IN_FLIGHT + 20
    assert not any(begun_after)
    assert refused.count("access_denied") >= 20
