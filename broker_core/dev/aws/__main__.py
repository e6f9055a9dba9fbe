"""`python -m broker_core.dev.aws --port N`: the double as a process of its own.

Prints one line of JSON with the endpoint when it listens. Ends on SIGINT and SIGTERM, and with `--with-stdin` when
its standard input is closed, so that it does not outlive whoever started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

import click

from broker_core.dev.aws.server import AwsDouble
from broker_core.signals import Stop


@click.command()
@click.option("--port", type=int, default=0, help="0: any free port")
@click.option("--region", default="eu-west-1")
@click.option("--with-stdin", is_flag=True, help="end when standard input is closed")
def main(port: int, region: str, with_stdin: bool) -> None:
    """Serve KMS, STS and IAM on 127.0.0.1 until told to stop."""
    with Stop(signal.SIGINT, signal.SIGTERM) as stop:
        if with_stdin:
            threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
        with AwsDouble(port=port, region=region) as double:
            click.echo(json.dumps({"endpoint": double.endpoint}))
            stop.wait()


def _stop_at_end_of_input(stop: Stop) -> None:
    """On the bare descriptor: a thread inside a buffered read would break the interpreter's shutdown."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop.set()


if __name__ == "__main__":
    main()
