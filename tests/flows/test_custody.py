"""Taking a value in: every state of an event, and never the platform cipher with BYOK on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from broker_core.audit import Outcome
from broker_core.context import EncryptionContext, for_secret
from broker_core.custody import MOST_CRASHES, MOST_RESTARTS, Custody
from broker_core.errors import Busy, Denied, Integrity, KeyState, Misconfigured, Transient, Unavailable
from broker_core.model import Blob, CipherName, Connection, EventState, EventType, SecretStatus
from broker_core.secret import Plaintext
from tests.store_setup import age_event
from tests.taking_in import TTL_SECONDS, VALUE, WORKSPACE, TakingIn


@pytest.fixture
def world() -> TakingIn:
    """One workspace on fakes."""
    return TakingIn()


@pytest.fixture
def connection(world: TakingIn) -> Connection:
    """BYOK is on."""
    return world.connect()


def cipher(world: TakingIn, name: str = "github") -> CipherName | None:
    """What encrypted the blob in place."""
    blob = world.store.secret_row(WORKSPACE, name).blob
    return blob.cipher if blob else None


def during_encryption(world: TakingIn, happen: Callable[[], object], times: int = 1) -> None:
    """Let something happen while a value is under encryption."""
    left = [times]

    def once(*_: Any) -> None:
        if left[0] > 0:
            left[0] -= 1
            happen()

    encrypt = world.platform.encrypt

    def watched(context: EncryptionContext, value: Plaintext) -> Blob:
        once()
        return encrypt(context, value)

    world.platform.encrypt = watched  # type: ignore[method-assign]  # a test's own fake
    world.keys.fail_when(once)


class TestStored:
    """The blob is under the current setting."""

    def test_without_byok_under_the_platform_cipher(self, world: TakingIn) -> None:
        """And the value comes out again."""
        assert world.take_in() is EventState.STORED
        assert (cipher(world), world.value()) == (CipherName.PLATFORM, VALUE.encode())
        assert world.keys.calls == []

    def test_with_byok_under_the_customers_key(self, world: TakingIn, connection: Connection) -> None:
        """The platform cipher is not asked."""
        assert world.take_in() is EventState.STORED
        assert (cipher(world), world.value()) == (CipherName.KMS, VALUE.encode())
        assert world.platform.calls == []

    @pytest.mark.parametrize("byok", [False, True], ids=["platform", "byok"])
    @pytest.mark.parametrize("size", [1, 4096, 4097, 65_536])
    def test_every_size(self, world: TakingIn, size: int, byok: bool) -> None:
        """Directly up to 4096 bytes, by envelope above; what comes out is what came in."""
        if byok:
            world.connect()
        assert world.take_in(value="v" * size) is EventState.STORED
        direct = CipherName.KMS if size <= 4096 else CipherName.KMS_ENVELOPE
        assert cipher(world) is (direct if byok else CipherName.PLATFORM)
        assert world.value() == b"v" * size

    def test_it_is_bound_to_its_row(self, world: TakingIn, connection: Connection) -> None:
        """Workspace, name and version; the use is of the event's audit row."""
        world.take_in(version=3)
        (call,) = world.keys.calls
        assert call.use.context == for_secret(WORKSPACE, "github", 3)
        ((told, result),) = world.store.audit_rows()
        assert told.id == call.use.audit_id
        assert result is not None
        assert (result.outcome, result.receipt.kms_request_id) == (Outcome.OK, "kms-1")

    def test_the_intent_comes_first(self, world: TakingIn, connection: Connection) -> None:
        """When the key is asked, the audit row is there, without an outcome (INV-5)."""
        seen: list[Any] = []
        world.keys.fail_when(lambda _: seen.extend(world.store.audit_rows()))
        world.take_in()
        ((_, result),) = seen
        assert result is None

    def test_the_claim_is_deleted_and_the_key_forgotten(self, world: TakingIn) -> None:
        """Nothing of the way in is left."""
        receipt = world.accept()
        world.custody.run(receipt.id)
        assert world.claims.ids() == []
        assert world.store.claim_key(receipt.id) is None

    def test_a_claim_that_cannot_be_deleted_is_no_error(self, world: TakingIn, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is noise, and expires."""

        def away(claim_id: str) -> None:
            raise Unavailable("away")

        monkeypatch.setattr(world.claims, "delete", away)
        assert world.take_in() is EventState.STORED

    def test_a_second_message_does_nothing(self, world: TakingIn) -> None:
        """Messages may come twice."""
        receipt = world.accept()
        world.custody.run(receipt.id)
        assert world.custody.run(receipt.id) is None
        assert world.custody.run(uuid4()) is None


class TestSuperseded:
    """A higher version was there."""

    def test_the_highest_version_wins(self, world: TakingIn, connection: Connection) -> None:
        """Whatever the order; a lower one costs no call of the key."""
        world.take_in(version=2, value="second-value")
        calls = len(world.keys.calls)
        assert world.take_in(version=1, value="first-value") is EventState.SUPERSEDED
        assert world.value() == b"second-value"
        assert len(world.keys.calls) == calls + 1  # the decryption that ``value`` made

    def test_it_still_fills_the_fields(self, world: TakingIn) -> None:
        """``created`` that came late says where the value may go."""
        assert world.take_in(type="secret.rotated", version=2) is EventState.STORED
        assert world.store.status(WORKSPACE, "github") is SecretStatus.UNBOUND
        assert world.take_in(version=1) is EventState.SUPERSEDED
        assert world.store.status(WORKSPACE, "github") is SecretStatus.ACTIVE

    def test_one_that_was_overtaken_while_it_encrypted(self, world: TakingIn) -> None:
        """Compare-and-set, not only a look before."""
        first = world.accept(version=1)
        during_encryption(world, lambda: world.take_in(version=2, value="second-value"))
        assert world.custody.run(first.id) is EventState.SUPERSEDED
        assert world.value() == b"second-value"


class TestUnbound:
    """A rotation of a name never created."""

    def test_it_is_stored_and_cannot_inject(self, world: TakingIn) -> None:
        """Until ``created`` arrives."""
        assert world.take_in(type="secret.rotated") is EventState.STORED
        assert world.store.status(WORKSPACE, "github") is SecretStatus.UNBOUND
        assert world.store.candidates(WORKSPACE, "agent-1", None) == []


class TestLost:
    """``expired`` and ``unreadable``."""

    def test_a_lost_claim_is_expired(self, world: TakingIn) -> None:
        """Its Redis restarted: the value is needed again."""
        receipt = world.accept()
        world.claims.restart()
        assert world.custody.run(receipt.id) is EventState.EXPIRED
        assert world.store.event(WORKSPACE, receipt.id).reason == "claim_gone"
        assert world.store.status(WORKSPACE, "github") is SecretStatus.NEEDS_REPROVISION

    def test_a_claim_over_its_time_is_expired(self, world: TakingIn) -> None:
        """By the database's clock, also where no worker ever looked."""
        receipt = world.accept()
        world.clock.advance(TTL_SECONDS)
        assert world.custody.run(receipt.id) is None
        world.reconciler.run()
        assert world.state(receipt.id) is EventState.EXPIRED
        assert world.store.claim_key(receipt.id) is None

    def test_a_claim_that_does_not_open_is_unreadable(self, world: TakingIn) -> None:
        """It was changed, or belongs to another event: nothing of it is stored."""
        receipt = world.accept()
        (claim_id,) = world.claims.ids()
        sealed = world.claims.get(claim_id)
        assert sealed is not None
        world.claims.restart()
        world.claims.put(claim_id, bytes([sealed[0] ^ 1]) + sealed[1:], TTL_SECONDS)
        assert world.custody.run(receipt.id) is EventState.UNREADABLE
        assert world.store.event(WORKSPACE, receipt.id).reason == "claim_does_not_open"
        assert cipher(world) is None

    def test_another_events_claim_does_not_open(self, world: TakingIn) -> None:
        """A claim is bound to its secret and its id."""
        receipt, other = world.accept(), world.accept(subject="gitlab")
        mine, theirs = (world.store.event(WORKSPACE, each.id).claim_id for each in (receipt, other))
        sealed = world.claims.get(theirs or "")
        assert sealed is not None
        world.claims.delete(mine or "")
        world.claims.put(mine or "", sealed, TTL_SECONDS)
        assert world.custody.run(receipt.id) is EventState.UNREADABLE

    def test_attempts_that_are_spent_are_unreadable(self, world: TakingIn) -> None:
        """An event that kills its worker ends, too; the key is not asked any more."""
        receipt = world.accept()
        for _ in range(MOST_CRASHES):
            world.store.begin(receipt.id, uuid4())
            age_event(world.store, receipt.id, "begun_at", 60)
        assert world.custody.run(receipt.id) is EventState.UNREADABLE
        assert world.store.event(WORKSPACE, receipt.id).reason == "attempts_spent"
        assert world.platform.calls == []

    def test_one_crash_less_is_not_spent(self, world: TakingIn) -> None:
        """The last attempt still counts."""
        receipt = world.accept()
        for _ in range(MOST_CRASHES - 1):
            world.store.begin(receipt.id, uuid4())
            age_event(world.store, receipt.id, "begun_at", 60)
        assert world.custody.run(receipt.id) is EventState.STORED

    def test_attempts_that_reported_back_are_not_spent(self, world: TakingIn, connection: Connection) -> None:
        """A customer's KMS that is away for long makes nothing unreadable."""
        receipt = world.accept()
        world.keys.fail(Transient("throttled"))
        for _ in range(MOST_CRASHES * 2):
            with pytest.raises(Transient):
                world.custody.run(receipt.id)
        world.keys.fail(None)
        assert world.custody.run(receipt.id) is EventState.STORED


class TestRefused:
    """BYOK is on and the key says no."""

    def test_with_the_brake_on_nobody_is_blamed(self, world: TakingIn, connection: Connection) -> None:
        """Many customers refusing at once is taken for a fault of ours: the event stays ``accepted`` (INV-8)."""
        receipt = world.accept()
        world.keys.fail(Denied("no", aws_code="AccessDenied"))
        custody = Custody(world.store, world.claims, world.keys, world.platform, new_id=uuid4, brakes=lambda: True)
        with pytest.raises(Transient):
            custody.run(receipt.id)
        assert world.state(receipt.id) is EventState.ACCEPTED

    @pytest.mark.parametrize(
        "error",
        [
            *(Denied("no", state=state) for state in list(KeyState)[:6]),
            Misconfigured("wrong"),
            Integrity("strange"),
        ],
        ids=lambda error: error.reason,
    )
    def test_the_old_blob_stays_and_the_value_waits(
        self, world: TakingIn, connection: Connection, error: Denied
    ) -> None:
        """The owner sees why, and until when."""
        world.take_in()
        world.keys.fail(error)
        receipt = world.accept(type="secret.rotated", version=2, value="second-value")
        assert world.custody.run(receipt.id) is EventState.REFUSED
        event = world.store.event(WORKSPACE, receipt.id)
        assert (event.reason, event.held_until is not None) == (error.reason, True)
        world.keys.fail(None)
        assert world.value() == VALUE.encode()
        assert len(world.claims.ids()) == 1

    def test_it_is_tried_again_while_the_claim_lives(self, world: TakingIn, connection: Connection) -> None:
        """The reconciler rings, and once the customer's side agrees it is stored."""
        receipt = world.accept()
        world.keys.fail(Denied("no"))
        world.custody.run(receipt.id)
        world.queue.rung.clear()
        world.reconciler.run()
        assert world.queue.rung == []
        world.clock.advance(61)
        world.reconciler.run()
        assert world.queue.rung == [(EventType.CREATED, receipt.id)]
        world.keys.fail(None)
        assert world.custody.run(receipt.id) is EventState.STORED

    def test_it_expires_with_its_claim(self, world: TakingIn, connection: Connection) -> None:
        """Every accepted event reaches an end (INV-9)."""
        receipt = world.accept()
        world.keys.fail(Denied("no"))
        world.custody.run(receipt.id)
        world.clock.advance(TTL_SECONDS)
        world.reconciler.run()
        assert world.state(receipt.id) is EventState.EXPIRED

    def test_the_owner_may_discard_it(self, world: TakingIn, connection: Connection) -> None:
        """Then no later attempt stores it."""
        receipt = world.accept()
        world.keys.fail(Denied("no"))
        world.custody.run(receipt.id)
        world.store.discard(WORKSPACE, receipt.id)
        world.keys.fail(None)
        assert world.custody.run(receipt.id) is None
        assert world.state(receipt.id) is EventState.DELETED

    def test_a_refusal_is_audited(self, world: TakingIn, connection: Connection) -> None:
        """With AWS's own code and the request ids."""
        world.keys.fail(Denied("no", aws_code="AccessDeniedException"))
        world.take_in()
        ((_, result),) = world.store.audit_rows()
        assert result is not None
        assert (result.outcome, result.code, result.aws_code) == (
            Outcome.REFUSED,
            "access_denied",
            "AccessDeniedException",
        )
        assert result.receipt.kms_request_id == "kms-1"


class TestTransient:
    """Something is away."""

    def test_a_transient_error_is_raised_and_the_event_waits(self, world: TakingIn, connection: Connection) -> None:
        """For the queue to try again; never the platform cipher (INV-3)."""
        receipt = world.accept()
        world.keys.fail(Transient("throttled", aws_code="ThrottlingException"))
        with pytest.raises(Transient):
            world.custody.run(receipt.id)
        assert world.state(receipt.id) is EventState.ACCEPTED
        assert (cipher(world), world.platform.calls) == (None, [])

    def test_it_is_rung_again(self, world: TakingIn, connection: Connection) -> None:
        """By the reconciler, should the queue lose it."""
        receipt = world.accept()
        world.keys.fail(Transient("throttled"))
        with pytest.raises(Transient):
            world.custody.run(receipt.id)
        world.queue.rung.clear()
        world.clock.advance(16)
        world.reconciler.run()
        assert world.queue.rung == [(EventType.CREATED, receipt.id)]

    def test_a_busy_connection_is_rung_again_soon_and_not_all_at_once(
        self, world: TakingIn, connection: Connection
    ) -> None:
        """After some seconds with jitter, so that a customer's many events do not come back together."""
        asked: list[tuple[float, float]] = []

        def uniform(least: float, most: float) -> float:
            asked.append((least, most))
            return most

        custody = Custody(world.store, world.claims, world.keys, world.platform, new_id=uuid4, uniform=uniform)
        receipt = world.accept()
        world.keys.fail(Busy("busy"))
        with pytest.raises(Busy):
            custody.run(receipt.id)
        assert (world.state(receipt.id), asked) == (EventState.ACCEPTED, [(0.5, 1.5)])
        world.queue.rung.clear()
        world.clock.advance(10)
        world.reconciler.run()
        assert world.queue.rung == [(EventType.CREATED, receipt.id)]

    def test_a_platform_key_that_is_away_is_transient(self, world: TakingIn) -> None:
        """The same without BYOK."""
        receipt = world.accept()
        world.platform.is_away = True
        with pytest.raises(Transient):
            world.custody.run(receipt.id)
        assert world.state(receipt.id) is EventState.ACCEPTED

    def test_a_claim_server_that_is_away_is_no_lost_claim(self, world: TakingIn) -> None:
        """The event waits, its attempt is closed as failed."""
        receipt = world.accept()
        world.claims.is_away = True
        with pytest.raises(Unavailable):
            world.custody.run(receipt.id)
        world.claims.is_away = False
        ((_, result),) = world.store.audit_rows()
        assert result is not None
        assert result.outcome is Outcome.FAILED
        assert world.custody.run(receipt.id) is EventState.STORED

    def test_a_crash_is_closed_as_unknown_and_tried_again(self, world: TakingIn, connection: Connection) -> None:
        """What a dead worker began is not forgotten."""
        receipt = world.accept()
        world.store.begin(receipt.id, uuid4())
        world.queue.rung.clear()
        world.clock.advance(901)
        world.reconciler.run()
        ((_, result),) = world.store.audit_rows()
        assert result is not None
        assert result.outcome is Outcome.UNKNOWN
        assert world.queue.rung == [(EventType.CREATED, receipt.id)]
        assert world.custody.run(receipt.id) is EventState.STORED


class TestSettingChanges:
    """The setting that was encrypted under must still be the setting."""

    def test_byok_that_is_enabled_meanwhile_is_followed(self, world: TakingIn) -> None:
        """What the platform cipher made is thrown away, and the customer's key is asked."""
        receipt = world.accept()
        during_encryption(world, world.connect)
        assert world.custody.run(receipt.id) is EventState.STORED
        assert (cipher(world), world.value()) == (CipherName.KMS, VALUE.encode())

    def test_a_connection_that_is_replaced_meanwhile_is_followed(self, world: TakingIn, connection: Connection) -> None:
        """The blob is under the new one."""
        receipt = world.accept()
        during_encryption(world, world.connect)
        world.custody.run(receipt.id)
        assert world.store.secret_row(WORKSPACE, "github").connection_id == world.store.setting(WORKSPACE).connection.id  # type: ignore[union-attr]
        assert world.store.secret_row(WORKSPACE, "github").connection_id != connection.id

    def test_a_disconnection_meanwhile_is_followed(self, world: TakingIn, connection: Connection) -> None:
        """Back to the platform cipher, because the setting says so."""
        receipt = world.accept()
        during_encryption(world, lambda: world.store.disconnect(WORKSPACE))
        assert world.custody.run(receipt.id) is EventState.STORED
        assert cipher(world) is CipherName.PLATFORM

    def test_each_start_is_audited(self, world: TakingIn) -> None:
        """Also the one that was thrown away."""
        receipt = world.accept()
        during_encryption(world, world.connect)
        world.custody.run(receipt.id)
        assert [result and result.code for _, result in world.store.audit_rows()] == ["setting_changed", ""]

    def test_one_that_keeps_changing_waits(self, world: TakingIn, connection: Connection) -> None:
        """Bounded: the event stays for a later attempt."""
        receipt = world.accept()
        during_encryption(world, world.connect, times=MOST_RESTARTS)
        with pytest.raises(Transient):
            world.custody.run(receipt.id)
        assert world.state(receipt.id) is EventState.ACCEPTED

    def test_one_that_kept_changing_is_stored_later(self, world: TakingIn, connection: Connection) -> None:
        """Starting over is no crash: it spends no attempts."""
        receipt = world.accept()
        during_encryption(world, world.connect, times=MOST_RESTARTS)
        with pytest.raises(Transient):
            world.custody.run(receipt.id)
        assert world.custody.run(receipt.id) is EventState.STORED

    def test_old_blobs_stay_where_they_are(self, world: TakingIn) -> None:
        """Until they are rotated."""
        world.take_in()
        world.connect()
        assert (cipher(world), world.value()) == (CipherName.PLATFORM, VALUE.encode())
        world.take_in(type="secret.rotated", version=2, value="second-value")
        assert (cipher(world), world.value()) == (CipherName.KMS, b"second-value")


class TestDeletion:
    """Deleted while it was on its way."""

    def test_a_deletion_before_custody(self, world: TakingIn) -> None:
        """Nothing is begun."""
        receipt = world.accept()
        world.accept(type="secret.deleted", version=2)
        assert world.custody.run(receipt.id) is None
        assert cipher(world) is None

    def test_a_deletion_during_custody(self, world: TakingIn) -> None:
        """Nothing is stored."""
        receipt = world.accept()
        during_encryption(world, lambda: world.accept(type="secret.deleted", version=2))
        assert world.custody.run(receipt.id) is EventState.DELETED
        assert cipher(world) is None

    def test_a_workspace_that_is_deleted_during_custody(self, world: TakingIn) -> None:
        """The same."""
        receipt = world.accept()
        during_encryption(world, lambda: world.store.delete_workspace(WORKSPACE))
        assert world.custody.run(receipt.id) is EventState.DELETED
