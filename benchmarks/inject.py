"""Injection against bare: the two AWS calls and one upstream request over a new TLS connection."""

from __future__ import annotations

import json
import ssl
import uuid

from urllib3.connection import HTTPSConnection

from benchmarks.ground import AGENT, WORKSPACE, Bare, ground
from broker_core import events
from broker_core.inject.call import Call

ROUNDS = 300


def main() -> None:
    """Print the table and the JSON line."""
    from benchmarks.ground import compare

    with ground() as place:
        port = place.facts["upstreamPort"]
        bare = Bare(place.facts)
        tls = ssl.create_default_context(cafile=place.facts["caFile"])

        def bare_injection() -> None:
            value = bare.decrypt()
            connection = HTTPSConnection("127.0.0.1", port, ssl_context=tls, server_hostname="localhost")
            connection.request("GET", "/status/200", headers={"Authorization": f"Bearer {value.decode()}"})
            connection.getresponse().read()
            connection.close()

        document = {
            "specversion": "1.0", "id": uuid.uuid4().hex, "source": "bench", "type": "secret.created", "subject": "s",
            "data": {"workspaceId": WORKSPACE, "version": 1, "value": "v" * 40, "injectionKind": "bearer",
                     "targetHost": f"localhost:{port}", "agentId": AGENT},
        }  # fmt: skip
        receipt = place.app.intake.accept(events.parse(json.dumps(document)), workspace_id=WORKSPACE)
        place.app.custody.run(receipt.id)
        call = Call(WORKSPACE, AGENT, None, "GET", f"https://localhost:{port}/status/200")

        def injection() -> None:
            assert place.app.injector.send(call).status == 200

        compare(
            "inject", {"bare (2 AWS calls, 1 request)": bare_injection, "Injector.send": injection}, ROUNDS, place.waits
        )


if __name__ == "__main__":
    main()
