"""Delivering notices, on the in-memory store: what is sent, what comes again, and what is given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from broker_core.errors import KeyState, Unavailable
from broker_core.events import NOTICE_FIELDS, Notice, NoticeType
from broker_core.model import EventState, EventType
from broker_core.notifications import (
    GIVEN_UP_AFTER,
    KEPT_FOR,
    LEASE_SECONDS,
    ROUND_SECONDS,
    SEND_SECONDS,
    Notifications,
)
from broker_core.ports import Answer, Delivery, DueNotice
from tests.fakes_keys import ManualClock
from tests.fakes_store import FakeStore
from tests.store_setup import OK, age_secret, begun, connected, draft, failure, stored

TAKEN, AWAY = Delivery(Answer.TAKEN, status=204), Delivery(Answer.AWAY, "timeout")
WORKSPACE = "ws"


@dataclass
class Platform:
    """The port ``Notifier``: answers as it is told, the last answer again and again."""

    clock: ManualClock
    answers: list[Delivery] = field(default_factory=lambda: [TAKEN])
    seconds: float = 0.0
    sent: list[Notice] = field(default_factory=list)

    def send(self, notice: Notice, seconds: float) -> Delivery:
        assert seconds == SEND_SECONDS
        self.sent.append(notice)
        self.clock.sleep(self.seconds)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Desk:
    """A store with one workspace, and the use case on it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = FakeStore(self.clock.now)
        self.platform = Platform(self.clock)
        self.pauses: list[float] = []
        self.notifications = Notifications(self.store, self.platform, self.clock, self.longest)
        self.store.put_workspace(WORKSPACE, "enterprise")

    def longest(self, least: float, most: float) -> float:
        """Jitter that always gives the most, and notes it."""
        assert least == 0
        self.pauses.append(most)
        return most

    def lose(self, count: int = 1) -> None:
        """Make so many notices: values that were lost."""
        for _ in range(count):
            event = self.store.accept(draft(WORKSPACE, name=f"name-{uuid4()}")).event
            self.store.end(begun(self.store, event.id), EventState.UNREADABLE, "attempts_spent", OK)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def events(logged: Sequence[Any]) -> list[str]:
    return [line["event"] for line in logged]


class TestDelivering:
    def test_once(self, desk: Desk) -> None:
        """What was taken is not sent again."""
        desk.lose(3)
        assert [desk.notifications.deliver() for _ in range(2)] == [3, 0]
        assert len({notice.id for notice in desk.platform.sent}) == len(desk.platform.sent) == 3

    def test_at_most_so_many_in_a_round(self, desk: Desk) -> None:
        """The rest is the next round's."""
        desk.lose(3)
        assert [desk.notifications.deliver(2) for _ in range(2)] == [2, 1]

    def test_a_round_ends(self, desk: Desk) -> None:
        """A slow receiver does not hold a worker's thread for ever."""
        desk.lose(9)
        desk.platform.seconds = 9.0
        assert desk.notifications.deliver() == 3
        assert desk.clock.monotonic() >= ROUND_SECONDS

    def test_a_claim_outlives_its_sending(self) -> None:
        """Or a second worker would send while the first one waits."""
        assert LEASE_SECONDS > 2 * SEND_SECONDS

    def test_says_what_it_did(self, desk: Desk) -> None:
        """One line for each notice, with ids and nothing of its data."""
        desk.lose()
        with capture_logs() as logged:
            desk.notifications.deliver()
        (line,) = logged
        (notice,) = desk.platform.sent
        assert line == {
            "event": "notify.delivered",
            "log_level": "info",
            "notice": str(notice.id),
            "type": "broker_secret.needs_reprovision",
            "workspace_id": WORKSPACE,
            "attempts": 1,
        }


class TestTrouble:
    def test_a_receiver_that_is_away_ends_the_round(self, desk: Desk) -> None:
        """The others would meet the same; they go out when it is back."""
        desk.lose(3)
        desk.platform.answers = [AWAY, TAKEN]
        with capture_logs() as logged:
            assert desk.notifications.deliver() == 0
        assert events(logged) == ["notify.put_off"]
        assert desk.notifications.deliver() == 2
        desk.clock.sleep(3600)
        assert desk.notifications.deliver() == 1
        first, *_, again = desk.platform.sent
        assert (first.id, first.body()) == (again.id, again.body())

    def test_one_that_is_refused_stops_no_other(self, desk: Desk) -> None:
        """It alone comes again."""
        desk.lose(3)
        desk.platform.answers = [Delivery(Answer.REFUSED, "status", 400), TAKEN]
        assert desk.notifications.deliver() == 2
        desk.clock.sleep(3600)
        assert desk.notifications.deliver() == 1

    def test_pauses_grow(self, desk: Desk) -> None:
        """Up to an hour, with full jitter."""
        desk.lose()
        desk.platform.answers = [AWAY]
        for _ in range(30):
            desk.notifications.deliver()
            desk.clock.sleep(3600)
        assert desk.pauses[:4] == [10.0, 20.0, 40.0, 80.0]
        assert desk.pauses[9:] == 21 * [3600.0]

    def test_not_before_its_pause_is_over(self, desk: Desk) -> None:
        """However often somebody looks."""
        desk.lose()
        desk.platform.answers = [AWAY]
        for _ in range(9):
            desk.notifications.deliver()
            desk.clock.sleep(1)
        assert len(desk.platform.sent) == 1

    def test_given_up(self, desk: Desk) -> None:
        """After three days, and an operator is told; the platform never is again."""
        desk.lose()
        desk.platform.answers = [AWAY]
        desk.notifications.deliver()
        desk.clock.sleep(GIVEN_UP_AFTER + 1)
        with capture_logs() as logged:
            desk.notifications.deliver()
            desk.notifications.deliver()
        assert [(line["event"], line["log_level"], line["attempts"]) for line in logged] == [
            ("notify.given_up", "error", 1)
        ]
        assert len(desk.platform.sent) == 1

    def test_a_crash_after_sending(self, desk: Desk) -> None:
        """The mark is lost, so it is sent again, under the same id."""
        desk.lose()

        def crash(due: DueNotice) -> None:
            raise Unavailable("the database is away")

        real, desk.store.end_notice = desk.store.end_notice, crash  # type: ignore[method-assign]  # that is the crash
        with pytest.raises(Unavailable):
            desk.notifications.deliver()
        desk.store.end_notice = real  # type: ignore[method-assign]
        assert desk.notifications.deliver() == 0
        desk.clock.sleep(LEASE_SECONDS + 1)
        assert desk.notifications.deliver() == 1
        first, again = desk.platform.sent
        assert (first.id, first.body()) == (again.id, again.body())


class TestKeeping:
    def test_a_month(self, desk: Desk) -> None:
        """What was taken is kept for a month, and then it is gone."""
        desk.lose(2)
        desk.notifications.deliver()
        desk.clock.sleep(KEPT_FOR - 1)
        assert desk.notifications.forget_old() == 0
        desk.clock.sleep(2)
        assert desk.notifications.forget_old() == 2

    def test_longer_than_it_is_tried(self) -> None:
        """Nothing is forgotten that may still be sent."""
        assert KEPT_FOR > GIVEN_UP_AFTER


class TestWithoutAnEndpoint:
    def test_notices_wait(self, desk: Desk) -> None:
        """They are written all the same, and go out once there is one."""
        nowhere = Notifications(desk.store, None, desk.clock)
        desk.lose(2)
        assert nowhere.deliver() == 0
        assert desk.notifications.deliver() == 2

    def test_not_for_ever(self, desk: Desk) -> None:
        """After three days they are old news."""
        nowhere = Notifications(desk.store, None, desk.clock)
        desk.lose(2)
        desk.clock.sleep(GIVEN_UP_AFTER + 1)
        nowhere.deliver()
        assert desk.notifications.deliver() == 0


class TestData:
    def test_every_type_has_its_fields(self, desk: Desk) -> None:
        """All of them, whatever happened; with a sentence on what to do where there is something to do."""
        connection = connected(desk.store, WORKSPACE)
        secret_id = stored(desk.store, WORKSPACE, rotation_policy="1d")
        age_secret(desk.store, secret_id, "rotated_at", 2 * 86_400)
        for _ in range(2):
            desk.store.open_failure(failure(connection, request_id=None, state=KeyState.KEY_GONE), 0)
        desk.store.close_failure(WORKSPACE, connection.id, None)
        desk.lose()
        assert desk.notifications.tell_due_rotations() == 1
        desk.notifications.deliver()
        assert {notice.type for notice in desk.platform.sent} == set(NoticeType)
        for notice in desk.platform.sent:
            assert set(notice.data) == set(NOTICE_FIELDS[notice.type])
            assert notice.data.get("whatToDo", "Nothing.").endswith(".")

    def test_no_value(self, desk: Desk) -> None:
        """A notice holds nothing of an event but ids and names."""
        key = b"k3y-0f-4-cl41m-in-32-bytes-long!"
        event = desk.store.accept(draft(WORKSPACE, claim_key=key, claim_id="claim-1")).event
        desk.store.accept(draft(WORKSPACE, name="other", version=1, type=EventType.CREATED))
        desk.store.end(begun(desk.store, event.id), EventState.EXPIRED, "claim_time_over", OK)
        desk.notifications.deliver()
        (notice,) = desk.platform.sent
        assert key not in notice.body()
        assert b"claim-1" not in notice.body()
