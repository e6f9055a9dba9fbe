"""``python -m broker_core.cli``: the ``broker`` command, for where no script is installed."""

from __future__ import annotations

from broker_core.cli import main

main(prog_name="broker")
