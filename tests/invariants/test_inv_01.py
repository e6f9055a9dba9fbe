"""INV-1: no value, data key or STS credential in a queue message, log, span, metric, row, error text, core file or temp
file.

Values that cannot be mistaken go through the whole life of a secret, on servers of this test's own, in processes of
ours with every logger at DEBUG and spans exported. Then everything that any of them wrote is read.
"""

from __future__ import annotations

import base64
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis

from broker_core.adapters.queue import DEAD_MESSAGE_TTL_MS, NAMESPACE
from broker_core.dev import children
from broker_core.dev.aws import AwsDouble, CustomerAccount, Fault, fresh_account_id
from broker_core.dev.postgres import Postgres
from broker_core.dev.stack import LocalStack
from broker_core.dev.upstream import SampleUpstream
from broker_core.dev.valkey import Valkey
from migrations import runner
from tests.databases import plain
from tests.driver import EVERY_LOGGER, ROOT, Driver
from tests.live import AGENT, OUR_ACCOUNT, settings_for
from tests.sentinel import Search, Sentinel, byte_sentinel, digests, forms, keys_of, known, text_sentinel
from tests.waiting import wait_until

LOUD = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{EVERY_LOGGER}",
    "OTEL_TRACES_EXPORTER": "console",
    "OTEL_BSP_SCHEDULE_DELAY": "100",
    "BROKER_PROBE_SECONDS": "1",
    "BROKER_PROBE_UNHEALTHY_SECONDS": "1",
    "BROKER_CHECK_ROUND_SECONDS": "1",
    "BROKER_CHECK_RPS": "100",
}
#: what each value is, and where it goes: kind and bindingKey
VALUES: dict[str, tuple[Callable[[str], Sentinel], str, str | None]] = {
    "platform": (text_sentinel, "bearer", None),
    "bearer": (text_sentinel, "bearer", None),
    "query": (byte_sentinel, "query", "api_key"),
    "stdio": (text_sentinel, "stdio_env", "TOKEN"),
    "envelope": (lambda name: text_sentinel(name, pieces=160), "http_header", "X-Large"),
    "throttled": (text_sentinel, "bearer", None),
    "dead": (text_sentinel, "bearer", None),
    "crashed": (text_sentinel, "bearer", None),
    "refused": (text_sentinel, "bearer", None),
    "expired": (text_sentinel, "bearer", None),
}


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temp directory for every process of this test, which all may pass (PostgreSQL runs as another user)."""
    with tempfile.TemporaryDirectory(prefix="broker-inv01-") as made:
        directory = Path(made).resolve()
        directory.chmod(0o755)
        monkeypatch.setenv("TMPDIR", str(directory))
        monkeypatch.setattr(tempfile, "tempdir", str(directory))
        yield directory


@pytest.fixture
def stack(
    temporary: Path, aws: AwsDouble, upstream: SampleUpstream, monkeypatch: pytest.MonkeyPatch
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
        environment = settings_for(postgres.url, queue.url, claims.url, aws, upstream) | LOUD
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


class Story:
    """The whole life of a secret, told by one process of ours that publishes and injects, and by the workers."""

    def __init__(self, stack: LocalStack, driver: Driver) -> None:
        self.stack = stack
        self.driver = driver
        self.workspace = f"ws_{uuid4().hex}"
        self.customer = CustomerAccount(stack.aws.account(fresh_account_id()), OUR_ACCOUNT, f"external-{uuid4().hex}")
        self.sentinels = {name: make(name) for name, (make, _, _) in VALUES.items()}
        self.rotated = text_sentinel("bearer, rotated")
        self.answers: list[bytes] = []
        self.said: list[str] = []

    def tell(self) -> None:
        """Every step waits until it has happened, so that a search of what it left is a search of something."""
        self.driver("workspace", workspace=self.workspace)
        self.stored("platform")
        customer = self.customer
        keys = {"role": customer.role_arn, "external_id": customer.external_id, "key": customer.key_arn}
        assert "id" in self.driver("connect", workspace=self.workspace, **keys)
        self.crash_a_worker()
        dead = self.made_dead()
        for name in ("bearer", "query", "stdio", "envelope", "throttled"):
            self.stored(name)
        self.injected()
        self.refusals()
        self.rotated_and_swept()
        self.customer_refuses()
        self.expired()
        wait_until(lambda: self.dead_letters(), what="the dead letter")
        assert self.state(dead) == "accepted"

    def publish(self, name: str, value: bytes | None = None, version: int = 1) -> str:
        """Accept one event; its id."""
        _, kind, key = VALUES[name]
        target = {} if kind == "stdio_env" else {"targetHost": f"localhost:{self.stack.upstream.port}"}
        binding = {"bindingKey": key} if key else {}
        answer = self.driver(
            "publish",
            document={
                "specversion": "1.0",
                "id": uuid4().hex,
                "source": "tests",
                "type": "secret.created" if version == 1 else "secret.rotated",
                "subject": name,
                "data": {
                    "workspaceId": self.workspace,
                    "version": version,
                    "valueBase64": base64.b64encode(value or self.sentinels[name].value).decode(),
                    "injectionKind": kind,
                    "agentId": AGENT,
                    **target,
                    **binding,
                },
            },
        )
        return str(answer["id"])

    def state(self, event: str) -> str:
        return str(self.driver("event", workspace=self.workspace, event=event)["state"])

    def stored(self, name: str, value: bytes | None = None, version: int = 1) -> None:
        event = self.publish(name, value, version)
        wait_until(lambda: self.state(event) == "stored", every_seconds=0.05, what=f"{name} is stored")

    def send(self, name: str, path: str = "/echo", body: bytes = b"", port: int | None = None) -> dict[str, Any]:
        answer = self.driver(
            "send",
            call={
                "workspace_id": self.workspace,
                "agent_id": AGENT,
                "mcp_server_id": None,
                "method": "POST",
                "url": f"https://localhost:{port or self.stack.upstream.port}{path}",
                "body": base64.b64encode(body).decode(),
                "secret": name,
            },
        )
        self.answers += [base64.b64decode(answer.get("body", "")), repr(answer).encode()]
        return answer

    def crash_a_worker(self) -> None:
        """kill -9 while it waits for KMS with the value in its hands; the event is stored by the next worker."""
        hanging = self.stack.aws.faults.add(Fault("kms:Encrypt", context=("axiorank:secret", "crashed"), hang=True))
        event = self.publish("crashed")
        audit = wait_until(lambda: self.sql("SELECT id FROM audit_log WHERE event_id = %s", event))[0][0]
        name = f"axiorank-encrypt-{audit}"
        wait_until(lambda: any(call.session_name == name for call in self.stack.aws.trail.of("sts:AssumeRole")))
        worker = self.stack.programs["worker"]
        for process in _children_of(worker.pid):
            os.kill(process, signal.SIGKILL)
        self.stack.aws.faults.remove(hanging)
        self.stack.run("worker")
        wait_until(lambda: not worker.alive, what="the end of the worker's master")
        self.said.append(worker.output)
        self.sql("UPDATE secret_events SET ring_at = now() WHERE id = %s RETURNING id", event)
        self.driver("reconcile")
        wait_until(lambda: self.state(event) == "stored", every_seconds=0.05, what="what the crash left is stored")

    def made_dead(self) -> str:
        """One event that is tried until its message is given up, and one that is throttled three times."""
        aws = self.stack.aws
        aws.faults.add(Fault("kms:Encrypt", context=("axiorank:secret", "dead"), error="ThrottlingException"))
        aws.faults.add(
            Fault("kms:Encrypt", context=("axiorank:secret", "throttled"), error="KMSInternalException", count=4)
        )
        return self.publish("dead")

    def dead_letters(self) -> int:
        client = redis.Redis.from_url(self.stack.queue.url)
        try:
            return int(client.zcard(f"{NAMESPACE}:custody.XQ"))
        finally:
            client.close()

    def injected(self) -> None:
        """Each kind is used, and the upstream echoes it in every part of its answer."""
        for name in ("platform", "bearer", "query", "envelope", "crashed"):
            assert self.send(name)["status"] == 200, name
        given = self.driver("environment", workspace=self.workspace, agent=AGENT)
        assert given == {"variables": {"TOKEN": self.sentinels["stdio"].value.decode()}}

    def refusals(self) -> None:
        """Refused before and after the key is asked, and failures after the value was sent."""
        assert self.send("bearer", port=1)["error"] == "host_mismatch"
        assert self.send("bearer", body=self.sentinels["bearer"].value)["error"] == "handle_misplaced"
        assert self.send("query", "/reset")["error"] == "upstream_unreachable"
        assert self.send("bearer", "/gzip")["status"] == 200

    def rotated_and_swept(self) -> None:
        """A rotation, then a probe and a check of it by the sweeper."""
        self.stored("bearer", self.rotated.value, version=2)
        self.sql("UPDATE byok_connections SET next_probe_at = now() RETURNING id")  # else a minute after connecting
        wait_until(
            lambda: (
                self.sql("SELECT id FROM audit_log WHERE purpose = 'probe' AND outcome = 'ok'")
                and self.sql("SELECT id FROM audit_log WHERE purpose = 'check' AND outcome = 'ok'")
            ),
            every_seconds=0.1,
            what="a probe and a check",
        )

    def customer_refuses(self) -> None:
        """A check of one secret is refused, then the customer takes the role out of the key policy: a use and a new
        value are refused. In this order, since a failing probe makes a connection's checks wait."""
        refusing = self.stack.aws.faults.add(
            Fault("kms:Decrypt", context=("axiorank:secret", "bearer"), error="AccessDeniedException")
        )
        assert self.send("bearer")["error"] == "access_denied"
        # due again at each look, else in a minute: a check that was under way may write its time after ours
        due = "UPDATE broker_secrets SET checked_at = NULL WHERE name = 'bearer' RETURNING id"
        refused = "SELECT id FROM audit_log WHERE purpose = 'check' AND outcome = 'refused'"
        wait_until(lambda: self.sql(due) and self.sql(refused), every_seconds=0.1, what="a check that is refused")
        self.stack.aws.faults.remove(refusing)
        self.customer.remove_role_from_key_policy()
        assert self.send("bearer")["error"] == "access_denied"
        event = self.publish("refused")
        wait_until(lambda: self.state(event) == "refused", every_seconds=0.05, what="the refusal of a new value")

    def expired(self) -> None:
        """The claims' server forgets everything: what was on its way is lost, and says so."""
        self.stack.claims.restart()
        event = self.publish("expired")
        self.sql("UPDATE secret_events SET claim_expires_at = now() WHERE id = %s RETURNING id", event)
        self.driver("reconcile")
        assert self.state(event) == "expired"

    def sql(self, statement: str, *values: object) -> list[Any]:
        with psycopg.connect(plain(self.stack.postgres.url), autocommit=True) as connection:
            return connection.execute(statement, values).fetchall()


def _children_of(pid: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True)
    return [int(line) for line in listed.stdout.split()]


def test_nothing_that_is_written_anywhere_holds_a_value(
    stack: LocalStack,
    temporary: Path,
    made_by_aws: Callable[[], list[Sentinel]],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """After created, rotated, injected, refused, swept, retried, given up, crashed and expired: no form of any value,
    data key, canary or STS credential in the database's files, the queue's, logs, spans, answers or temp files."""
    caplog.set_level(logging.DEBUG)
    stack.run("worker", "sweeper", "scheduler")
    before = digests(temporary)
    with Driver(stack.environment) as driver:
        story = Story(stack, driver)
        story.tell()
    for program in stack.programs.values():
        program.signal("TERM")
    for program in stack.programs.values():
        wait_until(lambda program=program: not program.alive, what="the end of the processes")  # type: ignore[misc]  # bound now
    said = [driver.said.decode(), *story.said, *(program.output for program in stack.programs.values())]
    stack.postgres.checkpoint()

    ours = [
        known("our own AWS secret", stack.environment["AWS_SECRET_ACCESS_KEY"].encode()),
        known("the platform key", base64.b64decode(stack.environment["BROKER_PLATFORM_KEYS"].partition(":")[2])),
    ]
    search = Search([*story.sentinels.values(), story.rotated, *made_by_aws(), *ours])
    found = search.files(temporary, before)  # both servers' directories, WAL and AOF included, and temp files
    for where, data in {
        "logs and spans": "\n".join(said).encode(),
        "answers": b"\n".join(story.answers),
        "the queue": keys_of(stack.queue.url),
        "the servers' output": f"{stack.postgres.output}{stack.queue.output}{stack.claims.output}".encode(),
        "this process's log": caplog.text.encode(),
        "this process's output": "".join(capfd.readouterr()).encode(),
    }.items():
        found += search(where, data)

    assert found == []
    assert list(stack.claims.directory.iterdir()) == []
    _something_was_searched(said, temporary, stack)


def _something_was_searched(said: list[str], temporary: Path, stack: LocalStack) -> None:
    """A search of nothing finds nothing: logs were at DEBUG, spans came, the files are those of the run."""
    for text in said[:2] + said[3:]:
        assert "speaks at DEBUG" in text
        assert '"trace_id": "0x' in text
    assert "[botocore speaks at DEBUG]" in said[0]
    assert '"name": "kms.Decrypt"' in said[0]
    assert '"name": "custody"' in "".join(said)
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
from broker_core.bootstrap import start_process
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
