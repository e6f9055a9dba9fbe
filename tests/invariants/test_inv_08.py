"""INV-8: only customer-side denials make a secret affected; only transient errors are retried; our own faults blame
nobody.

The real key service against the AWS double, which fails as AWS does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker_core.adapters import sessions
from broker_core.context import EncryptionContext
from broker_core.dev.aws import CustomerAccount, Fault, document, statement
from broker_core.dev.wiring import clients_for
from broker_core.errors import Denied, Integrity, KeyServiceError, Misconfigured, Transient
from broker_core.policies import session_policy
from tests.key_uses import KEY_USES, reencrypt
from tests.live import AGENT, OUR_ACCOUNT, Live
from tests.web import Web

DECRYPT, ASSUME = "kms:Decrypt", "sts:AssumeRole"
#: the promise, in figures of this test's own
ATTEMPTS = 3


@pytest.fixture
def customer(live: Live) -> CustomerAccount:
    """The workspace's customer, with one secret stored under their key."""
    made = live.customer()
    live.connect(made)
    live.store()
    return made


def _affected(live: Live) -> list[str]:
    """What the owner is told is wrong on their side."""
    affected = live.app.byok.affected(live.workspace)
    return [each.state.value for each in affected.connections] + [each.state.value for each in affected.secrets]


def _fail(live: Live, customer: CustomerAccount, action: str, **how: Any) -> None:
    live.aws.faults.add(Fault(action, account=customer.account.account_id, **how))


REVOCATIONS: dict[str, tuple[Callable[[CustomerAccount], object], str]] = {
    "the role is taken out of the key policy": (CustomerAccount.remove_role_from_key_policy, "access_denied"),
    "the key is disabled": (CustomerAccount.disable_key, "key_disabled"),
    "the key is to be deleted": (CustomerAccount.schedule_deletion, "key_pending_deletion"),
    "the external id is changed": (lambda customer: customer.change_external_id("another-external-id"), "role_refused"),
    "the role is deleted": (CustomerAccount.delete_role, "role_refused"),
}


@pytest.mark.parametrize("name", REVOCATIONS)
def test_each_way_of_revoking_makes_it_affected(live: Live, customer: CustomerAccount, name: str) -> None:
    """The very next use says so, asked once and not again."""
    revoke, state = REVOCATIONS[name]
    revoke(customer)
    before = len(live.aws.trail.calls)

    with pytest.raises(Denied) as denied:
        live.send()

    assert (denied.value.state.value, _affected(live)) == (state, [state])
    asked = [call.action for call in live.aws.trail.calls[before:]]
    assert asked == ([ASSUME] if state == "role_refused" else [ASSUME, DECRYPT])


ANSWERS: dict[tuple[str, str], tuple[type[KeyServiceError], str | None]] = {
    # the customer's side
    (DECRYPT, "AccessDeniedException"): (Denied, "access_denied"),
    (DECRYPT, "DisabledException"): (Denied, "key_disabled"),
    (DECRYPT, "KMSInvalidStateException"): (Denied, "key_state"),
    (DECRYPT, "NotFoundException"): (Denied, "key_gone"),
    (ASSUME, "AccessDenied"): (Denied, "role_refused"),
    # nobody's, or ours
    (DECRYPT, "ThrottlingException"): (Transient, None),
    (DECRYPT, "LimitExceededException"): (Transient, None),
    (DECRYPT, "KeyUnavailableException"): (Transient, None),
    (DECRYPT, "KMSInternalException"): (Transient, None),
    (DECRYPT, "DependencyTimeoutException"): (Transient, None),
    (DECRYPT, "InternalFailure"): (Transient, None),
    (DECRYPT, "ServiceUnavailable"): (Transient, None),
    (DECRYPT, "CodeThatNobodyKnowsException"): (Transient, None),
    (ASSUME, "Throttling"): (Transient, None),
    (ASSUME, "InvalidClientTokenId"): (Transient, None),
    (ASSUME, "ExpiredToken"): (Transient, None),
    (DECRYPT, "InvalidCiphertextException"): (Integrity, None),
    (DECRYPT, "IncorrectKeyException"): (Integrity, None),
    (DECRYPT, "InvalidKeyUsageException"): (Misconfigured, None),
    (ASSUME, "RegionDisabledException"): (Misconfigured, None),
    (ASSUME, "MalformedPolicyDocument"): (Misconfigured, None),
    (ASSUME, "PackedPolicyTooLarge"): (Misconfigured, None),
}
#: how often each is asked for: transient ones three times, a key that is gone twice (AWS spreads new keys in seconds)
TRIES = {Transient: ATTEMPTS, Integrity: 1, Misconfigured: 1, Denied: 1}


@pytest.mark.parametrize(("action", "code"), ANSWERS)
def test_each_error_of_aws_is_blamed_on_the_right_side(
    live: Live, customer: CustomerAccount, action: str, code: str
) -> None:
    """The class that the caller sees, whether the secret is affected, and how often AWS was asked."""
    kind, state = ANSWERS[action, code]
    _fail(live, customer, action, error=code)
    before = len(live.aws.trail.of(action))

    with pytest.raises(kind):
        live.send()

    assert _affected(live) == ([state] if state else [])
    assert len(live.aws.trail.of(action)) - before == (2 if state == "key_gone" else TRIES[kind])


@pytest.mark.parametrize("how", [{"error": "ThrottlingException"}, {"reset": True}, {"reset": True, "after": True}])
def test_what_passes_within_three_tries_is_not_seen_by_the_caller(
    live: Live, customer: CustomerAccount, how: dict[str, Any]
) -> None:
    """Twice throttled, reset or answered to nobody, and then well: the injection works, in one session."""
    _fail(live, customer, DECRYPT, count=ATTEMPTS - 1, **how)
    before = len(live.aws.trail.of(ASSUME))

    assert live.send().status == 200

    assert len(live.aws.trail.of(ASSUME)) - before == 1
    assert len(live.aws.faults) == 0


def test_there_is_no_fourth_try(live: Live, customer: CustomerAccount) -> None:
    """Three failures are the caller's to know, though the fourth try would have worked."""
    _fail(live, customer, DECRYPT, reset=True, count=ATTEMPTS)

    with pytest.raises(Transient):
        live.send()

    assert (len(live.aws.faults), _affected(live)) == (0, [])
    assert live.send().status == 200


@pytest.mark.parametrize("action", [DECRYPT, ASSUME])
def test_silence_is_transient(live: Live, customer: CustomerAccount, action: str) -> None:
    """A key that never answers costs the caller the key's time limit, and the customer no blame."""
    live.app.injector._opener._key_seconds = 0.5  # of thirty for the whole: it is the key that takes too long
    _fail(live, customer, action, hang=True)

    with pytest.raises(Transient):
        live.send()

    assert _affected(live) == []


def test_a_new_value_that_is_refused_waits_and_one_that_is_throttled_comes_back(
    live: Live, customer: CustomerAccount
) -> None:
    """Custody blames in the same way: refused shows the owner ``refused``, throttled stays ``accepted``."""
    _fail(live, customer, "kms:Encrypt", error="DisabledException", count=1)
    refused = live.publish(version=2)
    live.work()
    _fail(live, customer, "kms:Encrypt", error="ThrottlingException", count=ATTEMPTS)
    throttled = live.publish(version=3)
    with pytest.raises(Transient):
        live.work()

    states = [live.app.store.event(live.workspace, receipt.id).state.value for receipt in (refused, throttled)]
    assert states == ["refused", "accepted"]


# ---------------------------------------------------------------- whatever asks a key


@pytest.mark.parametrize("code", ["ThrottlingException", "InvalidCiphertextException", "InvalidKeyUsageException"])
@pytest.mark.parametrize("name", KEY_USES)
def test_nothing_that_asks_a_key_blames_its_owner_for_what_is_no_denial(used: Live, name: str, code: str) -> None:
    """A stream, an environment, a proof, a re-encryption, a probe: throttled, given a blob that does not fit, or told
    that we use the key wrongly, none makes a secret affected."""
    for action in ("kms:Encrypt", DECRYPT):
        used.aws.faults.add(Fault(action, error=code))

    with suppress(KeyServiceError, AssertionError):  # what a use of the table asserts is that it went well
        KEY_USES[name](used)

    assert _affected(used) == []


def test_an_older_key_that_denies_a_re_encryption_is_asked_once_and_affected(used: Live) -> None:
    """Its no is the customer's, as it would be to a check."""
    older = next(each for each in used.app.store.connections(used.workspace) if each.status == "retired")
    used.aws.faults.add(Fault(DECRYPT, account=older.key_arn.split(":")[4], error="DisabledException"))
    before = len(used.aws.trail.of(DECRYPT))

    reencrypt(used)

    assert _affected(used) == ["key_disabled"]
    assert len(used.aws.trail.of(DECRYPT)) - before == 1


def test_a_current_key_that_denies_a_re_encryption_is_for_its_probe_to_say(used: Live) -> None:
    """Nothing was asked of a secret that is under it: nothing is affected by this alone."""
    used.aws.faults.add(Fault("kms:Encrypt", error="AccessDeniedException"))

    reencrypt(used)

    assert _affected(used) == []


#: what AWS says, and what an HTTP caller is told
TOLD = {
    "AccessDeniedException": (424, "secret_unavailable"),
    "DisabledException": (424, "secret_unavailable"),
    "InvalidCiphertextException": (424, "secret_unavailable"),
    "InvalidKeyUsageException": (424, "secret_unavailable"),
    "ThrottlingException": (503, "key_service_unavailable"),
    "CodeThatNobodyKnowsException": (503, "key_service_unavailable"),
}


@pytest.mark.parametrize("path", ["/inject", "/proxy", "/inject/environment"])
@pytest.mark.parametrize("code", TOLD)
def test_over_http_a_caller_learns_whether_to_come_again_and_no_more(
    live: Live, customer: CustomerAccount, web: Web, code: str, path: str
) -> None:
    """424 or 503, with ``Retry-After`` where another try may help; AWS's code is for the admin."""
    live.store("variable", injectionKind="stdio_env", bindingKey="TOKEN", agentId=AGENT)
    _fail(live, customer, DECRYPT, error=code)
    url = f"https://{live.target}/echo"
    body: dict[str, Any] = {"agentId": AGENT}
    if path == "/inject":
        body |= {"secret": "github", "request": {"url": url}}
    headers = {"Axiorank-Upstream-Url": url, "Axiorank-Agent-Id": AGENT, "Axiorank-Secret": "github"}
    scope = "broker:environment" if path == "/inject/environment" else "broker:inject"

    answer = web.post(path, json=body, headers=headers, scope=scope)

    assert (answer.status_code, answer.json()["error"]) == TOLD[code]
    assert ("Retry-After" in answer.headers) == (answer.status_code == 503)
    assert code not in answer.text + str(answer.headers)


# ---------------------------------------------------------------- our own faults


@pytest.mark.parametrize(
    "wrong",
    [{"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ACCESS_KEY_ID": "AKIAAAAAAAAAAAAAAAAA"}],
    ids=["secret", "key id"],
)
def test_wrong_base_credentials_of_ours_blame_nobody(
    live: Live, customer: CustomerAccount, live_with: Callable[..., Live], way_out: object, wrong: dict[str, str]
) -> None:
    """A process of ours with bad credentials: its callers are asked to try again, owners see nothing."""
    broken = live_with(upstream=way_out, clients=clients_for(live.environment | wrong))
    broken.workspace = live.workspace

    with pytest.raises(Transient):
        broken.send()

    assert _affected(live) == []


def test_a_session_policy_of_ours_that_is_too_narrow_blames_nobody(
    live: Live, customer: CustomerAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KMS says that a session policy lacks the allow: that is our policy, and no denial of the customer's."""
    narrow = EncryptionContext({"axiorank:workspace": "another"})
    monkeypatch.setattr(
        sessions, "session_policy", lambda action, key_arn, context: session_policy(action, key_arn, narrow)
    )

    with pytest.raises(Misconfigured) as raised:
        live.send()

    assert (raised.value.aws_code, _affected(live)) == ("AccessDeniedException", [])


def _control_role(live: Live, name: str) -> str:
    trust = document(
        statement("Allow", ASSUME, Principal={"AWS": f"arn:aws:iam::{OUR_ACCOUNT}:root"}),
    )
    return live.aws.account(OUR_ACCOUNT).create_role(name, trust)


@pytest.mark.parametrize("works", [True, False])
def test_a_refused_role_is_the_customers_no_only_while_our_side_works(
    live_with: Callable[..., Live], way_out: object, live: Live, customer: CustomerAccount, works: bool
) -> None:
    """With a control role of our own that cannot be assumed either, the refusal is ours: transient, and nobody is
    affected."""
    name = f"control-{customer.account.account_id}"
    arn = _control_role(live, name) if works else f"arn:aws:iam::{OUR_ACCOUNT}:role/gone-{name}"
    watched = live_with({"BROKER_CONTROL_ROLE_ARN": arn}, upstream=way_out)
    watched.workspace = live.workspace
    customer.delete_role()

    with pytest.raises(Denied if works else Transient):
        watched.send()

    assert _affected(live) == (["role_refused"] if works else [])


def test_a_probe_of_a_throttled_key_opens_nothing(live: Live, customer: CustomerAccount) -> None:
    """The sweep blames in the same way."""
    _fail(live, customer, "kms:*", error="ThrottlingException")
    _probes_are_due(live)

    live.app.sweep.probes()

    assert _affected(live) == []


def test_many_that_turn_at_once_are_taken_for_a_fault_of_ours(live_with: Callable[..., Live], way_out: object) -> None:
    """Of seven keys that are refused at the same moment five are believed; then the brake holds, and the operator is
    told."""
    lives = [live_with(upstream=way_out) for _ in range(7)]
    for live in lives:
        live.connect(live.customer())
    sweeper = lives[0].app.sweep
    sweeper._limits = replace(sweeper._limits, workers=1)
    _probes_are_due(lives[0])
    lives[0].aws.faults.add(Fault("kms:*", error="AccessDeniedException"))

    with capture_logs() as logs:
        assert sweeper.probes() == 7

    assert [len(_affected(live)) for live in lives].count(1) == 5
    assert [line["turned"] for line in logs if line["event"] == "sweep.brake"] == [5]


def _probes_are_due(live: Live) -> None:
    live.app.store._database.run("test", "UPDATE byok_connections SET next_probe_at = now() RETURNING id", {})


def test_what_is_not_a_denial_never_reaches_the_record_as_one(live: Live, customer: CustomerAccount) -> None:
    """A transient failure between two denials does not heal what was denied, and adds nothing."""
    customer.disable_key()
    with pytest.raises(KeyServiceError):
        live.send()
    _fail(live, customer, DECRYPT, error="ThrottlingException")
    with pytest.raises(Transient):
        live.send()

    assert _affected(live) == ["key_disabled"]
