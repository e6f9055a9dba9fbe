"""``/byok`` over HTTP, against AWS's own decisions: the contract's fields, what goes wrong, and what owners read."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import boto3
import pytest

from broker_core import verification
from broker_core.dev.aws import CustomerAccount, Fault
from broker_core.errors import Denied
from broker_core.ports import Cover
from broker_core.reports import WHAT_TO_DO, WHY
from tests.store_setup import connected as store_connected
from tests.waiting import wait_until
from tests.web import Web

SOMEWHERE = "0192d4f0-0000-7000-8000-000000000000"
NAMES = [step.name for step in verification.STEPS]
#: a connection's fields that are always there
ALWAYS = {
    "id",
    "status",
    "roleArn",
    "keyArn",
    "region",
    "externalId",
    "createdAt",
    "health",
    "steps",
}


def given(customer: CustomerAccount, **changes: Any) -> dict[str, Any]:
    """What an owner sends to connect; ``...`` leaves a field out."""
    fields = {"roleArn": customer.role_arn, "externalId": customer.external_id, "keyArn": customer.key_arn}
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def connect(web: Web, customer: CustomerAccount, **changes: Any) -> Any:
    """PUT /byok/connection."""
    return web.request("PUT", "/byok/connection", role="owner", json=given(customer, **changes))


def connected(web: Web) -> CustomerAccount:
    """A customer whose key is connected."""
    customer = web.live.customer()
    assert connect(web, customer).json()["status"] == "current"
    return customer


def failed(answer: Any) -> list[str]:
    """The names of the steps that failed."""
    return [step["name"] for step in answer.json()["steps"] if step["outcome"] == "failed"]


class TestConnect:
    """PUT, GET and DELETE /byok/connection."""

    def test_a_key_that_passes_every_step(self, web: Web) -> None:
        """200, current, with every step's outcome; and GET answers the same."""
        customer = web.live.customer()
        answer = connect(web, customer)
        assert answer.status_code == 200
        found = answer.json()
        assert set(found) == ALWAYS | {"verifiedAt"}
        assert found["region"] == customer.key_arn.split(":")[3]
        assert (found["status"], found["health"]) == ("current", "healthy")
        assert [step["name"] for step in found["steps"]] == NAMES
        assert {step["outcome"] for step in found["steps"]} == {"ok"}
        assert web.get("/byok/connection", role="admin").json() == found

    def test_a_key_that_fails_a_step(self, web: Web) -> None:
        """200 all the same, but pending: the step says AWS's code and what to do, and nothing was enabled."""
        customer = web.live.customer()
        customer.remove_role_from_key_policy()
        answer = connect(web, customer)
        found = answer.json()
        assert (answer.status_code, found["status"], found["health"]) == (200, "pending", "unverified")
        assert "verifiedAt" not in found
        (step,) = [step for step in found["steps"] if step["outcome"] == "failed"]
        assert set(step) == {"name", "outcome", "awsCode", "requestId", "whatToDo"}
        assert (step["name"], step["awsCode"]) == ("encrypt", "AccessDeniedException")
        assert found["notRun"] == NAMES[NAMES.index("encrypt") + 1 :]
        assert web.get("/byok/connection", role="admin").json() == found
        assert web.live.app.store.setting(web.live.workspace).connection is None

    def test_a_replacement_that_fails_leaves_the_one_in_place(self, web: Web) -> None:
        """GET goes on showing what encrypts."""
        first = connected(web)
        second = web.live.customer()
        second.disable_key()
        assert failed(connect(web, second)) == ["encrypt"]
        assert web.get("/byok/connection", role="admin").json()["keyArn"] == first.key_arn

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"roleArn": ...}, "roleArn"),
            ({"keyArn": "arn:aws:kms:eu-west-1:222222222222:alias/mine"}, "keyArn"),
            ({"externalId": "short"}, "externalId"),
            ({"roleArn": "arn:aws:iam::999999999999:role/axiorank"}, "roleArn"),
            ({"more": 1}, "(another field)"),
        ],
        ids=["missing", "alias", "short", "account", "unknown"],
    )
    def test_what_is_wrong_is_named(self, web: Web, changes: dict[str, Any], field: str) -> None:
        """422 with the field, and AWS is not asked."""
        customer = web.live.customer()
        before = len(web.live.aws.trail.calls)
        answer = connect(web, customer, **changes)
        assert (answer.status_code, answer.json()["error"], list(answer.json()["fields"])) == (422, "invalid", [field])
        assert len(web.live.aws.trail.calls) == before

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"roleArn": "axiorank"}, "arn:aws:iam::ACCOUNT:role/NAME"),
            ({"externalId": "short"}, "16 to 1224 of"),
            ({"keyArn": "mine"}, "arn:aws:kms:REGION:ACCOUNT:key/KEY-ID"),
        ],
        ids=["role", "external-id", "key"],
    )
    def test_what_to_give_instead_is_said(self, web: Web, changes: dict[str, str], words: str) -> None:
        """In words for an owner, not in a pattern's."""
        (said,) = connect(web, web.live.customer(), **changes).json()["fields"].values()
        assert words in said

    def test_another_workspaces_external_id(self, web: Web) -> None:
        """409, in words that say nothing of whose it is."""
        customer = connected(web)
        other = f"ws_{uuid4().hex}"
        web.live.app.store.put_workspace(other, "enterprise")
        answer = web.request("PUT", "/byok/connection", role="owner", workspace=other, json=given(customer))
        assert (answer.status_code, answer.json()["error"]) == (409, "conflict")
        assert web.live.workspace not in answer.text

    def test_disconnecting(self, web: Web) -> None:
        """The answer is the connection, retired; then there is none."""
        connected(web)
        answer = web.request("DELETE", "/byok/connection", role="owner")
        assert (answer.status_code, answer.json()["status"]) == (200, "retired")
        assert web.get("/byok/connection", role="admin").status_code == 404
        assert web.request("DELETE", "/byok/connection", role="owner").status_code == 409

    def test_verifying_again(self, web: Web) -> None:
        """Every step is taken again; what fails is shown and changes nothing."""
        customer = connected(web)
        assert web.post("/byok/connection/verify", role="owner").json()["status"] == "current"
        customer.disable_key()
        answer = web.post("/byok/connection/verify", role="owner")
        assert (answer.status_code, answer.json()["status"], failed(answer)) == (200, "current", ["encrypt"])

    def test_one_at_a_time(self, web: Web) -> None:
        """While a workspace's key is being tried another attempt is 429, and so takes no thread; then it may again."""
        customer, waits = web.live.customer(), Fault("kms:Encrypt", hang=True)
        before = len(web.live.aws.trail.calls)
        with ThreadPoolExecutor() as threads:
            web.live.aws.faults.add(waits)
            first = threads.submit(connect, web, customer)
            wait_until(lambda: len(web.live.aws.trail.calls) > before)
            second = connect(web, customer)
            web.live.aws.faults.clear()
            assert first.result().status_code == 200
        assert (second.status_code, second.json()["error"]) == (429, "rate_limited")
        assert second.headers["Retry-After"] == "5"
        assert connect(web, customer).json()["status"] == "current"

    def test_verifying_nothing(self, web: Web) -> None:
        """409 where no key is connected."""
        assert web.post("/byok/connection/verify", role="owner").status_code == 409


class TestSetup:
    """GET /byok/setup."""

    @pytest.mark.parametrize(
        ("form", "kind", "holds"),
        [
            ("cloudformation", "application/yaml", "AWSTemplateFormatVersion"),
            ("terraform", "text/x-hcl; charset=utf-8", "aws_kms_key"),
            ("cli", "text/x-shellscript; charset=utf-8", "aws iam create-role"),
        ],
    )
    def test_forms(self, web: Web, form: str, kind: str, holds: str) -> None:
        """Each is a text of its own kind, with the external id that was given."""
        answer = web.get("/byok/setup", role="owner", params={"format": form, "externalId": "external-id-of-mine"})
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert holds in answer.text
        assert "external-id-of-mine" in answer.text

    def test_json_is_the_default(self, web: Web) -> None:
        """Both policies, a proposed external id, and how it is taken back."""
        answer = web.get("/byok/setup", role="owner")
        found = answer.json()
        assert answer.headers["content-type"] == "application/json"
        assert found["workspaceId"] == web.live.workspace
        (statement,) = found["trustPolicy"]["Statement"]
        assert statement["Condition"]["StringEquals"]["sts:ExternalId"] == found["externalId"]
        assert found["keyArn"] is None
        assert len(found["revocation"]) == 5
        assert found["externalId"] != web.get("/byok/setup", role="owner").json()["externalId"]

    def test_a_connected_workspace(self, web: Web) -> None:
        """Its own external id, role and key stand in the document, unless others are given."""
        customer = connected(web)
        found = web.get("/byok/setup", role="owner").json()
        assert (found["externalId"], found["keyArn"], found["roleArn"]) == (
            customer.external_id,
            customer.key_arn,
            customer.role_arn,
        )
        other = web.get("/byok/setup", role="owner", params={"keyArn": "", "roleName": "other"}).json()
        assert (other["externalId"], other["keyArn"], other["roleName"]) == (customer.external_id, None, "other")

    def test_a_connected_role_under_a_path(self, web: Web) -> None:
        """No document makes it, and one for its key with another role would take the key from it: that is said, unless
        another role or key is asked for."""
        role_arn = "arn:aws:iam::222222222222:role/service/axiorank"
        mine = store_connected(web.live.app.store, web.live.workspace, role_arn=role_arn)
        answer = web.get("/byok/setup", role="owner")
        assert (answer.status_code, list(answer.json()["fields"])) == (422, ["roleName"])
        named = web.get("/byok/setup", role="owner", params={"roleName": "other"}).json()
        assert (named["roleName"], named["keyArn"]) == ("other", mine.key_arn)
        assert web.get("/byok/setup", role="owner", params={"keyArn": ""}).json()["roleName"] == "axiorank-byok"

    def test_the_strict_variant(self, web: Web) -> None:
        """The key's policy names the workspace."""
        found = web.get("/byok/setup", role="owner", params={"strict": "true"}).json()
        condition = found["keyPolicy"]["Statement"][1]["Condition"]["StringEquals"]
        assert condition == {"kms:EncryptionContext:axiorank:workspace": web.live.workspace}

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("format", "word"),
            ("externalId", "short"),
            ("keyArn", "alias/x"),
            ("accountId", "1"),
            ("adminPrincipal", "*"),
        ],
    )
    def test_what_is_wrong_is_named(self, web: Web, name: str, value: str) -> None:
        """422 with the parameter."""
        answer = web.get("/byok/setup", role="owner", params={name: value})
        assert (answer.status_code, list(answer.json()["fields"])) == (422, [name])


class TestCoverage:
    """GET /byok/coverage."""

    def test_each_cover(self, web: Web) -> None:
        """Before BYOK, under a first key, a second one, on its way in: counted, and each with why and what to do."""
        live = web.live
        live.store("before")
        connected(web)
        live.store("first")
        second = connected(web)
        live.store("second")
        second.remove_role_from_key_policy()
        live.publish("held")
        live.work()

        found = web.get("/byok/coverage", role="admin").json()

        assert {each.value: found[each.value] for each in Cover} == dict.fromkeys(Cover, 1)
        assert [(item["cover"], item["name"]) for item in found["items"]] == [
            ("platform", "before"),
            ("olderConnections", "first"),
            ("held", "held"),
            ("currentKey", "second"),
        ]
        for item in found["items"]:
            assert (item["why"], item["whatToDo"]) == (WHY[item["cover"]], WHAT_TO_DO[item["cover"]])
            assert ("connectionId" in item) == (item["cover"] in ("olderConnections", "currentKey"))
            assert ("heldUntil" in item) == ("eventId" in item) == (item["cover"] == "held")
        assert found["nextCursor"] is None

    def test_paging(self, web: Web) -> None:
        """Pages follow one another over all covers, and within one; counts are always of all."""
        for number in range(3):
            web.live.store(f"platform-{number}")
        connected(web)
        for number in range(2):
            web.live.store(f"key-{number}")
        assert self.walk(web) == ["platform-0", "platform-1", "platform-2", "key-0", "key-1"]
        assert self.walk(web, cover="currentKey") == ["key-0", "key-1"]
        assert self.walk(web, cover="held") == []
        one = web.get("/byok/coverage", role="admin", params={"cover": "held"}).json()
        assert (one["platform"], one["items"]) == (3, [])

    @pytest.mark.parametrize(
        "cursor", ["", "platform", "platform:1", "currentKey:x", "held:0192d4f0-0000-7000-8000-000000000000"]
    )
    def test_a_cursor_that_is_none(self, web: Web, cursor: str) -> None:
        """422: also one of another cover."""
        answer = web.get("/byok/coverage", role="admin", params={"cover": "platform", "cursor": cursor})
        assert (answer.status_code, list(answer.json()["fields"])) == (422, ["cursor"])

    def walk(self, web: Web, **parameters: str) -> list[str]:
        """All names, two at a time."""
        names: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            page = web.get("/byok/coverage", role="admin", params={"limit": "2", **parameters, **cursor}).json()
            assert len(page["items"]) <= 2
            names += [item["name"] for item in page["items"]]
            if page["nextCursor"] is None:
                return names
            cursor = {"cursor": page["nextCursor"]}


class TestAffected:
    """GET /byok/affected."""

    def test_nothing(self, web: Web) -> None:
        """Two empty lists."""
        assert web.get("/byok/affected", role="admin").json() == {"connections": [], "secrets": []}

    def test_a_revoked_key(self, web: Web) -> None:
        """The connection, since when, why, how it was found and what to do; with the secrets under it by name."""
        customer = connected(web)
        for name in ("one", "two"):
            web.live.store(name)
        connection = web.live.app.store.setting(web.live.workspace).connection
        customer.disable_key()
        with pytest.raises(Denied):
            web.live.send("one")

        found = web.get("/byok/affected", role="admin").json()

        (failing,) = found["connections"]
        assert set(failing) == {"connectionId", "state", "awsCode", "since", "foundBy", "whatToDo", "secrets"}
        assert failing["connectionId"] == str(connection.id)
        assert (failing["state"], failing["awsCode"], failing["foundBy"]) == (
            "key_disabled",
            "DisabledException",
            "inject",
        )
        assert failing["whatToDo"]
        assert [sorted(secret) for secret in failing["secrets"]] == [["id", "name"], ["id", "name"]]
        assert [secret["name"] for secret in failing["secrets"]] == ["one", "two"]
        assert found["secrets"] == []


class TestDrill:
    """POST /byok/drill."""

    def test_what_a_revocation_would_take_away(self, web: Web) -> None:
        """Totals, secrets with binding, uses and callers, the ways and what none stops; AWS is not asked."""
        connected(web)
        web.live.store("used")
        web.live.store("idle")
        web.live.send("used")
        before = len(web.live.aws.trail.calls)

        found = web.post("/byok/drill", role="owner").json()

        assert (found["secrets"], found["usedSecrets"], found["uses"]) == (2, 1, 1)
        assert [item["name"] for item in found["items"]] == ["used", "idle"]
        first, second = found["items"]
        assert first["binding"]["injectionKind"] == "bearer"
        assert first["callers"] == [{"agentId": "agent-1"}]
        assert ("lastUsedAt" in first, "lastUsedAt" in second) == (True, False)
        assert len(found["revocation"]) == 5
        assert len(found["notStopped"]) == 5
        assert len(web.live.aws.trail.calls) == before

    def test_one_connection(self, web: Web) -> None:
        """Only what is under it; an id that is no connection of this workspace is not found."""
        connected(web)
        web.live.store("old")
        old = web.get("/byok/connection", role="admin").json()["id"]
        connected(web)
        web.live.store("new")
        found = web.post("/byok/drill", role="owner", json={"connectionId": old}).json()
        assert (found["connectionId"], [item["name"] for item in found["items"]]) == (old, ["old"])
        strange = web.post("/byok/drill", role="owner", json={"connectionId": str(uuid4())})
        assert strange.status_code == 404

    def test_a_list_can_be_shorter(self, web: Web) -> None:
        """``limit`` shortens the list, and not the totals."""
        connected(web)
        for name in ("a", "b"):
            web.live.store(name)
        found = web.post("/byok/drill", role="owner", json={"limit": 1}).json()
        assert (found["secrets"], len(found["items"])) == (2, 1)


class TestBlob:
    """GET /broker-secrets/{id}/blob."""

    def test_a_customer_decrypts_it(self, web: Web) -> None:
        """The ciphertext opens in the customer's account, under the context that is given, without us."""
        customer = connected(web)
        secret_id = web.live.store("github", value="value-of-a-credential").secret_id
        answer = web.get(f"/broker-secrets/{secret_id}/blob", role="owner")
        found = answer.json()
        assert set(found) == {
            "id",
            "name",
            "version",
            "cipher",
            "ciphertext",
            "encryptionContext",
            "keyArn",
            "region",
            "commands",
        }
        assert (found["id"], found["cipher"]) == (str(secret_id), "kms")
        assert found["commands"][1].startswith("aws kms decrypt ")
        own = {"AWS": f"arn:aws:iam::{customer.account.account_id}:root"}
        customer.put_key_policy(customer.key_policy(customer.use_statement() | {"Sid": "Own", "Principal": own}))
        theirs = boto3.client(
            "kms",
            found["region"],
            endpoint_url=web.live.aws.endpoint,
            aws_access_key_id=customer.account.account_id,
            aws_secret_access_key="test",
        )
        opened = theirs.decrypt(
            KeyId=found["keyArn"],
            CiphertextBlob=base64.b64decode(found["ciphertext"]),
            EncryptionContext=found["encryptionContext"],
        )
        theirs.close()
        assert opened["Plaintext"] == b"value-of-a-credential"

    def test_the_platform_cipher_is_not_given(self, web: Web) -> None:
        """409: it is under no key of theirs."""
        secret_id = web.live.store("github").secret_id
        answer = web.get(f"/broker-secrets/{secret_id}/blob", role="owner")
        assert (answer.status_code, answer.json()["error"]) == (409, "conflict")

    def test_no_value_yet(self, web: Web) -> None:
        """404 while there is no blob."""
        secret_id = web.live.publish("github").secret_id
        assert web.get(f"/broker-secrets/{secret_id}/blob", role="owner").status_code == 404
