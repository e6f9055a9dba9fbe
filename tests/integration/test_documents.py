"""README, SECURITY, CHANGELOG and docs/ say what the code does: commands run, tables agree, names and links resolve."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest

import broker_core
from broker_core import errors, events
from broker_core.adapters.queue import ACTORS
from broker_core.cli import common, main
from broker_core.dev.children import Child
from broker_core.dev.demo import Story
from broker_core.errors import KeyState
from broker_core.injection import Kind
from broker_core.model import EventState
from broker_core.settings import Settings
from tests.curl import stand_in
from tests.databases import plain
from tests.live import Live
from tests.strangers import bare_environment, temporary
from workers.custody import RECONCILE
from workers.notify import DELIVERIES, ROTATIONS
from workers.sweeper import CHECKS, MOVES, PROBES, PROOFS, REFUSALS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README, SECURITY = (path.read_text() for path in DOCUMENTS[:2])
OPERATING, PRODUCERS, OWNERS = (
    (ROOT / "docs" / name).read_text() for name in ("operating.md", "producers.md", "owners.md")
)
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)

#: command blocks that are not run here, and why
NOT_RUN = {
    "make demo": "installs; what it then runs is `broker demo`, which has a test of its own",
    "make test": "is this run",
}
#: documents whose commands are run by a test of their own, which says the same of them
RUN_ELSEWHERE = {
    "clients.md": "tests/integration/test_clients.py",
    "connecting.md": "tests/integration/test_setup.py",
    "owners.md": "tests/integration/test_owners_guide.py",
    "proof.md": "tests/integration/test_proof.py",
}
#: seconds until a command of a document is given up: the machine may be busy
PATIENCE = 300


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks in these languages, in order."""
    found = re.findall(r"^```([a-z]+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [body for language, body in found if language in languages]


def rows(text: str, *headings: str) -> list[list[str]]:
    """The rows of the table whose heading begins with these cells."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if _cells(line)[: len(headings)] == list(headings))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append(_cells(line))
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []


def names(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


class TestCommands:
    def test_every_block_of_commands_is_run_or_named(self) -> None:
        """No document tells to type what no test runs, but for those that say why."""
        here = [path for path in DOCUMENTS if path.name not in RUN_ELSEWHERE]
        everywhere = [block.strip() for path in here for block in blocks(path.read_text(), "sh", "console", "bash")]
        assert [block for block in everywhere if block in NOT_RUN] == list(NOT_RUN)
        assert [block for block in everywhere if block not in NOT_RUN] == [
            block.strip() for block in blocks(README.partition("## Try it")[2], "sh")
        ]

    def test_try_it(self, tmp_path: Path) -> None:
        """README's two shells: stack, event, token, two injections, a revocation, the refusal, the owner's lists. A
        terminal that is closed ends the stack, which leaves nothing and takes the file of settings with it, too."""
        first, *second = blocks(README.partition("## Try it")[2], "sh")
        executable, *words = first.replace("/tmp/", f"{tmp_path}/").split()
        assert executable == ".venv/bin/broker"
        with temporary() as directory:
            environment = {**bare_environment(tmp_path / "home"), "TMPDIR": str(directory)}
            command = [sys.executable, "-P", "-m", "broker_core.cli", *words]
            stack = Child(command, ready=b"^C ends it", last_signal="TERM", environment=environment)
            try:
                stack.wait_ready(PATIENCE)
                (port,) = set(re.findall(r"https://localhost:([0-9]+) ", stack.output))
                script = "\n".join(second).replace("/tmp/", f"{tmp_path}/")
                if shutil.which("curl") is None:
                    stand_in(tmp_path)
                done = _shell(re.sub(r"localhost:[0-9]+", f"localhost:{port}", script, count=1), tmp_path)
            finally:
                stack.stop("HUP", PATIENCE)
            assert stack.output.endswith("stopping\n")
            assert list(directory.iterdir()) == [], "the stack left something"
        assert not (tmp_path / "broker.env").exists(), "the stack left its settings"
        assert done.returncode == 0, done.stderr
        assert "\nstored\n" in done.stderr
        assert '"status": 200' in done.stdout
        assert '"name":"sample"' in done.stdout
        assert done.stdout.count("Bearer «redacted:secret.sample»") == 2
        assert "refused, exit code 1" in done.stdout
        assert "key_disabled, AWS said DisabledException" in done.stdout

    def test_producing_from_python(self, live: Live) -> None:
        """The Python door of docs/producers.md takes an event."""
        (block,) = blocks(PRODUCERS, "python")
        done = _python(block, {**live.environment, "WORKSPACE": live.workspace}, json.dumps(live.event()))
        assert done.returncode == 0, done.stderr
        assert "accepted" in done.stdout

    def test_the_sample_event(self) -> None:
        """The event of docs/producers.md is one."""
        (block,) = blocks(PRODUCERS, "json")
        assert events.parse(block).name == "github"

    def test_connecting_from_python(self, live: Live) -> None:
        """The script of docs/operating.md makes a workspace and connects it."""
        (block,) = blocks(OPERATING, "python")
        customer = live.customer()
        arguments = {
            "WORKSPACE": "ws_documents",
            "EXTERNAL_ID": customer.external_id,
            "ROLE_ARN": customer.role_arn,
            "KEY_ARN": customer.key_arn,
        }
        done = _python(block, {**live.environment, **arguments})
        assert done.returncode == 0, done.stderr
        assert "\nconnected " in done.stdout
        assert done.stdout.count(" verify ") == 13

    def test_every_statement_runs(self, live: Live) -> None:
        """The SQL of docs/operating.md runs, and the last statement counts blobs by platform key."""
        live.store()
        statements = [part for block in blocks(OPERATING, "sql") for part in block.split(";") if part.strip()]
        with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"])) as connection:
            answers = [connection.execute(statement).fetchall() for statement in statements]
        assert answers[-1] == [("test", 1)]


def _shell(script: str, more_commands: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:{more_commands}"
    return subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": path, "HOME": os.environ.get("HOME", "/")},
        timeout=PATIENCE,
        check=False,
    )


def _python(script: str, environment: dict[str, str], given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", script],
        input=given,
        capture_output=True,
        text=True,
        env=environment,
        timeout=PATIENCE,
        check=False,
    )


class TestReadme:
    def test_settings(self) -> None:
        """The table of settings is the settings: each variable, with its default, in their order."""
        described = {names(name)[0]: default for name, _, default in rows(README, "variable", "meaning", "default")}
        expected = {each.metadata["variable"]: _default(each.default) for each in fields(Settings)}
        assert list(described.items()) == list(expected.items())

    def test_exit_codes(self) -> None:
        """The exit codes are those of the command."""
        described = [int(row[0]) for row in rows(README, "exit code", "meaning")]
        assert described == [0, common.REFUSED, 2, common.AWAY, common.WRONG_SETTING]

    def test_commands(self) -> None:
        """Every command is named."""
        listed = README.partition("## Commands")[2].partition("each has")[0]
        assert {name.removeprefix("broker ") for name in names(listed)} == set(main.commands)

    def test_groups(self) -> None:
        """Every command of a group is named."""
        described = {names(row[0])[0].split()[1]: sorted(names(row[1])) for row in rows(README, "group", "commands")}
        groups = {name: each.commands for name, each in main.commands.items() if isinstance(each, click.Group)}
        assert described == {name: sorted(commands) for name, commands in groups.items()}

    def test_calls(self) -> None:
        """The calls are the surface's, but for those that are described in docs/owners.md."""
        paths = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
        surface = {
            ("ANY" if path.endswith("/proxy") else method.upper(), path.removeprefix("/api/v1"))
            for path, methods in paths.items()
            for method in methods
        }
        described = {tuple(name.split(" ", 1)) for row in rows(README, "call", "token") for name in names(row[0])}
        named, elsewhere = (
            {each for each in described if len(each) == 2},
            {each for each in described if len(each) == 1},
        )
        owners = {
            tuple(name.split(" ", 1)) for row in rows(OWNERS, "call", "who") for name in names(row[0]) if " " in name
        }
        assert surface == named | owners
        assert elsewhere >= {("/healthz",), ("/readyz",), ("/metrics",)}

    def test_processes(self) -> None:
        """The processes are the Procfile's."""
        described = {names(row[0])[0]: names(row[1])[0] for row in rows(README, "process", "command")}
        lines = (ROOT / "Procfile").read_text().splitlines()
        assert described == dict(line.split(": ", 1) for line in lines)

    def test_demo_steps(self) -> None:
        """The demo's steps are named, in order."""
        listed = README.partition("with these steps:")[2].partition(".\n")[0]
        assert names(listed) == [name for name, *_ in Story(_Anything(), _Anything()).steps()]  # type: ignore[arg-type]  # only their names are asked for

    def test_demo_output(self) -> None:
        """The excerpt of the demo's output holds sentences of the demo."""
        told = {sentence for _, sentence, _ in Story(_Anything(), _Anything()).steps()}  # type: ignore[arg-type]  # as above
        (excerpt,) = [block for block in blocks(README, "text") if "every step was seen" in block]
        sentences = [line for line in excerpt.splitlines() if line and not line.startswith((" ", "every"))]
        assert [sentence for sentence in sentences if sentence not in told] == []


KMS_SPANS = ("kms.Encrypt", "kms.Decrypt", "kms.DryRun")


def _default(default: object) -> str:
    if default is MISSING:
        return "required"
    return "–" if default in (None, ()) else str(default)


class _Anything:
    """Stands where only names are asked for."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: object, **__: object) -> Any:
        return self


class TestOperating:
    def test_log_events(self) -> None:
        """The table of log events is what the code logs, with its level."""
        described = {(names(row[0])[0], row[1]) for row in rows(OPERATING, "event", "level")}
        assert described == set(_logged())

    def test_alarms(self) -> None:
        """Every line at error or above has an entry of what to do."""
        described = [name for row in rows(OPERATING, "event", "first look") for name in names(row[0])]
        assert sorted(described) == sorted(name for name, level in set(_logged()) if level in ("error", "critical"))

    def test_revisions(self) -> None:
        """Every migration but the first is described, in order."""
        described = [names(row[0])[0] for row in rows(OPERATING, "revision", "what it adds")]
        files = sorted((ROOT / "migrations" / "versions").glob("0*.py"))
        assert described == [file.name[:4] for file in files][1:]

    def test_spans(self) -> None:
        """The table of spans is what the code opens."""
        described = {names(row[0])[0] for row in rows(OPERATING, "span", "what")}
        constants, prefixes = _spans()
        assert prefixes == {"db.", "actor.", "claims.", "kms."}
        assert described == constants | {"db.OPERATION", "claims.OPERATION", "actor.NAME", *KMS_SPANS}

    def test_actors(self) -> None:
        """Every actor is named."""
        (row,) = [row for row in rows(OPERATING, "span", "what") if "actor.NAME" in row[0]]
        assert set(names(row[1])) == {
            *ACTORS.values(),
            *(RECONCILE, DELIVERIES, ROTATIONS, PROBES, CHECKS, REFUSALS, PROOFS, MOVES),
        }


@cache
def _calls() -> list[tuple[str, ast.Call]]:
    """Every call in what runs in production, with its file."""
    files = [path for package in ("broker_core", "workers", "migrations") for path in (ROOT / package).rglob("*.py")]
    named = [(str(path.relative_to(ROOT)), path) for path in sorted(files)]
    return [
        (name, node)
        for name, path in named
        if not name.startswith("broker_core/dev/")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def _called(node: ast.expr) -> str:
    """The last name of what is called."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _logged() -> Iterator[tuple[str, str]]:
    """Event and level of every log line of ours."""
    for file, call in _calls():
        logger = call.func.value if isinstance(call.func, ast.Attribute) else None
        if isinstance(logger, ast.Call) and _called(logger.func) in ("log", "get_logger"):
            event = call.args[0]
            if isinstance(event, ast.Constant):
                yield str(event.value), _called(call.func)
            else:
                # the one line whose name is built: by the states that blame nobody
                assert file == "broker_core/sweep.py"
                yield from ((f"sweep.{state}", "error") for state in (KeyState.INTEGRITY, KeyState.MISCONFIGURED))


def _spans() -> tuple[set[str], set[str]]:
    """Names of spans that are constants, and the beginnings of those that are built."""
    constants: set[str] = set()
    prefixes: set[str] = set()
    for _, call in _calls():
        if _called(call.func) in ("span", "_span", "ask") and call.args:
            name = call.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                constants.add(name.value)
            elif isinstance(name, ast.JoinedStr) and isinstance(name.values[0], ast.Constant):
                prefixes.add(str(name.values[0].value))
    return constants, prefixes


class TestProducers:
    def test_fields(self) -> None:
        """The fields of ``data`` are those that are read."""
        described = [names(row[0])[0] for row in rows(PRODUCERS, "field", "what")]
        expected = {f"data.{name}" for name in events._DATA_FIELDS}
        assert {name for name in described if name.startswith("data.")} == expected

    def test_kinds(self) -> None:
        """Every injection kind is described."""
        assert [names(row[0])[0] for row in rows(PRODUCERS, "`injectionKind`", "used as")] == list(Kind)

    def test_states(self) -> None:
        """Every state is described, and whether it waits or is an end."""
        described = [(names(row[0])[0], row[1]) for row in rows(PRODUCERS, "state", "kind")]
        assert described == [(state.value, "end" if state.is_end else "waiting") for state in EventState]

    def test_refusals(self) -> None:
        """Every refusal is a class of ours, with the exit code that the command gives it."""
        for _, name, _, exit_code in rows(PRODUCERS, "code", "class"):
            is_away = issubclass(getattr(errors, names(name)[0]), errors.Unavailable)
            assert int(exit_code) == (common.AWAY if is_away else common.REFUSED)


class TestReferences:
    @each_document
    def test_links(self, path: Path) -> None:
        """Every link inside the project leads to a file and a heading of it."""
        broken = []
        for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
            file, _, anchor = link.partition("#")
            target = path.parent / file if file else path
            if not link.startswith("https://") and not (target.is_file() and anchor in {"", *_anchors(target)}):
                broken.append(link)
        assert broken == []

    @each_document
    def test_tests(self, path: Path) -> None:
        """Every test that is named exists, by the name that pytest takes."""
        missing = []
        for named in re.findall(r"`(tests/[\w/]+\.py[\w:]*)`", path.read_text()):
            file, *parts = named.split("::")
            source = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
            if not source or not _has(ast.parse(source), parts):
                missing.append(named)
        assert missing == []

    @each_document
    def test_make_targets(self, path: Path) -> None:
        """Every make target that is named exists."""
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(re.findall(r"(?:`|^)make ([a-z]+)", path.read_text(), re.MULTILINE)) <= targets

    @each_document
    def test_modules(self, path: Path) -> None:
        """Every file of the project that is named by its path exists."""
        named = re.findall(r"`((?:broker_core|workers|migrations|docs)/[\w./]+)`", path.read_text())
        assert [name for name in named if not (ROOT / name).exists()] == []

    def test_invariants(self) -> None:
        """SECURITY.md and the map number the same invariants."""
        mapped = re.findall(r"\bINV-([0-9]+)\b", broker_core.__doc__ or "")
        assert [row[0] for row in rows(SECURITY, "", "promise", "test")] == [f"INV-{number}" for number in mapped]


def _has(tree: ast.AST, names: Sequence[str]) -> bool:
    """Whether a module defines this, the last within those before it."""
    for name in names:
        inside = (node for node in ast.iter_child_nodes(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef))
        found = next((node for node in inside if node.name == name), None)
        if found is None:
            return False
        tree = found
    return True


def _anchors(path: Path) -> set[str]:
    """Headings as the links to them: lower case, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
