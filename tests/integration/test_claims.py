"""The claim box on a real server: what start-up accepts, and what a fault looks like."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from broker_core.adapters.claims import RedisClaimBox
from broker_core.dev.valkey import Valkey
from broker_core.errors import ConfigurationError, Unavailable
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def own_server() -> Iterator[Valkey]:
    """A claims server whose settings a test may change (and puts back)."""
    with Valkey.start(persistent=False) as server:
        yield server


def refusal(url: str) -> str:
    """What start-up says to this server."""
    box = RedisClaimBox(url)
    try:
        with pytest.raises(ConfigurationError) as caught:
            box.check_volatile()
        return caught.value.message
    finally:
        box.close()


@contextmanager
def configured(server: Valkey, **settings: str) -> Iterator[Any]:
    """The server with other settings, put back afterwards."""
    client: Any = redis.Redis.from_url(server.url, decode_responses=True)
    before = {name: client.config_get(name)[name] for name in (each.replace("_", "-") for each in settings)}
    for name, value in settings.items():
        client.config_set(name.replace("_", "-"), value)
    yield client
    for name, value in before.items():
        client.config_set(name, value)
    client.close()


class TestStartUp:
    def test_memory_only_is_accepted(self, claims_valkey: str) -> None:
        """A server that keeps nothing on disk is accepted."""
        box = RedisClaimBox(claims_valkey)
        box.check_volatile()
        box.close()

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"appendonly": "yes"}, "set `appendonly no`"),
            ({"save": "3600 1"}, 'set `save ""`'),
            ({"maxmemory_policy": "allkeys-lru"}, "set `maxmemory-policy noeviction`"),
        ],
    )
    def test_server_that_could_keep_or_lose(self, own_server: Valkey, settings: dict[str, str], says: str) -> None:
        """An append-only file, snapshots and eviction are each refused, with what to do."""
        with configured(own_server, **settings):
            message = refusal(own_server.url)
        assert message.startswith("BROKER_CLAIM_REDIS_URL")
        assert says in message

    def test_the_queues_server(self, queue_valkey: str) -> None:
        """The queue's kind of server is refused for claims."""
        assert "appendonly" in refusal(queue_valkey)

    def test_server_with_a_replica(self) -> None:
        """Neither a server that is copied nor the copy is accepted."""
        with (
            Valkey.start(persistent=True) as server,
            Valkey.start(persistent=True) as copy,
            configured(server, appendonly="no") as one,
            configured(copy, appendonly="no") as two,
        ):
            two.replicaof("127.0.0.1", str(server.port))
            wait_until(lambda: one.info("replication")["connected_slaves"] == 1, what="the replica")
            assert "detach its replicas" in refusal(server.url)
            assert "it copies another server" in refusal(copy.url)
            two.replicaof("NO", "ONE")

    def test_server_that_does_not_say(self, own_server: Valkey) -> None:
        """A server whose settings may not be asked for is refused, with what to allow."""
        with configured(own_server) as client:
            client.acl_setuser("limited", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-config"])
            message = refusal(own_server.url.replace("redis://", "redis://limited:pw@"))
            client.acl_deluser("limited")
        assert "+config|get" in message

    def test_wrong_password(self, own_server: Valkey) -> None:
        """A refused login is Unavailable, and neither the password nor the server's words are in it."""
        box = RedisClaimBox(own_server.url.replace("redis://", "redis://nobody:hunter2@"))
        with pytest.raises(Unavailable) as caught:
            box.check_volatile()
        box.close()
        assert str(caught.value) == "unavailable: the claim store is away"
        assert caught.value.__context__ is None


class TestFaults:
    def test_nothing_is_sent_twice(self) -> None:
        """When a server hangs up, the command is not tried again behind our back."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            connections = []

            def hang_up() -> None:
                try:
                    while True:
                        connection, _ = server.accept()
                        connections.append(1)
                        connection.recv(4096)
                        connection.close()
                except OSError:
                    return

            thread = threading.Thread(target=hang_up)
            thread.start()
            box = RedisClaimBox(f"redis://127.0.0.1:{server.getsockname()[1]}/0", seconds=30)
            with pytest.raises(Unavailable):
                box.put("a", b"value", 60)
            box.close()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
        assert len(connections) == 1

    def test_a_hanging_server(self) -> None:
        """A server that accepts and never answers is Unavailable after the time limit."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            box = RedisClaimBox(f"redis://127.0.0.1:{server.getsockname()[1]}/0", seconds=0.1)
            with pytest.raises(Unavailable):
                box.get("a")
            box.close()

    def test_restart_forgets(self) -> None:
        """After its server restarted the box works and what was in it is gone; its directory stayed empty."""
        with Valkey.start(persistent=False) as server:
            box = RedisClaimBox(server.url)
            box.put("a", b"value", 60)
            server.restart()
            assert wait_until(lambda: _answer(box), what="the server again") == "gone"
            assert list(server.directory.iterdir()) == []
            box.close()


def _answer(box: RedisClaimBox) -> str:
    try:
        return "gone" if box.get("a") is None else "kept"
    except Unavailable:
        return ""
