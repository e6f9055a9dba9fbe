"""Who gets which session: strict, shared, and what the control role says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest
from botocore.credentials import Credentials

from broker_core.adapters.sessions import Assumed, ControlRole, SharedSessions, StrictSessions
from broker_core.context import for_secret
from broker_core.errors import Denied, KeyServiceError, KeyState, Receipt, Transient
from broker_core.model import Connection, Purpose
from broker_core.policies import Action, Policy, session_policy, shared_session_policy
from broker_core.ports import KeyUse
from tests.fakes_keys import ManualClock

KEY = "arn:aws:kms:eu-west-1:222222222222:key/0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"
CONNECTION = Connection(UUID(int=1), "ws_1", "arn:aws:iam::222222222222:role/axiorank", "external-id-0123456789", KEY)
USE = KeyUse(CONNECTION, Purpose.INJECT, UUID(int=7), for_secret("ws_1", "api", 1))
FAR = 10_000.0


class Assumer:
    """Counts AssumeRole calls, and hands out sessions that live 900 s."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.policies: list[Policy] = []
        self.error: KeyServiceError | None = None
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, use: KeyUse, policy: Policy, deadline: float) -> Assumed:
        self.policies.append(policy)
        self.entered.set()
        assert self.go_on.wait(10)
        if self.error is not None:
            raise self.error
        number = len(self.policies)
        return Assumed(Credentials(f"ASIA{number}", "s", "t"), Receipt(f"name-{number}"), self.clock.seconds + 900)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def assume(clock: ManualClock) -> Assumer:
    return Assumer(clock)


class TestStrict:
    def test_every_use_assumes_under_its_whole_context(self, assume: Assumer) -> None:
        """Two uses, two sessions, each with the policy of its own context."""
        strict = StrictSessions(assume)
        assert strict.get(USE, Action.DECRYPT, FAR) is not strict.get(USE, Action.DECRYPT, FAR)
        assert assume.policies == [session_policy(Action.DECRYPT, KEY, USE.context)] * 2


class TestShared:
    def test_a_second_use_gets_the_same_session(self, assume: Assumer, clock: ManualClock) -> None:
        """Another secret of the workspace, same purpose: one AssumeRole, under the workspace's policy."""
        shared = SharedSessions(assume, clock, 60)
        other = replace(USE, audit_id=UUID(int=8), context=for_secret("ws_1", "other", 4))
        assert shared.get(USE, Action.DECRYPT, FAR) is shared.get(other, Action.DECRYPT, FAR)
        assert assume.policies == [shared_session_policy(Action.DECRYPT, KEY, USE.context)]

    @pytest.mark.parametrize(
        ("use", "action"),
        [
            (replace(USE, connection=replace(CONNECTION, role_arn=CONNECTION.role_arn + "2")), Action.DECRYPT),
            (replace(USE, connection=replace(CONNECTION, external_id="another-external-id")), Action.DECRYPT),
            (replace(USE, connection=replace(CONNECTION, key_arn=KEY[:-1] + "1")), Action.DECRYPT),
            (USE, Action.ENCRYPT),
            (replace(USE, context=for_secret("ws_2", "api", 1)), Action.DECRYPT),
            (replace(USE, purpose=Purpose.CHECK), Action.DECRYPT),
        ],
        ids=["role", "external id", "key", "action", "workspace", "purpose"],
    )
    def test_nothing_else_shares_it(self, assume: Assumer, clock: ManualClock, use: KeyUse, action: Action) -> None:
        """Each part of the key keeps a session from a use that its policy, or its name, was not made for."""
        shared = SharedSessions(assume, clock, 60)
        shared.get(USE, Action.DECRYPT, FAR)
        shared.get(use, action, FAR)
        assert len(assume.policies) == 2

    @pytest.mark.parametrize(("seconds", "lives"), [(60, 60), (900, 840)])
    def test_it_ends_after_the_operators_seconds_or_before_its_own(
        self, assume: Assumer, clock: ManualClock, seconds: int, lives: float
    ) -> None:
        """Whichever is shorter: the setting, or the credentials less a margin."""
        shared = SharedSessions(assume, clock, seconds)
        shared.get(USE, Action.DECRYPT, FAR)
        clock.seconds += lives - 1
        shared.get(USE, Action.DECRYPT, FAR)
        assert len(assume.policies) == 1
        clock.seconds += 1
        shared.get(USE, Action.DECRYPT, FAR)
        assert len(assume.policies) == 2

    def test_a_dropped_session_is_given_to_nobody(self, assume: Assumer, clock: ManualClock) -> None:
        """AWS no longer takes it; dropping it late does not drop its successor."""
        shared = SharedSessions(assume, clock, 60)
        first = shared.get(USE, Action.DECRYPT, FAR)
        shared.drop(first)
        second = shared.get(USE, Action.DECRYPT, FAR)
        shared.drop(first)
        assert first is not second
        assert shared.get(USE, Action.DECRYPT, FAR) is second

    def test_the_number_kept_is_bounded(self, assume: Assumer, clock: ManualClock) -> None:
        """The longest unused is forgotten."""
        shared = SharedSessions(assume, clock, 60, limit=2)
        uses = [replace(USE, context=for_secret(f"ws_{number}", "api", 1)) for number in range(3)]
        for use in [*uses, uses[2], uses[1], uses[0]]:
            shared.get(use, Action.DECRYPT, FAR)
        assert len(assume.policies) == 4
        assert len(shared._sessions) == 2

    def test_misses_share_one_flight(self, assume: Assumer, clock: ManualClock) -> None:
        """Eight uses at once, one AssumeRole."""
        shared = SharedSessions(assume, clock, 60)
        assume.go_on.clear()
        got: list[Assumed] = []
        threads = [threading.Thread(target=lambda: got.append(shared.get(USE, Action.DECRYPT, FAR))) for _ in range(8)]
        for thread in threads:
            thread.start()
        assert assume.entered.wait(10)
        assume.go_on.set()
        for thread in threads:
            thread.join(10)
        assert (len(assume.policies), len(got), len({id(session) for session in got})) == (1, 8, 1)

    def test_a_failed_flight_fails_for_all_and_is_forgotten(self, assume: Assumer, clock: ManualClock) -> None:
        """A refusal is kept for nobody who comes later."""
        shared = SharedSessions(assume, clock, 60)
        assume.error = Denied("no", state=KeyState.ROLE_REFUSED, aws_code="AccessDenied")
        with pytest.raises(Denied):
            shared.get(USE, Action.DECRYPT, FAR)
        assume.error = None
        assert shared.get(USE, Action.DECRYPT, FAR)

    def test_a_waiter_gets_an_error_of_its_own_that_says_the_same(self, assume: Assumer, clock: ManualClock) -> None:
        """Many threads that raise one exception object would collect each other's frames."""
        shared = SharedSessions(assume, clock, 60)
        assume.error = Denied("no", state=KeyState.ROLE_REFUSED, aws_code="AccessDenied", receipt=Receipt("name"))
        assume.go_on.clear()
        caught: list[KeyServiceError] = []

        def get() -> None:
            try:
                shared.get(USE, Action.DECRYPT, FAR)
            except KeyServiceError as error:
                caught.append(error)

        leader = threading.Thread(target=get)
        leader.start()
        assert assume.entered.wait(10)
        flight = next(iter(shared._flights.values()))
        followers = [
            threading.Thread(target=lambda: _caught(caught, lambda: shared._wait(flight, FAR))) for _ in range(2)
        ]
        for follower in followers:
            follower.start()
        assume.go_on.set()
        for thread in (leader, *followers):
            thread.join(10)
        assert len({id(error) for error in caught}) == 3
        assert {(type(error), error.state, error.aws_code, error.receipt) for error in caught} == {
            (Denied, KeyState.ROLE_REFUSED, "AccessDenied", Receipt("name"))
        }

    def test_a_waiter_gives_up_at_its_own_deadline(self, assume: Assumer, clock: ManualClock) -> None:
        """Somebody else's slow call does not take this use's time."""
        shared = SharedSessions(assume, clock, 60)
        assume.go_on.clear()
        leader = threading.Thread(target=lambda: shared.get(USE, Action.DECRYPT, FAR))
        leader.start()
        assert assume.entered.wait(10)
        with pytest.raises(Transient):
            shared.get(USE, Action.DECRYPT, clock.seconds)
        assume.go_on.set()
        leader.join(10)


class TestControlRole:
    def test_it_is_asked_once_for_all_within_the_memo(self, clock: ManualClock) -> None:
        """A thousand refusals at once are one question per Region and ten seconds."""
        asked: list[str] = []

        def prove(region: str, deadline: float) -> bool:
            asked.append(region)
            return len(asked) > 1

        control = ControlRole(prove, clock)
        assert [control.works("eu-west-1", FAR) for _ in range(3)] == [False] * 3
        assert control.works("us-east-1", FAR)
        clock.seconds += 10
        assert control.works("eu-west-1", FAR)
        assert asked == ["eu-west-1", "us-east-1", "eu-west-1"]

    def test_what_cannot_be_proved_in_time_does_not_work(self, clock: ManualClock) -> None:
        """Without proof the customer is not blamed."""
        inside, leave = threading.Event(), threading.Event()

        def prove(region: str, deadline: float) -> bool:
            inside.set()
            return leave.wait(10)

        control = ControlRole(prove, clock)
        first = threading.Thread(target=lambda: control.works("eu-west-1", FAR))
        first.start()
        assert inside.wait(10)
        assert not control.works("eu-west-1", clock.seconds)
        leave.set()
        first.join(10)


def _caught(into: list[KeyServiceError], call: Callable[[], object]) -> None:
    try:
        call()
    except KeyServiceError as error:
        into.append(error)
