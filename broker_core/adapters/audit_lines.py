"""Our audit log as files: the lines of JSON that ``GET /audit`` answers with, read one at a time. So whoever has them
can match them with a CloudTrail without our database.

Only what a match needs is read; no line is ever quoted in an error. Imports the audit log's types and the errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from broker_core.audit import Intent, Outcome, Result
from broker_core.errors import Invalid, Receipt
from broker_core.model import CipherName, Purpose
from broker_core.ports import Use

#: bytes; ours are well under 2,000
LONGEST_LINE = 65_536


def read_audit(paths: Iterable[Path]) -> Iterator[Use]:
    """Every line of every file. Raises Invalid naming the file, the line's number and what is wrong with it."""
    for path in paths:
        try:
            yield from _read_file(path)
        except OSError:
            raise Invalid({"--audit": f"{path}: it cannot be read to its end"}) from None


def _read_file(path: Path) -> Iterator[Use]:
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(LONGEST_LINE + 1):
            number += 1
            if line.strip():
                yield _checked(path, number, line)


def _checked(path: Path, number: int, line: bytes) -> Use:
    try:
        if len(line) > LONGEST_LINE:
            raise ValueError
        return _use_from(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Invalid({"--audit": f"{path}: line {number} is none that GET /audit answers with"}) from None


def _use_from(row: Mapping[str, Any]) -> Use:
    intent = Intent(
        id=UUID(row["id"]),
        workspace_id="",  # the log is of one workspace, which its lines do not name
        purpose=Purpose(row["purpose"]),
        cipher=CipherName(row["cipher"]),
        connection_id=UUID(row["connectionId"]) if row.get("connectionId") else None,
        secret_name=_text(row, "secretName"),
        version=_version(row),
        event_id=UUID(row["eventId"]) if row.get("eventId") else None,
    )
    return Use(intent, _result_from(row), _moment(row["startedAt"]), None)


def _result_from(row: Mapping[str, Any]) -> Result | None:
    if row.get("outcome") is None:
        return None
    receipt = Receipt(_text(row, "sessionName"), _text(row, "assumeRequestId"), _text(row, "kmsRequestId"))
    return Result(Outcome(row["outcome"]), _text(row, "code") or "", _text(row, "awsCode") or "", receipt)


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise TypeError(name)
    return value


def _version(row: Mapping[str, Any]) -> int | None:
    value = row.get("version")
    if value is not None and type(value) is not int:
        raise TypeError("version")
    return value


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment
