"""Secrets move from an older key to the current one, one at a time, and nothing but the current key takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from broker_core.audit import Intent, Outcome
from broker_core.errors import (
    AuditUnavailable,
    Busy,
    Denied,
    Forbidden,
    Integrity,
    KeyServiceError,
    KeyState,
    Misconfigured,
    Transient,
    Unavailable,
)
from broker_core.model import Blob, CipherName, Connection, FoundBy, Purpose
from broker_core.ports import KeyUse, Opened, Reencryption, Sealed
from broker_core.reencrypt import CODE, MoveLimits, Reencrypt
from broker_core.secret import Plaintext
from tests.customers import Customers
from tests.fakes_keys import FakeKeyService

DISABLED = Denied("disabled", state=KeyState.KEY_DISABLED, aws_code="DisabledException")
NO_ACCESS = Denied("denied", aws_code="AccessDeniedException")
LIMITS = MoveLimits(calls_per_second=1000)
VALUE = b"a value of some length"


class World(Customers):
    """One workspace with secrets under an older key, and a current one."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.reencrypt = Reencrypt(self.store, self.keys, self.sweep, self.clock, uuid4, LIMITS)
        self.older = self.connect()
        for name in names:
            self.keep(name=name)
        self.current = self.connect()

    def run(self, source: UUID | None = None, steps: int = 50) -> Reencryption:
        """Start and step until it has ended, or so many times; time passes between."""
        move = self.reencrypt.start("ws", source)
        for _ in range(steps):
            if move.ended_at is not None:
                return move
            self.clock.sleep(1)
            move = self.reencrypt.step("ws", move.id)
        return move

    def connection_of(self, name: str) -> UUID | None:
        return self.store.secret_row("ws", name).connection_id

    def uses(self) -> list[tuple[Intent, Any]]:
        """The audit rows of moves: they belong to no event."""
        rows = self.store.audit_rows()
        return [(i, result) for i, result in rows if i.purpose is Purpose.ENCRYPT and i.event_id is None]


def under(connection: Connection, error: KeyServiceError | None) -> Callable[[KeyUse], KeyServiceError | None]:
    """An error of one connection's key."""
    return lambda use: error if use.connection == connection else None


@pytest.fixture
def world() -> World:
    return World("a", "b", "c")


class TestMoving:
    def test_everything_is_under_the_current_key(self, world: World) -> None:
        """The same values, under the same versions and contexts."""
        before = {name: world.store.secret_row("ws", name).version for name in "abc"}
        move = world.run()
        assert (move.total, move.moved, move.left, move.denied, move.stopped_by) == (3, 3, 0, 0, None)
        for name in "abc":
            candidate = world.candidate(name)
            assert (candidate.connection, candidate.version) == (world.current, before[name])
            use = KeyUse(world.current, Purpose.INJECT, uuid4(), _context(world, name))
            with world.keys.decrypt(use, candidate.blob, 1.0).value.reveal() as view:
                assert bytes(view) == VALUE

    def test_two_uses_each_with_its_row(self, world: World) -> None:
        """Decrypt under the older key, Encrypt under the current one: intents of their own, both for ``encrypt``, both
        with the request ids of AWS and no event."""
        world.run()
        assert [(call.method, call.use.connection) for call in world.keys.calls] == [
            ("decrypt", world.older),
            ("encrypt", world.current),
        ] * 3
        rows = world.uses()
        assert [intent.id for intent, _ in rows] == [call.use.audit_id for call in world.keys.calls]
        assert {intent.connection_id for intent, _ in rows} == {world.older.id, world.current.id}
        assert {(result.outcome, result.code) for _, result in rows} == {(Outcome.OK, CODE)}
        assert all(result.receipt.kms_request_id for _, result in rows)

    def test_large_values_too(self) -> None:
        """An envelope is opened and made again, and the audit row says so."""
        world = World()
        world.keep(name="small")
        world.store.disconnect("ws")
        large = b"x" * 5000
        older = world.connect()
        secret_id = world.keep(name="large")
        row = world.store.secret_row("ws", "large")
        use = KeyUse(older, Purpose.ENCRYPT, uuid4(), _context(world, "large"))
        row.blob = world.keys.encrypt(use, Plaintext(large), 1.0).blob
        world.connect()
        world.keys.calls.clear()
        world.run(older.id)
        assert row.blob.cipher is CipherName.KMS_ENVELOPE
        ciphers = [intent.cipher for intent, _ in world.uses() if intent.secret_id == secret_id]
        assert ciphers == [CipherName.KMS_ENVELOPE] * 2

    def test_from_one_connection(self) -> None:
        """Only what is under it moves."""
        world = World("first")
        world.keep(name="second")
        newest = world.connect()
        move = world.run(world.older.id)
        assert (move.moved, world.connection_of("first"), world.connection_of("second")) == (
            1,
            newest.id,
            world.current.id,
        )

    def test_nothing_to_move(self) -> None:
        """It has ended as it began."""
        move = World().reencrypt.start("ws")
        assert (move.total, move.ended_at is not None) == (0, True)

    def test_at_the_budgets_pace(self, world: World) -> None:
        """However often it is stepped, a connection is asked as often as it may be."""
        world.reencrypt = Reencrypt(
            world.store, world.keys, world.sweep, world.clock, uuid4, MoveLimits(calls_per_second=0.5)
        )
        move = world.reencrypt.start("ws")
        moved = []
        for _ in range(6):
            world.reencrypt.step("ws", move.id)
            moved.append(world.reencrypt.progress("ws").moved)
            world.clock.sleep(1)
        assert moved == [1, 1, 2, 2, 3, 3]

    def test_the_tick_goes_on_with_each(self, world: World) -> None:
        """What was started in one process is finished by any other; one that breaks stops no other."""
        world.connect("other")
        world.keep("other", name="theirs")
        world.connect("other")
        ours, theirs = world.reencrypt.start("ws"), world.reencrypt.start("other")
        world.store._workspaces["ws"].connection_id = uuid4()  # a fault of ours
        with capture_logs() as logs:
            for _ in range(10):
                world.clock.sleep(1)
                world.reencrypt.tick()
        assert world.reencrypt.progress("other", theirs.id).moved == 1
        assert {line["event"] for line in logs} == {"reencrypt.failed", "reencrypt.done"}
        assert all(line["fault"][0]["class"] for line in logs if line["event"] == "reencrypt.failed")
        assert world.store.move("ws", ours.id).ended_at is None

    def test_says_how_it_ended(self, world: World) -> None:
        """One line with counts and ids."""
        with capture_logs() as logs:
            move = world.run()
        (line,) = [line for line in logs if line["event"] == "reencrypt.done"]
        assert line == {
            "event": "reencrypt.done",
            "log_level": "info",
            "workspace_id": "ws",
            "reencryption_id": str(move.id),
            "stopped_by": None,
            "moved": 3,
            "denied": 0,
            "failed": 0,
            "left": 0,
        }


def _context(world: World, name: str) -> Any:
    from broker_core import context

    return context.for_secret("ws", name, world.store.secret_row("ws", name).version)


class TestOlderKey:
    def test_its_no_leaves_the_secret(self, world: World) -> None:
        """Reported with its state, recorded like any other refusal, and left where it is; the others move."""
        refused = world.store.secret_row("ws", "b").id
        world.keys.fail_when(
            lambda use: NO_ACCESS if use.connection == world.older and "b" in use.context.values() else None
        )
        move = world.run()
        assert (move.moved, move.denied, move.left) == (2, 1, 0)
        (stuck,) = world.reencrypt.stuck("ws").items
        assert (stuck.name, stuck.state, stuck.aws_code) == ("b", KeyState.ACCESS_DENIED, "AccessDeniedException")
        assert world.connection_of("b") == world.older.id
        (row,) = world.store.failures()
        assert (row.secret_id, row.state, row.found_by) == (refused, KeyState.ACCESS_DENIED, FoundBy.CHECK)

    def test_a_disabled_one_is_the_connections(self, world: World) -> None:
        """All its secrets inherit one row of the record, and each of them is reported."""
        world.keys.fail(DISABLED, world.older)
        move = world.run()
        assert (move.denied, move.moved) == (3, 0)
        assert [(row.connection_id, row.secret_id) for row in world.store.failures()] == [(world.older.id, None)]

    def test_started_again_when_it_is_back(self, world: World) -> None:
        """What was denied is tried by the next one."""
        world.keys.fail(DISABLED, world.older)
        world.run()
        world.keys.fail(None, world.older)
        assert (world.run().moved, world.connection_of("a")) == (3, world.current.id)

    def test_silence_comes_again_and_then_ends(self, world: World) -> None:
        """A few tries, farther and farther apart; it blames nobody."""
        world.keys.fail(Transient("no answer", aws_code="InternalFailure"), world.older)
        move = world.run(steps=300)
        assert (move.failed, move.ended_at is not None, world.store.failures()) == (3, True, [])
        assert [row.attempts for row in world.store._moves[move.id].items.values()] == [LIMITS.attempts] * 3
        assert {stuck.state for stuck in world.reencrypt.stuck("ws").items} == {KeyState.TRANSIENT}

    def test_silence_lets_the_others_wait(self, world: World) -> None:
        """A round does not ask a silent key for each secret."""
        world.keys.fail(Transient("no answer"), world.older)
        world.run(steps=1)
        assert len(world.keys.calls) == 1

    def test_busy_is_no_try(self, world: World) -> None:
        """Others have the connection's share: it comes again for as long as that lasts."""
        world.keys.fail(Busy("busy"), world.older)
        move = world.run(steps=100)
        assert (move.left, {row.attempts for row in world.store._moves[move.id].items.values()}) == (3, {0})

    @pytest.mark.parametrize("error", [Integrity("no", aws_code="X"), Misconfigured("no", aws_code="X")])
    def test_what_blames_nobody_is_failed(self, world: World, error: KeyServiceError) -> None:
        """It is not the customer's no, and the operator is told."""
        world.keys.fail(error, world.older)
        with capture_logs() as logs:
            move = world.run()
        assert (move.failed, move.denied) == (3, 0)
        assert f"sweep.{error.state}" in {line["event"] for line in logs}

    def test_the_brake_blames_nobody(self, world: World) -> None:
        """A refusal that is taken for a fault of ours is as good as no answer (INV-8)."""
        world.sweep._record.brakes = lambda: True  # type: ignore[method-assign] # whatever else turned
        world.keys.fail(DISABLED, world.older)
        move = world.run(steps=3)
        assert (move.denied, move.left, world.store.failures()) == (0, 3, [])


class TestCurrentKey:
    def test_its_no_moves_nothing_anywhere(self, world: World) -> None:
        """INV-3: what was decrypted is under no other cipher; each secret is where it was, and its probe is due."""
        before = {name: world.store.secret_row("ws", name).blob for name in "abc"}
        world.keys.fail(NO_ACCESS, world.current)
        world.store.age(world.current.id, "next_probe_at", -300)
        move = world.run(steps=3)
        assert (move.left, move.moved) == (3, 0)
        assert {name: world.store.secret_row("ws", name).blob for name in "abc"} == before
        assert world.store._connections[world.current.id].next_probe_at <= world.clock.now()

    def test_its_no_ends_the_round(self, world: World) -> None:
        """No value is read only to be thrown away again, secret by secret."""
        world.keys.fail(NO_ACCESS, world.current)
        world.run(steps=1)
        assert [call.method for call in world.keys.calls] == ["decrypt", "encrypt"]

    def test_while_it_is_known_to_fail_nothing_is_read(self, world: World) -> None:
        """Its probe says when that is over."""
        world.keys.fail(DISABLED, world.current)
        world.sweep.probes()
        world.keys.calls.clear()
        world.run(steps=5)
        assert world.keys.calls == []
        world.keys.fail(None, world.current)
        world.clock.sleep(400)
        world.sweep.probes()
        world.keys.calls.clear()
        assert world.run().moved == 3

    def test_tries_are_counted(self, world: World) -> None:
        """A key that says no to these alone does not have values read for ever."""
        world.keys.fail(NO_ACCESS, world.current)
        move = world.run(steps=5000)
        assert (move.failed, move.moved) == (3, 0)
        assert sum(call.method == "decrypt" for call in world.keys.calls) == 3 * LIMITS.attempts


class TestMeanwhile:
    """Between decrypting and storing."""

    def rerouted(self, world: World, meanwhile: Callable[[], object]) -> None:
        """Do something once, when the current key has encrypted."""
        todo = [meanwhile]

        class Hooked(FakeKeyService):
            def encrypt(self, use: KeyUse, value: Plaintext, seconds: float) -> Sealed:
                sealed = super().encrypt(use, value, seconds)
                if use.connection == world.current and todo:
                    todo.pop()()
                return sealed

        world.keys.__class__ = Hooked

    def test_a_rotation_wins(self) -> None:
        """The newer value stays."""
        world = World("a")
        self.rerouted(world, lambda: world.keep(name="a"))
        move = world.run()
        assert (move.overtaken, move.moved) == (1, 0)
        assert world.store.secret_row("ws", "a").version == 2

    def test_another_key_is_the_one_it_goes_under(self) -> None:
        """What was encrypted under the key of before is thrown away, and it starts over."""
        world = World("a")
        self.rerouted(world, world.connect)
        move = world.run()
        setting = world.store.setting("ws").connection
        assert setting is not None
        assert (move.moved, world.connection_of("a")) == (1, setting.id)
        assert setting != world.current

    def test_disconnecting_ends_it(self) -> None:
        """INV-3: it neither goes under the key of before nor under the platform cipher."""
        world = World("a", "b")
        self.rerouted(world, lambda: world.byok.disconnect("ws"))
        move = world.run()
        assert (move.stopped_by, move.left, move.moved) == ("disconnected", 2, 0)
        assert world.connection_of("a") == world.older.id

    def test_losing_enterprise_ends_it(self) -> None:
        """The plan is asked at every step, and when it is stored."""
        world = World("a")
        self.rerouted(world, lambda: world.store.put_workspace("ws", "team"))
        assert world.run().stopped_by == "plan_required"
        with pytest.raises(Forbidden, match="plan_required"):
            world.reencrypt.start("ws")

    def test_deleting_the_workspace_ends_it(self) -> None:
        """There is nothing left to move."""
        world = World("a")
        self.rerouted(world, lambda: world.store.delete_workspace("ws"))
        assert world.run().ended_at is not None

    def test_rotated_before_it_was_claimed(self) -> None:
        """It is under the current key already, and no key is asked."""
        world = World("a")
        move = world.reencrypt.start("ws")
        world.keep(name="a")
        world.clock.sleep(1)
        assert world.reencrypt.step("ws", move.id).overtaken == 1
        assert world.keys.calls == []


class TestCrash:
    def test_between_decrypt_and_store(self) -> None:
        """The claim comes again, at once where the process could still say so, and the move is made once."""
        world = World("a")

        class Dies(FakeKeyService):
            def encrypt(self, use: KeyUse, value: Plaintext, seconds: float) -> Sealed:
                world.keys.__class__ = FakeKeyService
                raise KeyboardInterrupt

        world.keys.__class__ = Dies
        move = world.reencrypt.start("ws")
        world.clock.sleep(1)
        with pytest.raises(KeyboardInterrupt):
            world.reencrypt.step("ws", move.id)
        assert world.connection_of("a") == world.older.id
        assert world.run().moved == 1

    def test_killed(self) -> None:
        """Without a word: when its lease is over another one goes on; what kills each time is failed in the end."""
        world = World("a")
        move = world.reencrypt.start("ws")
        for _ in range(LIMITS.attempts):
            world.clock.sleep(LIMITS.lease + 1)
            assert world.store.claim_move(move, 1000, LIMITS.lease)
            world.clock.sleep(1)
            assert world.reencrypt.step("ws", move.id).left == 1
        world.clock.sleep(LIMITS.lease + 1)
        assert world.reencrypt.step("ws", move.id).failed == 1
        assert world.keys.calls == []

    def test_no_value_is_left(self) -> None:
        """INV-4: however a step ends, what was opened is wiped."""
        world, opened = World("a"), list[Opened]()

        class Watched(FakeKeyService):
            def decrypt(self, use: KeyUse, blob: Blob, seconds: float) -> Opened:
                opened.append(super().decrypt(use, blob, seconds))
                return opened[-1]

        world.keys.__class__ = Watched
        world.keys.fail(NO_ACCESS, world.current)
        world.run(steps=1)
        with pytest.raises(ValueError, match="wiped"), opened[0].value.reveal():
            pass

    @pytest.mark.parametrize("which", [0, 1])
    def test_no_intent_no_call(self, which: int) -> None:
        """INV-5: where an intent cannot be written its key is not asked, and nothing moves."""
        world = World("a")
        begin, seen = world.store.begin_use, list[Intent]()

        def away(intent: Intent) -> None:
            if len(seen) == which:
                raise AuditUnavailable("away")
            seen.append(intent)
            begin(intent)

        world.store.begin_use = away  # type: ignore[method-assign] # fails when it is told to
        move = world.reencrypt.start("ws")
        world.clock.sleep(1)
        with pytest.raises(AuditUnavailable):
            world.reencrypt.step("ws", move.id)
        assert len(world.keys.calls) == which
        assert world.connection_of("a") == world.older.id

    def test_a_store_that_is_away_at_the_end(self) -> None:
        """Nothing moved, and it is tried again."""
        world = World("a")
        keep = world.store.keep_move

        def away(*args: Any) -> bool | None:
            world.store.keep_move = keep  # type: ignore[method-assign] # back again
            raise Unavailable("away")

        world.store.keep_move = away  # type: ignore[assignment,method-assign] # fails once
        move = world.reencrypt.start("ws")
        world.clock.sleep(1)
        with pytest.raises(Unavailable):
            world.reencrypt.step("ws", move.id)
        assert world.run().moved == 1


def test_the_connections_say_what_needs_them(world: World) -> None:
    """An older one is retired once nothing is under it, and stays in the list."""
    assert [(one.id, one.needed_by) for one in world.byok.connections("ws")] == [
        (world.current.id, 0),
        (world.older.id, 3),
    ]
    world.run()
    world.byok.retire("ws", world.older.id)
    older = world.byok.connections("ws")[1]
    assert (older.id, older.needed_by, older.retired_at) == (world.older.id, 0, world.clock.now())
