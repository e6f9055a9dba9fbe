"""docker-compose.yml and the Dockerfile: valid, pinned, no default passwords, in line with the rules of the settings.

There is no container engine where this runs, so the servers' own arguments are tried on the embedded servers.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from ruamel.yaml import YAML

from broker_core import settings_checks
from broker_core.dev import valkey
from broker_core.dev.valkey import Valkey
from broker_core.settings import WEB, Settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
PROCESSES = ["release", "web", "worker", "sweeper", "scheduler"]


@pytest.fixture(scope="module")
def compose() -> Any:
    """The file, anchors and merges resolved."""
    return YAML(typ="safe", pure=True).load(COMPOSE)


def _walk(node: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(node, dict):
        return [leaf for key, value in node.items() for leaf in _walk(value, f"{path}.{key}")]
    if isinstance(node, list):
        return [leaf for value in node for leaf in _walk(value, path)]
    return [(path, str(node))]


def _command(service: Any) -> list[str]:
    command = service["command"]
    return shlex.split(command) if isinstance(command, str) else [str(word) for word in command]


def _option(words: list[str], name: str) -> str:
    return words[words.index(f"--{name}") + 1]


def test_it_is_a_valid_compose_file() -> None:
    """The published schema of compose files accepts it."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_image_is_pinned(compose: Any) -> None:
    """Every image names a full version: no ``latest``, no moving tag."""
    images = [service["image"] for service in compose["services"].values()]
    images += re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert [image for image in images if not re.search(r":\d+\.\d+(\.\d+)?(-[a-z-]+)?$", image)] == []


def test_no_variable_has_a_default(compose: Any) -> None:
    """Nothing that an operator must choose has a default: ``${NAME:-…}`` and ``${NAME-…}`` do not occur."""
    assert [leaf for leaf in _walk(compose) if re.search(r"\$\{\w+:?-", leaf[1])] == []


def test_no_secret_stands_in_the_file(compose: Any) -> None:
    """What is secret comes from a file: the environment holds no password, key or URL itself."""
    environment = [
        (name, value)
        for service in compose["services"].values()
        for name, value in service.get("environment", {}).items()
        if re.search(r"PASSWORD|SECRET|KEY|URL|TOKEN", name)
    ]
    assert environment != []
    assert [
        name for name, value in environment if not (name.endswith("_FILE") and value.startswith("/run/secrets/"))
    ] == []


def test_every_secret_that_is_named_exists(compose: Any) -> None:
    """Each path below /run/secrets is one that the same service mounts."""
    for name, service in compose["services"].items():
        paths = {found for _, text in _walk(service) for found in re.findall(r"/run/secrets/(\w+)", text)}
        assert paths <= set(service.get("secrets", [])), name
        assert set(service.get("secrets", [])) <= set(compose["secrets"]), name


@pytest.mark.parametrize("name", ["postgres", "queue", "claims"])
def test_every_store_has_a_health_check(compose: Any, name: str) -> None:
    """PostgreSQL and both Valkeys say when they are ready."""
    assert compose["services"][name]["healthcheck"]["test"]


@pytest.mark.parametrize("name", ["web", "worker", "sweeper", "scheduler"])
def test_a_process_waits_for_what_it_needs(compose: Any, name: str) -> None:
    """A process starts once the stores are healthy and the migrations are through."""
    conditions = {needed: rule["condition"] for needed, rule in compose["services"][name]["depends_on"].items()}
    assert conditions == {
        "release": "service_completed_successfully",
        "postgres": "service_healthy",
        "queue": "service_healthy",
        "claims": "service_healthy",
    }


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_is_the_procfiles(compose: Any, name: str) -> None:
    """A process runs what the Procfile runs under that name."""
    lines = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines() if ": " in line)
    assert ["broker", *_command(compose["services"][name])] == shlex.split(lines[name])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("web", {*WEB, "aws_account_id", "signing_key"}),
        ("worker", {"webhook_url", "webhook_secret"}),
        ("sweeper", {"signing_key"}),
    ],
)
def test_a_process_has_what_it_alone_needs(compose: Any, name: str, fields: set[str]) -> None:
    """Tokens for web, the signing key for who signs, the webhook for who sends; every variable is a setting."""
    variables = {str(each.metadata["variable"]): each.name for each in dataclasses.fields(Settings)}
    given = {each.removesuffix("_FILE") for each in compose["services"][name]["environment"]}
    assert given <= {*variables, "AWS_REGION"}
    assert fields <= {variables.get(each) for each in given}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_is_confined(compose: Any, name: str) -> None:
    """Read-only, without capabilities, without core files."""
    service = compose["services"][name]
    assert (service["read_only"], service["cap_drop"], service["ulimits"]["core"]) == (True, ["ALL"], 0)


def test_the_image_is_not_roots() -> None:
    """The image's last user is not root."""
    users = re.findall(r"^USER (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert users == ["10001:10001"]


@pytest.mark.parametrize(("scheme", "count"), [("postgresql", 1), ("rediss", 2)])
def test_the_urls_it_tells_to_write_are_accepted(scheme: str, count: int) -> None:
    """The URLs in its instructions pass the settings' own checks: TLS that looks at the certificate."""
    urls = re.findall(rf"^#.* ({scheme}\S*://\S+)$", COMPOSE.read_text(), re.MULTILINE)
    check = settings_checks.database_url if scheme == "postgresql" else settings_checks.redis_url
    assert [check(url) for url in urls] == urls
    assert len(urls) == count


@pytest.mark.parametrize("name", ["queue", "claims"])
def test_a_valkey_speaks_tls_only(compose: Any, name: str) -> None:
    """The plain port is off, and nobody gets in without a password."""
    words = _command(compose["services"][name])
    assert (_option(words, "port"), _option(words, "aclfile")) == ("0", f"/run/secrets/{name}_acl")


def test_postgres_takes_no_plain_connection(compose: Any) -> None:
    """By TCP only TLS with a password is let in."""
    lines = compose["configs"]["pg_hba"]["content"].split("\n")
    rules = {tuple(line.split()) for line in lines if line}
    assert rules == {("local", "all", "all", "scram-sha-256"), ("hostssl", "all", "all", "all", "scram-sha-256")}


def test_the_claims_have_no_disk(compose: Any) -> None:
    """The claims' file system is read-only, /data is memory, and memory is never swapped."""
    claims = compose["services"]["claims"]
    assert "volumes" not in claims
    assert claims["read_only"]
    assert [mount.split(":")[0] for mount in claims["tmpfs"]] == ["/data"]
    assert claims["mem_limit"] == claims["memswap_limit"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("queue", {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}),
        ("claims", {"appendonly": "no", "save": "", "maxmemory-policy": "noeviction"}),
    ],
)
def test_a_valkeys_arguments_do_what_they_say(
    compose: Any, name: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real server, started with the same arguments (less TLS and the ACL file), keeps what it should keep."""
    words = _command(compose["services"][name])[1:]
    away = {"--port", "--tls-port", "--tls-auth-clients", "--tls-cert-file", "--tls-key-file", "--aclfile"}
    away.add("--tls-ca-cert-file")
    kept = [word for at, word in enumerate(words) if word not in away and (at == 0 or words[at - 1] not in away)]
    arguments = Valkey._arguments

    def as_in_compose(server: Valkey, port: int) -> list[str]:
        own = arguments(server, port)
        here = [word for option in ("bind", "port", "dir") for word in (f"--{option}", _option(own, option))]
        return here + kept

    monkeypatch.setattr(valkey.Valkey, "_arguments", as_in_compose)
    with Valkey.start(persistent=name == "queue") as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get(*expected) == expected
