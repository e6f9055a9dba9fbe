"""Using values, end to end on the AWS double and over TLS: every kind, and blobs that are not where they belong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
import pytest

from broker_core.errors import BrokerError, Denied, InjectionRefused, Integrity
from broker_core.inject.call import BrokeredEnvironment, Call
from broker_core.model import Blob, SecretStatus
from tests.databases import plain
from tests.live import AGENT, Live

_PUT_BLOB = """
    UPDATE broker_secrets SET blob = %(blob)s, cipher = %(cipher)s, connection_id = %(connection_id)s
    WHERE workspace_id = %(workspace_id)s AND name = %(name)s"""


def put_blob(live: Live, name: str, blob: Blob, connection_id: object) -> None:
    """What somebody with SQL could do: put a blob into another place."""
    values = {
        "blob": blob.ciphertext,
        "cipher": blob.cipher.value,
        "connection_id": connection_id,
        "workspace_id": live.workspace,
        "name": name,
    }
    with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"])) as connection:
        assert connection.execute(_PUT_BLOB, values).rowcount == 1


def assert_integrity(live: Live, name: str) -> None:
    """Refused as ``integrity``, nothing sent; the customer is told of nothing, and the secret stays as it was."""
    live.upstream.clear()
    with pytest.raises(Integrity) as refused:
        live.send(name)
    assert refused.value.aws_code == "InvalidCiphertextException"
    assert live.upstream.requests == []
    live.app.sweep.probes()
    affected = live.app.byok.affected(live.workspace)
    assert (affected.connections, affected.secrets) == ([], [])
    assert {view.status for view in live.app.store.secrets(live.workspace)} == {SecretStatus.ACTIVE}


@pytest.mark.parametrize("size", [32, 5000], ids=["kms", "kms-envelope"])
class TestMovedBlobs:
    def test_to_another_name(self, live: Live, size: int) -> None:
        """A blob in another name's row is an integrity failure, and makes nothing affected."""
        connection = live.connect(live.customer())
        live.store("github", value="g" * size)
        live.store("gitlab", value="l" * size)
        put_blob(live, "gitlab", live.candidate("github").blob, connection.id)
        assert_integrity(live, "gitlab")

    def test_an_older_one_back(self, live: Live, size: int) -> None:
        """The blob of an older version, put back alone, is an integrity failure."""
        connection = live.connect(live.customer())
        live.store(value="1" * size)
        older = live.candidate().blob
        live.store(kind="secret.rotated", version=2, value="2" * size, bare=True)
        put_blob(live, "github", older, connection.id)
        assert_integrity(live, "github")

    def test_to_another_workspace(self, live: Live, size: int) -> None:
        """A blob in another workspace's row is an integrity failure, even under the same role and key."""
        customer = live.customer()
        live.connect(customer)
        live.store(value="a" * size)
        blob, first = live.candidate().blob, live.workspace
        live.workspace = f"{first}_2"
        live.app.store.put_workspace(live.workspace, "enterprise")
        customer.change_external_id(f"{customer.external_id}-2")
        second = live.connect(customer)
        live.store(value="b" * size)
        put_blob(live, "github", blob, second.id)
        assert_integrity(live, "github")


class TestPlatformBlobs:
    def test_moved(self, live: Live) -> None:
        """A platform blob in another row is an integrity failure like a customer's."""
        live.store("github")
        live.store("gitlab")
        put_blob(live, "gitlab", live.candidate("github").blob, None)
        with pytest.raises(Integrity):
            live.send("gitlab")
        assert live.upstream.requests == []


def environment_of(live: Live, mcp_server_id: str | None = None) -> BrokeredEnvironment:
    """The environment of AGENT, as a stdio server's caller asks for it."""
    return live.app.injector.environment(Call(live.workspace, AGENT, mcp_server_id))


class TestKinds:
    def test_bearer(self, live: Live) -> None:
        """``bearer`` is the Authorization header; the caller's own is gone, and the echo is redacted."""
        live.connect(live.customer())
        live.store(value="bearer-value-1")
        answer = live.send(headers=[("authorization", "Basic of-the-caller")])
        assert live.upstream.requests[-1].headers_named("Authorization") == ["Bearer bearer-value-1"]
        assert b"bearer-value-1" not in answer.body
        assert "«redacted:secret.github»".encode() in answer.body

    def test_http_header(self, live: Live) -> None:
        """``http_header`` is the header of its bindingKey, set once whatever the caller sent in its name."""
        live.connect(live.customer())
        live.store(
            value="header-value-1",
            injectionKind="http_header",
            bindingKey="X-Api-Key",
            targetHost=live.target,
            agentId=AGENT,
        )
        answer = live.send(headers=[("x-api-key", "one"), ("X-API-KEY", "two")])
        assert live.upstream.requests[-1].headers_named("X-Api-Key") == ["header-value-1"]
        assert b"header-value-1" not in answer.body

    def test_query(self, live: Live) -> None:
        """``query`` is the parameter of its bindingKey, set once; a value with special characters arrives whole."""
        live.connect(live.customer())
        value = "a b&c=d+e/f%g#ü"
        live.store(value=value, injectionKind="query", bindingKey="api_key", targetHost=live.target, agentId=AGENT)
        answer = live.send(path="/echo?page=2&api%5Fkey=of-the-caller")
        assert live.upstream.requests[-1].parameters == [("page", "2"), ("api_key", value)]
        assert value.encode() not in answer.body

    def test_stdio_env(self, live: Live) -> None:
        """``stdio_env`` gives every bound variable, from either cipher, with one audit row each."""
        live.store("before", value="value-before", injectionKind="stdio_env", bindingKey="BEFORE", agentId=AGENT)
        live.connect(live.customer())
        live.store("under", value="välue-under", injectionKind="stdio_env", bindingKey="UNDER", agentId=AGENT)
        given = environment_of(live)
        assert given.variables == {"BEFORE": "value-before", "UNDER": "välue-under"}
        uses = {use.intent.id: use for use in live.app.store.uses(live.workspace)}
        assert {uses[audit_id].intent.secret_name for audit_id in given.audit_ids} == {"before", "under"}
        assert live.upstream.requests == []

    def test_stdio_env_all_or_none(self, live: Live) -> None:
        """With one variable's key refused nothing is released, also not what another key would have opened."""
        first, second = live.customer(), live.customer()
        live.connect(first)
        live.store("one", injectionKind="stdio_env", bindingKey="ONE", agentId=AGENT)
        live.connect(second)
        live.store("two", injectionKind="stdio_env", bindingKey="TWO", agentId=AGENT)
        second.disable_key()
        with pytest.raises(Denied):
            environment_of(live)

    def test_stdio_env_most_specific(self, live: Live) -> None:
        """Of two secrets for one variable the more specific binding gives it."""
        live.store("wide", value="of-the-agent", injectionKind="stdio_env", bindingKey="TOKEN", agentId=AGENT)
        live.store("narrow", value="of-the-server", injectionKind="stdio_env", bindingKey="TOKEN", mcpServerId="server")
        assert environment_of(live).variables == {"TOKEN": "of-the-agent"}
        assert environment_of(live, "server").variables == {"TOKEN": "of-the-server"}

    def test_stdio_env_is_no_request(self, live: Live) -> None:
        """A secret for an environment is never put on a request."""
        live.store(injectionKind="stdio_env", bindingKey="TOKEN", agentId=AGENT)
        with pytest.raises(InjectionRefused):
            live.send()


class TestBeforeTheKey:
    @pytest.mark.parametrize(
        ("case", "call"),
        [
            ("another host", {"url": "https://example.com/"}),
            ("another port", {"url": "https://localhost:1/"}),
            ("plain http", {"url": "http://localhost/"}),
            ("another agent", {"agent_id": "agent-2"}),
            ("a method that reflects", {"method": "TRACE"}),
        ],
    )
    def test_costs_no_key_call(self, live: Live, case: str, call: Mapping[str, Any]) -> None:
        """What is refused by name, host or method costs no AssumeRole and no Decrypt, and leaves no audit row."""
        live.connect(live.customer())
        live.store()
        before = live.aws.trail.count("sts:AssumeRole"), len(live.app.store.uses(live.workspace, limit=200))
        with pytest.raises(BrokerError):
            live.send(**call)
        after = live.aws.trail.count("sts:AssumeRole"), len(live.app.store.uses(live.workspace, limit=200))
        assert after == before
