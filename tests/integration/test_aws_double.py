"""The AWS double answers as AWS does where it matters for keys that a customer holds.

Each line of a table is one fact: what AWS documents for one call, in the customer's own set-up. `Scene` is a fresh
customer with one live session; `outcome` is "OK" or AWS's error code.
"""

from __future__ import annotations

import base64
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from broker_core.dev.aws import (
    AwsDouble,
    Credentials,
    CustomerAccount,
    Fault,
    document,
    fresh_account_id,
    identity,
    statement,
)
from broker_core.dev.aws.faults import Dropped, Faults, Subject
from broker_core.dev.aws.world import LongTermKey, World
from tests.waiting import wait_until

VALUE = b"plaintext-of-a-test"
CONTEXT = {"axiorank:workspace": "ws1", "axiorank:secret": "s"}
OTHER = {"axiorank:workspace": "ws2", "axiorank:secret": "s"}
ZERO_KEY = "00000000-0000-0000-0000-000000000000"


@dataclass
class Scene:
    """One customer, the broker's credentials, and clients of one boto3 session."""

    aws: AwsDouble
    broker: Credentials
    customer: CustomerAccount
    session: Any
    clients: list[Any] = field(default_factory=list)
    kms: Any = None
    blob: bytes = b""

    def client(self, service: str, key: str, secret: str, token: str | None = None, **config: Any) -> Any:
        settings = Config(retries={"total_max_attempts": 1}, proxies={}, **{"read_timeout": 10, **config})
        names = {"aws_access_key_id": key, "aws_secret_access_key": secret, "aws_session_token": token}
        made = self.session.client(
            service, endpoint_url=self.aws.endpoint, region_name=self.aws.region, config=settings, **names
        )
        self.clients.append(made)
        return made

    def assume(self, **changed: Any) -> dict[str, Any]:
        """AssumeRole as the broker does it; a parameter given as None is left out."""
        who = changed.pop("who", self.broker)
        checked = changed.pop("parameter_validation", True)
        parameters = {
            "RoleArn": self.customer.role_arn,
            "RoleSessionName": "axiorank-inject-1",
            "ExternalId": self.customer.external_id,
            "DurationSeconds": 900,
            **changed,
        }
        sts = self.client("sts", who.access_key_id, who.secret_access_key, parameter_validation=checked)
        answer: dict[str, Any] = sts.assume_role(**{k: v for k, v in parameters.items() if v is not None})
        return answer

    def kms_of(self, answer: dict[str, Any], **config: Any) -> Any:
        given = answer["Credentials"]
        return self.client("kms", given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], **config)

    def narrowed(self, action: str, context: dict[str, str]) -> Any:
        """A KMS client whose session policy allows one action under one context."""
        wanted = {"StringEquals": {f"kms:EncryptionContext:{name}": value for name, value in context.items()}}
        policy = document(statement("Allow", action, Resource=self.customer.key_arn, Condition=wanted))
        return self.kms_of(self.assume(Policy=json.dumps(policy)))

    def encrypt(self, kms: Any = None, **changed: Any) -> Any:
        parameters = {"KeyId": self.customer.key_arn, "Plaintext": VALUE, "EncryptionContext": CONTEXT, **changed}
        return (kms or self.kms).encrypt(**parameters)

    def decrypt(self, kms: Any = None, **changed: Any) -> Any:
        parameters = {
            "CiphertextBlob": self.blob,
            "EncryptionContext": CONTEXT,
            "KeyId": self.customer.key_arn,
            **changed,
        }
        return (kms or self.kms).decrypt(**{k: v for k, v in parameters.items() if v is not None})


@pytest.fixture(scope="module")
def broker(aws: AwsDouble) -> tuple[str, Credentials]:
    """An account of ours, and the credentials of its service user."""
    account = fresh_account_id()
    return account, aws.account(account).service_credentials()


@pytest.fixture(scope="module")
def boto() -> boto3.Session:
    """One session for all: making one costs more than a test."""
    return boto3.Session()


@pytest.fixture
def scene(aws: AwsDouble, broker: tuple[str, Credentials], boto: boto3.Session) -> Iterator[Scene]:
    """A fresh customer with a live session and one blob; faults and propagation are put back."""
    customer = CustomerAccount(aws.account(fresh_account_id()), broker[0], "external-id-of-a-test")
    made = Scene(aws, broker[1], customer, boto)
    made.kms = made.kms_of(made.assume())
    made.blob = made.encrypt()["CiphertextBlob"]
    yield made
    aws.faults.clear()
    aws.hold_changes(0)
    aws.propagate()
    for client in made.clients:
        client.close()


def outcome(call: Callable[[], Any]) -> str:
    """OK, or AWS's error code."""
    try:
        call()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return "OK"


def message(call: Callable[[], Any]) -> str:
    """AWS's message of a call that is refused."""
    with pytest.raises(ClientError) as refused:
        call()
    return str(refused.value.response["Error"]["Message"])


def stranger(scene: Scene) -> Credentials:
    """A user who may assume roles, in an account that nobody trusts."""
    return scene.aws.account(fresh_account_id()).service_credentials()


Act = Callable[[Scene], Any]
DENIED, KMS_DENIED = "AccessDenied", "AccessDeniedException"

STS: list[tuple[str, str, Act]] = [
    ("the right external id is accepted", "OK", lambda s: s.assume()),
    ("a wrong external id is refused", DENIED, lambda s: s.assume(ExternalId="another")),
    ("a missing external id is refused", DENIED, lambda s: s.assume(ExternalId=None)),
    ("an account that is not trusted is refused", DENIED, lambda s: s.assume(who=stranger(s))),
    ("a role that does not exist is refused", DENIED, lambda s: s.assume(RoleArn=s.customer.role_arn + "x")),
    (
        "a root user assumes nothing",
        DENIED,
        lambda s: s.assume(who=Credentials(s.customer.account.account_id, "test")),
    ),
    (
        "899 seconds are too short",
        "ValidationError",
        lambda s: s.assume(DurationSeconds=899, parameter_validation=False),
    ),
    ("more than the role's maximum is too long", "ValidationError", lambda s: s.assume(DurationSeconds=43200)),
    (
        "a wrong secret is a wrong signature",
        "SignatureDoesNotMatch",
        lambda s: s.assume(who=Credentials(s.broker.access_key_id, "x" * 40)),
    ),
    (
        "an unknown access key is no token",
        "InvalidClientTokenId",
        lambda s: s.assume(who=Credentials("AKIAZZZZZZZZZZZZZZZZ", "x" * 40)),
    ),
    ("a session policy that is not JSON is malformed", "MalformedPolicyDocument", lambda s: s.assume(Policy="{")),
    (
        "a session policy that packs too large is refused",
        "PackedPolicyTooLarge",
        lambda s: s.assume(Policy=incompressible_policy()),
    ),
    (
        "the external id was changed: the old one is refused",
        DENIED,
        lambda s: (rotate(s), s.assume(ExternalId=EXTERNAL)),
    ),
    ("the external id was changed: the new one is accepted", "OK", lambda s: (rotate(s), s.assume())),
    ("the role is gone: refused", DENIED, lambda s: (s.customer.delete_role(), s.assume())),
]

EXTERNAL = "external-id-of-a-test"


def rotate(scene: Scene) -> None:
    scene.customer.change_external_id("another-external-id")


def incompressible_policy() -> str:
    noise = "".join(random.Random(7).choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=1900))
    return json.dumps(document(statement("Allow", "kms:Decrypt", Resource=noise)))


def flipped(blob: bytes) -> bytes:
    return blob[:-1] + bytes([blob[-1] ^ 1])


def with_credentials(scene: Scene, **changed: str) -> Any:
    answer = scene.assume()
    return scene.kms_of({"Credentials": {**answer["Credentials"], **changed}})


DATA: list[tuple[str, str, Act]] = [
    ("the right context and key open a blob", "OK", lambda s: s.decrypt()),
    ("a blob knows its key", "OK", lambda s: s.decrypt(KeyId=None)),
    (
        "another context value does not open it",
        "InvalidCiphertextException",
        lambda s: s.decrypt(EncryptionContext=OTHER),
    ),
    ("no context does not open it", "InvalidCiphertextException", lambda s: s.decrypt(EncryptionContext={})),
    (
        "one pair more does not open it",
        "InvalidCiphertextException",
        lambda s: s.decrypt(EncryptionContext=CONTEXT | {"a": "b"}),
    ),
    (
        "the key id of another key is an error",
        "IncorrectKeyException",
        lambda s: s.decrypt(KeyId=s.customer.create_key()),
    ),
    ("a changed byte does not open", "InvalidCiphertextException", lambda s: s.decrypt(CiphertextBlob=flipped(s.blob))),
    ("half a blob does not open", "InvalidCiphertextException", lambda s: s.decrypt(CiphertextBlob=s.blob[:40])),
    ("4096 bytes are encrypted", "OK", lambda s: s.encrypt(Plaintext=b"x" * 4096)),
    (
        "4097 bytes are too many",
        "ValidationException",
        lambda s: s.encrypt(s.kms_of(s.assume(), parameter_validation=False), Plaintext=b"x" * 4097),
    ),
    ("an unknown key of one's own account is not found", "NotFoundException", lambda s: s.encrypt(KeyId=ZERO_KEY)),
    (
        "a key of another Region is not found",
        "NotFoundException",
        lambda s: s.encrypt(KeyId=s.customer.key_arn.replace(s.aws.region, "us-west-2")),
    ),
    (
        "a wrong secret is a wrong signature",
        "InvalidSignatureException",
        lambda s: s.encrypt(with_credentials(s, SecretAccessKey="x" * 40)),
    ),
    (
        "a changed session token is none",
        "UnrecognizedClientException",
        lambda s: s.encrypt(with_credentials(s, SessionToken="AAAA")),
    ),
    (
        "an unknown access key is none",
        "UnrecognizedClientException",
        lambda s: s.encrypt(with_credentials(s, AccessKeyId="ASIAZZZZZZZZZZZZZZZZ")),
    ),
    ("an action that nobody granted is denied", KMS_DENIED, lambda s: s.kms.list_keys()),
    (
        "the role may not make data keys",
        KMS_DENIED,
        lambda s: s.kms.generate_data_key(KeyId=s.customer.key_arn, KeySpec="AES_256"),
    ),
    (
        "the administrator may not decrypt",
        KMS_DENIED,
        lambda s: s.decrypt(s.customer.account.kms),
    ),
    (
        "an asymmetric key does not encrypt symmetrically",
        "InvalidKeyUsageException",
        lambda s: s.encrypt(KeyId=signing_key(s)),
    ),
]


def signing_key(scene: Scene) -> str:
    return scene.customer.account.create_key(
        scene.customer.key_policy(), KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY"
    )


SESSION_POLICY: list[tuple[str, str, Act]] = [
    ("it allows this action, key and context", "OK", lambda s: s.decrypt(s.narrowed("kms:Decrypt", CONTEXT))),
    ("it withholds another context", KMS_DENIED, lambda s: s.decrypt(s.narrowed("kms:Decrypt", OTHER))),
    ("it withholds another action", KMS_DENIED, lambda s: s.encrypt(s.narrowed("kms:Decrypt", CONTEXT))),
    ("it gives nothing that the key policy does not", KMS_DENIED, lambda s: s.narrowed("kms:*", CONTEXT).list_keys()),
]


def after(change: Callable[[CustomerAccount], None], then: Act) -> Act:
    """The customer does something, then the broker calls."""

    def act(scene: Scene) -> Any:
        change(scene.customer)
        return then(scene)

    return act


def both(*changes: Callable[[CustomerAccount], None]) -> Callable[[CustomerAccount], None]:
    return lambda customer: [change(customer) for change in changes] and None


def conditioned(condition: dict[str, Any]) -> Callable[[CustomerAccount], None]:
    return lambda customer: customer.put_key_policy(customer.key_policy(condition=condition))


def denying(action: str) -> Callable[[CustomerAccount], None]:
    deny = statement("Deny", action, Principal="*", Resource="*")
    return lambda customer: customer.put_key_policy(customer.key_policy(deny))


ONLY_WS1 = {"StringEquals": {"kms:EncryptionContext:axiorank:workspace": "ws1"}}
ONLY_TWO_KEYS = {
    "ForAllValues:StringEquals": {"kms:EncryptionContextKeys": list(CONTEXT)},
    "Null": {"kms:EncryptionContextKeys": "false"},
}
C = CustomerAccount
LIFE: list[tuple[str, str, Act]] = [
    ("disabled: decrypt", "DisabledException", after(C.disable_key, lambda s: s.decrypt())),
    ("disabled: decrypt without key id", "DisabledException", after(C.disable_key, lambda s: s.decrypt(KeyId=None))),
    ("disabled: encrypt", "DisabledException", after(C.disable_key, lambda s: s.encrypt())),
    ("enabled again: decrypt", "OK", after(both(C.disable_key, C.enable_key), lambda s: s.decrypt())),
    ("pending deletion: decrypt", "KMSInvalidStateException", after(C.schedule_deletion, lambda s: s.decrypt())),
    ("pending deletion: encrypt", "KMSInvalidStateException", after(C.schedule_deletion, lambda s: s.encrypt())),
    (
        "deletion cancelled: the key stays disabled",
        "DisabledException",
        after(both(C.schedule_deletion, C.cancel_deletion), lambda s: s.decrypt()),
    ),
    ("waiting period over: the key is gone", "NotFoundException", lambda s: (expire(s), s.decrypt())),
    (
        "role removed from the key policy: decrypt",
        KMS_DENIED,
        after(C.remove_role_from_key_policy, lambda s: s.decrypt()),
    ),
    (
        "role removed from the key policy: decrypt without key id",
        KMS_DENIED,
        after(C.remove_role_from_key_policy, lambda s: s.decrypt(KeyId=None)),
    ),
    (
        "role removed from the key policy: encrypt",
        KMS_DENIED,
        after(C.remove_role_from_key_policy, lambda s: s.encrypt()),
    ),
    (
        "key policy restored: decrypt",
        "OK",
        after(both(C.remove_role_from_key_policy, C.restore_key_policy), lambda s: s.decrypt()),
    ),
    ("conditioned on a workspace: it", "OK", after(conditioned(ONLY_WS1), lambda s: s.encrypt())),
    (
        "conditioned on a workspace: another",
        KMS_DENIED,
        after(conditioned(ONLY_WS1), lambda s: s.encrypt(EncryptionContext=OTHER)),
    ),
    (
        "conditioned on a workspace: no context",
        KMS_DENIED,
        after(conditioned(ONLY_WS1), lambda s: s.encrypt(EncryptionContext={})),
    ),
    ("conditioned on context keys: these", "OK", after(conditioned(ONLY_TWO_KEYS), lambda s: s.encrypt())),
    (
        "conditioned on context keys: one more",
        KMS_DENIED,
        after(conditioned(ONLY_TWO_KEYS), lambda s: s.encrypt(EncryptionContext=CONTEXT | {"z": "1"})),
    ),
    ("decrypt denied explicitly: decrypt", KMS_DENIED, after(denying("kms:Decrypt"), lambda s: s.decrypt())),
    ("decrypt denied explicitly: encrypt", "OK", after(denying("kms:Decrypt"), lambda s: s.encrypt())),
    (
        "a key policy that names nobody is refused",
        "MalformedPolicyDocumentException",
        lambda s: s.customer.put_key_policy(ghost_policy(s)),
    ),
    (
        "a key policy that locks its administrator out is refused",
        "MalformedPolicyDocumentException",
        lambda s: s.customer.put_key_policy(document(s.customer.use_statement())),
    ),
    ("external id changed: a live session goes on", "OK", lambda s: (rotate(s), s.decrypt())),
    (
        "role deleted: its live session is none",
        "UnrecognizedClientException",
        after(C.delete_role, lambda s: s.decrypt()),
    ),
    (
        "role made again: the key policy does not mean it",
        KMS_DENIED,
        after(both(C.delete_role, C.recreate_role), lambda s: s.decrypt(s.kms_of(s.assume()))),
    ),
    (
        "role made again and key policy put again: decrypt",
        "OK",
        after(both(C.delete_role, C.recreate_role, C.restore_key_policy), lambda s: s.decrypt(s.kms_of(s.assume()))),
    ),
]


def expire(scene: Scene) -> None:
    scene.customer.schedule_deletion()
    scene.aws.expire_keys()


def ghost_policy(scene: Scene) -> dict[str, Any]:
    ghost = f"{scene.customer.role_arn}-ghost"
    return scene.customer.key_policy(statement("Allow", "kms:Decrypt", Principal={"AWS": ghost}, Resource="*"))


WORKS = "DryRunOperationException"
IGNORE = {"DryRun": True, "DryRunModifiers": ["IGNORE_CIPHERTEXT"]}
DRY: list[tuple[str, str, Act]] = [
    ("decrypt would work", WORKS, lambda s: s.decrypt(DryRun=True)),
    ("encrypt would work", WORKS, lambda s: s.encrypt(DryRun=True)),
    (
        "another context would not open it",
        "InvalidCiphertextException",
        lambda s: s.decrypt(EncryptionContext=OTHER, DryRun=True),
    ),
    (
        "permission alone, without the blob",
        WORKS,
        lambda s: s.decrypt(EncryptionContext=OTHER, CiphertextBlob=None, **IGNORE),
    ),
    (
        "an action that is not granted",
        KMS_DENIED,
        lambda s: s.kms.generate_data_key(KeyId=s.customer.key_arn, KeySpec="AES_256", DryRun=True),
    ),
    ("grants are not granted", KMS_DENIED, lambda s: grant(s)),
    (
        "grants would be granted",
        WORKS,
        lambda s: (s.customer.put_key_policy(s.customer.key_policy(may_grant(s))), grant(s)),
    ),
    ("a disabled key", "DisabledException", after(C.disable_key, lambda s: s.decrypt(DryRun=True))),
    ("a revoked role", KMS_DENIED, after(C.remove_role_from_key_policy, lambda s: s.decrypt(DryRun=True))),
]


def may_grant(scene: Scene) -> dict[str, Any]:
    return statement("Allow", "kms:CreateGrant", Principal={"AWS": scene.customer.role_arn}, Resource="*")


def grant(scene: Scene) -> Any:
    return scene.kms.create_grant(
        KeyId=scene.customer.key_arn, GranteePrincipal=scene.customer.role_arn, Operations=["Decrypt"], DryRun=True
    )


TABLES = {"sts": STS, "data": DATA, "session policy": SESSION_POLICY, "life": LIFE, "dry run": DRY}
FACTS = [
    pytest.param(act, expected, id=f"{table}: {name}")
    for table, lines in TABLES.items()
    for name, expected, act in lines
]


@pytest.mark.parametrize(("act", "expected"), FACTS)
def test_answers_as_aws(scene: Scene, act: Act, expected: str) -> None:
    """The double's answer is the one that AWS documents."""
    assert outcome(lambda: act(scene)) == expected


@pytest.mark.parametrize(
    ("change", "act", "words"),
    [
        pytest.param(
            lambda _: None,
            lambda s: s.decrypt(s.narrowed("kms:Encrypt", CONTEXT)),
            "because no session policy allows the kms:Decrypt action",
            id="session policy",
        ),
        pytest.param(
            C.remove_role_from_key_policy,
            lambda s: s.decrypt(),
            "because no resource-based policy allows the kms:Decrypt action",
            id="key policy",
        ),
        pytest.param(
            denying("kms:Decrypt"), lambda s: s.decrypt(), "with an explicit deny in a resource-based policy", id="deny"
        ),
    ],
)
def test_a_denial_says_which_policy(scene: Scene, change: Callable[[C], None], act: Act, words: str) -> None:
    """AWS's message tells a session policy of ours from the customer's key policy."""
    change(scene.customer)
    assert message(lambda: act(scene)).endswith(words)


IDENTITY: list[tuple[str, str, dict[str, Any] | None]] = [
    ("allows", "OK", statement("Allow", "kms:*", Resource="*")),
    ("is missing", KMS_DENIED, None),
    ("allows another key", KMS_DENIED, statement("Allow", "kms:*", Resource="arn:aws:kms:eu-west-1:1:key/x")),
    ("allows under a context that matches", "OK", statement("Allow", "kms:*", Resource="*", Condition=ONLY_WS1)),
    (
        "denies sessions of before",
        KMS_DENIED,
        {
            "Effect": "Deny",
            "Action": "*",
            "Resource": "*",
            "Condition": {"DateLessThan": {"aws:TokenIssueTime": "2999-01-01T00:00:00Z"}},
        },
    ),
]


@pytest.mark.parametrize(("expected", "entry"), [pytest.param(e, s, id=name) for name, e, s in IDENTITY])
def test_root_delegation(scene: Scene, expected: str, entry: dict[str, Any] | None) -> None:
    """Where the key policy delegates to the account, the role's identity policy decides, also for a live session."""
    account = scene.customer.account
    root = f"arn:aws:iam::{account.account_id}:root"
    everything = statement("Allow", "kms:*", Principal={"AWS": root}, Resource="*")
    key = account.create_key(document(everything))
    if entry is not None:
        allowed = statement("Allow", "kms:*", Resource="*")
        account.put_role_policy(
            scene.customer.role_name, document(*({entry["Effect"]: [entry]}.get("Allow", [allowed, entry])))
        )
    assert outcome(lambda: scene.encrypt(KeyId=key)) == expected


@pytest.mark.parametrize(("key_side", "role_side", "expected"), [(1, 1, "OK"), (1, 0, KMS_DENIED), (0, 1, KMS_DENIED)])
def test_a_key_in_a_third_account(scene: Scene, key_side: int, role_side: int, expected: str) -> None:
    """Across accounts the key policy and the role's identity policy must both allow."""
    third = scene.aws.account(fresh_account_id())
    root = statement("Allow", "kms:*", Principal={"AWS": f"arn:aws:iam::{third.account_id}:root"}, Resource="*")
    key = third.create_key(document(root, *([scene.customer.use_statement()] * key_side)))
    if role_side:
        scene.customer.account.put_role_policy(
            scene.customer.role_name, document(statement("Allow", "kms:*", Resource="*"))
        )
    assert outcome(lambda: scene.encrypt(KeyId=key)) == expected


def test_the_session_is_the_roles(scene: Scene) -> None:
    """GetCallerIdentity of a session names the customer's role and our session name."""
    given = scene.assume()["Credentials"]
    sts = scene.client("sts", given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
    account = scene.customer.account.account_id
    assert sts.get_caller_identity()["Arn"] == f"arn:aws:sts::{account}:assumed-role/axiorank-byok/axiorank-inject-1"


def test_plaintext_and_key_come_back(scene: Scene) -> None:
    """Decrypt gives the value and the ARN of the key."""
    answer = scene.decrypt()
    assert (answer["Plaintext"], answer["KeyId"]) == (VALUE, scene.customer.key_arn)


def test_request_ids_are_unique(scene: Scene) -> None:
    """No two answers have the same request id."""
    ids = {scene.decrypt()["ResponseMetadata"]["RequestId"] for _ in range(3)}
    assert len(ids) == 3


def test_re_encrypt_and_data_keys(scene: Scene) -> None:
    """Where the key policy allows them, ReEncrypt and GenerateDataKey give blobs that Decrypt opens."""
    more = ["kms:ReEncrypt*", "kms:GenerateDataKey"]
    use = statement("Allow", more, Principal={"AWS": scene.customer.role_arn}, Resource="*")
    scene.customer.put_key_policy(scene.customer.key_policy(use))
    made = scene.kms.generate_data_key(KeyId=scene.customer.key_arn, KeySpec="AES_256", EncryptionContext=CONTEXT)
    moved = scene.kms.re_encrypt(
        CiphertextBlob=made["CiphertextBlob"],
        SourceEncryptionContext=CONTEXT,
        DestinationKeyId=scene.customer.key_arn,
        DestinationEncryptionContext=OTHER,
    )
    opened = scene.decrypt(CiphertextBlob=moved["CiphertextBlob"], EncryptionContext=OTHER)
    assert opened["Plaintext"] == made["Plaintext"]


class TestFaults:
    """What the double can be told to do wrong."""

    def test_an_error_so_many_times(self, scene: Scene) -> None:
        """A rule with a count is spent after so many calls."""
        scene.aws.faults.add(
            Fault(action="kms:Decrypt", key=scene.customer.key_arn, error="ThrottlingException", count=1)
        )
        assert [outcome(scene.decrypt), outcome(scene.decrypt)] == ["ThrottlingException", "OK"]

    def test_only_for_its_key(self, scene: Scene) -> None:
        """A rule for one key leaves the others alone."""
        scene.aws.faults.add(Fault(action="kms:*", key=ZERO_KEY, error="KMSInternalException"))
        assert outcome(scene.decrypt) == "OK"

    def test_status_of_an_internal_error(self, scene: Scene) -> None:
        """KMSInternalException comes with status 500."""
        scene.aws.faults.add(Fault(role=scene.customer.role_arn, error="KMSInternalException"))
        with pytest.raises(ClientError) as failed:
            scene.decrypt()
        assert failed.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500

    def test_a_quota_throttles_what_is_above_it(self, scene: Scene) -> None:
        """With a quota of none, every call is throttled, in the service's own word."""
        scene.aws.faults.add(Fault(action="sts:*", per_second=0))
        assert outcome(scene.assume) == "Throttling"

    def test_reset(self, scene: Scene) -> None:
        """A reset ends the connection without an answer."""
        scene.aws.faults.add(Fault(action="kms:Decrypt", account=scene.customer.account.account_id, reset=True))
        with pytest.raises(ConnectionClosedError):
            scene.decrypt()

    def test_a_lost_answer_was_a_call(self, scene: Scene) -> None:
        """With `after` the work is done and recorded, and only the answer is lost."""
        scene.aws.faults.add(Fault(action="sts:AssumeRole", role=scene.customer.role_arn, reset=True, after=True))
        before = scene.aws.trail.count("sts:AssumeRole")
        with pytest.raises(ConnectionClosedError):
            scene.assume()
        assert scene.aws.trail.count("sts:AssumeRole") == before + 1

    def test_hanging(self, scene: Scene) -> None:
        """A call that hangs gets no answer at all."""
        scene.aws.faults.add(Fault(action="kms:Decrypt", role=scene.customer.role_arn, hang=True))
        impatient = scene.kms_of(scene.assume(), read_timeout=0.2)
        with pytest.raises(ReadTimeoutError):
            scene.decrypt(impatient)

    def test_clearing_releases_what_hangs(self, scene: Scene) -> None:
        """Clearing the faults resets the connections that hang."""
        scene.aws.faults.add(Fault(action="kms:Decrypt", role=scene.customer.role_arn, hang=True))
        ended: list[str] = []
        thread = threading.Thread(target=lambda: ended.append(type_of(scene.decrypt)))
        thread.start()
        wait_until(lambda: scene.aws.faults.hanging == 1)
        scene.aws.faults.clear()
        thread.join(30)
        assert ended == ["ConnectionClosedError"]

    def test_what_was_released_hangs_no_more(self) -> None:
        """Who clears the faults and waits for the next call to hang does not meet one of before, whose thread is held
        up."""
        faults, held_up = Faults(time.monotonic), threading.Event()
        faults.add(Fault(hang=True))
        faults._released.wait = lambda _=None: held_up.wait(30)  # type: ignore[method-assign]

        def call() -> None:
            with pytest.raises(Dropped):
                faults.apply(Subject("kms:Decrypt", "", None, None, ()), after=False)

        thread = threading.Thread(target=call)
        thread.start()
        wait_until(lambda: faults.hanging == 1)
        faults.clear()
        hanging = faults.hanging
        held_up.set()
        thread.join(30)
        assert (hanging, faults.hanging) == (0, 0)

    def test_changes_wait_for_propagation(self, scene: Scene) -> None:
        """A change that is on its way is not yet in force, and is after `propagate`."""
        scene.aws.hold_changes()
        scene.customer.disable_key()
        before = outcome(scene.decrypt)
        scene.aws.propagate()
        assert (before, outcome(scene.decrypt)) == ("OK", "DisabledException")

    def test_a_deleted_role_lives_until_propagation(self, scene: Scene) -> None:
        """Also the deletion of a role takes its time."""
        scene.aws.hold_changes()
        scene.customer.delete_role()
        before = outcome(scene.assume)
        scene.aws.propagate()
        assert (before, outcome(scene.assume)) == ("OK", DENIED)


def type_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - which one is the question
        return type(error).__name__
    return "OK"


class TestTrail:
    """What the double records."""

    def test_a_use_is_recorded(self, scene: Scene) -> None:
        """A Decrypt is recorded with its key, context, session name and request id."""
        request_id = scene.decrypt()["ResponseMetadata"]["RequestId"]
        call = next(c for c in scene.aws.trail.of("kms:Decrypt") if c.request_id == request_id)
        seen = (call.key_arn, call.encryption_context, call.session_name, call.error_code, call.dry_run)
        assert seen == (scene.customer.key_arn, CONTEXT, "axiorank-inject-1", None, False)

    def test_the_customers_cloudtrail(self, scene: Scene) -> None:
        """The customer's records have CloudTrail's shape: our account for AssumeRole, their role for Decrypt."""
        scene.decrypt()
        records = scene.aws.trail.records(scene.customer.account.account_id)
        assume = next(r for r in records if r["eventName"] == "AssumeRole")
        use = records[-1]
        assert (assume["userIdentity"]["type"], use["userIdentity"]["sessionContext"]["sessionIssuer"]["arn"]) == (
            "AWSAccount",
            scene.customer.role_arn,
        )
        assert use["requestParameters"]["encryptionContext"] == CONTEXT

    def test_a_denial_is_recorded_as_cloudtrail_writes_it(self, scene: Scene) -> None:
        """A denied use has CloudTrail's shorter code."""
        scene.customer.remove_role_from_key_policy()
        outcome(scene.decrypt)
        assert scene.aws.trail.records(scene.customer.account.account_id)[-1]["errorCode"] == "AccessDenied"

    def test_no_plaintext(self, scene: Scene) -> None:
        """Neither a value nor its base64 is anywhere in the trail."""
        scene.decrypt()
        kept = repr(scene.aws.trail.calls) + json.dumps(scene.aws.trail.records(scene.customer.account.account_id))
        assert not [form for form in (VALUE.decode(), base64.b64encode(VALUE).decode()) if form in kept]


class Meddled(dict[str, Any]):
    """Tells whoever looks through it to add something meanwhile, as another thread would."""

    def __init__(self, content: dict[str, Any], meddle: Callable[[], object]) -> None:
        super().__init__(content)
        self._meddle: Callable[[], object] | None = meddle

    def items(self) -> Any:
        found = list(super().items())
        meddle, self._meddle = self._meddle, None
        if meddle:
            meddle()
        return found


class TestManyAtOnce:
    """What one request gave stays, whatever another one changes at that moment."""

    def test_a_session_that_is_opened_while_old_ones_go(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of the old ones those go that are over, and no other."""
        monkeypatch.setattr(identity, "_PRUNE_EVERY", 2)
        identities = identity.Identities(World(time.monotonic), lambda: 100.0)

        def opened(name: str, expires_at: float) -> None:
            identities.open(identity.Session(name, "", "", "", "", "", "", "", None, 0.0, expires_at))

        opened("over", 50.0)
        identities._sessions = Meddled(identities._sessions, lambda: opened("meanwhile", 200.0))
        opened("next", 200.0)
        assert set(identities._sessions) == {"meanwhile", "next"}

    def test_a_users_key_that_is_made_while_anothers_is(self) -> None:
        """Users of two accounts, at once."""
        world, key = World(time.monotonic), LongTermKey("arn:aws:iam::222222222222:user/other", "secret")
        world.access_keys = Meddled({}, lambda: world.access_keys.update(AKIAOTHER=key))
        world.publish_user("111111111111", "none")
        assert world.access_keys == {"AKIAOTHER": key}


class TestServer:
    """How it is served."""

    def test_only_loopback(self) -> None:
        """Another address than loopback is refused."""
        with pytest.raises(ValueError, match="loopback"):
            AwsDouble(host="0.0.0.0")

    def test_one_per_process(self, aws: AwsDouble) -> None:
        """A second double in the same process is refused, because moto's state is global."""
        with pytest.raises(RuntimeError):
            AwsDouble().start()

    def test_unsigned_requests_reach_nothing(self, aws: AwsDouble) -> None:
        """moto's own control interface is not served."""
        assert request(aws.endpoint, "POST", "/moto-api/reset")[0] == 403

    def test_control_only_by_a_loopback_name(self, aws: AwsDouble) -> None:
        """The control path is refused to a request for another host name."""
        assert request(aws.endpoint, "DELETE", "/_double/faults", host="attacker.example")[0] == 403

    def test_connections_are_kept(self, aws: AwsDouble) -> None:
        """Two requests go over one connection."""
        connection = http.client.HTTPConnection(aws.endpoint.removeprefix("http://"), timeout=10)
        connection.request("GET", "/_double/health")
        connection.getresponse().read()
        used = connection.sock
        connection.request("GET", "/_double/health")
        kept = connection.sock is used and connection.getresponse().read() is not None
        connection.close()
        assert kept

    def test_as_a_process(self) -> None:
        """It runs as a process of its own, is told to fail over HTTP, and ends with its standard input."""
        command = [sys.executable, "-m", "broker_core.dev.aws", "--with-stdin"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            endpoint = json.loads(process.stdout.readline())["endpoint"]
            rule = json.dumps({"action": "kms:Decrypt", "error": "ThrottlingException", "count": 2})
            answered = request(endpoint, "POST", "/_double/faults", rule)[0]
            process.stdin.close()
            assert (answered, process.wait(timeout=30)) == (200, 0)


def request(endpoint: str, method: str, path: str, body: str = "", host: str | None = None) -> tuple[int, bytes]:
    """One plain request."""
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=10)
    connection.request(method, path, body, {"Host": host} if host else {})
    answer = connection.getresponse()
    status, text = answer.status, answer.read()
    connection.close()
    return status, text
