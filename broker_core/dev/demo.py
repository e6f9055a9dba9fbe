"""The whole story on the local stack, over real sockets: what ``broker demo`` plays and proves.

Each step does something and then looks at what came of it, from the other side where there is one: the customer's
trail, the upstream's record, the database's row. A step that does not see what it must ends the story with a failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from broker_core.dev.scene import NotSeen
from broker_core.dev.stack import LocalStack
from broker_core.dev.story import Story
from broker_core.dev.wiring import app_on
from broker_core.errors import BrokerError

Say = Callable[[str], None]


@dataclass(frozen=True)
class StepResult:
    """One step, as it went."""

    name: str
    ok: bool
    detail: Mapping[str, Any]


@dataclass
class Ended:
    """The story, as it went."""

    steps: list[StepResult] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every step was seen."""
        return bool(self.steps) and all(step.ok for step in self.steps)

    def document(self) -> dict[str, Any]:
        """What ``broker demo --json`` prints."""
        return {"ok": self.ok, "steps": self.steps, "seconds": round(self.seconds, 2)}


def play(say: Say | None = None) -> Ended:
    """Play every step. ``say`` is told what happens, line by line, as it happens."""
    ended = Ended()
    began = time.monotonic()
    tell = say or (lambda line: None)
    tell("AxioRank BYOK Secrets Broker: starting PostgreSQL, two Valkeys, an AWS double and a sample upstream ...")
    with LocalStack.start(BROKER_PROBE_UNHEALTHY_SECONDS="1") as stack, app_on(stack) as app:
        story = Story(stack, app)
        for name, sentence, step in story.steps():
            tell(f"\n{sentence}")
            ended.steps.append(_take(name, step, tell))
            if not ended.steps[-1].ok:
                break
    ended.seconds = time.monotonic() - began
    tell(f"\n{'every step was seen' if ended.ok else 'THE STORY BROKE OFF'}; {ended.seconds:.1f} s")
    return ended


def _take(name: str, step: Callable[[], Mapping[str, Any]], tell: Say) -> StepResult:
    try:
        result = StepResult(name, True, step())
    except (NotSeen, BrokerError) as error:
        result = StepResult(name, False, {"error": str(error)})
    except Exception as error:  # noqa: BLE001 - whatever goes wrong, the story says at which step, and ends with 1
        result = StepResult(name, False, {"error": type(error).__name__})
    for key, value in result.detail.items():
        tell(f"    {'' if result.ok else 'FAILED '}{key}: {value}")
    return result
