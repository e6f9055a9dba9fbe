"""What the benchmarks stand on: servers in another process, the bare baseline, and how two things are compared.

The baseline is named **bare**: the two AWS calls that the job cannot do without, made as fast as boto3 can make them
(one shared STS and one shared KMS client, the assumed credentials swapped in per call), and nothing else: no database,
no audit, no policy, no redaction. Both sides run in this process, against the same servers, turn by turn, so that
drift and noise of the machine hit both. What is reported is the ratio of the medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.credentials import Credentials

from broker_core.bootstrap import App, build_app
from broker_core.dev.wiring import clients_for
from broker_core.observability import configure_logging
from broker_core.settings import Settings

WORKSPACE, AGENT = "ws_bench", "agent-1"
CONTEXT = {"axiorank:workspace": WORKSPACE, "axiorank:secret": "bare", "axiorank:version": "1"}


@dataclass(frozen=True)
class Ground:
    """The servers' facts and an App on them, connected to the customer's key."""

    facts: dict[str, Any]
    app: App
    waits: list[str]


@contextmanager
def ground(**ports: Any) -> Iterator[Ground]:
    """Start the servers and an App; ``ports`` replace parts of it."""
    configure_logging(sys.stderr, "ERROR")
    servers = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.servers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert servers.stdin
    assert servers.stdout
    try:
        facts = json.loads(servers.stdout.readline())
        waits: list[str] = []
        app = build_app(
            Settings.from_environment(facts["environment"]),
            clients=clients_for(facts["environment"]),
            on_wait=waits.append,
            **ports,
        )
        try:
            app.store.put_workspace(WORKSPACE, "enterprise")
            found = app.byok.connect(WORKSPACE, facts["roleArn"], facts["externalId"], facts["keyArn"])
            assert found.is_current, found.failed()
            yield Ground(facts, app, waits)
        finally:
            app.close()
    finally:
        servers.stdin.close()
        servers.wait(30)


class Bare:
    """The baseline: AssumeRole, then one KMS call with the credentials that came back."""

    def __init__(self, facts: dict[str, Any]) -> None:
        environment = facts["environment"]
        self._facts = facts
        self._credentials: ContextVar[Credentials] = ContextVar("bare")
        options: dict[str, Any] = {
            "region_name": facts["keyArn"].split(":")[3],
            "endpoint_url": environment["AWS_ENDPOINT_URL"],
            "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
            "config": Config(retries={"total_max_attempts": 1}, max_pool_connections=32),
        }
        self._sts = boto3.client("sts", **options)
        self._kms = boto3.client("kms", **options)
        self._kms.meta.events.register("before-sign.kms", self._swap)
        self.blob = self.encrypt(b"b" * 40)

    def _swap(self, request: Any, **_: Any) -> None:
        request.context.setdefault("signing", {})["request_credentials"] = self._credentials.get()

    def _assume(self) -> None:
        answer = self._sts.assume_role(
            RoleArn=self._facts["roleArn"],
            RoleSessionName="bare",
            ExternalId=self._facts["externalId"],
            DurationSeconds=900,
        )["Credentials"]
        self._credentials.set(Credentials(answer["AccessKeyId"], answer["SecretAccessKey"], answer["SessionToken"]))

    def encrypt(self, value: bytes) -> bytes:
        """AssumeRole and Encrypt."""
        self._assume()
        answer = self._kms.encrypt(KeyId=self._facts["keyArn"], Plaintext=value, EncryptionContext=CONTEXT)
        blob: bytes = answer["CiphertextBlob"]
        return blob

    def decrypt(self) -> bytes:
        """AssumeRole and Decrypt."""
        self._assume()
        answer = self._kms.decrypt(KeyId=self._facts["keyArn"], CiphertextBlob=self.blob, EncryptionContext=CONTEXT)
        value: bytes = answer["Plaintext"]
        return value


def compare(name: str, sides: dict[str, Callable[[], object]], rounds: int, waits: list[str]) -> None:
    """Run each side once per round, turn by turn; print a table and a JSON line. The first side is the baseline."""
    for side in sides.values():
        for _ in range(20):  # warm: pools, prepared statements, caches of botocore
            side()
    waits.clear()
    times: dict[str, list[float]] = {label: [] for label in sides}
    for _ in range(rounds):
        for label, side in sides.items():
            began = time.perf_counter()
            side()
            times[label].append((time.perf_counter() - began) * 1000)
    _report(name, times, rounds, len(waits) / rounds)


def _report(name: str, times: dict[str, list[float]], rounds: int, waits: float) -> None:
    baseline, *_ = times
    p50 = {label: statistics.median(taken) for label, taken in times.items()}
    p95 = {label: statistics.quantiles(taken, n=20)[-1] for label, taken in times.items()}
    print(f"\n{name}, {rounds} rounds, one thread")
    print(f"{'':36s}{'p50 ms':>9s}{'p95 ms':>9s}{'ratio':>8s}")
    for label in times:
        print(f"{label:36s}{p50[label]:9.2f}{p95[label]:9.2f}{p50[label] / p50[baseline]:8.2f}")
    print(f"waits for PostgreSQL per round: {waits:.2f}")
    figures = {label: {"p50ms": round(p50[label], 3), "p95ms": round(p95[label], 3)} for label in times}
    ratios = {label: round(p50[label] / p50[baseline], 3) for label in times}
    print(
        json.dumps({"benchmark": name, "rounds": rounds, "sides": figures, "ratioToBaseline": ratios, "waits": waits})
    )
