"""``broker byok reconcile`` without a database: a trail and the lines of ``GET /audit`` as files, and an exit code."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result

from broker_core.adapters.audit_lines import LONGEST_LINE, read_audit
from broker_core.cli import main
from broker_core.cli.trail import MOST_LISTED
from broker_core.errors import Invalid

ROLE = "arn:aws:iam::222222222222:role/axiorank-byok"
START = datetime(2026, 5, 20, 20, 0, tzinfo=UTC)
#: generated uses, each two calls in the trail and one row of ours; and other services' records between two of them
USES, OTHERS = 5_000, 18
#: bytes of Python's that comparing them may take, whatever their number; a list of our rows alone would take more
MOST_MEMORY = 2_500_000


def audit_id(number: int) -> UUID:
    return UUID(int=(1 << 100) + number)


def session(number: int) -> str:
    return f"axiorank-inject-{audit_id(number)}"


def at(number: int) -> datetime:
    return START + timedelta(seconds=number // 10)


def decrypt(number: int, session_name: str | None = None) -> dict[str, Any]:
    """A Decrypt of one use, with what is read of a record."""
    name = session_name or session(number)
    return {
        "userIdentity": {
            "type": "AssumedRole",
            "arn": f"arn:aws:sts::222222222222:assumed-role/axiorank-byok/{name}",
            "sessionContext": {"sessionIssuer": {"arn": ROLE}},
        },
        "eventTime": at(number).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "eventSource": "kms.amazonaws.com",
        "eventName": "Decrypt",
        "awsRegion": "eu-west-1",
        "requestID": f"kms-{name}",
        "eventID": f"kms-{name}",
    }


def assume(number: int) -> dict[str, Any]:
    """Its AssumeRole."""
    return {
        "eventTime": at(number).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "eventSource": "sts.amazonaws.com",
        "eventName": "AssumeRole",
        "awsRegion": "eu-west-1",
        "requestParameters": {"roleArn": ROLE, "roleSessionName": session(number)},
        "requestID": f"sts-{number}",
        "eventID": f"sts-{number}",
    }


def row(number: int, **changed: Any) -> dict[str, Any]:
    """The line of ours."""
    return {
        "id": str(audit_id(number)),
        "purpose": "inject",
        "cipher": "kms",
        "secretName": "github",
        "startedAt": at(number).isoformat().replace("+00:00", "Z"),
        "outcome": "ok",
        "sessionName": session(number),
        "assumeRequestId": f"sts-{number}",
        "kmsRequestId": f"kms-{session(number)}",
        **changed,
    }


def written(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """A file of the trail, written as a stream."""
    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
        file.write('{"Records": [')
        for number, record in enumerate(records):
            file.write((", " if number else "") + json.dumps(record))
        file.write("]}")
    return path


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    with path.open("w") as file:
        file.writelines(json.dumps(each) + "\n" for each in rows)
    return path


def run(*arguments: str | Path) -> Result:
    """Without a single setting."""
    return CliRunner().invoke(main, ["byok", "reconcile", *map(str, arguments)], env={"BROKER_DATABASE_URL": None})


def offline(trail: Path, audit: Path, *more: str | Path) -> Result:
    return run("--audit", audit, "--role-arn", ROLE, *more, "--cloudtrail", trail)


def told(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.stdout)
    return document


class TestExitCode:
    def test_everything_is_explained(self, tmp_path: Path) -> None:
        """Exit code 0, and empty lists."""
        trail = written(tmp_path / "trail.json", [assume(1), decrypt(1)])
        result = offline(trail, lines(tmp_path / "audit.ndjson", [row(1)]))
        assert (result.exit_code, result.stderr) == (0, "")
        document = told(result)
        assert (document["unexplained"], document["oursOnly"], document["oursOnlyLeftOut"]) == ([], [], 0)
        expected = {"records": 2, "calls": 2, "matched": 2, "theirsOnly": 0, "isExplained": True}
        assert expected.items() <= document["summary"].items()

    def test_a_decrypt_that_is_not_ours(self, tmp_path: Path) -> None:
        """Exit code 1, and it is listed."""
        trail = written(tmp_path / "trail.json", [decrypt(1), decrypt(2, "somebody")])
        result = offline(trail, lines(tmp_path / "audit.ndjson", [row(1)]))
        assert (result.exit_code, result.stderr) == (1, "1 calls are not explained\n")
        (found,) = told(result)["unexplained"]
        assert (found["verdict"], found["sessionName"], found["requestId"]) == (
            *("theirs_only", "somebody"),
            "kms-somebody",
        )

    def test_another_secret_than_the_lines_say(self, tmp_path: Path) -> None:
        """Exit code 1: the lines name secret and version, and the trail another secret."""
        pairs = {"axiorank:workspace": "ws_1", "axiorank:secret": "payroll", "axiorank:version": "1"}
        opened = decrypt(1) | {"requestParameters": {"encryptionContext": pairs}}
        trail = written(tmp_path / "trail.json", [assume(1), opened])
        result = offline(trail, lines(tmp_path / "audit.ndjson", [row(1, version=1)]))
        (found,) = told(result)["unexplained"]
        assert (result.exit_code, found["eventName"]) == (1, "Decrypt")

    def test_a_decrypt_of_somebody_else(self, tmp_path: Path) -> None:
        """Exit code 1, and stderr says how many."""
        asked = {"encryptionContext": {"axiorank:workspace": "ws_1", "axiorank:secret": "github"}}
        ours = decrypt(1) | {"requestParameters": asked}
        user = {"type": "IAMUser", "arn": "arn:aws:iam::222222222222:user/mallory"}
        theirs = ours | {"userIdentity": user, "requestID": "k-9", "eventID": "k-9"}
        trail = written(tmp_path / "trail.json", [assume(1), ours, theirs])
        result = offline(trail, lines(tmp_path / "audit.ndjson", [row(1)]))
        (found,) = told(result)["unexplained"]
        assert (found["verdict"], found["principal"]) == ("other_principal", user["arn"])
        expected = (1, "1 calls under our context are of other principals\n")
        assert (result.exit_code, result.stderr) == expected

    def test_an_unanswered_one_is_pointed_at(self, tmp_path: Path) -> None:
        """It is explained, and yet to be looked at."""
        trail = written(tmp_path / "trail.json", [decrypt(1)])
        rows = [row(1, kmsRequestId=None, outcome="failed", code="transient")]
        result = offline(trail, lines(tmp_path / "audit.ndjson", rows))
        assert (result.exit_code, told(result)["summary"]["unanswered"]) == (0, 1)
        assert "look at them" in result.stderr

    def test_a_trail_without_our_role(self, tmp_path: Path) -> None:
        """Exit code 1: nothing was compared, so nothing is explained."""
        trail = written(tmp_path / "trail.json", [])
        result = offline(trail, lines(tmp_path / "audit.ndjson", [row(1)]))
        assert (result.exit_code, "wrong files" in result.stderr) == (1, True)

    @pytest.mark.parametrize(
        "given", [[], ["--audit", "AUDIT", "--workspace", "ws_1", "--role-arn", ROLE]], ids=["neither", "both"]
    )
    def test_one_of_the_two_sides(self, tmp_path: Path, given: list[str]) -> None:
        """Exit code 2: our side is the database, or files."""
        audit = lines(tmp_path / "audit.ndjson", [row(1)])
        trail = written(tmp_path / "trail.json", [decrypt(1)])
        result = run(*(str(audit) if each == "AUDIT" else each for each in given), "--cloudtrail", trail)
        assert (result.exit_code, "either --workspace or --audit" in result.stderr) == (2, True)

    @pytest.mark.parametrize("role", [None, "axiorank-byok"])
    def test_files_need_a_role(self, tmp_path: Path, role: str | None) -> None:
        """Exit code 1, and what to give."""
        audit = lines(tmp_path / "audit.ndjson", [row(1)])
        trail = written(tmp_path / "trail.json", [decrypt(1)])
        result = run("--audit", audit, *(["--role-arn", role] if role else []), "--cloudtrail", trail)
        assert (result.exit_code, "--role-arn: " in result.stderr) == (1, True)

    def test_a_database_needs_settings(self, tmp_path: Path) -> None:
        """Exit code 78."""
        trail = written(tmp_path / "trail.json", [decrypt(1)])
        assert run("--workspace", "ws_1", "--cloudtrail", trail).exit_code == 78

    def test_what_is_no_trail(self, tmp_path: Path) -> None:
        """Exit code 1, and stderr names the file."""
        broken = tmp_path / "broken.json"
        broken.write_text('{"Records": [')
        result = offline(broken, lines(tmp_path / "audit.ndjson", [row(1)]))
        assert (result.exit_code, "broken.json" in result.stderr, result.stdout) == (1, True, "")


class TestFiles:
    def test_many_of_each(self, tmp_path: Path) -> None:
        """Plain, gzip and a folder, as a shell's pattern expands them; and two files of ours."""
        first = written(tmp_path / "1.json", [assume(1), decrypt(1)])
        second = written(tmp_path / "2.json.gz", [decrypt(1), decrypt(2)])
        folder = tmp_path / "more"
        folder.mkdir()
        written(folder / "3.json", [decrypt(3)])
        audits = [lines(tmp_path / f"{n}.ndjson", [row(n)]) for n in (1, 2, 3)]
        options = [option for audit in audits for option in ("--audit", audit)]
        result = run(*options, "--role-arn", ROLE, "--cloudtrail", first, second, folder)
        assert (result.exit_code, told(result)["summary"]["matched"]) == (0, 4)

    def test_ours_alone_is_bounded(self, tmp_path: Path) -> None:
        """A hundred are listed and the rest is counted; with --all every one is."""
        count = MOST_LISTED + 5
        trail = written(tmp_path / "trail.json", [decrypt(0), decrypt(count + 1)])
        audit = lines(tmp_path / "audit.ndjson", [row(n, assumeRequestId=None) for n in range(count + 2)])
        document, whole = told(offline(trail, audit)), told(offline(trail, audit, "--all"))
        assert (len(document["oursOnly"]), document["oursOnlyLeftOut"]) == (MOST_LISTED, 5)
        assert (len(whole["oursOnly"]), whole["oursOnlyLeftOut"]) == (count, 0)

    def test_rows_of_another_time_are_left_out(self, tmp_path: Path) -> None:
        """A year's log beside a day's trail is no list of what is missing."""
        trail = written(tmp_path / "trail.json", [assume(1), decrypt(1)])
        old = row(2, startedAt="2025-05-20T20:00:00Z")
        result = offline(trail, lines(tmp_path / "audit.ndjson", [old, row(1)]))
        assert told(result)["oursOnly"] == []

    @pytest.mark.parametrize(
        "bad",
        [
            "no JSON",
            "[]",
            "{}",
            json.dumps(row(1, purpose="look")),
            json.dumps(row(1, id="1")),
            json.dumps(row(1, startedAt="2026-05-20T20:00:00")),
            json.dumps(row(1, kmsRequestId=7)),
            json.dumps(row(1, version="1")),
            json.dumps(row(1, connectionId="1")),
            json.dumps(row(1, target="x" * LONGEST_LINE)),
        ],
    )
    def test_a_line_that_is_none_of_ours(self, tmp_path: Path, bad: str) -> None:
        """File and line are named, and nothing of it is quoted."""
        path = tmp_path / "audit.ndjson"
        path.write_text(json.dumps(row(0)) + "\n\n" + bad + "\n")
        with pytest.raises(Invalid) as error:
            list(read_audit([path]))
        assert str(error.value) == f"invalid: --audit: {path}: line 3 is none that GET /audit answers with"

    def test_a_use_that_is_under_way(self, tmp_path: Path) -> None:
        """It has no outcome yet, and explains its session all the same."""
        under_way = {key: row(1)[key] for key in ("id", "purpose", "cipher", "startedAt")}
        (use,) = read_audit([lines(tmp_path / "audit.ndjson", [under_way])])
        assert (use.intent.id, use.result) == (audit_id(1), None)


def test_a_hundred_thousand_records(tmp_path: Path) -> None:
    """Five foreign decrypts and three rows that were taken away are found, exactly; and what Python holds for it does
    not grow with the trail or the log."""
    removed = {10, 3_000, 4_900}
    planted = [decrypt(number, f"foreign-{number}") for number in (5, 2_000, 3_001, 4_000, 4_999)]

    def records() -> Iterator[dict[str, Any]]:
        for number in range(USES):
            yield assume(number)
            yield decrypt(number)
            yield from [{"eventSource": "s3.amazonaws.com", "eventName": "GetObject"}] * OTHERS
        yield from planted

    trail = written(tmp_path / "trail.json.gz", records())
    audit = lines(tmp_path / "audit.ndjson", (row(number) for number in range(USES) if number not in removed))

    tracemalloc.start()
    try:
        result = offline(trail, audit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    document = told(result)
    sessions = sorted({found["sessionName"] for found in document["unexplained"]})
    foreign = [record["userIdentity"]["arn"].rpartition("/")[2] for record in planted]
    assert sessions == sorted([*foreign, *map(session, removed)])
    assert (result.exit_code, document["summary"]["records"]) == (1, (2 + OTHERS) * USES + len(planted))
    assert document["summary"]["theirsOnly"] == len(planted) + 2 * len(removed)
    assert document["oursOnly"] == []
    assert peak < MOST_MEMORY
