"""The lockout proof's document, its page and its signature."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_core import policies, proof_document, proof_page
from broker_core.adapters.signing import (
    Ed25519Signer,
    public_jwk,
    public_pem,
    read_public_key,
    thumbprint,
    verified,
)
from broker_core.context import for_secret
from broker_core.errors import ConfigurationError, Invalid, KeyState, Receipt
from broker_core.model import Connection
from broker_core.ports import Ask, AskKind, Beside, ProofItem, ProofOutcome
from broker_core.proof_document import CONTENT_TYPE, ProofDocument

NOW = datetime(2026, 3, 4, 5, 6, 7, 890_000, tzinfo=UTC)
ID = UUID("01920000-0000-7000-8000-000000000001")
KEY = "arn:aws:kms:eu-west-1:222222222222:key/00000000-0000-4000-8000-000000000001"
MULTI_REGION_KEY = "arn:aws:kms:eu-west-1:222222222222:key/mrk-" + "0" * 32
NOTHING_BESIDE = Beside(0, 0, 0, 0, ())
KMS_NO = Ask(
    AskKind.DECRYPT, ID, NOW, KeyState.ACCESS_DENIED, "AccessDeniedException", Receipt("session-1", "sts-1", "kms-1")
)
STS_NO = Ask(AskKind.DECRYPT, ID, NOW, KeyState.ROLE_REFUSED, "AccessDenied", Receipt("session-2", "sts-2", None))


def pem_of(key: Any) -> str:
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return text.decode()


SIGNER = Ed25519Signer(pem_of(Ed25519PrivateKey.from_private_bytes(b"s" * 32)))


def item(outcome: ProofOutcome = ProofOutcome.LOCKED_OUT, name: str = "github", **changes: Any) -> ProofItem:
    return replace(ProofItem(uuid4(), name, 3, outcome, "", NOW, [KMS_NO]), **changes)


def document(*items: ProofItem, beside: Beside = NOTHING_BESIDE, key: str = KEY) -> ProofDocument:
    secrets = items or (item(),)
    return ProofDocument(
        id=ID,
        asked_by="owner-1",
        connection=Connection(ID, "ws_1", "arn:aws:iam::222222222222:role/r", "the-external-id-of-a-customer", key),
        started_at=NOW,
        ended_at=NOW,
        policy_of=secrets[0].name,
        session_policy=policies.session_policy(
            policies.Action.DECRYPT, key, for_secret("ws_1", secrets[0].name, secrets[0].version)
        ),
        secrets=secrets,
        beside=beside,
    )


def plain(given_document: ProofDocument) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(given_document.to_json())
    return parsed


class TestDocument:
    @pytest.mark.parametrize(
        ("outcomes", "stored_meanwhile", "expected"),
        [
            ("locked_out", 0, True),
            ("locked_out locked_out moved deleted", 0, True),
            ("locked_out still_decrypts", 0, False),
            ("locked_out not_shown", 0, False),
            ("moved deleted", 0, False),
            ("locked_out", 1, False),
        ],
    )
    def test_when_it_is_a_lockout(self, outcomes: str, stored_meanwhile: int, expected: bool) -> None:
        """Something was denied, nothing of the rest is open or unknown, and nothing came after."""
        items = [item(ProofOutcome(outcome), name=f"s{n}") for n, outcome in enumerate(outcomes.split())]
        made = document(*items, beside=replace(NOTHING_BESIDE, stored_meanwhile=stored_meanwhile))
        assert (made.is_locked_out, plain(made)["isLockedOut"]) == (expected, expected)
        assert proof_document.summary(plain(made)).is_locked_out is expected

    def test_of_each_secret(self) -> None:
        """Time, AWS's code, request ids, session name, and which denials the customer's CloudTrail has."""
        (secret,) = plain(document(item(asks=[KMS_NO, STS_NO])))["secrets"]
        assert (secret["name"], secret["version"], secret["outcome"]) == ("github", 3, "locked_out")
        assert secret["at"] == "2026-03-04T05:06:07.890000Z"
        assert [
            (
                ask["awsCode"],
                ask["sessionName"],
                ask["assumeRoleRequestId"],
                ask["kmsRequestId"],
                ask["inYourCloudTrail"],
            )
            for ask in secret["asked"]
        ] == [
            ("AccessDeniedException", "session-1", "sts-1", "kms-1", True),
            ("AccessDenied", "session-2", "sts-2", None, False),
        ]

    def test_of_the_connection(self) -> None:
        """Role, key and Region, without the external id; the session policy's own text."""
        made = plain(document())
        assert made["connection"]["region"] == "eu-west-1"
        assert "the-external-id" not in json.dumps(made)
        (statement,) = made["sessionPolicy"]["policy"]["Statement"]
        assert (statement["Effect"], statement["Action"], statement["Resource"]) == ("Allow", "kms:Decrypt", KEY)

    def test_a_multi_region_key_warns(self) -> None:
        """In the document and on the page; an ordinary key does not."""
        made = plain(document(key=MULTI_REGION_KEY))
        assert made["connection"]["warning"] == proof_document.MULTI_REGION
        assert "replica in this Region" in proof_page.page(made, "jws")
        assert "warning" not in plain(document())["connection"]

    @pytest.mark.parametrize(
        "words",
        ["memory of a process", "stdio server", "upstream does", "Old backups", "time after", "still spreading"],
    )
    def test_it_says_what_it_does_not_show(self, words: str) -> None:
        """Plainly, in the document itself."""
        assert any(words in sentence for sentence in plain(document())["doesNotShow"])

    def test_a_summary_counts_for_itself(self) -> None:
        """A document whose totals are not those of its secrets is refused."""
        made = plain(document(item(ProofOutcome.STILL_DECRYPTS)))
        made["isLockedOut"] = True
        with pytest.raises(Invalid):
            proof_document.summary(made)

    def test_another_connection_to_the_same_key(self) -> None:
        """Its secrets may decrypt by another role: the proof is of a connection, and says of the others whose key."""
        others = [(uuid4(), KEY, 3), (uuid4(), KEY.replace("1", "2"), 1)]
        made = plain(document(beside=replace(NOTHING_BESIDE, other_connections=others)))
        assert [other["isSameKey"] for other in made["notCovered"]["otherConnections"]] == [True, False]
        text = proof_page.page(made, "jws")
        assert text.count("which uses this same key") == 1
        assert "every secret under this key" not in text

    @pytest.mark.parametrize(
        ("ask", "has_control_role", "is_said"), [(STS_NO, False, True), (STS_NO, True, False), (KMS_NO, False, False)]
    )
    def test_whose_side_refused(self, ask: Ask, has_control_role: bool, is_said: bool) -> None:
        """Where it may have been ours, that stands beside the verdict, for readers and for who checks the document."""
        made = plain(replace(document(item(asks=[ask])), has_control_role=has_control_role))
        warning = proof_document.OWN_SIDE_NOT_SHOWN if is_said else ""
        assert proof_document.summary(made).own_side_warning == warning
        before_the_list, _, _ = proof_page.page(made, "jws").partition("<h2>Secrets</h2>")
        assert ("Whose side refused the role" in before_the_list) is is_said

    def test_a_summary_says_what_is_not_covered(self) -> None:
        """Who only checks the document is told as well."""
        beside = Beside(0, 5, 2, 7, [(uuid4(), KEY, 3), (uuid4(), KEY, 4)])
        found = proof_document.summary(plain(document(beside=beside)))
        assert found.not_covered == {"valuesOnTheirWay": 5, "platformSecrets": 7, "underOtherConnections": 7}

    @pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format": "other"}'])
    def test_what_is_none(self, payload: bytes) -> None:
        """Whatever is no document of this kind is refused."""
        with pytest.raises(Invalid):
            proof_document.read(payload)

    @pytest.mark.parametrize("missing", ["secrets", "totals", "connection", "notCovered", "id"])
    def test_what_is_half_a_one(self, missing: str) -> None:
        """So is one without a part of it, by the summary and by the page."""
        made = {key: value for key, value in plain(document()).items() if key != missing}
        for read in (proof_document.summary, lambda found: proof_page.page(found, "jws")):
            with pytest.raises(Invalid):
                read(made)


class _Tags(HTMLParser):
    """Every tag with its attributes, and the text between."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(page: str) -> _Tags:
    parser = _Tags()
    parser.feed(page)
    return parser


class TestPage:
    @given(text=st.text(alphabet=st.sampled_from("<>&\"'=/ab \n{}%;-!"), min_size=1))
    @settings(max_examples=60, deadline=None)
    def test_everything_is_escaped(self, text: str) -> None:
        """Whatever stands in a text of the document is text on the page: no tag and no attribute is added."""
        hostile = plain(document(item(name="x")))
        hostile["askedBy"] = hostile["workspace"] = text
        hostile["connection"] |= {"roleArn": text, "keyArn": text, "region": text, "warning": text}
        hostile["secrets"][0] |= {"name": text, "note": text, "outcome": text}
        hostile["secrets"][0]["asked"][0] |= dict.fromkeys(("how", "answer", "awsCode", "sessionName"), text)
        hostile["sessionPolicy"] |= {"ofSecret": text, "policy": {text: text}}
        hostile["notCovered"]["otherConnections"] = [{"id": "", "keyArn": text, "secrets": 1}]
        hostile |= {"shows": [text], "doesNotShow": [text]}
        plain_one = plain(document(item(name="x"), key=MULTI_REGION_KEY))
        plain_one["notCovered"]["otherConnections"] = [{"id": "", "keyArn": "", "secrets": 1}]
        plain_one |= {"shows": ["-"], "doesNotShow": ["-"]}
        found, expected = (read_page(proof_page.page(each, jws)) for each, jws in ((hostile, text), (plain_one, "-")))
        assert (found.tags, found.attributes) == (expected.tags, expected.attributes)

    def test_it_fetches_nothing(self) -> None:
        """No script, no link, no image; and a policy that forbids them."""
        page = read_page(proof_page.page(plain(document()), "jws"))
        assert not {"script", "link", "img", "iframe", "a"} & set(page.tags)
        assert not {"src", "href", "onload", "style"} & page.attributes
        assert "default-src 'none'" in proof_page.page(plain(document()), "jws")

    def test_a_failed_proof_says_so(self) -> None:
        """First of all, and at the secret."""
        text = read_page(proof_page.page(plain(document(item(ProofOutcome.STILL_DECRYPTS))), "jws")).text
        assert "NOT locked out" in text
        assert "STILL DECRYPTS" in text

    def test_the_signed_document_is_on_it(self) -> None:
        """For whoever checks it."""
        jws = SIGNER.sign(document().to_json(), CONTENT_TYPE)
        assert jws in read_page(proof_page.page(plain(document()), jws)).text


TOKEN = SIGNER.sign(document().to_json(), CONTENT_TYPE)


class TestSignature:
    def test_what_was_signed(self) -> None:
        """The payload comes back; PyJWT of others agrees; the header says type and key."""
        assert verified(TOKEN, SIGNER.public_key, CONTENT_TYPE) == proof_document.payload_of(TOKEN)
        header = jwt.get_unverified_header(TOKEN)
        assert header == {"alg": "EdDSA", "typ": CONTENT_TYPE, "kid": SIGNER.key_id}
        assert jwt.PyJWS().decode(TOKEN, SIGNER.public_key, algorithms=["EdDSA"]) == proof_document.payload_of(TOKEN)

    @given(place=st.integers(0, len(TOKEN) - 1), change=st.integers(1, 255))
    @settings(max_examples=300, deadline=None)
    def test_any_changed_byte_fails(self, place: int, change: int) -> None:
        """Whichever byte becomes whichever other."""
        changed = bytearray(TOKEN, "ascii")
        changed[place] ^= change
        with pytest.raises(Invalid):
            verified(changed.decode("latin-1"), SIGNER.public_key, CONTENT_TYPE)

    @pytest.mark.parametrize("other", "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    def test_one_spelling(self, other: str) -> None:
        """The last character's idle bits are no room for a second document."""
        changed = TOKEN[:-1] + other
        if changed == TOKEN:
            assert verified(changed, SIGNER.public_key, CONTENT_TYPE)
        else:
            with pytest.raises(Invalid):
                verified(changed, SIGNER.public_key, CONTENT_TYPE)

    @given(text=st.text())
    @settings(max_examples=100, deadline=None)
    def test_anything_else_is_refused(self, text: str) -> None:
        """Without another exception than ours."""
        for token in (text, TOKEN + text, text + TOKEN):
            if token != TOKEN:
                with pytest.raises(Invalid):
                    verified(token, SIGNER.public_key, CONTENT_TYPE)

    def test_another_key(self) -> None:
        """Somebody else's signature is refused, and so is ours of another kind of document."""
        stranger = Ed25519Signer(pem_of(Ed25519PrivateKey.generate()))
        for token in (stranger.sign(b"{}", CONTENT_TYPE), SIGNER.sign(b"{}", "JWT")):
            with pytest.raises(Invalid):
                verified(token, SIGNER.public_key, CONTENT_TYPE)

    def test_its_own_words_do_not_choose_the_algorithm(self) -> None:
        """``none`` and HMAC with the public key are refused."""
        headers = {"typ": CONTENT_TYPE, "kid": SIGNER.key_id}
        public = SIGNER.public_key.public_bytes_raw()
        tokens = [
            jwt.PyJWS().encode(b"{}", None, algorithm="none", headers=headers),  # type: ignore[arg-type]  # no key
            jwt.PyJWS().encode(b"{}", public, algorithm="HS256", headers=headers),
        ]
        for token in tokens:
            with pytest.raises(Invalid):
                verified(token, SIGNER.public_key, CONTENT_TYPE)

    def test_thumbprint(self) -> None:
        """The vector of RFC 8037, appendix A.3."""
        key = read_public_key('{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}')
        assert thumbprint(key) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"

    @pytest.mark.parametrize("written", [public_pem, lambda key: json.dumps(public_jwk(key))])
    def test_public_keys(self, written: Any) -> None:
        """PEM and JWK are both read back."""
        found = read_public_key(written(SIGNER.public_key))
        assert isinstance(found, Ed25519PublicKey)
        assert thumbprint(found) == SIGNER.key_id

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "{}",
            '{"kty":"OKP","crv":"Ed25519","x":7}',
            '{"kty":"OKP","crv":"X25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}',
            "{" * 100_000,
            generate_private_key(SECP256R1())
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            .decode(),
        ],
    )
    def test_no_public_key(self, text: str) -> None:
        """What is no Ed25519 key is refused with words of ours."""
        with pytest.raises(Invalid):
            read_public_key(text)

    @pytest.mark.parametrize(
        "pem",
        [
            "-----BEGIN PRIVATE KEY-----\nc2VudGluZWwtb2YtYS1rZXk=\n-----END PRIVATE KEY-----",
            pem_of(generate_private_key(SECP256R1())),
        ],
    )
    def test_no_signing_key(self, pem: str) -> None:
        """Another kind of key is a wrong setting, and the error shows nothing of it."""
        with pytest.raises(ConfigurationError) as error:
            Ed25519Signer(pem)
        assert "c2VudGluZWw" not in str(error.value)
        assert error.value.__context__ is None
