"""Everything that asks a customer's key today, each by a name, on a ``Live`` App: what an invariant over every way must
hold for. A new place that asks a key fails ``test_no_place_that_asks_a_key_is_left_out`` until it has its row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from broker_core.dev.aws import Fault
from broker_core.inject.call import Call
from broker_core.ports import Proof, Reencryption
from tests.live import AGENT, Live

VALUE = b"ghp_0123456789abcdefABCDEF"
PLATFORM = "on the platform cipher"


def with_one_of_everything(live: Live) -> None:
    """A secret on the platform cipher, one under an older key, a bearer and a variable under the current one; a
    re-encryption and a proof that have begun; a probe, a look at the role and checks that are due. Needs a signing
    key."""
    live.store(PLATFORM, value=VALUE)
    live.connect(live.customer())
    live.store("older", value=VALUE)
    live.connect(live.customer())
    live.store(value=VALUE)
    live.store("variable", value=VALUE, injectionKind="stdio_env", bindingKey="TOKEN", agentId=AGENT)
    live.app.proofs.start(live.workspace)
    live.app.reencrypt.start(live.workspace)
    _sql(
        live,
        "UPDATE byok_connections SET next_probe_at = now(), next_refusals_at = now(),"
        " check_ready_at = now() - interval '1 hour' RETURNING id",
    )
    _sql(live, "UPDATE broker_secrets SET checked_at = now() - interval '2 days' RETURNING id")


def stream(live: Live, path: str = "/echo", **call: Any) -> bytes:
    """One streamed injection, read to its end."""
    given = {"method": "GET", "url": f"https://{live.target}{path}", "secret": "github"} | call
    answer = live.app.injector.stream(Call(live.workspace, AGENT, None, **given))
    try:
        return b"".join(answer.chunks())
    finally:
        answer.close()


def environment(live: Live) -> Mapping[str, str]:
    """What a stdio server of AGENT's gets."""
    return live.app.injector.environment(Call(live.workspace, AGENT, None)).variables


def prove(live: Live) -> Proof:
    """A round of the proof that has begun."""
    return live.app.proofs.step(live.workspace, live.app.proofs.progress(live.workspace).id)


def reencrypt(live: Live) -> Reencryption:
    """A round of the re-encryption that has begun."""
    return live.app.reencrypt.step(live.workspace, live.app.reencrypt.progress(live.workspace).id)


def prove_revoked(live: Live) -> Proof:
    """The same where the key says no: each secret is asked for twice, by dry run and then in earnest."""
    live.aws.faults.add(Fault("kms:Decrypt", error="AccessDeniedException"))
    try:
        return prove(live)
    finally:
        live.aws.faults.clear()


def _take_in(live: Live) -> None:
    live.publish("new")
    live.work()


def _rotate(live: Live) -> None:
    live.publish("github", kind="secret.rotated", version=9)
    live.work()


#: name → what it does
KEY_USES: Mapping[str, Callable[[Live], object]] = {
    "inject": lambda live: live.send(),
    "inject, streamed": stream,
    "environment": environment,
    "encrypt": _take_in,
    "encrypt, rotated": _rotate,
    "verify": lambda live: live.connect(live.customer(), verified=True),
    "verify again": lambda live: live.app.byok.verify(live.workspace),
    "refusals": lambda live: live.app.sweep.refusals(),
    "probe": lambda live: live.app.sweep.probes(),
    "check": lambda live: live.app.sweep.checks(),
    "proof": prove,
    "proof, revoked": prove_revoked,
    "re-encrypt": reencrypt,
}

#: name → the purpose that its sessions are named after, where it is not the name's first word
PURPOSES: Mapping[str, str] = {
    "environment": "inject",
    "refusals": "verify",
    "re-encrypt": "encrypt",
}


def purpose_of(name: str) -> str:
    """What the sessions of a use are for."""
    return PURPOSES.get(name, name.split()[0].rstrip(","))


def _sql(live: Live, statement: str) -> None:
    live.app.store._database.run("test", statement, {})
