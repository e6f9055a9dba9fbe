"""Every way in which a customer takes their key back, and what stops, end to end.

Time is moved in the rows instead of waited for: a probe and a held event each come due a minute later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import LiteralString

import psycopg
import pytest

from broker_core.dev.aws import AwsDouble, CustomerAccount, document, statement
from broker_core.dev.upstream import SampleUpstream
from broker_core.errors import Denied, KeyState
from broker_core.model import Event, EventState, FoundBy, SecretStatus
from tests.databases import plain
from tests.live import Live, live_app
from tests.waiting import wait_until

_PROBES_DUE = "UPDATE byok_connections SET next_probe_at = now()"
_RING_DUE = "UPDATE secret_events SET ring_at = now() WHERE ended_at IS NULL"
Step = Callable[[CustomerAccount], None]


@dataclass(frozen=True)
class Way:
    """A way of revoking, how it is taken back, and what AWS and we say meanwhile."""

    name: str
    revoke: Step
    restore: Step
    state: KeyState
    aws_code: str


def deny_in_identity_policy(customer: CustomerAccount) -> None:
    """An explicit deny on the role itself."""
    customer.account.put_role_policy(customer.role_name, document(statement("Deny", "kms:*", Resource="*")))


def drop_identity_policy(customer: CustomerAccount) -> None:
    """Take the role's own policy away."""
    customer.account.iam.delete_role_policy(RoleName=customer.role_name, PolicyName="inline")


def revoke_sessions_before(customer: CustomerAccount, moment: datetime) -> None:
    """What "Revoke active sessions" in the IAM console puts on the role."""
    older = {"DateLessThan": {"aws:TokenIssueTime": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}}
    customer.account.put_role_policy(
        customer.role_name, document(statement("Deny", "*", Resource="*", Condition=older))
    )


def change_external_id(customer: CustomerAccount) -> None:
    """Another external id in the trust policy; ``external_id`` keeps the old one, to restore it."""
    old = customer.external_id
    customer.change_external_id(f"{old}-changed")
    customer.external_id = old


def restore_external_id(customer: CustomerAccount) -> None:
    """The old external id again."""
    customer.change_external_id(customer.external_id)


def undelete_key(customer: CustomerAccount) -> None:
    """Cancelling alone leaves the key Disabled."""
    customer.cancel_deletion()
    customer.enable_key()


def make_role_again(customer: CustomerAccount) -> None:
    """The same role name is another principal to AWS: the key policy has to be put again, too."""
    customer.recreate_role()
    customer.restore_key_policy()


def replace_role(customer: CustomerAccount) -> None:
    """Delete the role and make one of the same name and trust policy."""
    customer.delete_role()
    customer.recreate_role()


_DENIED, _NO_ROLE = "AccessDeniedException", "AccessDenied"
WAYS = [
    Way(
        "role removed from the key policy",
        CustomerAccount.remove_role_from_key_policy,
        CustomerAccount.restore_key_policy,
        KeyState.ACCESS_DENIED,
        _DENIED,
    ),
    Way(
        "key disabled",
        CustomerAccount.disable_key,
        CustomerAccount.enable_key,
        KeyState.KEY_DISABLED,
        "DisabledException",
    ),
    Way(
        "key scheduled for deletion",
        CustomerAccount.schedule_deletion,
        undelete_key,
        KeyState.KEY_PENDING_DELETION,
        "KMSInvalidStateException",
    ),
    Way("external id changed", change_external_id, restore_external_id, KeyState.ROLE_REFUSED, _NO_ROLE),
    Way("role deleted", CustomerAccount.delete_role, make_role_again, KeyState.ROLE_REFUSED, _NO_ROLE),
    Way("role made again", replace_role, CustomerAccount.restore_key_policy, KeyState.ACCESS_DENIED, _DENIED),
    Way(
        "denied by the role's own policy",
        deny_in_identity_policy,
        drop_identity_policy,
        KeyState.ACCESS_DENIED,
        _DENIED,
    ),
]
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)


@pytest.fixture
def customer(live: Live) -> CustomerAccount:
    """The workspace's customer, connected, with one secret under their key."""
    customer = live.customer()
    live.connect(customer)
    live.store(value="the-first-value")
    return customer


@pytest.fixture
def held_changes(aws: AwsDouble) -> Iterator[AwsDouble]:
    """A double whose changes are on their way until ``propagate``."""
    aws.hold_changes(None)
    yield aws
    aws.hold_changes(0)
    aws.propagate()


def change(live: Live, sql: LiteralString) -> None:
    """Move time in the rows."""
    with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"])) as connection:
        connection.execute(sql)


def probe(live: Live) -> None:
    """Let every probe come due, and probe."""
    change(live, _PROBES_DUE)
    live.app.sweep.probes()


def status(live: Live) -> SecretStatus:
    """What the owner sees of the one secret."""
    (view,) = live.app.store.secrets(live.workspace)
    seen: SecretStatus = view.status
    return seen


def event(live: Live, receipt_id: object) -> Event:
    """An event as it is now."""
    found: Event = live.app.store.event(live.workspace, receipt_id)
    return found


class TestWhatStops:
    @each_way
    def test_inject(self, live: Live, customer: CustomerAccount, way: Way) -> None:
        """The next injection is refused, with the state and AWS's own code in the error and the audit row; nothing
        reaches the upstream."""
        way.revoke(customer)
        live.upstream.clear()
        with pytest.raises(Denied) as refused:
            live.send()
        assert (refused.value.state, refused.value.aws_code) == (way.state, way.aws_code)
        assert live.upstream.requests == []
        last = live.app.store.uses(live.workspace, limit=200)[-1]
        assert last.result is not None
        assert (last.result.code, last.result.aws_code) == (way.state.value, way.aws_code)

    @each_way
    def test_encrypt(self, live: Live, customer: CustomerAccount, way: Way) -> None:
        """A rotation is held as ``refused`` under no cipher at all, while the old blob stays in place; it is stored
        once access is back."""
        before = live.candidate().blob
        way.revoke(customer)
        receipt = live.publish(kind="secret.rotated", version=2, value="the-second-value", bare=True)
        assert live.work() == [EventState.REFUSED]
        held = event(live, receipt.id)
        assert (held.reason, held.ended_at) == (way.state.value, None)
        assert held.held_until is not None
        assert live.candidate().blob == before
        way.restore(customer)
        change(live, _RING_DUE)
        live.app.reconcile()
        assert live.work() == [EventState.STORED]
        assert live.candidate().version == 2
        live.send()
        assert live.upstream.requests[-1].header("Authorization") == "Bearer the-second-value"

    @each_way
    def test_sweep(self, live: Live, customer: CustomerAccount, way: Way) -> None:
        """The probe lists the connection with its secret as affected; given back, the secret is rechecked and active
        again."""
        way.revoke(customer)
        probe(live)
        (failing,) = live.app.byok.affected(live.workspace).connections
        assert (failing.state, failing.aws_code, failing.found_by) == (way.state, way.aws_code, FoundBy.PROBE)
        assert [name for _, name in failing.secrets] == ["github"]
        assert status(live) is SecretStatus.AFFECTED
        way.restore(customer)
        probe(live)
        assert live.app.byok.affected(live.workspace).connections == []
        assert status(live) is SecretStatus.RECHECKING
        wait_until(lambda: live.app.sweep.checks() and status(live) is SecretStatus.ACTIVE)  # a check has its budget


class TestWhatItTakes:
    def test_cancelling_a_deletion(self, live: Live, customer: CustomerAccount) -> None:
        """Cancelling the deletion is not enough: AWS leaves the key Disabled, and that is what we say."""
        customer.schedule_deletion()
        probe(live)
        customer.cancel_deletion()
        probe(live)
        (failing,) = live.app.byok.affected(live.workspace).connections
        assert failing.state is KeyState.KEY_DISABLED

    def test_key_destroyed(self, live: Live, customer: CustomerAccount, aws: AwsDouble) -> None:
        """When its waiting period is over the key is gone for good; giving the value again under another key heals."""
        customer.schedule_deletion()
        aws.expire_keys()
        with pytest.raises(Denied) as refused:
            live.send()
        assert (refused.value.state, refused.value.aws_code) == (KeyState.KEY_GONE, "NotFoundException")
        assert status(live) is SecretStatus.AFFECTED
        live.connect(live.customer())
        live.store(kind="secret.rotated", version=2, bare=True)
        assert status(live) is SecretStatus.ACTIVE
        assert live.send().status == 200

    def test_found_by_an_injection(self, live: Live, customer: CustomerAccount) -> None:
        """A refused injection lists its secret at once; an injection that works again closes that."""
        customer.remove_role_from_key_policy()
        with pytest.raises(Denied):
            live.send()
        affected = live.app.byok.affected(live.workspace)
        assert [(one.name, one.found_by) for one in affected.secrets] == [("github", FoundBy.INJECT)]
        customer.restore_key_policy()
        live.send()
        assert live.app.byok.affected(live.workspace).secrets == []
        assert status(live) is SecretStatus.ACTIVE

    def test_affected_still_tries(self, live: Live, customer: CustomerAccount) -> None:
        """Being listed as affected refuses no injection: access that is back works before any sweep noticed."""
        customer.disable_key()
        probe(live)
        customer.enable_key()
        assert status(live) is SecretStatus.AFFECTED
        assert live.send().status == 200


class TestTime:
    def test_propagation(self, live: Live, customer: CustomerAccount, held_changes: AwsDouble) -> None:
        """Until AWS has spread the change the key still works; from then on it does not. Nothing of ours adds to it."""
        customer.remove_role_from_key_policy()
        assert live.send().status == 200
        held_changes.propagate()
        with pytest.raises(Denied):
            live.send()

    def test_revoked_sessions(self, live: Live, customer: CustomerAccount) -> None:
        """Revoking active sessions ends what is out, and no use keeps a session: the next one assumes the role anew."""
        live.send()
        revoke_sessions_before(customer, datetime.now(UTC) - timedelta(seconds=1))
        assert live.send().status == 200

    def test_revoked_sessions_when_shared(
        self, environment: dict[str, str], aws: AwsDouble, upstream: SampleUpstream
    ) -> None:
        """With sessions shared for seconds, revoking them ends the shared one at once."""
        with live_app({**environment, "BROKER_STS_REUSE_SECONDS": "900"}, aws, upstream) as live:
            customer = live.customer()
            live.connect(customer)
            live.store()
            live.send()
            revoke_sessions_before(customer, datetime.now(UTC) + timedelta(hours=1))
            with pytest.raises(Denied) as refused:
                live.send()
        assert refused.value.state is KeyState.ACCESS_DENIED

    def test_shared_sessions_and_the_trust_policy(
        self, environment: dict[str, str], aws: AwsDouble, upstream: SampleUpstream
    ) -> None:
        """With sessions shared for seconds, changing the external id is seen only when they end; disabling the key is
        seen at once."""
        with live_app({**environment, "BROKER_STS_REUSE_SECONDS": "900"}, aws, upstream) as live:
            customer = live.customer()
            live.connect(customer)
            live.store()
            live.send()
            change_external_id(customer)
            assert live.send().status == 200
            customer.disable_key()
            with pytest.raises(Denied) as refused:
                live.send()
        assert refused.value.state is KeyState.KEY_DISABLED
