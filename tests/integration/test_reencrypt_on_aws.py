"""Changing keys on real servers and the AWS double: two customers' keys, and what happens between them; and the
commands ``broker byok connections``, ``retire``, ``reencrypt``, ``coverage``, ``drill`` and ``reconcile``."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from broker_core.cli import main
from broker_core.dev.aws import CustomerAccount
from broker_core.errors import Conflict, KeyState
from broker_core.model import Connection, ConnectionStatus
from broker_core.ports import Cover, KeyUse, Reencryption, Sealed
from broker_core.reencrypt import MoveLimits
from broker_core.secret import Plaintext
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.live import Live

FAST = MoveLimits(calls_per_second=1000)


@pytest.fixture
def fast(live: Live) -> Live:
    """An App that does not wait for a budget."""
    live.app.reencrypt._limits = FAST
    return live


def two_keys(live: Live, *names: str, verified: bool = False, **values: Any) -> tuple[CustomerAccount, CustomerAccount]:
    """Secrets under a first customer's key, and a second one connected."""
    first, second = live.customer(), live.customer()
    live.connect(first, verified=verified)
    for name in names:
        live.store(name, value=values.get(name, f"value-of-{name}"))
    live.connect(second, verified=verified)
    return first, second


def run(live: Live, move: Reencryption | None = None) -> Reencryption:
    """Step until it has ended."""
    move = move or live.app.reencrypt.start(live.workspace)
    reached = [move]

    def has_ended() -> bool:
        reached.append(live.app.reencrypt.step(live.workspace, move.id))
        return reached[-1].ended_at is not None

    wait_until(has_ended, deadline_seconds=120, what="the end of the re-encryption")
    return reached[-1]


def covers(live: Live) -> dict[Cover, int]:
    counts = live.app.reports.coverage(live.workspace).counts
    return {cover: count for cover, count in counts.items() if count}


def hook_encrypt(live: Live, meanwhile: Callable[[KeyUse], object]) -> None:
    """Do something once, when the next value of a move has been encrypted and is not stored yet."""
    keys, todo = live.app.reencrypt._keys, [meanwhile]
    encrypt = keys.encrypt

    def encrypted(use: KeyUse, value: Plaintext, seconds: float) -> Sealed:
        sealed = encrypt(use, value, seconds)
        if todo:
            todo.pop()(use)
        return sealed

    class Hooked:
        def __getattr__(self, name: str) -> Any:
            return encrypted if name == "encrypt" else getattr(keys, name)

    live.app.reencrypt._keys = Hooked()


class TestMoving:
    def test_twenty_secrets(self, fast: Live) -> None:
        """By two processes at once; afterwards the older key may go, and every secret still works."""
        names = [f"s{number}" for number in range(20)]
        first, _ = two_keys(fast, *names)
        move = fast.app.reencrypt.start(fast.workspace)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: run(fast, move), range(2)))
        ended = fast.app.reencrypt.progress(fast.workspace, move.id)
        assert (ended.total, ended.moved, ended.left) == (20, 20, 0)
        assert covers(fast) == {Cover.CURRENT_KEY: 20}
        decrypts = [
            call
            for call in fast.aws.trail.calls
            if call.event_name == "Decrypt" and call.key_arn == first.key_arn and not call.dry_run
            if "axiorank:secret" in call.encryption_context
            and (call.session_name or "").startswith("axiorank-encrypt-")
        ]
        assert len(decrypts) == 20
        first.disable_key()
        assert fast.send("s7").status == 200

    def test_every_call_is_bound_to_its_secret(self, fast: Live) -> None:
        """INV-2: each Decrypt and Encrypt carries the workspace, the name and the version, and its session may do this
        one thing."""
        two_keys(fast, "github")
        before = len(fast.aws.trail.calls)
        run(fast)
        calls = list(fast.aws.trail.calls)[before:]
        assert [call.action for call in calls] == ["sts:AssumeRole", "kms:Decrypt", "sts:AssumeRole", "kms:Encrypt"]
        context = {"axiorank:workspace": fast.workspace, "axiorank:secret": "github", "axiorank:version": "1"}
        assert [dict(call.encryption_context) for call in calls[1::2]] == [context, context]
        for assumed, used in zip(calls[::2], calls[1::2], strict=True):
            policy = json.loads(str(assumed.parameters["policy"]))
            (statement,) = policy["Statement"]
            assert (statement["Action"], statement["Resource"]) == (used.action, used.key_arn)

    def test_large_values(self, fast: Live) -> None:
        """An envelope is made again under the current key."""
        first, _ = two_keys(fast, "large", large=b"v" * 5000)
        assert run(fast).moved == 1
        first.disable_key()
        assert fast.candidate("large").blob.cipher == "kms-envelope"
        assert fast.send("large").status == 200

    def test_the_older_key_is_revoked_midway(self, fast: Live) -> None:
        """What was moved works, what was not stays and is reported and affected; and moves once the key is back."""
        first, _ = two_keys(fast, *(f"s{number}" for number in range(6)))
        move = fast.app.reencrypt.start(fast.workspace)
        fast.app.reencrypt.step(fast.workspace, move.id, limit=2)
        first.disable_key()
        ended = run(fast, move)
        assert (ended.moved, ended.denied) == (2, 4)
        stuck = fast.app.reencrypt.stuck(fast.workspace).items
        assert {each.state for each in stuck} == {KeyState.KEY_DISABLED}
        (affected,) = fast.app.byok.affected(fast.workspace).connections
        assert {name for _, name in affected.secrets} == {each.name for each in stuck}
        first.enable_key()
        assert run(fast).moved == 4
        assert fast.app.byok.affected(fast.workspace).connections == []

    def test_a_rotation_in_between(self, fast: Live) -> None:
        """The newer value wins."""
        two_keys(fast, "github")
        hook_encrypt(fast, lambda _: fast.store("github", "secret.rotated", 2, value="the-newer-value"))
        assert run(fast).overtaken == 1
        assert fast.candidate("github").version == 2
        fast.send("github")
        assert fast.upstream.requests[-1].header("authorization") == "Bearer the-newer-value"

    def test_a_crash_between_decrypt_and_store(self, fast: Live) -> None:
        """The secret works all the time, and is moved by whoever goes on."""
        two_keys(fast, "github")

        def die(_: KeyUse) -> None:
            raise KeyboardInterrupt

        hook_encrypt(fast, die)
        move = fast.app.reencrypt.start(fast.workspace)
        with pytest.raises(KeyboardInterrupt):
            fast.app.reencrypt.step(fast.workspace, move.id)
        assert fast.send("github").status == 200
        assert run(fast, move).moved == 1

    def test_the_current_key_says_no(self, fast: Live) -> None:
        """Nothing moves, and nothing but the current key is tried (INV-3)."""
        _, second = two_keys(fast, "github")
        before = fast.candidate("github")
        second.disable_key()
        move = fast.app.reencrypt.start(fast.workspace)
        after = fast.app.reencrypt.step(fast.workspace, move.id)
        assert (after.left, fast.candidate("github")) == (1, before)

    def test_a_value_is_nowhere(self, fast: Live, caplog: pytest.LogCaptureFixture) -> None:
        """INV-1: no row of a re-encryption and nothing that it says holds the value."""
        value = f"sentinel-{uuid4().hex}"
        two_keys(fast, "github", github=value)
        with caplog.at_level("DEBUG"):
            move = run(fast)
        rows = fast.app.store._database.run(
            "test",
            "SELECT i.*::text || r.*::text AS row FROM reencryption_items i, reencryptions r"
            " WHERE r.workspace_id = %(workspace_id)s",
            {"workspace_id": fast.workspace},
        )
        assert (move.moved, len(rows)) == (1, 1)
        assert value not in rows[0].row + caplog.text + repr(move)


class TestRetire:
    def test_after_everything_was_moved(self, fast: Live) -> None:
        """Before that it is refused, with the number."""
        two_keys(fast, "a", "b")
        older = fast.app.byok.connections(fast.workspace)[1]
        with pytest.raises(Conflict, match="2 secrets"):
            fast.app.byok.retire(fast.workspace, older.id)
        run(fast)
        fast.app.byok.retire(fast.workspace, older.id)
        view = fast.app.byok.connections(fast.workspace)[1]
        assert (view.status, view.needed_by, view.retired_at is not None) == (ConnectionStatus.RETIRED, 0, True)

    def test_its_role_can_go_then(self, fast: Live) -> None:
        """Nothing asks for it any more, so nothing fails."""
        first, _ = two_keys(fast, "a")
        run(fast)
        fast.app.byok.retire(fast.workspace, fast.app.byok.connections(fast.workspace)[1].id)
        first.disable_key()
        before = len(fast.aws.trail.calls)
        fast.app.store._database.run("test", "UPDATE byok_connections SET next_probe_at = now()", {})
        fast.app.sweep.probes()
        asked = {call.key_arn for call in list(fast.aws.trail.calls)[before:]}
        assert first.key_arn not in asked
        assert fast.app.byok.affected(fast.workspace).connections == []


# ---------------------------------------------------------------- commands


@pytest.fixture
def broker(live: Live) -> Callable[..., Result]:
    """``broker byok …`` with the live servers' settings, and a budget that does not hold a test up."""

    def broker(command: str, *arguments: str, **changed: str) -> Result:
        environment = {**live.environment, "BROKER_CHECK_RPS": "50", **changed}
        return CliRunner().invoke(main, ["byok", command, "--workspace", live.workspace, *arguments], env=environment)

    return broker


def told(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.stdout)
    return document


class TestCommands:
    def test_reencrypt(self, broker: Callable[..., Result], live: Live) -> None:
        """Progress on stderr, numbers on stdout; a second time there is nothing to move."""
        two_keys(live, "a", "b", "c")
        result = broker("reencrypt")
        assert (result.exit_code, told(result)["moved"], told(result)["stuck"]) == (0, 3, [])
        progress = [line for line in result.stderr.splitlines() if line.endswith(" left")]
        assert (progress[0], progress[-1]) == ("0 of 3 moved; 3 left", "3 of 3 moved; 0 left")
        again = broker("reencrypt")
        assert (again.exit_code, told(again)["total"]) == (0, 0)

    def test_reencrypt_from_one(self, broker: Callable[..., Result], live: Live) -> None:
        """Only what is under the connection that is named."""
        two_keys(live, "first")
        older = str(live.app.byok.connections(live.workspace)[1].id)
        live.store("second")
        live.connect(live.customer())
        result = broker("reencrypt", "--from", older)
        assert (result.exit_code, told(result)["total"], told(result)["connectionId"]) == (0, 1, older)

    def test_reencrypt_that_leaves_something(self, broker: Callable[..., Result], live: Live) -> None:
        """Exit code 1, and what stayed, why, and what to do."""
        first, _ = two_keys(live, "a")
        first.remove_role_from_key_policy()
        result = broker("reencrypt")
        (stuck,) = told(result)["stuck"]
        assert (result.exit_code, stuck["name"], stuck["state"]) == (1, "a", "access_denied")
        assert stuck["whatToDo"].endswith(".")

    def test_reencrypt_that_is_stopped(
        self, broker: Callable[..., Result], live: Live, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After ^C the same command goes on with the same one."""
        two_keys(live, "a", "b")

        def interrupted(_: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("broker_core.cli.moves.time.sleep", interrupted)
        budget = "UPDATE byok_connections SET check_ready_at = now() {} interval '1 h'"
        live.app.store._database.run("test", budget.format("+"), {})
        stopped = broker("reencrypt")
        monkeypatch.undo()
        assert (stopped.exit_code, "the same command goes on" in stopped.stderr) == (1, True)
        running = live.app.reencrypt.progress(live.workspace)
        live.app.store._database.run("test", budget.format("-"), {})
        result = broker("reencrypt")
        assert (result.exit_code, told(result)["id"], told(result)["left"]) == (0, str(running.id), 0)

    def test_reencrypt_on_another_plan(self, broker: Callable[..., Result], live: Live) -> None:
        """Exit code 1."""
        two_keys(live, "a")
        live.app.store.put_workspace(live.workspace, "team")
        result = broker("reencrypt")
        assert (result.exit_code, "plan_required" in result.stderr) == (1, True)

    def test_connections_and_retire(self, broker: Callable[..., Result], live: Live) -> None:
        """What is needed is listed with its number and refused to be retired; then it is not, and is."""
        two_keys(live, "a", "b")
        current, older = told(broker("connections"))["items"]
        assert (current["status"], current["neededBy"], older["status"], older["neededBy"]) == (
            *("current", 0),
            *("retired", 2),
        )
        refused = broker("retire", "--connection", older["id"])
        assert (refused.exit_code, "2 secrets" in refused.stderr) == (1, True)
        assert broker("reencrypt").exit_code == 0
        assert broker("retire", "--connection", older["id"]).exit_code == 0
        assert "retiredAt" in told(broker("connections"))["items"][1]

    def test_coverage(self, broker: Callable[..., Result], live: Live) -> None:
        """Counts of all, and the secrets with why and what to do; in pages, and of one cover."""
        live.store("before")
        two_keys(live, "older")
        live.store("current")
        document = told(broker("coverage"))
        counts = {cover.value: document[cover.value] for cover in Cover}
        assert counts == {"currentKey": 1, "olderConnections": 1, "platform": 1, "held": 0}
        assert {item["name"]: item["cover"] for item in document["items"]} == {
            "before": "platform",
            "older": "olderConnections",
            "current": "currentKey",
        }
        assert all(item["why"] and item["whatToDo"] for item in document["items"])
        page = told(broker("coverage", "--limit", "1"))
        rest = told(broker("coverage", "--cursor", page["nextCursor"]))
        assert len(page["items"]) + len(rest["items"]) == 3
        (only,) = told(broker("coverage", "--cover", "platform"))["items"]
        assert only["name"] == "before"

    def test_drill(self, broker: Callable[..., Result], live: Live) -> None:
        """Secrets, uses and bindings, and what each way of revoking stops; AWS is not asked."""
        two_keys(live, "older")
        live.store("current")
        live.send("current")
        before = len(live.aws.trail.calls)
        document = told(broker("drill"))
        assert (document["secrets"], document["uses"], document["items"][0]["name"]) == (2, 1, "current")
        assert document["items"][0]["binding"]["agentId"] == "agent-1"
        assert document["revocation"]
        older = told(broker("connections"))["items"][1]["id"]
        assert [item["name"] for item in told(broker("drill", "--connection", older))["items"]] == ["older"]
        assert len(live.aws.trail.calls) == before
        assert broker("drill", "--connection", str(uuid4())).exit_code == 1

    @pytest.mark.parametrize("command", ["coverage", "drill", "connections", "reencrypt"])
    def test_an_unknown_workspace(self, live: Live, command: str) -> None:
        """Exit code 1, whichever is asked."""
        result = CliRunner().invoke(main, ["byok", command, "--workspace", "nobody"], env=live.environment)
        assert (result.exit_code, "not_found" in result.stderr) == (1, True)

    def test_reconcile(self, broker: Callable[..., Result], live: Live, tmp_path: Path) -> None:
        """The trails of two keys, a re-encryption between them: everything is explained, from the database and from the
        lines of the audit log alike."""
        first, second = two_keys(live, "a", verified=True)
        assert broker("reencrypt").exit_code == 0
        live.send("a")
        files = []
        for customer in (first, second):
            records = live.aws.trail.records(customer.account.account_id)
            files.append(tmp_path / f"{customer.account.account_id}.json")
            files[-1].write_text(json.dumps({"Records": records}))
        result = broker("reconcile", "--cloudtrail", *map(str, files))
        document = told(result)
        assert (result.exit_code, document["unexplained"], document["oursOnly"]) == (0, [], [])
        assert document["summary"]["matched"] == document["summary"]["calls"] > 30

        from broker_core.api.schemas import UseAnswer

        audit = tmp_path / "audit.ndjson"
        uses = live.app.store.uses(live.workspace, limit=1000)
        audit.write_text(
            "".join(UseAnswer.of(use).model_dump_json(by_alias=True, exclude_defaults=True) + "\n" for use in uses)
        )
        roles = [option for customer in (first, second) for option in ("--role-arn", customer.role_arn)]
        arguments = ["byok", "reconcile", "--audit", str(audit), *roles, "--cloudtrail", *map(str, files)]
        offline = CliRunner().invoke(main, arguments, env=dict.fromkeys(live.environment))
        assert (offline.exit_code, told(offline)) == (0, document)

    def test_reconcile_without_a_connection(self, broker: Callable[..., Result], tmp_path: Path) -> None:
        """Exit code 1: there is no role to look for."""
        (tmp_path / "trail.json").write_text('{"Records": []}')
        result = broker("reconcile", "--cloudtrail", str(tmp_path / "trail.json"))
        assert (result.exit_code, "name a role" in result.stderr) == (1, True)


def test_the_current_connection_is_refused(live: Live) -> None:
    """It is where secrets go to."""
    connection: Connection = live.connect(live.customer())
    with pytest.raises(Conflict):
        live.app.reencrypt.start(live.workspace, connection.id)
