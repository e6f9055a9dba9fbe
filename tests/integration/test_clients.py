"""``docs/clients.md``: every example runs, as one program for each language, against a server on loopback.

The shell's run where curl and jq are, the TypeScript where Node 20 or newer is: the ids of the tests say which ran.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_core.api.problems import response_for
from broker_core.errors import RateLimited
from tests.integration.test_documents import blocks
from tests.live import Live
from tests.sentinel import Search, text_sentinel
from tests.web import Web, served

GUIDE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
#: seconds until a program is given up: the machine may be busy
PATIENCE = 300


def _has_node() -> bool:
    if shutil.which("node") is None:
        return False
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    return int(said.removeprefix("v").partition(".")[0] or 0) >= 20


LANGUAGES = ["python"]
LANGUAGES += ["sh"] if shutil.which("curl") and shutil.which("jq") else []
LANGUAGES += ["ts"] if _has_node() else []

SAID = [
    "event: stored",
    "create, again: replayed true",
    "rotate: version 2",
    "inject: 200",
    "Bearer «redacted:secret.github»",
    'event data: {"n": 0}',
    'event data: {"n": 1}',
    'event data: {"n": 2}',
]
ENVIRONMENT = "the server has 26 characters"
APART = {
    "sh": ["403 of ours: ", "403 of ours: true"],
    "python": ["403 of the upstream, audit id: True ours: False", "403 of ours: host_mismatch"],
    "ts": ["403 of the upstream, audit id: true ours: false", "403 of ours: host_mismatch"],
}


class BusyAtFirst:
    """The application, which answers the first request to each path of ``/events`` with 429."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.turned_away: set[str] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path.startswith("/api/v1/events") and path not in self.turned_away:
            self.turned_away.add(path)
            await response_for(RateLimited("not so fast", 1), scope)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


@pytest.fixture
def custody(live: Live) -> Iterator[None]:
    """Does what workers do, until the test has ended."""
    ending = threading.Event()

    def work() -> None:
        while not ending.wait(0.05):
            live.work()

    thread = threading.Thread(target=work, name="custody")
    thread.start()
    yield
    ending.set()
    thread.join()


def variables(web: Web, root: str, folder: Path, value: str) -> dict[str, str]:
    """What the guide expects."""
    files = {"VALUE_FILE": value, "NEXT_VALUE_FILE": f"next-{value}"}
    for name, text in files.items():
        (folder / name).write_text(text)
    tokens = {
        f"{name.upper()}_TOKEN": web.token(scope=f"broker:{name}") for name in ("events", "inject", "environment")
    }
    return {
        "BROKER": root,
        "WORKSPACE": web.live.workspace,
        "UPSTREAM": web.live.target,
        "ADMIN_TOKEN": web.token(role="admin"),
        **tokens,
        **{name: str(folder / name) for name in files},
    }


def command(language: str, program: str, folder: Path) -> list[str]:
    """How a program in this language is started."""
    if language == "python":
        return [sys.executable, "-P", "-c", program]
    if language == "sh":
        return ["bash", "-eu", "-o", "pipefail", "-c", program]
    (folder / "program.mjs").write_text(program)
    return ["node", str(folder / "program.mjs")]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_example_runs(language: str, web: Web, custody: None, tmp_path: Path) -> None:
    """In order, they say what the guide says they do, wait when they are told to, and print no value."""
    sentinel = text_sentinel("value")
    web.live.store(
        "files",
        value="variable-0123456789-abcdef",
        injectionKind="stdio_env",
        bindingKey="FILES_TOKEN",
        mcpServerId="files",
    )
    program = "\n".join(blocks(GUIDE, language))
    at_first = BusyAtFirst(web.api)
    with served(at_first) as root:
        done = subprocess.run(
            command(language, program, tmp_path),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "PYTHONUNBUFFERED": "1",
                "LANG": "C.UTF-8",
                "no_proxy": "*",
                **variables(web, root, tmp_path, sentinel.value.decode()),
            },
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*SAID, *APART[language], ENVIRONMENT]
    assert len(at_first.turned_away) == 2
    assert Search([sentinel])("what was printed", (done.stdout + done.stderr).encode()) == []


def test_the_languages_tell_the_same() -> None:
    """Every section that shows one language shows all three."""
    for section in GUIDE.split("\n## ")[1:]:
        counts = {language: len(blocks(section, language)) for language in ("sh", "python", "ts")}
        assert len(set(counts.values())) == 1, section.partition("\n")[0]
