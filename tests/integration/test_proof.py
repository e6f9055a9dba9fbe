"""The lockout proof on real servers: each way of revoking, a way in that was left open, the commands, the documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker_core import proof_document
from broker_core.adapters.upstream import HttpsUpstream
from broker_core.cli import main
from broker_core.dev.aws.faults import Fault
from broker_core.errors import NotFound
from broker_core.ports import ProofOutcome
from tests.databases import plain
from tests.integration.test_documents import blocks, rows
from tests.sentinel import Search, text_sentinel
from tests.waiting import wait_until

if TYPE_CHECKING:
    from broker_core.dev.aws import CustomerAccount
    from tests.live import Live

GUIDE = (Path(__file__).parents[2] / "docs" / "proof.md").read_text()
KEY = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
SETTINGS = {"BROKER_SIGNING_KEY": KEY, "BROKER_CHECK_RPS": "1000"}
#: seconds until a proof or a command is given up: the machine may be busy
PATIENCE = 120


@pytest.fixture
def live(live_with: Callable[..., Live], way_out: HttpsUpstream) -> Live:
    """An App that can sign, and need not wait for its budget."""
    return live_with(SETTINGS, upstream=way_out)


@pytest.fixture
def customer(live: Live) -> CustomerAccount:
    """A customer who is connected, with two secrets; one is large, and so under an envelope."""
    customer = live.customer()
    live.connect(customer)
    live.store("github")
    live.store("large", value="v" * 5000, injectionKind="query", bindingKey="k", targetHost="localhost", agentId="a")
    return customer


def prove(live: Live) -> dict[str, Any]:
    """A proof to its end; its document."""
    proofs = live.app.proofs
    proof = proofs.start(live.workspace, asked_by="owner-1")
    wait_until(lambda: proofs.step(live.workspace, proof.id).ended_at, deadline_seconds=PATIENCE, what="the proof")
    return dict(proof_document.read(proof_document.payload_of(proofs.signed(live.workspace, proof.id))))


REVOKING: dict[str, tuple[Callable[[CustomerAccount], object], str, str, bool]] = {
    "key policy": (lambda c: c.remove_role_from_key_policy(), "access_denied", "AccessDeniedException", True),
    "key disabled": (lambda c: c.disable_key(), "key_disabled", "DisabledException", True),
    "deletion pending": (lambda c: c.schedule_deletion(), "key_pending_deletion", "KMSInvalidStateException", True),
    "trust removed": (lambda c: c.change_external_id("another-external-id"), "role_refused", "AccessDenied", False),
    "role deleted": (lambda c: c.delete_role(), "role_refused", "AccessDenied", False),
}


class TestRevoking:
    @pytest.mark.parametrize("way", REVOKING)
    def test_each_way(self, live: Live, customer: CustomerAccount, way: str) -> None:
        """Every secret is denied twice with AWS's own code; what KMS denied is in the customer's trail under the very
        ids and names of the document, and what STS refused is not."""
        revoke, state, code, is_confirmed = REVOKING[way]
        revoke(customer)
        document = prove(live)
        assert document["isLockedOut"] is True
        assert document["totals"]["locked_out"] == 2
        trail = {record["requestID"]: record for record in live.aws.trail.records(customer.account.account_id)}
        for secret in document["secrets"]:
            assert [ask["how"] for ask in secret["asked"]] == ["dry_run", "decrypt"]
            for ask in secret["asked"]:
                assert (ask["answer"], ask["awsCode"], ask["inYourCloudTrail"]) == (state, code, is_confirmed)
                assert ask["assumeRoleRequestId"]
                assert (ask["kmsRequestId"] in trail) is is_confirmed
                if is_confirmed:
                    record = trail[ask["kmsRequestId"]]
                    assert record["errorCode"].startswith(code.removesuffix("Exception"))
                    assert record["userIdentity"]["arn"].endswith("/" + ask["sessionName"])

    def test_a_second_statement(self, live: Live, customer: CustomerAccount) -> None:
        """The role was taken out of the key policy, but another statement still lets it decrypt one secret: that one
        still decrypts, is not decrypted, and the proof fails and says so."""
        condition = {"StringEquals": {"kms:EncryptionContext:axiorank:secret": "github"}}
        left = customer.use_statement(condition) | {"Sid": "Forgotten"}
        customer.put_key_policy(customer.key_policy(left, use=False))
        before = len(live.aws.trail.calls)
        document = prove(live)
        assert document["isLockedOut"] is False
        assert {secret["name"]: secret["outcome"] for secret in document["secrets"]} == {
            "github": "still_decrypts",
            "large": "locked_out",
        }
        decrypts = [call for call in live.aws.trail.calls[before:] if call.action == "kms:Decrypt"]
        asked = [(call.encryption_context["axiorank:secret"], call.dry_run) for call in decrypts]
        assert sorted(asked) == [("github", True), ("large", False), ("large", True)]

    def test_not_revoked(self, live: Live, customer: CustomerAccount) -> None:
        """With nothing revoked nothing is read either."""
        before = len(live.aws.trail.calls)
        assert prove(live)["totals"]["still_decrypts"] == 2
        decrypts = [call for call in live.aws.trail.calls[before:] if call.action == "kms:Decrypt"]
        assert [call.dry_run for call in decrypts] == [True, True]

    def test_throttled(self, live: Live, customer: CustomerAccount) -> None:
        """Throttling is no denial; within a use it is asked again."""
        customer.disable_key()
        live.aws.faults.add(
            Fault("kms:Decrypt", account=customer.account.account_id, count=1, error="ThrottlingException")
        )
        assert prove(live)["isLockedOut"] is True

    def test_the_policy_that_is_shown(self, live: Live, customer: CustomerAccount) -> None:
        """It is, word for word, what a session of the proof was bound to."""
        customer.disable_key()
        shown = prove(live)["sessionPolicy"]
        asked = [
            call
            for call in live.aws.trail.records(customer.account.account_id)
            if call["eventName"] == "AssumeRole" and "axiorank-proof-" in call["requestParameters"]["roleSessionName"]
        ]
        assert shown["policy"] in [json.loads(call["requestParameters"]["policy"]) for call in asked]

    def test_no_value(self, live: Live) -> None:
        """INV-1: neither the document, nor its page, nor any row of the proof holds a form of a value."""
        sentinel = text_sentinel("value")
        customer = live.customer()
        live.connect(customer)
        live.store("github", value=sentinel.value.decode())
        customer.disable_key()
        prove(live)
        customer.enable_key()
        proof = prove(live)
        jws = live.app.proofs.signed(live.workspace, live.app.proofs.progress(live.workspace).id)
        page = live.app.proofs.page(live.workspace, live.app.proofs.progress(live.workspace).id)
        with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"])) as connection:
            written = [
                connection.execute(
                    f"SELECT t::text FROM {table} t WHERE workspace_id = %s", [live.workspace]
                ).fetchall()
                for table in ("lockout_proofs", "lockout_proof_items", "audit_log")
            ]
        search = Search([sentinel])
        for where, text in {"document": json.dumps(proof), "jws": jws, "page": page, "rows": str(written)}.items():
            assert search(where, text.encode()) == []


Run = Callable[..., Result]


@pytest.fixture
def run(live: Live) -> Run:
    """Run ``broker byok …`` in this process, with the settings of the live servers."""

    def run(*arguments: str, **changed: str) -> Result:
        return CliRunner().invoke(main, ["byok", *arguments], env={**live.environment, **changed})

    return run


class TestCommands:
    def test_prove_and_check(self, run: Run, live: Live, customer: CustomerAccount, tmp_path: Path) -> None:
        """A lockout is 0 twice, with progress on stderr; the page and the signed document are written."""
        customer.disable_key()
        jws, page, key = tmp_path / "proof.jws", tmp_path / "proof.html", tmp_path / "key"
        made = run("prove", "--workspace", live.workspace, "--jws", str(jws), "--html", str(page))
        assert (made.exit_code, "2 of 2 secrets\n" in made.stderr) == (0, True), made.output
        assert json.loads(made.stdout)["isLockedOut"] is True
        assert jws.read_text().strip() in page.read_text()
        key.write_text(run("signing-key").stdout)
        checked = CliRunner().invoke(main, ["byok", "check-proof", str(jws), "--public-key", str(key)], env={})
        assert (checked.exit_code, json.loads(checked.stdout)) == (0, json.loads(made.stdout)), checked.output

    def test_a_failed_proof(self, run: Run, live: Live, customer: CustomerAccount, tmp_path: Path) -> None:
        """Exit code 1 from both, and the names of what is still open."""
        jws = tmp_path / "proof.jws"
        made = run("prove", "--workspace", live.workspace, "--jws", str(jws))
        assert (made.exit_code, "NOT locked out" in made.stderr) == (1, True)
        assert json.loads(made.stdout)["notLockedOut"] == ["github", "large"]
        jwk = run("signing-key").stdout.splitlines()[-1]
        checked = run("check-proof", str(jws), "--public-key", jwk)
        assert (checked.exit_code, json.loads(checked.stdout)["isLockedOut"]) == (1, False)

    def test_an_altered_document(self, run: Run, live: Live, customer: CustomerAccount, tmp_path: Path) -> None:
        """Exit code 1, and nothing of it is shown."""
        customer.disable_key()
        jws = tmp_path / "proof.jws"
        run("prove", "--workspace", live.workspace, "--jws", str(jws))
        header, payload, signature = jws.read_text().strip().split(".")
        jws.write_text(".".join([header, payload[:-1] + ("A" if payload[-1] != "A" else "B"), signature]))
        checked = run("check-proof", str(jws), "--public-key", run("signing-key").stdout.splitlines()[-1])
        assert (checked.exit_code, checked.stdout) == (1, "")
        assert "signature" in checked.stderr

    def test_resume(self, run: Run, live: Live, customer: CustomerAccount) -> None:
        """A running proof refuses a second one, goes on with --resume, and is given again when it has ended."""
        customer.disable_key()
        live.app.proofs.start(live.workspace)
        refused = run("prove", "--workspace", live.workspace)
        assert (refused.exit_code, "conflict" in refused.stderr) == (1, True)
        first = run("prove", "--workspace", live.workspace, "--resume")
        again = run("prove", "--workspace", live.workspace, "--resume")
        assert (first.exit_code, again.exit_code, first.stdout) == (0, 0, again.stdout)

    def test_an_older_connection(self, run: Run, live: Live, customer: CustomerAccount) -> None:
        """It is named, and asked about alone."""
        older = live.app.byok.connections(live.workspace)[0].id
        live.connect(live.customer())
        live.store("new")
        customer.disable_key()
        made = run("prove", "--workspace", live.workspace, "--connection", str(older))
        assert (made.exit_code, json.loads(made.stdout)["totals"]["locked_out"]) == (0, 2)

    def test_without_a_signing_key(self, run: Run, live: Live, customer: CustomerAccount) -> None:
        """Exit code 78, and nothing is begun."""
        for words in (["prove", "--workspace", live.workspace], ["signing-key"]):
            result = run(*words, BROKER_SIGNING_KEY="")
            assert (result.exit_code, "BROKER_SIGNING_KEY" in result.stderr) == (78, True)
        with pytest.raises(NotFound):
            live.app.proofs.progress(live.workspace)

    @pytest.mark.parametrize("content", [b"", b"a.b.c", b"\xff\xfe", b"{}"])
    def test_no_proof(self, run: Run, tmp_path: Path, content: bytes) -> None:
        """Exit code 1 for whatever is none, and for a key that is none."""
        file = tmp_path / "file"
        file.write_bytes(content)
        jwk = run("signing-key").stdout.splitlines()[-1]
        assert run("check-proof", str(file), "--public-key", jwk).exit_code == 1
        assert run("check-proof", str(file), "--public-key", str(file)).exit_code == 1
        assert run("check-proof", str(file), "--public-key", str(tmp_path / "none")).exit_code == 1


def test_a_tick_goes_on(live: Live, customer: CustomerAccount) -> None:
    """What was begun elsewhere is brought to its end by the sweeper's actor."""
    customer.disable_key()
    proof = live.app.proofs.start(live.workspace)

    def has_ended() -> bool:
        live.app.proofs.tick()
        return live.app.proofs.progress(live.workspace, proof.id).ended_at is not None

    wait_until(has_ended, deadline_seconds=PATIENCE, what="the proof")
    assert live.app.proofs.progress(live.workspace, proof.id).is_locked_out is True


class TestGuide:
    def test_the_commands(self, live: Live, customer: CustomerAccount, tmp_path: Path) -> None:
        """The commands of docs/proof.md, run as they stand, make a proof, and check it with our program and without."""
        customer.disable_key()
        make, export, check = blocks(GUIDE, "sh")
        for script in (make, export):
            assert _shell(script, tmp_path, live.environment | {"WORKSPACE": live.workspace}) == 0
        assert _shell(check, tmp_path, {}) == 0
        (script,) = blocks(GUIDE, "python")
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        assert done.stdout.startswith("True {'locked_out': 2,")
        assert "github decrypt DisabledException" in done.stdout

    def test_outcomes(self) -> None:
        """Every outcome is described."""
        assert [row[0].strip("`") for row in rows(GUIDE, "outcome", "meaning")] == list(ProofOutcome)


def _shell(script: str, directory: Path, environment: dict[str, str]) -> int:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", "-c", script],
        cwd=directory,
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode
