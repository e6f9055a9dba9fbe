"""The lockout proof on the in-memory store and key service: what is asked, in which order, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from structlog.testing import capture_logs

from broker_core import proof_document
from broker_core.adapters.signing import Ed25519Signer, verified
from broker_core.audit import Outcome
from broker_core.errors import (
    Busy,
    ConfigurationError,
    Conflict,
    Denied,
    Integrity,
    KeyServiceError,
    KeyState,
    Misconfigured,
    Transient,
    Unavailable,
)
from broker_core.model import Purpose
from broker_core.ports import KeyUse, Opened, Proof
from broker_core.proof import LockoutProof, ProofLimits
from tests.customers import Customers

SIGNER = Ed25519Signer(
    Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
)
NO = Denied("no", aws_code="AccessDeniedException")
ROLE_NO = Denied("no", state=KeyState.ROLE_REFUSED, aws_code="AccessDenied")
Answer = KeyServiceError | None


class Scene(Customers):
    """One customer with secrets, and proofs about them."""

    def __init__(self, *names: str, brakes: Callable[[], bool] = lambda: False, **limits: Any) -> None:
        super().__init__()
        self.connection = self.connect()
        for name in names:
            self.keep(name=name)
        self.can_sign = True
        self.proofs = self.process(brakes, **limits)

    def process(
        self, brakes: Callable[[], bool] = lambda: False, *, has_control_role: bool = False, **limits: Any
    ) -> LockoutProof:
        """The use case, as one process has it."""
        return LockoutProof(
            self.store,
            self.keys,
            self.clock,
            uuid4,
            self._signer,
            brakes,
            ProofLimits(**({"calls_per_second": 1000.0, "retry": 5.0} | limits)),
            has_control_role=has_control_role,
        )

    def _signer(self) -> Ed25519Signer:
        if not self.can_sign:
            raise ConfigurationError("no key")
        return SIGNER

    def answers(self, *answers: Answer) -> None:
        """What KMS says to one use after another; the last repeats."""
        left = list(answers)
        self.keys.fail_when(lambda _: left.pop(0) if len(left) > 1 else left[0], self.connection)

    def run(self, proof: Proof | None = None, most: int = 200) -> dict[str, Any]:
        """A proof to its end, with time passing between the steps; the document."""
        proof = proof or self.proofs.start("ws")
        for _ in range(most):
            if self.proofs.step("ws", proof.id).ended_at is not None:
                jws = self.proofs.signed("ws", proof.id)
                return dict(proof_document.read(verified(jws, SIGNER.public_key, proof_document.CONTENT_TYPE)))
            self.clock.sleep(1)
        raise AssertionError("the proof does not end")

    def methods(self) -> list[str]:
        return [call.method for call in self.keys.calls]


def outcomes(document: dict[str, Any]) -> dict[str, str]:
    return {secret["name"]: secret["outcome"] for secret in document["secrets"]}


class TestAsking:
    def test_a_lockout(self) -> None:
        """Every secret is denied by dry run and then by a real Decrypt, and the document says so."""
        scene = Scene("a", "b")
        scene.answers(NO)
        document = scene.run()
        assert document["isLockedOut"] is True
        assert outcomes(document) == {"a": "locked_out", "b": "locked_out"}
        assert scene.methods() == ["check", "decrypt"] * 2

    def test_the_vault_is_not_read(self) -> None:
        """Where the dry run would work nothing is decrypted, and the proof fails."""
        scene = Scene("a")
        document = scene.run()
        assert (document["isLockedOut"], outcomes(document)) == (False, {"a": "still_decrypts"})
        assert scene.methods() == ["check"]

    def test_one_of_many(self) -> None:
        """One secret that still decrypts is enough for the proof to fail."""
        scene = Scene("a", "b", "c")
        scene.keys.fail_when(lambda use: None if use.context["axiorank:secret"] == "b" else NO, scene.connection)
        document = scene.run()
        assert document["isLockedOut"] is False
        assert document["totals"] == {"locked_out": 2, "still_decrypts": 1, "not_shown": 0, "moved": 0, "deleted": 0}

    def test_a_decrypt_that_works_after_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The value is wiped at once, and the secret still decrypts, with a note."""
        scene, opened = Scene("a"), list[Opened]()
        scene.answers(NO, None)
        decrypt = scene.keys.decrypt

        def seen(*given: Any) -> Opened:
            opened.append(decrypt(*given))
            return opened[-1]

        monkeypatch.setattr(scene.keys, "decrypt", seen)
        (secret,) = scene.run()["secrets"]
        assert secret["outcome"] == "still_decrypts"
        assert "worked" in secret["note"]
        with pytest.raises(ValueError, match="wiped"), opened[0].value.reveal():
            pass

    def test_each_call_is_one_use(self) -> None:
        """With an audit row of its own, begun before it, whose id is in the session's name and in the document."""
        scene = Scene("a")
        scene.keys.fail_when(_seen_in_the_log(scene), scene.connection)
        (secret,) = scene.run()["secrets"]
        rows = {str(intent.id): (intent, result) for intent, result in scene.store.audit_rows()}
        for ask in secret["asked"]:
            intent, result = rows[ask["auditId"]]
            assert (intent.purpose, intent.secret_name, intent.version) == (Purpose.PROOF, "a", 1)
            assert result is not None
            assert (result.outcome, result.aws_code) == (Outcome.REFUSED, "AccessDeniedException")
            assert ask["sessionName"] == f"axiorank-proof-{ask['auditId']}" == result.receipt.session_name
            assert ask["kmsRequestId"] == result.receipt.kms_request_id
        assert len({ask["auditId"] for ask in secret["asked"]}) == 2

    def test_no_audit_no_question(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the intent cannot be written KMS is not asked; the proof goes on later."""
        scene = Scene("a")
        scene.answers(NO)
        proof = scene.proofs.start("ws")

        def refuse(_: object) -> None:
            raise Unavailable("away")

        with monkeypatch.context() as changed:
            changed.setattr(scene.store, "begin_use", refuse)  # this database fails at one statement
            with pytest.raises(Unavailable):
                scene.proofs.step("ws", proof.id)
        assert scene.methods() == []
        assert scene.run(proof)["isLockedOut"] is True


def _seen_in_the_log(scene: Scene) -> Callable[[KeyUse], KeyServiceError]:
    def decide(use: KeyUse) -> KeyServiceError:
        assert use.audit_id in {intent.id for intent, _ in scene.store.audit_rows()}
        return NO

    return decide


class TestNoAnswer:
    def test_transient(self) -> None:
        """It is asked again, and counts once AWS has said no."""
        scene = Scene("a")
        scene.answers(Transient("away"), NO)
        document = scene.run()
        assert document["isLockedOut"] is True
        assert [ask["answer"] for ask in document["secrets"][0]["asked"]] == [
            "transient",
            "access_denied",
            "access_denied",
        ]

    def test_transient_after_the_dry_run(self) -> None:
        """A denied dry run alone proves nothing: both are asked anew."""
        scene = Scene("a")
        scene.answers(NO, Transient("away"), NO)
        assert scene.run()["isLockedOut"] is True
        assert scene.methods() == ["check", "decrypt", "check", "decrypt"]

    def test_for_ever(self) -> None:
        """After a few attempts it is not shown, and the proof ends and fails."""
        scene = Scene("a", "b")
        scene.keys.fail_when(lambda use: Transient("away") if use.context["axiorank:secret"] == "a" else NO)
        document = scene.run()
        assert (document["isLockedOut"], outcomes(document)) == (False, {"a": "not_shown", "b": "locked_out"})
        assert len([call for call in scene.keys.calls if call.use.context["axiorank:secret"] == "a"]) == 4

    def test_the_waits_grow(self) -> None:
        """5, 10 and 20 s lie between the attempts."""
        scene, times = Scene("a"), list[float]()

        def away(_: KeyUse) -> KeyServiceError:
            times.append(scene.clock.monotonic())
            return Transient("away")

        scene.keys.fail_when(away)
        scene.run()
        assert [later - earlier for earlier, later in pairwise(times)] == [5, 10, 20]

    def test_busy(self) -> None:
        """A connection that is busy was not asked: that is no attempt, and no line in the document."""
        scene = Scene("a", attempts=1)
        scene.answers(*[Busy("busy")] * 6, NO)
        document = scene.run()
        assert document["isLockedOut"] is True
        assert len(document["secrets"][0]["asked"]) == 2

    @pytest.mark.parametrize("error", [Misconfigured("ours"), Integrity("broken")])
    def test_no_denial_of_theirs(self, error: KeyServiceError) -> None:
        """What is not the customer's no shows nothing, and is not tried again (INV-8)."""
        scene = Scene("a")
        scene.answers(error)
        document = scene.run()
        assert outcomes(document) == {"a": "not_shown"}
        assert error.state.value in document["secrets"][0]["note"]
        assert scene.methods() == ["check"]

    @pytest.mark.parametrize(("has_control_role", "is_said"), [(False, True), (True, False)])
    def test_a_refused_role_says_whether_our_own_side_was_shown(self, has_control_role: bool, is_said: bool) -> None:
        """Without a control role of ours, a fault of our own could refuse us too: the signed document says so."""
        scene = Scene("a")
        scene.proofs = scene.process(has_control_role=has_control_role)
        scene.answers(ROLE_NO)
        document = scene.run()
        assert (proof_document.OWN_SIDE_NOT_SHOWN in document["doesNotShow"]) is is_said

    def test_a_key_that_denied_needs_no_control_role(self) -> None:
        """What KMS denied to an assumed session was not our side of AssumeRole."""
        scene = Scene("a")
        scene.answers(NO)
        assert proof_document.OWN_SIDE_NOT_SHOWN not in scene.run()["doesNotShow"]

    def test_under_the_brake(self) -> None:
        """Roles that refuse us while many turn at once may be a fault of ours: nothing is shown (INV-8)."""
        scene = Scene("a", brakes=lambda: True)
        scene.answers(ROLE_NO)
        assert outcomes(scene.run()) == {"a": "not_shown"}

    def test_the_key_under_the_brake(self) -> None:
        """What KMS itself denied is the customer's, whatever others do."""
        scene = Scene("a", brakes=lambda: True)
        scene.answers(NO)
        assert scene.run()["isLockedOut"] is True


class TestMeanwhile:
    def test_deleted(self) -> None:
        """A secret that was deleted is listed as that, and not asked about."""
        scene = Scene("a", "b")
        scene.answers(NO)
        proof = scene.proofs.start("ws")
        row = scene.store.secret_row("ws", "a")
        row.blob, row.connection_id, row.deleted_at = None, None, scene.clock.now()
        document = scene.run(proof)
        assert (document["isLockedOut"], outcomes(document)) == (True, {"a": "deleted", "b": "locked_out"})
        assert len(scene.methods()) == 2

    def test_moved(self) -> None:
        """One that was rotated under another key is listed as moved, and counted beside."""
        scene = Scene("a", "b")
        proof = scene.proofs.start("ws")
        fresh = scene.connect(external_id="the-next-external-id")
        scene.keep(name="a")
        scene.answers(NO)
        document = scene.run(proof)
        assert (document["isLockedOut"], outcomes(document)) == (True, {"a": "moved", "b": "locked_out"})
        (other,) = document["notCovered"]["otherConnections"]
        assert (other["id"], other["secrets"]) == (str(fresh.id), 1)

    def test_stored_after_the_start(self) -> None:
        """A secret that came later was not asked about: then the proof does not say that all are closed."""
        scene = Scene("a")
        proof = scene.proofs.start("ws")
        scene.keep(name="later")
        scene.answers(NO)
        document = scene.run(proof)
        assert (document["isLockedOut"], document["notCovered"]["storedMeanwhile"]) == (False, 1)


class TestRunning:
    def test_one_at_a_time(self) -> None:
        """A second one is refused until the first has ended."""
        scene = Scene("a")
        proof = scene.proofs.start("ws")
        with pytest.raises(Conflict):
            scene.proofs.start("ws")
        scene.run(proof)
        scene.proofs.start("ws")

    def test_nothing_is_begun_that_cannot_be_signed(self) -> None:
        """Without a signing key there is no start."""
        scene = Scene("a")
        scene.can_sign = False
        with pytest.raises(ConfigurationError):
            scene.proofs.start("ws")
        assert scene.store.running_proofs(9) == []

    def test_the_budget(self) -> None:
        """Two calls for each secret: at five calls a second ten secrets take four seconds, less what was saved."""
        scene = Scene(*(f"s{number}" for number in range(10)), calls_per_second=5.0)
        scene.answers(NO)
        began = scene.clock.monotonic()
        scene.run()
        assert scene.clock.monotonic() - began == 2

    def test_a_killed_process(self) -> None:
        """Another process goes on where it was, once the lease is over; nothing that is settled is asked again."""
        scene = Scene("a", "b", "c")
        scene.answers(NO)
        proof = scene.proofs.start("ws")
        scene.proofs.step("ws", proof.id, limit=1)
        scene.store.claim_item(proof, 1000.0, 60.0)  # and died
        scene.proofs = scene.process()
        assert scene.proofs.step("ws", proof.id).done == 1
        scene.clock.sleep(61)
        document = scene.run(proof)
        assert document["isLockedOut"] is True
        assert len(scene.methods()) == 6

    def test_one_that_is_killed_each_time(self) -> None:
        """A secret that ends its process every time is given up: the proof ends."""
        scene = Scene("a")
        scene.answers(NO)
        proof = scene.proofs.start("ws")
        for _ in range(4):
            scene.store.claim_item(proof, 1000.0, 60.0)
            scene.clock.sleep(61)
        assert outcomes(scene.run(proof)) == {"a": "not_shown"}
        assert scene.methods() == []

    def test_interrupted(self) -> None:
        """^C leaves no lease to wait for."""
        scene = Scene("a")
        proof = scene.proofs.start("ws")

        def interrupt(_: KeyUse) -> KeyServiceError:
            raise KeyboardInterrupt

        scene.keys.fail_when(interrupt)
        with pytest.raises(KeyboardInterrupt):
            scene.proofs.step("ws", proof.id)
        scene.answers(NO)
        scene.keys.fail(None)
        assert scene.proofs.step("ws", proof.id).is_locked_out is True

    def test_a_step_is_bounded(self) -> None:
        """By secrets, and by time."""
        scene = Scene(*"abcdef")
        proof = scene.proofs.start("ws")

        def slow(_: KeyUse) -> KeyServiceError:
            scene.clock.sleep(1)
            return NO

        scene.keys.fail_when(slow)
        assert scene.proofs.step("ws", proof.id, limit=2).done == 2
        assert scene.proofs.step("ws", proof.id, seconds=3).done == 4

    def test_an_ended_one_is_not_stepped(self) -> None:
        """The document stands."""
        scene = Scene("a")
        scene.answers(NO)
        first = scene.run()
        asked = len(scene.methods())
        proof = scene.proofs.progress("ws")
        assert scene.run(proof) == first
        assert len(scene.methods()) == asked

    def test_a_running_one_has_no_document(self) -> None:
        """And says how far it is."""
        scene = Scene("a", "b")
        proof = scene.proofs.start("ws")
        for ask in (scene.proofs.signed, scene.proofs.page):
            with pytest.raises(Conflict, match="0 of 2"):
                ask("ws", proof.id)


class TestTick:
    def test_every_running_proof(self) -> None:
        """One round goes on with each, whatever goes wrong with one of them."""
        scene = Scene("a")
        scene.connect("other")
        scene.keep("other", "b")
        scene.keys.fail(NO)
        first, second = scene.proofs.start("ws"), scene.proofs.start("other")

        def broken(use: KeyUse) -> KeyServiceError:
            if use.connection.workspace_id == "ws":
                raise LookupError("a fault of ours")
            return NO

        scene.keys.fail_when(broken)
        with capture_logs() as logs:
            assert scene.proofs.tick() == 2
        assert [line["fault"][0]["class"] for line in logs if line["event"] == "proof.failed"] == ["LookupError"]
        assert "a fault of ours" not in str(logs)
        assert scene.proofs.progress("ws", first.id).ended_at is None
        assert scene.proofs.progress("other", second.id).is_locked_out is True

    def test_a_process_that_cannot_sign(self) -> None:
        """It asks all the same; who can sign does it when the document is asked for."""
        scene = Scene("a")
        scene.answers(NO)
        proof = scene.proofs.start("ws")
        scene.can_sign = False
        scene.proofs.tick()
        found = scene.proofs.progress("ws", proof.id)
        assert (found.done, found.ended_at) == (1, None)
        scene.can_sign = True
        assert scene.proofs.signed("ws", proof.id).count(".") == 2


def test_another_workspaces_proof() -> None:
    """It answers like one that does not exist (INV-10)."""
    scene = Scene("a")
    proof = scene.proofs.start("ws")
    scene.store.put_workspace("strange", "enterprise")
    asked: list[Callable[[str, UUID], object]] = [
        scene.proofs.progress,
        scene.proofs.step,
        scene.proofs.signed,
        scene.proofs.page,
    ]
    for ask in asked:
        with pytest.raises(Exception, match="not_found"):
            ask("strange", proof.id)


def test_the_shared_policy_is_shown() -> None:
    """Where sessions are shared the document shows the policy that such a session has."""
    scene = Scene("a")
    scene.answers(NO)
    limits = ProofLimits(calls_per_second=1000.0)
    scene.proofs = LockoutProof(
        scene.store, scene.keys, scene.clock, uuid4, lambda: SIGNER, limits=limits, shares_sessions=True
    )
    (statement,) = scene.run()["sessionPolicy"]["policy"]["Statement"]
    assert statement["Condition"] == {"StringEquals": {"kms:EncryptionContext:axiorank:workspace": "ws"}}
