"""The ``broker`` command: what it prints, where values come from, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from broker_core.cli import main
from broker_core.queues import QUEUES
from tests.live import AGENT, Live

Run = Callable[..., Result]


@pytest.fixture
def run(live: Live) -> Run:
    """Run the command in this process, with the settings of the live servers."""

    def run(*arguments: str, stdin: str = "", **changed: str) -> Result:
        return CliRunner().invoke(main, list(arguments), input=stdin, env={**live.environment, **changed})

    return run


def document(result: Result) -> dict[str, Any]:
    """What it printed on stdout, as JSON."""
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


class TestEvent:
    """``broker event``."""

    def test_from_stdin(self, run: Run, live: Live) -> None:
        """An event on stdin is accepted, and the answer says where it can be followed."""
        result = run("event", stdin=json.dumps(live.event("github")))
        assert result.exit_code == 0
        assert document(result) | {"id": ""} == {
            "id": "", "status": "accepted", "name": "github", "version": 1, "warnings": [],
        }  # fmt: skip

    def test_from_a_file(self, run: Run, live: Live, tmp_path: Path) -> None:
        """An event from a file is accepted."""
        path = tmp_path / "event.json"
        path.write_text(json.dumps(live.event()))
        assert run("event", str(path)).exit_code == 0

    def test_a_bad_event_names_its_fields(self, run: Run, live: Live) -> None:
        """Exit code 1, and stderr says which fields and what to do; the value is not in it."""
        event = live.event(value="a-secret-value-of-a-bad-event")
        event["data"]["bindingKey"] = "X-Key"
        result = run("event", stdin=json.dumps(event))
        assert result.exit_code == 1
        assert "data.bindingKey: leave it out for bearer" in result.stderr
        assert "a-secret-value" not in result.output

    def test_another_workspaces_event(self, run: Run, live: Live) -> None:
        """With ``--workspace``, an event of another workspace is not found."""
        result = run("event", "--workspace", "other", stdin=json.dumps(live.event()))
        assert result.exit_code == 1
        assert "not_found" in result.stderr

    def test_waiting_for_a_worker_that_is_not_there(self, run: Run, live: Live) -> None:
        """``--wait`` without a worker ends with exit code 1: it was not stored."""
        assert run("event", "--wait", "0.2", stdin=json.dumps(live.event())).exit_code == 1

    def test_short_values_are_warned_about(self, run: Run, live: Live) -> None:
        """A value under 8 bytes is accepted with a warning."""
        assert "not redacted" in document(run("event", stdin=json.dumps(live.event(value="short"))))["warnings"][0]


class TestInject:
    """``broker inject``."""

    def test_one_call(self, run: Run, live: Live) -> None:
        """The upstream gets the value, the shell gets the mask."""
        live.store(value="the-value-of-this-test")
        result = run("inject", "--workspace", live.workspace, "--agent", AGENT, f"https://{live.target}/echo")
        assert result.exit_code == 0
        assert document(result)["status"] == 200
        assert "«redacted:secret.github»" in document(result)["body"]
        assert "the-value-of-this-test" not in result.output

    def test_a_refusal(self, run: Run, live: Live) -> None:
        """Exit code 1, with the code of the refusal."""
        result = run("inject", "--workspace", live.workspace, "--agent", AGENT, f"https://{live.target}/echo")
        assert result.exit_code == 1
        assert "no_binding" in result.stderr

    def test_a_revoked_key(self, run: Run, live: Live) -> None:
        """Exit code 1, with the key's state."""
        customer = live.customer()
        live.connect(customer)
        live.store()
        customer.disable_key()
        result = run("inject", "--workspace", live.workspace, "--agent", AGENT, f"https://{live.target}/echo")
        assert result.exit_code == 1
        assert "key_disabled" in result.stderr


class TestAffected:
    """``broker affected``."""

    def test_nothing(self, run: Run, live: Live) -> None:
        """Nothing is said plainly."""
        assert run("affected", "--workspace", live.workspace).stdout == "nothing is affected\n"

    def test_after_a_revocation(self, run: Run, live: Live) -> None:
        """The connection, its state, AWS's code, the secrets, and what to do."""
        customer = live.customer()
        live.connect(customer)
        live.store()
        customer.disable_key()
        run("inject", "--workspace", live.workspace, "--agent", AGENT, f"https://{live.target}/echo")
        printed = run("affected", "--workspace", live.workspace).stdout
        assert "key_disabled, AWS said DisabledException" in printed
        assert "    github\n" in printed
        assert "what to do: Enable the key again" in printed

    def test_as_json(self, run: Run, live: Live) -> None:
        """``--json`` prints what ``GET /byok/affected`` will answer."""
        assert document(run("affected", "--workspace", live.workspace, "--json")) == {"connections": [], "secrets": []}

    def test_an_unknown_workspace(self, run: Run, live: Live) -> None:
        """Exit code 1."""
        assert run("affected", "--workspace", "nobody").exit_code == 1


class TestOperate:
    """``broker migrate``, ``dead-letters``, and what goes wrong at the start."""

    def test_migrate_twice(self, run: Run) -> None:
        """Migrating a database that is up to date does nothing."""
        assert run("migrate").stdout == "the database is at revision head\n"

    def test_migrate_a_database_that_is_away(self, run: Run) -> None:
        """Exit code 69 and one line, not a library's traceback."""
        result = run("migrate", BROKER_DATABASE_URL="postgresql://nobody@127.0.0.1:9/none")
        assert (result.exit_code, len(result.stderr.splitlines())) == (69, 1)

    def test_migrate_to_an_unknown_revision(self, run: Run) -> None:
        """Exit code 1, and what to give instead."""
        result = run("migrate", "--to", "nonsense")
        assert (result.exit_code, "--to" in result.stderr) == (1, True)

    def test_no_dead_letters(self, run: Run) -> None:
        """An empty list."""
        assert json.loads(run("dead-letters").stdout) == []

    def test_a_missing_setting(self, run: Run) -> None:
        """Exit code 78, and the variable's name."""
        result = run("affected", "--workspace", "ws", BROKER_DATABASE_URL="")
        assert result.exit_code == 78
        assert "BROKER_DATABASE_URL" in result.stderr

    def test_a_database_that_is_away(self, run: Run) -> None:
        """Exit code 69: try again."""
        result = run("affected", "--workspace", "ws", BROKER_DATABASE_URL="postgresql://nobody@127.0.0.1:9/none")
        assert result.exit_code == 69

    def test_an_unknown_queue(self, run: Run) -> None:
        """Exit code 2: wrong usage."""
        assert run("worker", "--queues", "other").exit_code == 2

    @pytest.mark.parametrize("command", sorted(main.commands))
    def test_help(self, command: str) -> None:
        """Every command explains itself, and none takes a value as an argument."""
        result = CliRunner().invoke(main, [command, "--help"])
        assert result.exit_code == 0
        assert len(result.stdout.splitlines()) > 5
        assert "--value" not in result.stdout


class TestLoading:
    def test_help_needs_no_library_of_a_server(self) -> None:
        """``broker --help`` comes at once: what needs a database, a queue, AWS or telemetry loads it when it runs."""
        script = "import sys; import broker_core.cli; print(*{name.partition('.')[0] for name in sys.modules})"
        ran = subprocess.run(
            [sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60, check=True
        )
        heavy = {"sqlalchemy", "psycopg", "redis", "dramatiq", "botocore", "fastapi", "uvicorn", "jwt", "alembic"}
        assert heavy & set(ran.stdout.split()) == set()

    def test_the_queues_are_named(self) -> None:
        """The help of ``worker`` names every queue."""
        told = CliRunner().invoke(main, ["worker", "--help"]).output
        assert ", ".join(QUEUES) in told
