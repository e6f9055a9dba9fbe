"""The ``broker`` command. Commands translate: settings and arguments in, a use case, JSON or a line out.

Exit codes: 0 done; 1 refused, or it ended badly; 2 wrong usage; 69 a part is away, try again; 78 a setting is wrong.
No value is ever an argument (arguments show in process lists and shell histories): values come from a file or stdin.
"""

from __future__ import annotations

import click

from broker_core.cli.byok import byok
from broker_core.cli.exec import exec_
from broker_core.cli.local import demo, dev, token
from broker_core.cli.operate import dead_letters, migrate, scheduler, worker
from broker_core.cli.use import affected, event, inject
from broker_core.cli.web import web
from broker_core.cli.webhook import webhook


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="axiorank-secrets-broker", prog_name="broker")
def main() -> None:
    """AxioRank BYOK Secrets Broker.

    Settings come from the environment (each BROKER_X also as BROKER_X_FILE, a path). `broker demo` needs none.

    Exit codes: 0 done; 1 refused, or it ended badly; 2 wrong usage; 69 a part is away, try again; 78 a setting is
    wrong.
    """


for _command in (
    *(demo, dev, token, migrate, web, worker, scheduler, dead_letters, event, inject, exec_, affected, byok, webhook),
):
    main.add_command(_command)
