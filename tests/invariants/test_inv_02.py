"""INV-2: every KMS call carries a context, and the context comes from ``context.py``."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import UUID

import pytest

import broker_core
from broker_core import context
from broker_core.adapters.dry_runs import dry_run_of
from broker_core.model import Connection, Purpose
from broker_core.policies import Extra
from broker_core.ports import KeyUse
from tests.key_uses import KEY_USES
from tests.live import Live

HOUSE = Path(broker_core.__file__).parent
#: the product; ``dev`` is a double of AWS, which receives contexts
MODULES = sorted(path for path in HOUSE.rglob("*.py") if "dev" not in path.relative_to(HOUSE).parts)
OTHERS = [path for path in MODULES if path.name != "context.py"]
KEY = "arn:aws:kms:eu-west-1:222222222222:key/0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"
ROLE = "arn:aws:iam::222222222222:role/axiorank"
KEYS = {getattr(context, name) for name in vars(context) if name.endswith("_KEY")}


def nodes(path: Path) -> Iterator[ast.AST]:
    """Everything in a module."""
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def kms_calls() -> list[ast.Call]:
    """The adapters' calls of KMS: every one names the key, a decryption too."""
    calls = [node for path in MODULES if "adapters" in path.parts for node in nodes(path) if isinstance(node, ast.Call)]
    return [call for call in calls if "KeyId" in {keyword.arg for keyword in call.keywords}]


def in_house(path: Path) -> str:
    """The name of a test's case."""
    return path.relative_to(HOUSE).as_posix()


def test_the_keys_are_ours() -> None:
    """The pairs' names, as customers see them in CloudTrail."""
    assert {"axiorank:workspace", "axiorank:secret", "axiorank:version", "axiorank:canary"} == KEYS


@pytest.mark.parametrize("path", OTHERS, ids=in_house)
def test_no_other_module_writes_a_pairs_name(path: Path) -> None:
    """Nobody else spells a key of the context."""
    constants = {node.value for node in nodes(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not constants & KEYS


@pytest.mark.parametrize("path", OTHERS, ids=in_house)
def test_no_other_module_builds_a_context(path: Path) -> None:
    """The type's name is written elsewhere to annotate, never to call; nor does anyone else freeze pairs."""
    called = {ast.unparse(node.func).split(".")[-1] for node in nodes(path) if isinstance(node, ast.Call)}
    assert not called & {"EncryptionContext", "_frozen"}


def test_the_calls_are_found() -> None:
    """The customer's key and the platform's: a search that finds nothing would prove nothing."""
    assert len(kms_calls()) >= 2


@pytest.mark.parametrize("call", kms_calls(), ids=ast.unparse)
def test_every_kms_call_carries_the_uses_context(call: ast.Call) -> None:
    """As the use brought it: not made on the spot, not left out."""
    (value,) = [keyword.value for keyword in call.keywords if keyword.arg == "EncryptionContext"]
    assert ast.unparse(value) in {"dict(context)", "dict(self._use.context)"}


@pytest.mark.parametrize("extra", list(Extra))
def test_every_other_dry_run_carries_it_too(extra: Extra) -> None:
    """Wherever KMS takes a context: of a grant it is the constraint, of a re-encryption both sides have one."""
    connection = Connection(UUID(int=1), "ws", ROLE, "external-id-0123456789", KEY)
    use = KeyUse(connection, Purpose.VERIFY, UUID(int=2), context.for_canary("ws", connection.id))
    _, params = dry_run_of(extra, use)
    held = json.dumps(params)
    assert params["DryRun"] is True
    assert held.count(json.dumps(dict(use.context))) == (2 if extra is Extra.RE_ENCRYPT_FROM else 1)


def test_nobody_else_gets_a_client_to_call_kms_with() -> None:
    """A client that is made elsewhere could be called without a context."""
    found = {
        (in_house(path), node.func.attr)
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in ("kms", "own_kms") or (node.func.attr == "client" and "boto" in ast.unparse(node))
    }
    assert found == {("adapters/key_service.py", "kms"), ("adapters/platform_cipher.py", "own_kms")}


def _known_contexts(live: Live) -> list[Mapping[str, str]]:
    """Of every version of a secret that was ever accepted, of every connection's canary, and the one that a
    verification must be refused under."""
    run, made = live.app.store._database.run, context
    events = run("test", "SELECT workspace_id, name, version FROM secret_events", {})
    connections = run("test", "SELECT workspace_id, id FROM byok_connections", {})
    return [
        *(dict(made.for_secret(each.workspace_id, each.name, each.version)) for each in events),
        *(dict(made.for_canary(each.workspace_id, each.id)) for each in connections),
        dict(made.for_secret(live.workspace, "axiorank-verification", 1)),
    ]


@pytest.mark.parametrize("name", KEY_USES)
def test_what_kms_was_asked_carries_the_context_of_its_row(used: Live, name: str) -> None:
    """Whatever asks a key: each Encrypt and Decrypt that arrived was under the context that ``context.py`` builds for a
    row that exists, whole."""
    before = len(used.aws.trail.calls)

    KEY_USES[name](used)

    asked = [call for call in used.aws.trail.calls[before:] if call.action in ("kms:Encrypt", "kms:Decrypt")]
    known = _known_contexts(used)
    assert [call for call in asked if dict(call.encryption_context) not in known] == []
    assert asked or name == "refusals"


@pytest.mark.parametrize("size", [12, 5000])
def test_what_an_owner_is_told_to_decrypt_with_is_the_same(live: Live, size: int) -> None:
    """The context of an export is the row's, of either cipher."""
    live.connect(live.customer())
    receipt = live.store(value="x" * size)

    told = live.app.administer.export(live.workspace, receipt.secret_id).encryption_context

    assert told == dict(context.for_secret(live.workspace, "github", 1))


@pytest.mark.parametrize("path", [path for path in MODULES if "adapters" in path.parts], ids=in_house)
def test_no_call_goes_around_that(path: Path) -> None:
    """The operations that we do not use are not called by name either."""
    called = {
        node.func.attr for node in nodes(path) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not called & {"generate_data_key", "re_encrypt", "generate_data_key_without_plaintext", "create_grant"}
