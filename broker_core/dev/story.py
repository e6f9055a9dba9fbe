"""The story that ``broker demo`` plays, step by step. What the steps do and see is in ``scene``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from broker_core import proof_document
from broker_core.adapters.signing import Ed25519Signer, thumbprint, verified
from broker_core.dev.scene import (
    WORKSPACE,
    NotSeen,
    Scene,
    external_id,
    request_id,
    see,
    session_name,
    trail_line,
)
from broker_core.dev.stack import OUR_ACCOUNT, PROGRAMS
from broker_core.model import EventState, EventType
from broker_core.ports import Proof
from broker_core.proof_document import CONTENT_TYPE

Detail = Mapping[str, Any]
#: name, sentence, what is done
Step = tuple[str, str, Callable[[], Detail]]


class Story(Scene):
    """The steps, and what they leave for each other."""

    def steps(self) -> Iterator[Step]:
        """Name, sentence and step, in order."""
        yield "processes", "The Procfile's web, worker, sweeper and scheduler start.", self.processes
        yield (
            "before_byok",
            "A secret from before BYOK: it is stored under the platform cipher, and injects.",
            self.before_byok,
        )
        yield (
            "customer_account",
            "The customer made a KMS key and a role that we may assume with their external id.",
            self.customer_account,
        )
        yield (
            "connect",
            "The workspace's owner connects them: nothing is enabled before every step of the verification is passed.",
            self.connect,
        )
        yield (
            "event",
            "A secret.created event arrives; a worker encrypts the value under the customer's key.",
            self.event,
        )
        yield (
            "inject",
            "An agent's request goes out: one AssumeRole, one Decrypt, one upstream request, one redacted answer.",
            self.inject,
        )
        yield (
            "before_byok_still_injects",
            "The older secret still injects, from the platform cipher, until it is rotated.",
            self.older_still_injects,
        )
        yield "rotate_moves", "It is rotated: the new value is under the customer's key.", self.rotate_moves
        yield "rotation", "The first secret is rotated: the upstream gets the new value.", self.rotation
        for name, sentence, revoke, restore in self._revocations():
            yield (
                f"revoke_{name}",
                f"The customer revokes: {sentence}.",
                partial(self.revocation, revoke, restore),
            )
        yield "revoked", "The customer removes the role from the key policy, and leaves it so.", self.revoked
        yield (
            "fails_closed",
            "A rotation that arrives now is held as refused: nothing falls back to the platform cipher.",
            self.fails_closed,
        )
        yield "affected", "The sweep probes the connection; the owner sees what is affected.", self.affected
        yield (
            "recovery",
            "The customer gives access back: it heals by itself, and the held rotation is stored.",
            self.recovery,
        )
        yield (
            "role_deleted",
            "The customer deletes the role: a role of the same name, made again, does not help.",
            self.role_deleted,
        )
        yield (
            "lockout_proof",
            "The owner has it proved, by dry run and real Decrypt for each secret, and gets a signed document.",
            self.lockout_proof,
        )
        yield "reprovision", "Re-provisioning: a new connection, and the values given again.", self.reprovision
        yield "nothing_left", "What is left of values on the way in: no claim, no file.", self.nothing_left

    # ------------------------------------------------------------ the steps

    def processes(self) -> Detail:
        """Start them."""
        self._app.store.put_workspace(WORKSPACE, "enterprise")
        started = self._stack.run(*PROGRAMS)
        return {name: f"process {child.pid}" for name, child in zip(PROGRAMS, started, strict=True)}

    def before_byok(self) -> Detail:
        """Platform cipher."""
        self._give("older", "secret.created")
        candidate = self._candidate("older")
        see(
            candidate.blob.cipher == "platform" and candidate.connection is None,
            "the blob is under the platform cipher",
        )
        return {"cipher": candidate.blob.cipher.value, **self._injects("older")}

    def customer_account(self) -> Detail:
        """Show it."""
        return {
            "role": self._customer.role_arn,
            "key": self._customer.key_arn,
            "trusts": f"arn:aws:iam::{OUR_ACCOUNT}:root",
        }

    def connect(self) -> Detail:
        """Connect, and look at the steps and at the audit rows."""
        found = self._connect(self._customer)
        uses = self._uses("verify")
        named = {use.result.receipt.request_id for use in uses if use.result}
        asked = {step.request_id for step in found.steps if step.request_id}
        see(bool(asked) and asked <= named, "every answer of AWS's in the steps is in the audit log")
        steps = {step.name: f"{step.outcome.value} {step.aws_code}".strip() for step in found.steps}
        return {"connection": str(found.connection.id), "steps": steps}

    def event(self) -> Detail:
        """Custody, from both sides."""
        event = self._give("github", "secret.created")
        candidate = self._candidate("github")
        use = next(use for use in reversed(self._uses("encrypt")) if use.intent.event_id == event.id)
        see(candidate.blob.cipher == "kms", "the blob is the customer's KMS's")
        seen = self._in_trail(request_id(use))
        see(seen["eventName"] == "Encrypt", "the customer's trail has this Encrypt")
        blob = candidate.blob.ciphertext
        return {
            "state": event.state.value,
            "blob": f"{len(blob)} bytes, beginning {blob[:8].hex(' ')}",
            "roleSessionName": session_name(use),
            "kmsRequestId": request_id(use),
            "inTheCustomersTrail": trail_line(seen),
        }

    def inject(self) -> Detail:
        """Injection, from all three sides."""
        detail = self._injects("github")
        use = self._uses("inject")[-1]
        seen = self._in_trail(request_id(use))
        see(seen["eventName"] == "Decrypt", "the customer's trail has this Decrypt")
        return {
            **detail,
            "roleSessionName": session_name(use),
            "kmsRequestId": request_id(use),
            "inTheCustomersTrail": trail_line(seen),
        }

    def older_still_injects(self) -> Detail:
        """The platform secret, after connecting."""
        return {"cipher": self._candidate("older").blob.cipher.value, **self._injects("older")}

    def rotate_moves(self) -> Detail:
        """It moves at its rotation."""
        self._give("older", "secret.rotated")
        cipher = self._candidate("older").blob.cipher
        see(cipher == "kms", "the rotated value is under the customer's key")
        return {"cipher": cipher.value, **self._injects("older")}

    def rotation(self) -> Detail:
        """A new version of a customer-held secret."""
        before = self._candidate("github")
        self._give("github", "secret.rotated")
        after = self._candidate("github")
        see(after.version == before.version + 1 and after.blob != before.blob, "a new version with a new blob")
        return {"version": f"{before.version} -> {after.version}", **self._injects("github")}

    def revocation(self, revoke: Callable[[], object], restore: Callable[[], object]) -> Detail:
        """Revoke, see the refusal, restore, see it work."""
        revoke()
        refusal = self._refusal("github")
        restore()
        self._injects("github")
        self._eventually(self._has_healed, "the connection healed")
        return {**refusal, "afterRestoring": "injects again, and nothing is affected"}

    def revoked(self) -> Detail:
        """The standing revocation."""
        self._customer.remove_role_from_key_policy()
        return self._refusal("github")

    def fails_closed(self) -> Detail:
        """INV-3, seen."""
        event = self._publish("github", "secret.rotated")
        held = self._reaches(event, EventState.REFUSED)
        candidate = self._candidate("github")
        see(candidate.version < held.version and candidate.blob.cipher == "kms", "the old blob is still in place")
        self._held = event
        return {
            "state": f"{held.state.value} ({held.reason}), held until {held.held_until:%H:%M:%S} UTC",
            "blobInPlace": f"version {candidate.version}",
        }

    def affected(self) -> Detail:
        """The sweeper's process finds it; the owner's list names the secrets."""
        self._app.sweep.probes()
        found = self._eventually(lambda: self._app.byok.affected(WORKSPACE).connections, "a failing connection")
        return {
            "connection": f"{found[0].state.value}, AWS said {found[0].aws_code}, found by {found[0].found_by.value}",
            "secrets": ", ".join(name for _, name in found[0].secrets),
        }

    def recovery(self) -> Detail:
        """Access comes back."""
        self._customer.restore_key_policy()
        held = self._held
        if held is None:
            raise NotSeen("no rotation is held")
        self._eventually(self._has_healed, "the connection healed")
        self._app.queue.ring(EventType.ROTATED, held)
        stored = self._reaches(held, EventState.STORED)
        return {"connection": "healed", "heldRotation": stored.state.value, **self._injects("github")}

    def role_deleted(self) -> Detail:
        """Deleting the role cannot be undone."""
        self._customer.delete_role()
        refusal = self._refusal("github")
        self._customer.recreate_role()
        again = self._refusal("github")
        return {**refusal, "afterMakingTheRoleAgain": again["refused"]}

    def lockout_proof(self) -> Detail:
        """Every secret under the revoked connection, asked about by us or by the sweeper's process; and checked."""
        proof = self._app.proofs.start(WORKSPACE, asked_by="demo")
        ended = self._eventually(lambda: self._proved(proof.id), "the proof ended")
        see(ended.is_locked_out is True and ended.total == 2, "both secrets are locked out")
        public_key = Ed25519Signer(self._app.settings.signing_key or "").public_key
        signed = proof_document.read(verified(ended.document or "", public_key, CONTENT_TYPE))
        see(proof_document.summary(signed).is_locked_out, "the signed document says so")
        asks = [ask for secret in signed["secrets"] for ask in secret["asked"]]
        for ask in asks:
            if ask["inYourCloudTrail"]:
                self._in_trail(ask["kmsRequestId"])
        return {
            "lockedOut": ", ".join(secret["name"] for secret in signed["secrets"]),
            "asked": "; ".join(f"{ask['how']}: {ask['answer']} ({ask['awsCode']})" for ask in asks),
            "inTheCustomersTrail": f"{sum(ask['inYourCloudTrail'] for ask in asks)} of {len(asks)} denials",
            "signature": f"EdDSA, key {thumbprint(public_key)}",
        }

    def _proved(self, proof_id: UUID) -> Proof | None:
        proof = self._app.proofs.step(WORKSPACE, proof_id)
        return proof if proof.ended_at is not None else None

    def reprovision(self) -> Detail:
        """A new key, a new role, the values again."""
        fresh = self._stack.customer(external_id(), role_name="axiorank-byok-2")
        connection = self._connect(fresh).connection.id
        for name in ("github", "older"):
            self._give(name, "secret.rotated")
            see(self._candidate(name).connection is not None, "the blob has a connection")
        statuses = {view.name: view.status.value for view in self._app.store.secrets(WORKSPACE)}
        see(set(statuses.values()) == {"active"}, f"every secret is active, not {statuses}")
        return {"connection": str(connection), "statuses": statuses, **self._injects("github")}

    def nothing_left(self) -> Detail:
        """The claim server, at the end."""
        files = list(self._stack.claims.directory.iterdir())
        see(not files, "the claim server's directory is empty")
        return {"filesOfTheClaimServer": len(files)}

    def _revocations(self) -> Iterator[tuple[str, str, Callable[[], object], Callable[[], object]]]:
        customer, old = self._customer, self._customer.external_id
        yield (
            "role_removed",
            "they remove the role from the key policy",
            customer.remove_role_from_key_policy,
            customer.restore_key_policy,
        )
        yield "key_disabled", "they disable the key", customer.disable_key, customer.enable_key
        yield (
            "key_scheduled_for_deletion",
            "they schedule the key for deletion",
            customer.schedule_deletion,
            self._undelete,
        )
        yield (
            "external_id_changed",
            "they change the external id in the role's trust policy",
            lambda: customer.change_external_id(external_id()),
            lambda: customer.change_external_id(old),
        )

    def _undelete(self) -> None:
        self._customer.cancel_deletion()
        self._customer.enable_key()
