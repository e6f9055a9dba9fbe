"""Matching a customer's CloudTrail with our rows: which calls are ours, and what is said of those that stand alone.

The records are as the AWS documentation shows them, cut to what is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_core.audit import Intent, Outcome, Result
from broker_core.cloudtrail import Matching, Missing, Verdict
from broker_core.errors import Invalid, Receipt
from broker_core.model import CipherName, Purpose
from broker_core.ports import Use
from broker_core.trail_calls import call_of

ROLE = "arn:aws:iam::222222222222:role/axiorank-byok"
KEY = "arn:aws:kms:eu-west-1:222222222222:key/11111111-2222-3333-4444-555555555555"
START = datetime(2026, 5, 20, 20, 0, tzinfo=UTC)


def kms(name: str, request: str, session: str, at: datetime = START, **more: Any) -> dict[str, Any]:
    """A KMS call of a session of ROLE."""
    return {
        "eventVersion": "1.11",
        "userIdentity": {
            "type": "AssumedRole",
            "principalId": f"AROA:{session}",
            "arn": f"arn:aws:sts::222222222222:assumed-role/axiorank-byok/{session}",
            "accountId": "222222222222",
            "sessionContext": {"sessionIssuer": {"type": "Role", "arn": ROLE, "userName": "axiorank-byok"}},
        },
        "eventTime": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "eventSource": "kms.amazonaws.com",
        "eventName": name,
        "awsRegion": "eu-west-1",
        "requestParameters": {"encryptionAlgorithm": "SYMMETRIC_DEFAULT", "encryptionContext": {"a": "b"}},
        "responseElements": None,
        "requestID": request,
        "eventID": str(uuid4()),
        "resources": [{"accountId": "222222222222", "type": "AWS::KMS::Key", "ARN": KEY}],
        **more,
    }


def assume(request: str, session: str, at: datetime = START) -> dict[str, Any]:
    """Our AssumeRole, as the account of the role sees it."""
    return {
        "userIdentity": {"type": "AWSAccount", "principalId": "AIDA", "accountId": "111111111111"},
        "eventTime": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "eventSource": "sts.amazonaws.com",
        "eventName": "AssumeRole",
        "awsRegion": "eu-west-1",
        "requestParameters": {"roleArn": ROLE, "roleSessionName": session},
        "requestID": request,
        "eventID": str(uuid4()),
        "resources": [{"accountId": "222222222222", "type": "AWS::IAM::Role", "ARN": ROLE}],
    }


def use(
    assume_id: str | None = "a-1",
    kms_id: str | None = "k-1",
    *,
    at: datetime = START,
    audit: UUID | None = None,
    session: str | None = None,
    outcome: Outcome = Outcome.OK,
    aws_code: str = "",
) -> Use:
    """A row of ours."""
    audit = audit or uuid4()
    intent = Intent(audit, "ws", Purpose.INJECT, CipherName.KMS)
    receipt = Receipt(session or f"axiorank-inject-{audit}", assume_id, kms_id)
    return Use(intent, Result(outcome, aws_code=aws_code, receipt=receipt), at, at)


def session_of(row: Use) -> str:
    assert row.result is not None
    assert row.result.receipt.session_name is not None
    return row.result.receipt.session_name


@pytest.fixture
def matching() -> Iterator[Matching]:
    with Matching([ROLE]) as opened:
        yield opened


def test_a_use_is_matched_by_request_id_and_session(matching: Matching) -> None:
    """Both calls of one use are explained by its row."""
    row = use()
    matching.add_trail([assume("a-1", session_of(row)), kms("Decrypt", "k-1", session_of(row))])
    matching.add_ours([row])

    summary = matching.summary()
    assert (summary.calls, summary.matched, summary.theirs_only, summary.ours_only) == (2, 2, 0, 0)
    assert summary.is_explained


def test_a_call_without_a_row_is_theirs_only(matching: Matching) -> None:
    """A Decrypt in a session that we never recorded is found, with what the trail says of it."""
    matching.add_trail([kms("Decrypt", "k-9", "somebody")])

    (found,) = matching.unexplained()
    assert (found.verdict, found.request_id, found.session_name) == (Verdict.THEIRS_ONLY, "k-9", "somebody")
    assert not matching.summary().is_explained


def test_a_known_request_id_under_another_session_explains_nothing(matching: Matching) -> None:
    """A request id alone is no proof: the session must be the row's."""
    matching.add_trail([kms("Decrypt", "k-1", "somebody")])
    matching.add_ours([use()])

    assert matching.summary().theirs_only == 1


def test_a_refused_try_in_a_known_session_is_an_attempt(matching: Matching) -> None:
    """A use that was throttled first has one more call in the trail."""
    row = use()
    throttled = kms("Decrypt", "k-0", session_of(row), errorCode="ThrottlingException")
    matching.add_trail([assume("a-1", session_of(row)), throttled, kms("Decrypt", "k-1", session_of(row))])
    matching.add_ours([row])

    summary = matching.summary()
    assert (summary.matched, summary.attempts, summary.theirs_only) == (2, 1, 0)


def test_a_second_success_in_a_known_session_is_listed(matching: Matching) -> None:
    """It may be an answer that was lost; it may be a call that was kept quiet: the auditor sees it."""
    row = use()
    matching.add_trail([kms("Decrypt", "k-1", session_of(row)), kms("Decrypt", "k-2", session_of(row))])
    matching.add_ours([row])

    (found,) = matching.unexplained()
    assert (found.verdict, found.request_id, found.audit_id) == (Verdict.UNANSWERED, "k-2", row.intent.id)


def of_secret(name: str, audit: UUID | None = None) -> Use:
    """A row of one use of a secret's first version."""
    row = use(audit=audit)
    return replace(row, intent=replace(row.intent, secret_name=name, version=1))


def under(name: str) -> dict[str, Any]:
    """What a call's record shows of its context."""
    return {
        "encryptionContext": {"axiorank:workspace": "ws", "axiorank:secret": name, "axiorank:version": "1"},
        "encryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }


def test_a_call_under_the_rows_context_is_matched(matching: Matching) -> None:
    """The trail shows the context of the secret that the row is about."""
    row = of_secret("github")
    matching.add_trail([kms("Decrypt", "k-1", session_of(row), requestParameters=under("github"))])
    matching.add_ours([row])

    assert matching.summary().matched == 1


@pytest.mark.parametrize("request_id", ["k-1", "k-2"])
def test_a_call_of_another_secret_is_not_explained_by_the_row(matching: Matching, request_id: str) -> None:
    """Whoever writes one secret into the log and decrypts another is found, by whatever request id."""
    row = of_secret("github")
    matching.add_trail([kms("Decrypt", request_id, session_of(row), requestParameters=under("payroll"))])
    matching.add_ours([row])

    assert matching.summary().theirs_only == 1


@pytest.mark.parametrize("request_id", ["k-1", "k-2"])
@pytest.mark.parametrize("name", ["Encrypt", "CreateGrant", "GenerateDataKey"])
def test_another_operation_is_not_explained_by_the_row(matching: Matching, name: str, request_id: str) -> None:
    """A row of an injection is of one Decrypt, and of nothing else that worked in its session."""
    row = use()
    matching.add_trail([kms(name, request_id, session_of(row))])
    matching.add_ours([row])

    assert matching.summary().theirs_only == 1


def test_a_lost_answer_in_a_shared_session_is_unanswered(matching: Matching) -> None:
    """The session bears the first use's name, and the second's secret is that of the second row."""
    first = of_secret("github")
    shared = session_of(first)
    second = of_secret("payroll")
    second = replace(second, result=Result(Outcome.FAILED, receipt=Receipt(shared, "a-1", None)))
    matching.add_trail([kms("Decrypt", "k-2", shared, requestParameters=under("payroll"))])
    matching.add_ours([first, second])

    assert matching.summary().unanswered == 1


def test_a_shared_session_explains_the_uses_that_recorded_it(matching: Matching) -> None:
    """With reuse the session bears the first use's name, and every row stores it."""
    first = use("a-1", "k-1")
    second = use("a-1", "k-2", session=session_of(first))
    shared = session_of(first)
    matching.add_trail([assume("a-1", shared), kms("Decrypt", "k-1", shared), kms("Decrypt", "k-2", shared)])
    matching.add_ours([first, second])

    summary = matching.summary()
    assert (summary.matched, summary.theirs_only, summary.unanswered) == (3, 0, 0)


def test_the_same_record_in_two_files_counts_once(matching: Matching) -> None:
    """Exports overlap."""
    record = kms("Decrypt", "k-1", "somebody")
    matching.add_trail([record])
    matching.add_trail([record])

    assert matching.summary().calls == 1


def test_other_roles_and_services_are_left_out(matching: Matching) -> None:
    """The customer's own use of their key is no business of ours."""
    own = kms("Decrypt", "k-1", "admin")
    own["userIdentity"]["sessionContext"]["sessionIssuer"]["arn"] = "arn:aws:iam::222222222222:role/admin"
    user = kms("Decrypt", "k-2", "x", userIdentity={"type": "IAMUser", "arn": "arn:aws:iam::222222222222:user/a"})
    matching.add_trail([own, user, {"eventSource": "s3.amazonaws.com"}])

    summary = matching.summary()
    assert (summary.records, summary.calls, summary.other_principals) == (3, 0, 0)


MALLORY = {"type": "IAMUser", "arn": "arn:aws:iam::222222222222:user/mallory", "accountId": "222222222222"}


def by_mallory(name: str = "Decrypt", workspace: str = "ws", **more: Any) -> dict[str, Any]:
    """A call under a secret's context that is not our role's."""
    asked = under("github")
    asked["encryptionContext"]["axiorank:workspace"] = workspace
    return kms(name, "k-9", "x", userIdentity=MALLORY, **{"requestParameters": asked, **more})


class TestOtherPrincipals:
    """Nobody opens a ciphertext of ours without its context, and so without being seen."""

    @pytest.fixture
    def served(self, matching: Matching) -> Matching:
        """With one use of ours, matched."""
        row = of_secret("github")
        matching.add_trail([kms("Decrypt", "k-1", session_of(row), requestParameters=under("github"))])
        matching.add_ours([row])
        return matching

    def test_a_decrypt_of_our_secret(self, served: Matching) -> None:
        """It is listed with who did it, and the trail is not explained."""
        served.add_trail([by_mallory()])

        (found,) = served.unexplained()
        assert (found.verdict, found.principal) == (Verdict.OTHER_PRINCIPAL, MALLORY["arn"])
        summary = served.summary()
        assert (summary.calls, summary.other_principals, summary.is_explained) == (1, 1, False)

    def test_re_encrypting_is_decrypting(self, served: Matching) -> None:
        """The ciphertext is opened under the source's context."""
        asked = {"sourceEncryptionContext": under("github")["encryptionContext"], "destinationEncryptionContext": {}}
        served.add_trail([by_mallory("ReEncrypt", requestParameters=asked)])

        assert served.summary().other_principals == 1

    def test_a_denied_one(self, served: Matching) -> None:
        """What AWS refused gave nobody anything."""
        served.add_trail([by_mallory(errorCode="AccessDenied")])

        assert served.summary().other_principals == 0

    def test_of_another_workspace(self, served: Matching) -> None:
        """A customer's second workspace has a role of its own, and a log of its own."""
        served.add_trail([by_mallory(workspace="ws_2")])

        assert served.summary().other_principals == 0

    def test_our_missing_row_is_not_found_in_theirs(self, served: Matching) -> None:
        """A call of somebody else's under a request id of ours is not our call."""
        served.add_trail([by_mallory(eventTime="2026-05-20T21:00:00Z"), kms("Decrypt", "k-0", "x")])
        served.add_ours([use(None, "k-9")])

        assert [found.request_id for found in served.ours_only()] == ["a-1", "k-9"]


def test_a_call_without_a_context_is_not_explained_by_the_row(matching: Matching) -> None:
    """Under the key there may be more than our secrets: what was opened there has no context of ours."""
    row = of_secret("github")
    matching.add_trail([kms("Decrypt", "k-1", session_of(row), requestParameters={"keyId": KEY})])
    matching.add_ours([row])

    assert matching.summary().theirs_only == 1


@pytest.mark.parametrize("purpose", [Purpose.VERIFY, Purpose.PROBE])
def test_a_secret_is_not_opened_as_a_canary(matching: Matching, purpose: Purpose) -> None:
    """A verification's or a probe's row explains what worked under the canary's context, and nothing else."""
    row = use()
    row = replace(row, intent=replace(row.intent, purpose=purpose, connection_id=uuid4()))
    matching.add_trail([kms("Decrypt", "k-1", session_of(row), requestParameters=under("github"))])
    matching.add_ours([row])

    assert matching.summary().theirs_only == 1


def test_lines_without_a_workspace(matching: Matching) -> None:
    """The log's lines do not name it: secret and version are compared all the same."""
    rows = [of_secret(name) for name in ("github", "slack")]
    rows = [replace(row, intent=replace(row.intent, workspace_id="")) for row in rows]
    asked = [under("github"), under("payroll")]
    matching.add_trail(
        kms("Decrypt", "k-1", session_of(row), requestParameters=one) for row, one in zip(rows, asked, strict=True)
    )
    matching.add_ours(rows)

    summary = matching.summary()
    assert (summary.matched, summary.theirs_only) == (1, 1)


@pytest.mark.parametrize(
    ("minutes", "refused", "why"),
    [
        (-61, False, Missing.OUTSIDE),
        (30, False, Missing.OURS_ONLY),
        (55, False, Missing.LATE),
        (61, False, Missing.OUTSIDE),
        (30, True, Missing.REFUSED_ROLE),
    ],
)
def test_what_only_we_recorded_says_why(matching: Matching, minutes: int, refused: bool, why: Missing) -> None:
    """Outside of the trail, too near to its end, a refused AssumeRole, or simply not there."""
    matching.add_trail([kms("Decrypt", "1", "x"), kms("Decrypt", "2", "x", START + timedelta(hours=1))])
    at = START + timedelta(minutes=minutes)
    row = (
        use("a-7", None, at=at, outcome=Outcome.REFUSED, aws_code="AccessDenied")
        if refused
        else use(None, "k-7", at=at)
    )
    matching.add_ours([row])

    (found,) = matching.ours_only()
    assert (found.why, found.audit_id) == (why, row.intent.id)


def test_an_empty_trail_explains_nothing_and_accuses_nobody(matching: Matching) -> None:
    """Without a call of our role in it there is no period to compare."""
    matching.add_ours([use()])

    summary = matching.summary()
    assert (summary.first, summary.ours_only, summary.ours_outside) == (None, 0, 2)


@pytest.mark.parametrize("missing", ["eventID", "eventTime", "eventName", "awsRegion", "userIdentity"])
def test_a_record_that_is_not_cloudtrails_is_refused(matching: Matching, missing: str) -> None:
    """A field that CloudTrail always writes is not there: the file is not what it says."""
    record = kms("Decrypt", "k-1", "x")
    del record[missing]

    with pytest.raises(Invalid, match="not shaped as CloudTrail"):
        matching.add_trail([record])


@pytest.mark.parametrize(
    "changed",
    [
        {"errorCode": {"a": 1}},
        {"eventID": ["x"]},
        {"requestID": 7},
        {"requestParameters": {"encryptionContext": {"a": {"b": "c"}}}},
        {"requestParameters": {"encryptionContext": "text"}},
        {"requestParameters": ["x"]},
        {"resources": [{"ARN": 1}]},
        {"eventName": "\ud800"},
    ],
)
def test_a_field_of_another_kind_is_refused(matching: Matching, changed: dict[str, Any]) -> None:
    """With a message, and not with a traceback."""
    record = kms("Decrypt", "k-1", "x") | changed

    with pytest.raises(Invalid, match="not shaped as CloudTrail"):
        matching.add_trail([record])


def test_what_a_call_shows() -> None:
    """Key, context and error are read from where CloudTrail writes them."""
    call = call_of(kms("Decrypt", "k-1", "x", errorCode="AccessDenied"), {ROLE})

    assert call is not None
    assert (call.key_arn, call.encryption_context, call.error_code) == (KEY, {"a": "b"}, "AccessDenied")


_RECORDED = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=20)


@given(_RECORDED)
def test_every_call_gets_exactly_one_verdict(sides: list[tuple[bool, bool]]) -> None:
    """The verdicts add up to the calls, and what both sides know is matched, whatever stands on which side."""
    with Matching([ROLE]) as matching:
        rows = [use(f"a-{n}", f"k-{n}") for n in range(len(sides))]
        for n, (row, (in_trail, _)) in enumerate(zip(rows, sides, strict=True)):
            matching.add_trail([kms("Decrypt", f"k-{n}", session_of(row))] if in_trail else [])
        matching.add_ours([row for row, (_, in_ours) in zip(rows, sides, strict=True) if in_ours])

        summary = matching.summary()
        assert summary.calls == sum(in_trail for in_trail, _ in sides)
        assert summary.calls == summary.matched + summary.attempts + summary.unanswered + summary.theirs_only
        assert summary.matched == sum(both == (True, True) for both in sides)
