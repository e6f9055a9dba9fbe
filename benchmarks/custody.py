"""Storing an accepted event against bare: AssumeRole and Encrypt."""

from __future__ import annotations

import itertools
import json
import uuid
from uuid import UUID

from benchmarks.ground import AGENT, WORKSPACE, Bare, compare, ground
from broker_core import events
from broker_core.model import EventState

ROUNDS = 300


def main() -> None:
    """Print the table and the JSON line."""
    with ground() as place:
        bare = Bare(place.facts)
        versions = itertools.count(1)

        def accepted() -> UUID:
            document = {
                "specversion": "1.0", "id": uuid.uuid4().hex, "source": "bench", "type": "secret.rotated",
                "subject": "s",
                "data": {"workspaceId": WORKSPACE, "version": next(versions), "value": "v" * 40,
                         "injectionKind": "bearer",
                         "targetHost": "api.example.com", "agentId": AGENT},
            }  # fmt: skip
            return place.app.intake.accept(events.parse(json.dumps(document)), workspace_id=WORKSPACE).id

        waiting = [accepted() for _ in range(ROUNDS + 20)]  # accepted beforehand: what is measured is custody
        waiting.reverse()

        def custody() -> None:
            assert place.app.custody.run(waiting.pop()) is EventState.STORED

        compare(
            "custody",
            {"bare (2 AWS calls)": lambda: bare.encrypt(b"v" * 40), "Custody.run": custody},
            ROUNDS,
            place.waits,
        )


if __name__ == "__main__":
    main()
