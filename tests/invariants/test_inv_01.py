"""INV-1: no value, data key or STS credential in a queue message, log, span, metric, row, error text, core file or temp
file.

Values that cannot be mistaken go through the whole life of a secret, on servers of this test's own, in processes of
ours with every logger at DEBUG and spans exported. Then everything that any of them wrote is read.
"""

from __future__ import annotations

import base64
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker_core.adapters.queue import DEAD_MESSAGE_TTL_MS
from broker_core.adapters.tables import metadata
from broker_core.dev import children, places
from broker_core.dev.aws import AwsDouble
from broker_core.dev.postgres import Postgres
from broker_core.dev.stack import LocalStack
from broker_core.dev.upstream import SampleUpstream
from broker_core.dev.valkey import Valkey
from migrations import runner
from tests.databases import plain
from tests.driver import EVERY_LOGGER, ROOT, Driver
from tests.live import settings_for
from tests.receiver import SECRET, Receiver, receiving
from tests.sentinel import Search, Sentinel, byte_sentinel, digests, forms, keys_of, known, text_sentinel
from tests.story import Story
from tests.story_http import settings_of
from tests.tokens import Platform
from tests.waiting import wait_until

LOUD = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{EVERY_LOGGER}",
    "OTEL_TRACES_EXPORTER": "console",
    "OTEL_BSP_SCHEDULE_DELAY": "100",
    "BROKER_PROBE_SECONDS": "1",
    "BROKER_PROBE_UNHEALTHY_SECONDS": "1",
    # the story makes them due: at any other time what asks for the same key finds it busy, and waits for seconds
    "BROKER_CHECK_ROUND_SECONDS": "3600",
    "BROKER_CHECK_RPS": "100",
    "BROKER_ANNOUNCE_AFTER_SECONDS": "0",
}
SIGNING_KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temp directory for every process of this test, which all may pass (PostgreSQL runs as another user). pytest
    makes its own beside it and not below: ``tmp_path`` is not searched, and outlives this."""
    with tempfile.TemporaryDirectory(prefix="broker-inv01-") as made:
        directory = Path(made).resolve()
        directory.chmod(0o755)
        monkeypatch.setenv("TMPDIR", str(directory))
        monkeypatch.setattr(tempfile, "tempdir", str(directory))
        yield directory


@pytest.fixture
def platform() -> Platform:
    """Whose tokens count."""
    return Platform()


@pytest.fixture
def notices() -> Iterator[Receiver]:
    """Where notices go."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def stack(
    temporary: Path,
    tmp_path: Path,
    aws: AwsDouble,
    upstream: SampleUpstream,
    platform: Platform,
    notices: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[LocalStack]:
    """Servers of this test's own; their processes' output is kept whole."""
    monkeypatch.setattr(children, "_LINES_KEPT", None)
    aws.faults.clear()
    with ExitStack() as opened:
        postgres = opened.enter_context(Postgres.start())
        queue = opened.enter_context(Valkey.start(persistent=True))
        claims = opened.enter_context(Valkey.start(persistent=False))
        opened.callback(aws.faults.clear)
        runner.upgrade(postgres.url)
        environment = {
            **settings_for(postgres.url, queue.url, claims.url, aws, upstream),
            **settings_of(platform, tmp_path),
            **notices.environment,
            **LOUD,
            "BROKER_SIGNING_KEY": _pem(SIGNING_KEY),
            "PORT": str(places.free_port()),
        }
        with LocalStack(postgres, queue, claims, aws, upstream, environment, _closing=opened.pop_all()) as started:
            yield started


@pytest.fixture
def made_by_aws(aws: AwsDouble, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Sentinel]]:
    """Marks the credentials of every session from now on, and keeps what is encrypted: values, canaries, data keys."""
    guard: Any = aws._guard
    mark = b"\xfb\xff\xbf" + os.urandom(21)
    encrypt, encrypted = guard._crypto._operations["Encrypt"], set[bytes]()

    def keeping(ask: Any) -> Any:
        encrypted.add(base64.b64decode(ask.inbound.params["Plaintext"]))
        return encrypt(ask)

    monkeypatch.setattr(guard._sts, "_randomness", lambda n: os.urandom(n) if n < 24 else mark + os.urandom(n - 24))
    monkeypatch.setitem(guard._crypto._operations, "Encrypt", keeping)

    def made() -> list[Sentinel]:
        keys = [known(f"32 bytes for KMS, number {n}", each) for n, each in enumerate(encrypted) if len(each) == 32]
        return [known("an STS credential", base64.b64encode(mark)), *keys]

    return made


def _pem(key: Ed25519PrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _ours(environment: dict[str, str]) -> list[Sentinel]:
    """What our own settings hold: nothing of it is for anybody to read."""
    pem = environment["BROKER_SIGNING_KEY"].splitlines()[1].encode()
    raw = SIGNING_KEY.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return [
        known("our own AWS secret", environment["AWS_SECRET_ACCESS_KEY"].encode()),
        known("the platform key", base64.b64decode(environment["BROKER_PLATFORM_KEYS"].partition(":")[2])),
        Sentinel("the signing key", raw, (pem, raw)),
        known("the webhooks' secret", SECRET.encode()),
    ]


def _rows(url: str) -> bytes:
    """Every row as text: the files hold large columns compressed."""
    with psycopg.connect(plain(url)) as connection:
        return repr(
            [connection.execute(f"SELECT t::text FROM {name} t").fetchall() for name in metadata.tables]
        ).encode()


def _end(stack: LocalStack) -> None:
    for program in stack.programs.values():
        program.signal("TERM")
    for program in stack.programs.values():
        is_over = partial(lambda child: not child.alive, program)
        wait_until(is_over, deadline_seconds=60, what="the end of the processes")


def test_nothing_that_is_written_anywhere_holds_a_value(
    stack: LocalStack,
    temporary: Path,
    tmp_path: Path,
    platform: Platform,
    notices: Receiver,
    made_by_aws: Callable[[], list[Sentinel]],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """After created, rotated, injected, streamed, broken off, refused, swept, moved, proved, retried, given up, crashed
    and expired, over HTTP and without: no form of any value, data key, canary, STS credential, token or key of ours in
    the databases' files, both Redis, rows, logs, spans, metrics, answers, documents, notices or temp files."""
    caplog.set_level(logging.DEBUG)
    stack.run("web", "worker", "sweeper", "scheduler")
    before = digests(temporary)
    with Driver(stack.environment) as driver:
        story = Story(stack, driver, platform, tmp_path)
        story.tell()
        wait_until(lambda: notices.requests, what="a notice")
    _end(stack)
    programs = {name: program.output for name, program in stack.programs.items()}
    said = {"driver": driver.said.decode(), **programs}
    stack.postgres.checkpoint()

    search = Search(
        [*story.sentinels.values(), story.rotated, *story.http.sentinels, *made_by_aws(), *_ours(stack.environment)]
    )
    found = search.files(temporary, before)  # both servers' directories, WAL and AOF included, and temp files
    for where, data in {
        "logs and spans": "\n".join([*said.values(), *story.said, *story.http.said]).encode(),
        "answers": b"\n".join([*story.answers, *story.http.answers]),
        "notices": repr(notices.requests).encode(),
        "the queue": keys_of(stack.queue.url),
        "the claims": story.claims + keys_of(stack.claims.url),
        "rows": _rows(stack.postgres.url),
        "the servers' output": f"{stack.postgres.output}{stack.queue.output}{stack.claims.output}".encode(),
        "this process's log": caplog.text.encode(),
        "this process's output": "".join(capfd.readouterr()).encode(),
    }.items():
        found += search(where, data)

    assert found == []
    assert list(stack.claims.directory.iterdir()) == []
    _something_was_searched(said, temporary, stack)
    assert story.claims


def _something_was_searched(said: dict[str, str], temporary: Path, stack: LocalStack) -> None:
    """A search of nothing finds nothing: logs were at DEBUG, spans came, the files are those of the run."""
    for text in said.values():
        assert "speaks at DEBUG" in text
        assert '"trace_id": "0x' in text
    assert "[botocore speaks at DEBUG]" in said["driver"]
    assert "[botocore speaks at DEBUG]" in said["web"]
    assert "[asyncio speaks at DEBUG]" in said["web"]
    assert '"name": "kms.Decrypt"' in said["driver"]
    assert '"name": "http.request"' in said["web"]
    assert '"name": "custody"' in said["worker"]
    assert stack.postgres.data_directory.is_relative_to(temporary)
    assert list(stack.queue.directory.rglob("*.aof"))


def test_the_search_finds_every_form(tmp_path: Path) -> None:
    """Each form of each kind of sentinel is found in a file, in the middle of noise, and named; else the test above
    could not fail."""
    sentinels = [text_sentinel("text"), byte_sentinel("bytes"), known("a key", b"\xfb\xff\xbf" + os.urandom(29))]
    for sentinel in sentinels:
        for number, form in enumerate(form for piece in sentinel.pieces for form in forms(piece)):
            (tmp_path / f"{sentinel.name} {number}").write_bytes(os.urandom(9_000) + form + bytes(100) + b"more")
    planted = len(list(tmp_path.iterdir()))

    search = Search(sentinels)
    hits = {line.rsplit(", in ", 1)[1] for line in search.files(tmp_path, {})}

    assert len(hits) == planted > 60


@pytest.mark.parametrize("shift", range(3))
def test_the_search_finds_base64_at_every_alignment(shift: int) -> None:
    """A value in the middle of a longer text that was encoded as a whole is found at each of the three alignments."""
    sentinel = text_sentinel("text")
    data = base64.b64encode(b"x" * shift + sentinel.value + b"more")

    assert Search([sentinel])("here", data)


def test_the_search_passes_over_what_was_there_before(tmp_path: Path) -> None:
    """A file is passed over only while it is byte for byte what it was."""
    sentinel = text_sentinel("text")
    path = tmp_path / "file"
    path.write_bytes(b"before")
    before = digests(tmp_path)
    path.write_bytes(b"before" + sentinel.value)

    assert Search([sentinel]).files(tmp_path, before)


def test_dead_letters_are_kept_no_longer_than_days() -> None:
    """A message that was given up holds an id, and even that goes after three days."""
    assert DEAD_MESSAGE_TTL_MS <= 3 * 86_400_000


def test_a_process_of_ours_leaves_no_core_file() -> None:
    """Once a process is set up, its limit for core files is 0, and cannot be raised again by itself."""
    script = """
import os, resource
from broker_core.observability import start_process
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
start_process("a-process", os.environ)
print(*resource.getrlimit(resource.RLIMIT_CORE))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )

    assert done.stdout.split() == ["0", "0"]
