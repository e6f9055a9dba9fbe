"""INV-11: no switch turns encryption or any of the invariants off.

Every setting stands here with the reason why no value of it does; a new one fails this test until somebody has thought
about it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import pytest

import broker_core
from broker_core.cli import main
from broker_core.dev.aws import Fault
from broker_core.errors import BrokerError, ConfigurationError
from broker_core.model import Plan
from broker_core.settings import Settings
from tests.live import AGENT, Live
from tests.web import Web
from workers import main as workers_main

ROOT = Path(__file__).parent.parent.parent

#: variable → why no value that is accepted switches a protection off
HARMLESS = {
    "BROKER_DATABASE_URL": "where; TLS or a socket off loopback is checked",
    "BROKER_REDIS_URL": "where; TLS off loopback is checked, and a message holds an id only",
    "BROKER_CLAIM_REDIS_URL": "where; must keep nothing on disk, or nothing starts",
    "BROKER_PLATFORM_KEYS": "which key; exactly one of the two must be there",
    "BROKER_PLATFORM_KMS_KEY": "which key; exactly one of the two must be there",
    "BROKER_AWS_ACCOUNT_ID": "a name in policies",
    "BROKER_CONTROL_ROLE_ARN": "adds a doubt before a customer is blamed",
    "BROKER_AWS_PROXY": "a way to AWS; TLS goes through it to AWS",
    "AWS_ENDPOINT_URL": "AWS's own over https, or loopback",
    "AWS_ENDPOINT_URL_KMS": "AWS's own over https, or loopback",
    "AWS_ENDPOINT_URL_STS": "AWS's own over https, or loopback",
    "BROKER_TOKEN_JWKS": "whose tokens; web does not start without",
    "BROKER_TOKEN_ISSUER": "whose tokens; web does not start without",
    "BROKER_TOKEN_AUDIENCE": "whose tokens; web does not start without",
    "BROKER_SIGNING_KEY": "signs proofs; none are made without",
    "BROKER_WEBHOOK_URL": "https only, and always signed",
    "BROKER_WEBHOOK_SECRET": "webhooks are always signed",
    "BROKER_CLAIM_TTL_SECONDS": "a day at most; a claim is ciphertext in memory however long it lives",
    "BROKER_STS_REUSE_SECONDS": "a session's life at most; delays trust-policy removal alone, and says so",
    "BROKER_PROBE_SECONDS": "how often; never refuses or allows a use",
    "BROKER_PROBE_UNHEALTHY_SECONDS": "how often; never refuses or allows a use",
    "BROKER_CHECK_ROUND_SECONDS": "how often; never refuses or allows a use",
    "BROKER_CHECK_RPS": "how often; never refuses or allows a use",
    "BROKER_ANNOUNCE_AFTER_SECONDS": "when it is announced; acting on a denial does not wait for it",
    "BROKER_UPSTREAM_SECONDS": "a limit that is at least 1 and at most minutes",
    "BROKER_STREAM_SECONDS": "a limit that is at least 1 and at most a day",
    "BROKER_UPSTREAM_MAX_BYTES": "a limit that is at least 1 and at most a gigabyte",
    "BROKER_STREAM_PLACES": "a limit that is at least 2 and at most thousands",
    "BROKER_RATE_INJECT_PER_MINUTE": "a limit; no number of it means none",
    "BROKER_RATE_EVENTS_PER_MINUTE": "a limit; no number of it means none",
    "BROKER_RATE_OTHER_PER_MINUTE": "a limit; no number of it means none",
    "BROKER_RATE_BYTES_PER_MINUTE": "a limit; no number of it means none",
    "BROKER_EGRESS_ALLOW": "adds networks by name; metadata addresses are refused in any case",
    "BROKER_EGRESS_DENY": "takes away, and beats the allow list",
    "BROKER_EGRESS_CA_FILE": "adds authorities; certificates and names are always checked",
    "PORT": "where",
}
#: a setting with such a word in its name would be a switch, whatever it says it is for
SWITCH_WORDS = re.compile(r"DISABLE|ENABLE|SKIP|INSECURE|UNSAFE|VERIFY|DEBUG|NO_|ALLOW_|PLAINTEXT|BYPASS|FALLBACK|DEV")


def _variables() -> dict[str, Any]:
    return {str(each.metadata["variable"]): each for each in fields(Settings)}


def test_every_setting_is_known_not_to_be_a_switch() -> None:
    """The list above is the list of settings, and each has its reason."""
    assert set(_variables()) == set(HARMLESS)
    assert all(HARMLESS.values())


def test_no_setting_is_a_yes_or_no() -> None:
    """A boolean would be a switch; there is none."""
    kinds = get_type_hints(Settings)
    assert [name for name, kind in kinds.items() if kind is bool or bool in get_args(kind)] == []


def test_no_settings_name_sounds_like_a_switch() -> None:
    """Not by intent, and not by accident."""
    assert [name for name in _variables() if SWITCH_WORDS.search(name)] == []


@pytest.mark.parametrize(
    "name",
    "BROKER_ENCRYPTION BROKER_DISABLE_AUDIT BROKER_TLS_VERIFY BROKER_DEV BROKER_LOG_LEVEL BROKER_BYOK"
    " BROKER_CLAIM_REDIS BROKER_PLATFORM_FALLBACK".split(),
)
def test_a_variable_that_nobody_knows_stops_the_start(environment: dict[str, str], name: str) -> None:
    """A misspelt protection, or a switch that somebody hopes for, is refused, and the message names it."""
    with pytest.raises(ConfigurationError, match=f"{name} is no setting"):
        Settings.from_environment(environment | {name: "off"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BROKER_STS_REUSE_SECONDS", "901"),
        ("BROKER_CLAIM_TTL_SECONDS", "0"),
        ("BROKER_CLAIM_TTL_SECONDS", "86401"),
        ("BROKER_UPSTREAM_SECONDS", "0"),
        ("BROKER_UPSTREAM_MAX_BYTES", "0"),
        ("BROKER_PROBE_SECONDS", "0"),
        ("BROKER_CHECK_ROUND_SECONDS", "0"),
        ("BROKER_CHECK_RPS", "0"),
        ("BROKER_PLATFORM_KEYS", ""),
        ("BROKER_PLATFORM_KEYS", "none"),
        ("BROKER_DATABASE_URL", "postgresql://user@db.example.com/broker?sslmode=disable"),
        ("BROKER_REDIS_URL", "redis://queue.example.com:6379/0"),
        ("BROKER_CLAIM_REDIS_URL", "redis://claims.example.com:6379/0"),
        ("AWS_ENDPOINT_URL", "http://kms.example.com"),
        ("AWS_ENDPOINT_URL", "https://kms.example.com"),
        ("AWS_ENDPOINT_URL_KMS", "https://kms.eu-west-1.amazonaws.com.example.com"),
        ("BROKER_WEBHOOK_URL", "http://hooks.example.com"),
        ("BROKER_EGRESS_ALLOW", "everything"),
        ("BROKER_EGRESS_DENY", "https://example.com"),
    ],
)
def test_a_value_that_would_weaken_stops_the_start(environment: dict[str, str], name: str, value: str) -> None:
    """Zero, empty, endless or somewhere else: refused by name, and not quoted."""
    with pytest.raises(ConfigurationError, match="BROKER_PLATFORM" if "PLATFORM" in name else name) as refused:
        Settings.from_environment(environment | {name: value})

    assert len(value) < 5 or value not in str(refused.value)


def test_the_claims_may_not_live_where_the_queue_does(environment: dict[str, str]) -> None:
    """One server for both would write the second half to disk."""
    with pytest.raises(ConfigurationError, match="BROKER_CLAIM_REDIS_URL"):
        Settings.from_environment(environment | {"BROKER_CLAIM_REDIS_URL": environment["BROKER_REDIS_URL"]})


def test_a_claim_server_that_keeps_files_stops_the_start(environment: dict[str, str]) -> None:
    """The queue's server, under the claims' name: it persists, and so no process of ours starts with it."""
    from broker_core.bootstrap import build_app

    swapped = environment | {
        "BROKER_CLAIM_REDIS_URL": environment["BROKER_REDIS_URL"],
        "BROKER_REDIS_URL": environment["BROKER_CLAIM_REDIS_URL"],
    }
    with pytest.raises(ConfigurationError):
        build_app(Settings.from_environment(swapped))


@pytest.mark.parametrize("allowed", ["0.0.0.0/0,::/0", "169.254.0.0/16"])
def test_no_list_of_networks_opens_the_metadata_service(environment: dict[str, str], allowed: str) -> None:
    """Whatever is allowed, the address that hands out our own credentials is not reached."""
    import ipaddress

    from broker_core.adapters.egress import Egress

    networks = Settings.from_environment(environment | {"BROKER_EGRESS_ALLOW": allowed}).egress_allow
    egress = Egress([str(network) for network in networks])

    assert not egress.passes(ipaddress.ip_address("169.254.169.254"))


def test_the_settings_are_frozen() -> None:
    """What was checked at the start cannot be changed afterwards."""
    params: Any = Settings.__dataclass_params__  # type: ignore[attr-defined]  # dataclasses keep it there
    assert params.frozen


#: who reads the environment itself: the processes' set-up, which hands it to ``Settings``; and what of it beside that
READING = {
    "workers/main.py": set(),
    "workers/start.py": set(),
    "broker_core/api/server.py": {"THREADS_VARIABLE", "DIRECTORY"},  # how many, and for the next
    "broker_core/api/metrics.py": {"DIRECTORY"},  # where numbers lie
}


def test_only_the_settings_and_the_ways_in_read_the_environment() -> None:
    """A switch could hide in any ``os.environ``: outside of the command line and the local stack only the processes'
    set-up reads it, and hands it on as a whole, but for what is named."""
    package = Path(str(broker_core.__file__)).parent
    found: dict[str, set[str]] = {}
    for directory in (package, Path(str(workers_main.__file__)).parent):
        for path in directory.rglob("*.py"):
            if re.search(r"os\.environ|getenv", path.read_text()):
                named = re.findall(r"os\.environ(?:\.get\(|\[)(\w+)", path.read_text())
                found[path.relative_to(ROOT).as_posix()] = set(named)

    ways_in = {path for path in found if path.startswith(("broker_core/cli/", "broker_core/dev/"))}
    assert {path: named for path, named in found.items() if path not in ways_in} == READING


# ---------------------------------------------------------------- what a caller can say

DOCUMENT = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
_DRAWN = "only what the proposed documents say; what counts is what the customer applies, and the verification"
#: parameter of any operation → why no value of it switches a protection off
SAID = {
    "path id": "which",
    "query status": "which",
    "query cover": "which",
    "query cursor": "which",
    "query limit": "how many at once; 200 at most",
    "query from": "which",
    "query to": "which",
    "query format": "how it is written",
    "query externalId": _DRAWN,
    "query roleName": _DRAWN,
    "query keyArn": _DRAWN,
    "query accountId": _DRAWN,
    "query partition": _DRAWN,
    "query adminPrincipal": _DRAWN,
    "query strict": f"adds a condition; {_DRAWN}",
    "header Idempotency-Key": "makes a repeat harmless; a repeat stores nothing",
    "header Axiorank-Upstream-Url": "where; must be what the value is bound to",
    "header Axiorank-Agent-Id": "who; must be what the value is bound to",
    "header Axiorank-Mcp-Server-Id": "who; must be what the value is bound to",
    "header Axiorank-Secret": "which; among those that fit",
}
#: field of any request's body → the same
GIVEN = {
    "agentId": "who; must be what the value is bound to",
    "mcpServerId": "who; must be what the value is bound to",
    "secret": "a value, or the name of one among those that fit",
    "request": "what the upstream gets",
    "method": "what the upstream gets",
    "url": "where; must be what the value is bound to",
    "headers": "what the upstream gets, without ours",
    "body": "what the upstream gets",
    "bodyEncoding": "how the body is written",
    "name": "which",
    "injectionKind": "changes only together with a new value",
    "bindingKey": "changes only together with a new value",
    "targetHost": "changes only together with a new value",
    "rotationPolicy": "when a new value is due; refuses and allows nothing",
    "limit": "how many at once",
    "connectionId": "which, among one's own",
    "roleArn": "is shown to work before it counts",
    "externalId": "is shown to be asked for before it counts",
    "keyArn": "is shown to work before it counts",
    "plan": "of the platform alone; stops connecting, and never changes what encrypts",
}
#: yes-or-no option of any command → the same
FLAGS = {
    "--version": "what is printed",
    "migrate --down": "an operator's, who has the database; drops data, and decrypts none",
    "dead-letters --purge": "forgets messages, which hold ids",
    "affected --json": "how it is printed",
    "byok prove --resume": "goes on with a proof; each call of it is audited",
    "byok reconcile --all": "how much is printed",
    "byok setup --strict": "adds a condition to a document",
    "demo --json": "how it is printed",
    "event --new": "refuses more",
    "exec --no-masking": "of what the caller's own command prints, which has the values in any case",
}


def _parameters() -> Iterator[tuple[str, dict[str, Any]]]:
    for item in DOCUMENT["paths"].values():
        described = [each for each in item.values() if isinstance(each, dict)]
        for each in [*item.get("parameters", []), *(one for part in described for one in part.get("parameters", []))]:
            yield f"{each['in']} {each['name']}", each["schema"]


def _fields() -> Iterator[tuple[str, str]]:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        if name.endswith("Request"):
            for field, described in schema.get("properties", {}).items():
                yield field, json.dumps(described)


def test_every_parameter_is_known_not_to_be_a_switch() -> None:
    """Each path, query and header parameter of the document has its reason above."""
    assert {name for name, _ in _parameters()} == set(SAID)


def test_every_field_of_a_request_is_known_not_to_be_a_switch() -> None:
    """And so has each field of a body; none is a yes or no."""
    assert {name for name, _ in _fields()} == set(GIVEN)
    assert [name for name, described in _fields() if '"boolean"' in described] == []


def test_one_parameter_alone_is_a_yes_or_no() -> None:
    """And it adds a condition."""
    assert {name for name, schema in _parameters() if '"boolean"' in json.dumps(schema)} == {"query strict"}


def _flags(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    for option in command.params:
        if isinstance(option, click.Option) and option.is_flag:
            yield " ".join([*path, option.opts[0]])
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from _flags(each, (*path, name))


def test_every_flag_of_a_command_is_known_not_to_be_a_switch() -> None:
    """Each has its reason above."""
    assert set(_flags(main)) == set(FLAGS)


HOPEFUL = ("skipAudit", "verifyTls", "plaintext", "noRedaction", "followRedirects", "debug", "force", "dryRun")


@pytest.mark.parametrize("name", HOPEFUL)
def test_a_field_that_nobody_knows_is_refused(live: Live, web: Web, name: str) -> None:
    """A switch that somebody hopes for is 422 before anything is asked, in the request and beside it."""
    live.store()
    url = f"https://{live.target}/echo"
    bodies: list[dict[str, Any]] = [
        {"agentId": AGENT, "request": {"url": url}, name: True},
        {"agentId": AGENT, "request": {"url": url, name: True}},
    ]

    answers = [web.post("/inject", json=body, scope="broker:inject") for body in bodies]

    assert [answer.status_code for answer in answers] == [422, 422]
    assert live.upstream.requests == []


@pytest.mark.parametrize("name", HOPEFUL)
def test_a_parameter_that_nobody_knows_is_refused(live: Live, web: Web, name: str) -> None:
    """In the query too."""
    live.store()
    body = {"agentId": AGENT, "request": {"url": f"https://{live.target}/echo"}}

    assert web.post(f"/inject?{name}=1", json=body, scope="broker:inject").status_code == 422
    assert live.upstream.requests == []


@pytest.mark.parametrize("path", ["/inject", "/proxy"])
@pytest.mark.parametrize("name", HOPEFUL)
def test_a_header_that_nobody_knows_changes_nothing(live: Live, web: Web, name: str, path: str) -> None:
    """The use is audited and the value that comes back is masked, whatever the caller adds."""
    live.store(value="ghp_0123456789abcdefABCDEF")
    url = f"https://{live.target}/echo"
    body = {"agentId": AGENT, "request": {"url": url}}
    proxied = {"Axiorank-Upstream-Url": url, "Axiorank-Agent-Id": AGENT}

    answer = web.post(path, json=body, headers={**proxied, f"Axiorank-{name}": "true"}, scope="broker:inject")

    assert answer.status_code == 200
    assert "redacted:secret.github" in answer.text
    assert "ghp_" not in answer.text
    assert [use for use in live.app.store.uses(live.workspace) if use.intent.purpose == "inject"]


def _is_stored(live: Live) -> str:
    live.publish("new")
    live.work()
    return str(live.candidate("new").blob.cipher)


def _is_audited(live: Live) -> str:
    answer = live.send()
    return next(
        str(use.intent.purpose) for use in live.app.store.uses(live.workspace) if use.intent.id == answer.audit_id
    )


def _is_bound(live: Live) -> str:
    try:
        live.send(url="https://localhost:1/")
    except BrokerError as error:
        return error.reason
    return "sent"


def _is_asked_each_time(live: Live) -> str:
    live.send()
    live.aws.faults.add(Fault("kms:Decrypt", error="AccessDeniedException"))
    try:
        live.send()
    except BrokerError as error:
        return error.reason
    finally:
        live.aws.faults.clear()
    return "sent"


PROMISES: dict[str, tuple[Callable[[Live], str], str]] = {
    "under the key": (_is_stored, "kms"),
    "audited": (_is_audited, "inject"),
    "bound to a host": (_is_bound, "host_mismatch"),
    "asked each time": (_is_asked_each_time, "access_denied"),
}


@pytest.mark.parametrize("plan", list(Plan))
@pytest.mark.parametrize("name", PROMISES)
def test_no_plan_takes_a_promise_away(live: Live, name: str, plan: Plan) -> None:
    """What was connected stays connected, and what is promised holds on every plan."""
    live.connect(live.customer())
    live.store()
    live.app.administer.put_workspace(live.workspace, plan)

    promise, kept = PROMISES[name]

    assert promise(live) == kept
