"""The demo, as a stranger runs it; and the Procfile's processes under honcho."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker_core.dev.serve import written
from broker_core.dev.stack import LocalStack
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
BROKER = [sys.executable, "-m", "broker_core.cli"]


def bare_environment(tmp_path: Path) -> dict[str, str]:
    """A person's shell with an empty home, and no settings."""
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for temporary files, under a name that is short enough for sockets below it."""
    with tempfile.TemporaryDirectory(prefix="demo") as directory:
        os.chmod(directory, 0o755)  # as root PostgreSQL runs as nobody, and has to come through
        yield Path(directory)


def stopped(words: list[str], ready: str, number: signal.Signals, temporary: Path) -> None:
    """Start a command of the local stack, and end it with a signal once it has printed this."""
    process = subprocess.Popen(
        [*BROKER, *words],
        cwd=ROOT,
        env=bare_environment(temporary / "home") | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert any(ready in line for line in process.stdout)
        process.send_signal(number)
        process.stdout.read()


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What ``broker demo --json`` prints, once for this module."""
    home = tmp_path_factory.mktemp("home")
    run = subprocess.run(
        [*BROKER, "demo", "--json"], cwd=ROOT, env=bare_environment(home), capture_output=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    document: dict[str, object] = json.loads(run.stdout)
    return document


def steps(document: dict[str, object]) -> dict[str, dict[str, str]]:
    """The details by the step's name."""
    listed = document["steps"]
    assert isinstance(listed, list)
    return {step["name"]: step["detail"] for step in listed if step["ok"]}


class TestStopped:
    """A local stack that is ended from outside."""

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_demo_leaves_nothing(self, temporary: Path, number: signal.Signals) -> None:
        """^C, or a supervisor's signal, in the middle of the story."""
        stopped(["demo"], "secret.created", number, temporary)
        assert list(temporary.iterdir()) == []

    def test_a_stack_leaves_nothing(self, temporary: Path) -> None:
        """A closed terminal takes the file of settings with it, too."""
        stopped(["dev", "--env-file", str(temporary / "env")], "^C ends it", signal.SIGHUP, temporary)
        assert list(temporary.iterdir()) == []

    def test_the_settings_are_for_their_owner_alone(self, tmp_path: Path) -> None:
        """Whatever was at the path: a file that others could read, or a link to one."""
        theirs = tmp_path / "theirs"
        theirs.write_text("theirs")
        link = tmp_path / "env"
        link.symlink_to(theirs)
        with written(link, {"NAME": "value"}):
            assert stat.S_IMODE(link.lstat().st_mode) == 0o600
            assert link.read_text() == "NAME=value\n"
        assert theirs.read_text() == "theirs"


class TestDemo:
    """The story as one JSON object."""

    def test_every_step_is_seen(self, played: dict[str, object]) -> None:
        """``ok``, and the steps that the contract names, in its order."""
        assert set(played) == {"ok", "steps", "seconds"}
        assert played["ok"] is True
        told = list(steps(played))
        order = [
            "customer_account",
            "connect",
            "event",
            "inject",
            "rotation",
            "revoked",
            "affected",
            "recovery",
            "reprovision",
        ]
        assert [name for name in told if name in order] == order

    def test_the_blob_is_shown(self, played: dict[str, object]) -> None:
        """The blob's first bytes and its length."""
        assert re.fullmatch(r"\d+ bytes, beginning( [0-9a-f]{2}){8}", steps(played)["event"]["blob"])

    def test_the_session_name_leads_to_the_audit_row(self, played: dict[str, object]) -> None:
        """``axiorank-<purpose>-<audit id>``, and the customer's trail shows the same session."""
        detail = steps(played)["inject"]
        assert re.fullmatch(r"axiorank-inject-[0-9a-f-]{36}", detail["roleSessionName"])
        assert detail["roleSessionName"] in detail["inTheCustomersTrail"]

    @pytest.mark.parametrize(
        ("step", "refused"),
        [
            ("revoke_role_removed", "access_denied (AWS: AccessDeniedException)"),
            ("revoke_key_disabled", "key_disabled (AWS: DisabledException)"),
            ("revoke_key_scheduled_for_deletion", "key_pending_deletion (AWS: KMSInvalidStateException)"),
            ("revoke_external_id_changed", "role_refused (AWS: AccessDenied)"),
            ("role_deleted", "role_refused (AWS: AccessDenied)"),
        ],
    )
    def test_each_way_of_revoking_has_its_error(self, played: dict[str, object], step: str, refused: str) -> None:
        """The error after each way of revoking is AWS's own."""
        assert steps(played)[step]["refused"] == refused


def test_the_procfile_runs_under_honcho(stack: LocalStack, tmp_path: Path) -> None:
    """``honcho start`` brings release, worker, sweeper and scheduler up, and SIGTERM ends them."""
    environment = {**stack.process_environment(), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = tmp_path / "log"
    with log.open("wb") as output:
        honcho = subprocess.Popen(
            [sys.executable, "-m", "honcho", "start", "--no-colour", "worker", "sweeper", "scheduler"],
            cwd=ROOT, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            release = subprocess.run(
                [sys.executable, "-m", "honcho", "run", "broker", "migrate"], cwd=ROOT, env=environment, check=False
            )
            assert release.returncode == 0
            wait_until(
                lambda: log.read_bytes().count(b"worker.started") == 2 and b"scheduler.started" in log.read_bytes(),
                deadline_seconds=60,
            )
        finally:
            honcho.terminate()
            honcho.wait(60)
    assert b"scheduler.stopped" in log.read_bytes()
