"""The demo, as a stranger runs it; and the Procfile's processes under honcho."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker_core.cli import main
from broker_core.dev import serve
from broker_core.dev.aws import CustomerAccount, fresh_account_id
from broker_core.dev.stack import OUR_ACCOUNT, LocalStack, webhook_environment
from tests.strangers import bare_environment, temporary
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
BROKER = [sys.executable, "-m", "broker_core.cli"]


ENDINGS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
each_ending = pytest.mark.parametrize("number", ENDINGS)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, object]:
    """What ``broker demo --json`` prints. It is played once in a run: by whoever needs it first; the others wait."""
    own = tmp_path_factory.getbasetemp()
    printed = (own if worker_id == "master" else own.parent) / "demo.json"
    with printed.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            whole = own / "demo.json.new"
            whole.write_bytes(_play(tmp_path_factory.mktemp("home")))
            whole.replace(printed)
    document: dict[str, object] = json.loads(printed.read_bytes())
    return document


def _play(home: Path) -> bytes:
    run = subprocess.run(
        [*BROKER, "demo", "--json"], cwd=ROOT, env=bare_environment(home), capture_output=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def steps(document: dict[str, object]) -> dict[str, dict[str, str]]:
    """The details by the step's name."""
    listed = document["steps"]
    assert isinstance(listed, list)
    return {step["name"]: step["detail"] for step in listed if step["ok"]}


class TestStopped:
    """A local stack that is ended from outside. That a stack leaves nothing at all is seen where README's is ended."""

    @pytest.mark.parametrize(
        ("number", "line"),
        [
            (signal.SIGINT, "The Procfile's"),
            (signal.SIGINT, "A secret.created event"),
            (signal.SIGTERM, "A secret.created event"),
        ],
        ids=["while processes start", "in the middle", "in the middle, by a supervisor"],
    )
    def test_a_demo_leaves_nothing(self, tmp_path: Path, number: signal.Signals, line: str) -> None:
        """^C while its processes start, or in the middle of the story, or a supervisor's signal there."""
        with temporary() as directory:
            process = subprocess.Popen(
                [*BROKER, "demo"],
                cwd=ROOT,
                env=bare_environment(tmp_path) | {"TMPDIR": str(directory), "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
            with process:
                assert process.stdout is not None
                assert any(line in each for each in process.stdout)
                process.send_signal(number)
                assert "every step was seen" not in process.stdout.read()
            assert list(directory.iterdir()) == []

    @each_ending
    def test_every_signal_unwinds_the_story(self, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
        """What ^C does to a demo, a supervisor's signal and a closed terminal do, too."""
        came = []

        def play(**_: object) -> None:
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt:
                came.append(number)
                raise

        monkeypatch.setattr("broker_core.dev.demo.play", play)
        before = {each: signal.getsignal(each) for each in ENDINGS}
        try:
            ended = CliRunner().invoke(main, ["demo"])
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
        assert (came, ended.exit_code) == ([number], 1)

    def test_every_signal_ends_a_stack(
        self, stack: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """^C, a supervisor's signal or a closed terminal: the file of settings is there until then, and then gone."""
        stack.environment = {**stack.environment, **webhook_environment()}
        monkeypatch.setattr(serve.LocalStack, "start", lambda **_: nullcontext(stack))
        monkeypatch.setattr(serve, "PROGRAMS", {})
        monkeypatch.setattr(stack, "customer", partial(_customer, stack))
        path = tmp_path / "env"
        for number in ENDINGS:
            seen: list[bool] = []
            serve.serve(path, partial(_interrupt, number, path, seen))
            assert (seen, path.exists()) == ([True], False), number.name

    def test_the_settings_are_for_their_owner_alone(self, tmp_path: Path) -> None:
        """Whatever was at the path: a file that others could read, or a link to one."""
        theirs = tmp_path / "theirs"
        theirs.write_text("theirs")
        link = tmp_path / "env"
        link.symlink_to(theirs)
        with serve.written(link, {"NAME": "value"}):
            assert stat.S_IMODE(link.lstat().st_mode) == 0o600
            assert link.read_text() == "NAME=value\n"
        assert theirs.read_text() == "theirs"


def _customer(stack: LocalStack, external_id: str) -> CustomerAccount:
    """One of an account of their own: the double may have the stack's usual one already."""
    return CustomerAccount(stack.aws.account(fresh_account_id()), OUR_ACCOUNT, external_id)


def _interrupt(number: signal.Signals, path: Path, seen: list[bool], line: str) -> None:
    """A signal, once the stack says that it runs."""
    if "^C ends it" in line:
        seen.append(path.exists())
        signal.raise_signal(number)


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
