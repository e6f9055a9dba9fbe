"""Use case: what owners are told is delivered to the platform's endpoint, at least once.

Notices are written into the outbox by what they tell of (``ports.NoticeStore``), whether an endpoint is set or not:
those of the last three days go out once there is one. A notice that is not taken comes again, with a growing pause of
full jitter, for three days; then it is given up and an operator is told. The order in which notices arrive is not
promised, not even of one connection: each says what happened and when, and its id is the same however often it comes.
What was taken or given up is kept for a month, for whoever asks what was told, and then deleted.

Imports no database or HTTP library.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from broker_core import telemetry
from broker_core.advice import GIVE_IT_AGAIN, ROTATE_IT, what_to_do
from broker_core.errors import KeyState
from broker_core.events import Notice, NoticeType
from broker_core.ports import Answer, Clock, Delivery, DueNotice, NoticeStore, Notifier

#: seconds: one sending, from connecting to the status; how long a claim holds, which must be well more
SEND_SECONDS, LEASE_SECONDS = 10.0, 60.0
#: seconds that one round goes on with the next notice
ROUND_SECONDS = 20.0
#: seconds: the first pause at most, doubled each time up to an hour; after three days a notice is given up
FIRST_PAUSE, LONGEST_PAUSE, GIVEN_UP_AFTER = 10.0, 3600.0, 3 * 86_400.0
#: seconds from a notice's writing until it is deleted
KEPT_FOR = 30 * 86_400.0


class Notifications:
    """Use case: deliver, and tell of rotations that are due."""

    def __init__(
        self,
        store: NoticeStore,
        notifier: Notifier | None,
        clock: Clock,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """``notifier`` None: no endpoint is set, and notices wait."""
        self._store = store
        self._notifier = notifier
        self._clock = clock
        self._uniform = uniform

    def deliver(self, limit: int = 100) -> int:
        """One round: send up to ``limit`` due notices; returns how many were taken. Raises Unavailable.

        It ends early when the receiver is away: there is one receiver, and what waits can wait together. A notice that
        the receiver refuses stops no other.
        """
        for due in self._store.give_up_notices(GIVEN_UP_AFTER, limit):
            telemetry.log().error("notify.given_up", **_facts(due))
        if self._notifier is None:
            return 0
        ends = self._clock.monotonic() + ROUND_SECONDS
        taken = 0
        for _ in range(limit):
            due_now = self._store.claim_notice(LEASE_SECONDS) if self._clock.monotonic() < ends else None
            answer = self._send(self._notifier, due_now) if due_now is not None else Answer.AWAY
            if answer is Answer.AWAY:
                break
            taken += answer is Answer.TAKEN
        return taken

    def tell_due_rotations(self, limit: int = 500) -> int:
        """Write a notice for each of up to ``limit`` secrets whose rotation has come due; returns how many. Raises
        Unavailable."""
        return self._store.tell_due_rotations(limit)

    def forget_old(self, limit: int = 500) -> int:
        """Delete up to ``limit`` notices that are over and a month old; returns how many. Raises Unavailable."""
        return self._store.forget_notices(KEPT_FOR, limit)

    def _send(self, notifier: Notifier, due: DueNotice) -> Answer:
        notice = replace(due.notice, data={**due.notice.data, **_advice(due.notice)})
        with telemetry.span("notify.send", broker__workspace=notice.workspace_id, broker__attempt=due.attempts) as span:
            delivery = notifier.send(notice, SEND_SECONDS)
            if delivery.status is not None:
                span.set_attribute("http.response.status_code", delivery.status)
            if delivery.answer is Answer.TAKEN:
                self._store.end_notice(due)
                telemetry.log().info("notify.delivered", **_facts(due))
            else:
                telemetry.fail(span, delivery.code)
                self._put_off(due, delivery)
        return delivery.answer

    def _put_off(self, due: DueNotice, delivery: Delivery) -> None:
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(due.attempts - 1, 16))
        seconds = max(1.0, self._uniform(0.0, longest))
        self._store.put_off_notice(due, seconds)
        telemetry.log().warning(
            "notify.put_off", code=delivery.code, status=delivery.status, seconds=round(seconds, 1), **_facts(due)
        )


def _advice(notice: Notice) -> Mapping[str, Any]:
    match notice.type:
        case NoticeType.CONNECTION_FAILING:
            return {"whatToDo": what_to_do(KeyState(notice.data["state"]))}
        case NoticeType.NEEDS_REPROVISION:
            return {"whatToDo": GIVE_IT_AGAIN}
        case NoticeType.ROTATION_DUE:
            return {"whatToDo": ROTATE_IT}
        case NoticeType.CONNECTION_RECOVERED:
            return {}


def _facts(due: DueNotice) -> dict[str, Any]:
    return {
        "notice": str(due.notice.id),
        "type": due.notice.type.value,
        "workspace_id": due.notice.workspace_id,
        "attempts": due.attempts,
    }
