"""Settings that cannot work stop the process, or the call, with words that say what to do."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator

import dramatiq.cli
import pytest
import redis
from click.testing import CliRunner

from broker_core.cli import main
from broker_core.dev.aws import AwsDouble
from broker_core.dev.upstream import SampleUpstream
from broker_core.dev.valkey import Valkey
from broker_core.errors import Invalid
from broker_core.model import EventState
from broker_core.queues import CUSTODY
from tests.live import Live, live_app
from workers.start import worker_environment

GOOD_ROLE = "arn:aws:iam::222222222222:role/axiorank-byok"
EXTERNAL_ID = "an-external-id-of-theirs"
KEY_ID = "00000000-0000-4000-8000-000000000000"
KEY_ARN = f"arn:aws:kms:eu-west-1:222222222222:key/{KEY_ID}"
ALIAS = "arn:aws:kms:eu-west-1:222222222222:alias/ours"


Ended = subprocess.CompletedProcess[str]


def broker(environment: dict[str, str], *arguments: str) -> Ended:
    """Run the command with these settings and no others."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    line = [sys.executable, "-P", "-m", "broker_core.cli", *arguments]
    return subprocess.run(line, env={**kept, **environment}, capture_output=True, text=True, timeout=60, cwd="/")


def here(environment: dict[str, str], *arguments: str) -> Ended:
    """The same in this process, which it must not become."""
    others = dict.fromkeys(name for name in os.environ if name.startswith(("BROKER_", "AWS_", "OTEL_")))
    others |= dict.fromkeys(worker_environment([CUSTODY], 1))  # what a worker sets is gone again afterwards
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dramatiq.cli, "main", lambda *_: pytest.fail("it starts"))
        patch.setattr(gc, "freeze", lambda: None)
        result = CliRunner().invoke(main, arguments, env={**others, **environment}, catch_exceptions=False)
    return Ended(arguments, result.exit_code, result.stdout, result.stderr)


def assert_refused(ended: Ended, *words: str) -> None:
    """It ended with the exit code of a wrong setting, said these words, and showed no traceback."""
    assert ended.returncode == 78, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    for word in words:
        assert word in ended.stderr


#: settings that would work, with servers that nobody asks before the settings are good
ENVIRONMENT = {
    "BROKER_DATABASE_URL": "postgresql://broker@127.0.0.1:1/broker",
    "BROKER_REDIS_URL": "redis://127.0.0.1:1/0",
    "BROKER_CLAIM_REDIS_URL": "redis://127.0.0.1:2/0",
    "BROKER_PLATFORM_KEYS": "k1:cHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHA=",
}
WRONG = [
    (
        "missing URLs",
        {"BROKER_DATABASE_URL": "", "BROKER_CLAIM_REDIS_URL": ""},
        ("BROKER_DATABASE_URL is required: set it", "BROKER_CLAIM_REDIS_URL is required: set it"),
    ),
    (
        "AWS that is not AWS's own",
        {"AWS_ENDPOINT_URL": "https://kms.amazonaws.com.example.net"},
        ("AWS_ENDPOINT_URL must be https:// on AWS's own suffix", "remove it"),
    ),
    (
        "platform key of 31 bytes",
        {"BROKER_PLATFORM_KEYS": "k1:c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMx"},
        ("BROKER_PLATFORM_KEYS must be kid:base64(32 random bytes)", "openssl rand -base64 32"),
    ),
    (
        "an exporter that is not built in",
        {"OTEL_TRACES_EXPORTER": "jaeger"},
        ("OTEL_TRACES_EXPORTER must be none, console or otlp",),
    ),
    (
        "platform key by alias",
        {"BROKER_PLATFORM_KEYS": "", "BROKER_PLATFORM_KMS_KEY": "arn:aws:kms:eu-west-1:111111111111:alias/ours"},
        ("BROKER_PLATFORM_KMS_KEY is an alias", "give the key's own ARN"),
    ),
]


class TestStartUp:
    @pytest.mark.parametrize(("case", "change", "words"), WRONG, ids=[case for case, _, _ in WRONG])
    def test_wrong_setting(self, case: str, change: dict[str, str], words: tuple[str, ...]) -> None:
        """The worker does not start: exit code 78, the variable's name and what to do, and never its value."""
        ended = here(ENVIRONMENT | change, "worker")
        assert_refused(ended, *words)
        for value in change.values():
            assert not value or value not in ended.stderr

    @pytest.mark.parametrize("command", ["worker", "scheduler", "migrate"])
    def test_every_process(self, command: str) -> None:
        """Each process of the Procfile ends so, as a process."""
        assert_refused(broker(ENVIRONMENT | {"BROKER_PLATFORM_KEYS": "none"}, command), "BROKER_PLATFORM_KEYS must be")


@pytest.fixture
def other_server() -> Iterator[Valkey]:
    """A Redis of this test's own, which writes to disk."""
    with Valkey.start(persistent=True) as server:
        yield server


class TestClaimRedis:
    @pytest.mark.parametrize(
        ("appendonly", "save", "says"), [("yes", "", "set `appendonly no`"), ("no", "3600 1", 'set `save ""`')]
    )
    def test_writes_to_disk(
        self, environment: dict[str, str], other_server: Valkey, appendonly: str, save: str, says: str
    ) -> None:
        """A claim Redis with an append-only file, or one that takes snapshots, stops the worker before it starts."""
        with redis.Redis.from_url(other_server.url) as client:
            client.config_set("appendonly", appendonly)
            client.config_set("save", save)
        ended = here(environment | {"BROKER_CLAIM_REDIS_URL": other_server.url}, "worker")
        assert_refused(ended, "BROKER_CLAIM_REDIS_URL: the server could keep values", says)

    def test_away(self, environment: dict[str, str]) -> None:
        """A claim Redis that does not answer is not taken for a good one: exit code 69, try again."""
        ended = here(environment | {"BROKER_CLAIM_REDIS_URL": "redis://127.0.0.1:1/0"}, "worker")
        assert (ended.returncode, "claim store is away" in ended.stderr) == (69, True)

    def test_nothing_on_disk(self, environment: dict[str, str], aws: AwsDouble, upstream: SampleUpstream) -> None:
        """The claims' directory is empty through a whole run (accepted, held, stored, rotated, expired) and after the
        server's orderly end."""
        with Valkey.start(persistent=False) as claims:
            seen = []

            def look() -> None:
                seen.append(list(claims.directory.iterdir()))

            with live_app({**environment, "BROKER_CLAIM_REDIS_URL": claims.url}, aws, upstream) as live:
                customer = live.customer()
                live.connect(customer)
                live.publish()
                look()
                live.work()
                customer.disable_key()
                live.publish(kind="secret.rotated", version=2, bare=True)
                assert live.work() == [EventState.REFUSED]
                look()
                customer.enable_key()
                live.store(kind="secret.rotated", version=3, bare=True)
                live.send()
                look()
                live.publish("left-behind")
                claims.restart()
                look()
            assert seen == [[], [], [], []]


REFUSED_CALLS = [
    ("alias", ALIAS, GOOD_ROLE, EXTERNAL_ID, "keyArn", "an alias is refused; give the key's own ARN"),
    ("bare key id", KEY_ID, GOOD_ROLE, EXTERNAL_ID, "keyArn", "give the key's own ARN"),
    (
        "role of another partition",
        KEY_ARN,
        GOOD_ROLE.replace("aws:iam", "aws-cn:iam"),
        EXTERNAL_ID,
        "roleArn",
        "is in partition",
    ),
    ("role of another account", KEY_ARN, GOOD_ROLE.replace("2", "3"), EXTERNAL_ID, "roleArn", "in the key's account"),
    (
        "user instead of a role",
        KEY_ARN,
        GOOD_ROLE.replace("role/", "user/"),
        EXTERNAL_ID,
        "roleArn",
        "give arn:aws:iam::",
    ),
    ("external id of 15 characters", KEY_ARN, GOOD_ROLE, "fifteen-letters", "externalId", "16 to 1224"),
]


class TestConnecting:
    @pytest.mark.parametrize(
        ("case", "key_arn", "role_arn", "external_id", "field", "says"),
        REFUSED_CALLS,
        ids=[row[0] for row in REFUSED_CALLS],
    )
    def test_refused(
        self, live: Live, case: str, key_arn: str, role_arn: str, external_id: str, field: str, says: str
    ) -> None:
        """What cannot belong together is refused by name, with what to give instead; AWS is not asked, and nothing is
        kept."""
        before = live.aws.trail.count("sts:AssumeRole")
        with pytest.raises(Invalid) as refused:
            live.app.byok.connect(live.workspace, role_arn, external_id, key_arn)
        assert list(refused.value.fields) == [field]
        assert says in refused.value.fields[field]
        assert live.aws.trail.count("sts:AssumeRole") == before
        assert live.app.store.setting(live.workspace).connection is None

    def test_wrong_external_id(self, live: Live) -> None:
        """Where the role refuses us nothing is enabled, and the owner reads what to change."""
        customer = live.customer()
        customer.change_external_id("another-external-id")
        customer.external_id = "not-the-one-they-set"
        found = live.app.byok.connect(live.workspace, customer.role_arn, customer.external_id, customer.key_arn)
        (failed,) = found.failed()
        assert (failed.name, failed.aws_code) == ("role_accepts_external_id", "AccessDenied")
        assert "trust policy" in failed.what_to_do
        assert live.app.store.setting(live.workspace).connection is None
