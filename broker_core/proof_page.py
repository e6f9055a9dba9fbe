"""A signed lockout proof as one HTML page for people: made of what was signed, with the JWS at its end.

Promise: the page is all of itself (no script, no image, nothing fetched: a policy in it forbids that, too), and every
text of the document is escaped, since a secret's name is data. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from broker_core.errors import Invalid
from broker_core.proof_document import OWN_SIDE_NOT_SHOWN

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width">
<title>AxioRank lockout proof</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 75rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top;
  border-bottom: 1px solid #d0d7de; padding: .35rem .6rem .35rem 0; overflow-wrap: anywhere; }
code, pre { font: 12px/1.45 ui-monospace, monospace; } pre { white-space: pre-wrap; overflow-wrap: anywhere;
  background: #f6f8fa; padding: .8rem; }
.verdict { padding: .8rem 1rem; border-left: .4rem solid; font-weight: 600; }
.yes { border-color: #1a7f37; background: #eafbee; } .no { border-color: #b42318; background: #fdeceb; }
</style>
</head>
<body>
"""
_YES = "Locked out: AWS denied AxioRank every secret that is under this connection."
_NO = "NOT locked out: this document does not show that every secret under this connection is closed to AxioRank."
_OUTCOMES = {
    "locked_out": "locked out",
    "still_decrypts": "STILL DECRYPTS",
    "not_shown": "NOT SHOWN",
    "moved": "no longer under this connection",
    "deleted": "deleted meanwhile",
}


def page(document: Mapping[str, Any], jws: str) -> str:
    """The page. Raises Invalid for what is not shaped as a document of ours."""
    try:
        return _HEAD + "\n".join(_parts(document, jws)) + "\n</body>\n</html>\n"
    except (KeyError, TypeError, AttributeError):
        raise Invalid({"document": "no lockout proof that this program knows"}) from None


def _parts(document: Mapping[str, Any], jws: str) -> Iterable[str]:
    is_locked_out = document["isLockedOut"] is True
    yield "<h1>Lockout proof</h1>"
    yield f'<p class="verdict {"yes" if is_locked_out else "no"}">{_YES if is_locked_out else _NO}</p>'
    yield _facts(document)
    if "warning" in document["connection"]:
        yield f"<p><strong>{_text(document['connection']['warning'])}</strong></p>"
    if OWN_SIDE_NOT_SHOWN in document["doesNotShow"]:
        yield f"<p><strong>{_text(OWN_SIDE_NOT_SHOWN)}</strong></p>"
    yield f"<h2>Secrets</h2>\n{_secrets(document['secrets'])}"
    yield f"<h2>What this does not cover</h2>\n{_not_covered(document['notCovered'])}"
    yield f"<h2>What this shows</h2>\n{_list(document['shows'])}"
    yield f"<h2>What this does not show</h2>\n{_list(document['doesNotShow'])}"
    yield f"<h2>Session policy</h2>\n{_policy(document['sessionPolicy'])}"
    yield (
        "<h2>Signed document</h2>\n<p>All of the above is in this JWS (EdDSA). Save it as a file, and check it with"
        " <code>broker byok check-proof FILE --public-key KEY</code>: this page itself is not signed.</p>\n"
        f"<pre>{_text(jws)}</pre>"
    )


def _facts(document: Mapping[str, Any]) -> str:
    connection, totals = document["connection"], document["totals"]
    facts = {
        "Proof": document["id"],
        "Workspace": document["workspace"],
        "Asked for by": document["askedBy"],
        "From": document["startedAt"],
        "Until": document["endedAt"],
        "Key": connection["keyArn"],
        "Region": connection["region"],
        "Role": connection["roleArn"],
        "Connection": connection["id"],
        "Secrets": ", ".join(f"{count} {_OUTCOMES.get(outcome, outcome)}" for outcome, count in totals.items()),
    }
    return _table([], [[f"<strong>{_text(name)}</strong>", _text(fact)] for name, fact in facts.items()])


def _secrets(secrets: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            _text(secret["name"]),
            _text(secret["version"]),
            f"<strong>{_text(_OUTCOMES.get(secret['outcome'], secret['outcome']))}</strong><br>{_text(secret['note'])}",
            _text(secret["at"]),
            "<br>".join(_ask(ask) for ask in secret["asked"]),
        ]
        for secret in secrets
    ]
    return _table(["Secret", "Version", "Outcome", "Time", "Asked, and AWS's answer"], rows)


def _ask(ask: Mapping[str, Any]) -> str:
    trail = "in your CloudTrail" if ask["inYourCloudTrail"] else "not in your CloudTrail"
    ids = [
        ("session", ask["sessionName"]),
        ("AssumeRole request", ask["assumeRoleRequestId"]),
        ("KMS request", ask["kmsRequestId"]),
    ]
    named = "; ".join(f"{what} <code>{_text(found)}</code>" for what, found in ids if found)
    answer = f"{ask['how']}: {ask['answer']} {ask['awsCode']}".strip()
    return f"{_text(ask['at'])} {_text(answer)} ({trail})<br>{named}"


def _not_covered(beside: Mapping[str, Any]) -> str:
    rows = [
        ["Stored under this connection after the proof began, and not asked", _text(beside["storedMeanwhile"])],
        [
            "Values on their way in, held in memory-only storage (of those refused by your key and held)",
            f"{_text(beside['valuesOnTheirWay'])} ({_text(beside['ofThoseHeld'])})",
        ],
        ["Secrets under the platform cipher, which AxioRank can read", _text(beside["platformSecrets"])],
    ]
    for other in beside["otherConnections"]:
        which = ", which uses this same key" if other.get("isSameKey") is True else ""
        rows.append([f"Secrets under another connection, {_text(other['keyArn'])}{which}", _text(other["secrets"])])
    return _table([], rows)


def _policy(shown: Mapping[str, Any]) -> str:
    of = (
        f"The session for <strong>{_text(shown['ofSecret'])}</strong> was bound to this; those for the others name"
        " their own secret and version, where it names them."
    )
    return f"<p>{of}</p>\n<pre>{_text(json.dumps(shown['policy'], indent=2))}</pre>"


def _list(sentences: Iterable[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{_text(sentence)}</li>" for sentence in sentences) + "\n</ul>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    head = "<tr>" + "".join(f"<th>{each}</th>" for each in heads) + "</tr>\n" if heads else ""
    return "<table>\n" + head + "\n".join(_row(row) for row in rows) + "\n</table>"


def _row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _text(given: object) -> str:
    return escape("" if given is None else str(given), quote=True)
