"""The servers of a benchmark, in a process of their own: what is measured must not share its interpreter with them.

Prints one JSON line (settings, role, key, upstream) and serves until its stdin ends.
"""

from __future__ import annotations

import json
import sys

from broker_core.dev.stack import LocalStack


def main() -> None:
    """Serve until stdin ends."""
    with LocalStack.start() as stack:
        customer = stack.customer("benchmark-external-id")
        facts = {
            "environment": dict(stack.environment),
            "roleArn": customer.role_arn,
            "keyArn": customer.key_arn,
            "externalId": customer.external_id,
            "upstreamPort": stack.upstream.port,
            "caFile": str(stack.upstream.ca_file),
        }
        print(json.dumps(facts), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
