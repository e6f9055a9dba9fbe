"""The double's policy evaluator: what AWS documents, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker_core.dev.aws.blob import BadBlob, key_arn_of, seal, unseal
from broker_core.dev.aws.conditions import known, met
from broker_core.dev.aws.decide import Caller, Request, refusal
from broker_core.dev.aws.policy import Kind, MalformedPolicy, Policy, parse, root_arn

OWNER, OTHER = "222222222222", "333333333333"
ROLE, ROLE_ID = f"arn:aws:iam::{OWNER}:role/byok", "AROAEXAMPLE"
SESSION = f"arn:aws:sts::{OWNER}:assumed-role/byok/s1"
KEY = f"arn:aws:kms:eu-west-1:{OWNER}:key/1"


def policy(kind: Kind, *statements: dict[str, Any]) -> Policy:
    text = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
    return parse(text, kind).bind(lambda name: ROLE_ID if name == ROLE else name)


def allow(action: str, principal: str | None = None, effect: str = "Allow", **more: Any) -> dict[str, Any]:
    who = {} if principal is None else {"Principal": principal if principal == "*" else {"AWS": principal}}
    return {"Effect": effect, "Action": action, "Resource": "*", **who, **more}


def identity(*statements: dict[str, Any]) -> tuple[Policy, ...]:
    return (policy(Kind.IDENTITY, *statements),)


def caller(account: str = OWNER, identity: tuple[Policy, ...] = (), session: Policy | None = None) -> Caller:
    return Caller(account, SESSION, ROLE, ROLE_ID, "ASIA", "AssumedRole", identity, session, "s1")


def decrypt(**context: str) -> Request:
    return Request("kms:Decrypt", KEY, OWNER, {name.lower(): (value,) for name, value in context.items()})


DECRYPT_FOR_ROLE = allow("kms:Decrypt", ROLE)
DELEGATED = allow("kms:*", root_arn(OWNER))
NO_RESOURCE = "because no resource-based policy allows the kms:Decrypt action"
NO_IDENTITY = "because no identity-based policy allows the kms:Decrypt action"
NO_SESSION = "because no session policy allows the kms:Decrypt action"
DENIED = "with an explicit deny in {} policy"


@pytest.mark.parametrize(
    ("key_policy", "who", "expected"),
    [
        pytest.param([DECRYPT_FOR_ROLE], caller(), None, id="a key policy that names the role is enough"),
        pytest.param([allow("kms:Encrypt", ROLE)], caller(), NO_RESOURCE, id="another action is not"),
        pytest.param([allow("kms:De*", ROLE)], caller(), None, id="an action may be a pattern"),
        pytest.param([DELEGATED], caller(), NO_IDENTITY, id="root delegation alone gives nothing"),
        pytest.param(
            [DELEGATED], caller(identity=identity(allow("kms:*"))), None, id="delegation and identity policy do"
        ),
        pytest.param(
            [allow("kms:Encrypt", ROLE)],
            caller(identity=identity(allow("kms:*"))),
            NO_RESOURCE,
            id="an identity policy without delegation gives nothing",
        ),
        pytest.param(
            [DECRYPT_FOR_ROLE],
            caller(session=policy(Kind.SESSION, allow("kms:Encrypt"))),
            NO_SESSION,
            id="a session policy withholds",
        ),
        pytest.param(
            [allow("kms:Encrypt", ROLE)],
            caller(session=policy(Kind.SESSION, allow("kms:*"))),
            NO_RESOURCE,
            id="a session policy adds nothing",
        ),
        pytest.param(
            [allow("kms:Decrypt", SESSION)],
            caller(session=policy(Kind.SESSION, allow("kms:Encrypt"))),
            None,
            id="a key policy that names the very session is not limited by its session policy",
        ),
        pytest.param(
            [DECRYPT_FOR_ROLE, allow("kms:Decrypt", "*", "Deny")],
            caller(),
            DENIED.format("a resource-based"),
            id="an explicit deny in the key policy wins",
        ),
        pytest.param(
            [DECRYPT_FOR_ROLE],
            caller(identity=identity(allow("kms:Decrypt", effect="Deny"))),
            DENIED.format("an identity-based"),
            id="an explicit deny in an identity policy wins",
        ),
        pytest.param(
            [DECRYPT_FOR_ROLE],
            caller(session=policy(Kind.SESSION, allow("kms:*"), allow("kms:Decrypt", effect="Deny"))),
            DENIED.format("a session"),
            id="an explicit deny in a session policy wins",
        ),
        pytest.param(
            [allow("kms:Decrypt", root_arn(OTHER))],
            caller(OTHER, identity(allow("kms:Decrypt"))),
            None,
            id="across accounts both sides allow",
        ),
        pytest.param(
            [allow("kms:Decrypt", root_arn(OTHER))], caller(OTHER), NO_IDENTITY, id="across accounts one is not enough"
        ),
    ],
)
def test_decision(key_policy: list[dict[str, Any]], who: Caller, expected: str | None) -> None:
    """Key policy, identity policy and session policy together decide as AWS says, in AWS's words."""
    assert refusal(decrypt(), who, policy(Kind.KEY, *key_policy)) == expected


def test_another_account_learns_nothing() -> None:
    """Across accounts a refusal does not tell a missing key from a missing permission."""
    reason = refusal(decrypt(), caller(OTHER, identity(allow("kms:*"))), policy(Kind.KEY, DELEGATED))
    assert reason is not None
    assert "does not exist in this Region" in reason


@pytest.mark.parametrize(
    ("operator", "wanted", "values", "expected"),
    [
        ("StringEquals", ("a", "b"), ("b",), True),
        ("StringEquals", ("a",), (), False),
        ("StringEqualsIfExists", ("a",), (), True),
        ("StringNotEquals", ("a",), (), True),
        ("StringNotEquals", ("a",), ("a",), False),
        ("StringLike", ("ws-*",), ("ws-1",), True),
        ("StringLike", ("ws-?",), ("ws-12",), False),
        ("ForAllValues:StringEquals", ("a", "b"), ("a",), True),
        ("ForAllValues:StringEquals", ("a",), ("a", "z"), False),
        ("ForAllValues:StringEquals", ("a",), (), True),
        ("ForAnyValue:StringEquals", ("a",), ("z", "a"), True),
        ("ForAnyValue:StringEquals", ("a",), (), False),
        ("Null", ("true",), (), True),
        ("Null", ("false",), (), False),
        ("Null", ("false",), ("x",), True),
        ("DateLessThan", ("2026-01-02T00:00:00Z",), ("2026-01-01T00:00:00Z",), True),
        ("DateLessThan", ("2026-01-01T00:00:00Z",), ("2026-01-01T00:00:00Z",), False),
        ("NumericLessThan", ("5",), ("4",), True),
        ("NumericLessThan", ("5",), ("many",), False),
        ("ArnLike", ("arn:aws:iam::*:role/x",), ("arn:aws:iam::1:role/x",), True),
        ("ArnLike", ("arn:aws:*:role/x",), ("arn:aws:iam::1:role/x",), False),
        ("Bool", ("false",), ("False",), True),
    ],
)
def test_condition(operator: str, wanted: tuple[str, ...], values: tuple[str, ...], expected: bool) -> None:
    """Each operator holds exactly when AWS says so, also for a key that is absent."""
    context = {"kms:encryptioncontext:axiorank:workspace": values} if values else {}
    assert met(operator, "kms:EncryptionContext:axiorank:workspace", wanted, context) is expected


def test_an_unknown_operator_is_not_known() -> None:
    """A condition that we could not evaluate is refused when the policy is put, and not ignored."""
    assert not known("StringAlmostEquals")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        pytest.param(Kind.SESSION, "{", id="not JSON"),
        pytest.param(Kind.SESSION, "[]", id="not an object"),
        pytest.param(Kind.SESSION, '{"Statement": []}', id="no statement"),
        pytest.param(Kind.SESSION, '{"Version": "2020-01-01", "Statement": [{}]}', id="unknown version"),
        pytest.param(
            Kind.SESSION, json.dumps({"Statement": allow("kms:Decrypt", "*")}), id="a principal in a session policy"
        ),
        pytest.param(Kind.KEY, json.dumps({"Statement": allow("kms:Decrypt")}), id="a key policy without principal"),
        pytest.param(
            Kind.TRUST, json.dumps({"Statement": allow("sts:AssumeRole", "*")}), id="a resource in a trust policy"
        ),
        pytest.param(Kind.SESSION, json.dumps({"Statement": allow("Decrypt")}), id="an action without service"),
        pytest.param(
            Kind.SESSION,
            json.dumps({"Statement": allow("kms:Decrypt", Condition={"Similar": {"a": "b"}})}),
            id="an unknown operator",
        ),
        pytest.param(
            Kind.SESSION, json.dumps({"Statement": allow("kms:Decrypt", Colour="red")}), id="an unknown element"
        ),
    ],
)
def test_malformed(kind: Kind, text: str) -> None:
    """A document that AWS would refuse is refused."""
    with pytest.raises(MalformedPolicy):
        parse(text, kind)


def test_a_principal_that_does_not_exist_is_refused() -> None:
    """Binding fails for a principal that nobody has."""
    with pytest.raises(MalformedPolicy):
        parse(json.dumps({"Statement": DECRYPT_FOR_ROLE}), Kind.KEY).bind(lambda _: None)


def test_an_account_id_is_its_root() -> None:
    """A bare account id and the ARN of its root are one principal."""
    assert policy(Kind.KEY, allow("kms:*", OWNER)).principals() == {root_arn(OWNER)}


def test_contexts_do_not_run_together() -> None:
    """Two contexts whose texts join to the same bytes do not open each other's blobs."""
    blob = seal(b"k" * 32, KEY, b"value", {"workspace": "ws1"})
    with pytest.raises(BadBlob):
        unseal(b"k" * 32, blob, {"workspacew": "s1"})


def test_a_blob_names_its_key() -> None:
    """A blob begins as AWS's do, and says which key made it."""
    blob = seal(b"k" * 32, KEY, b"value", {})
    assert (blob[:5], key_arn_of(blob), unseal(b"k" * 32, blob, {})) == (b"\x01\x02\x02\x00\x78", KEY, b"value")
