"""The customer's CloudTrail export, read as a stream: ``{"Records": [...]}``, as CloudTrail delivers it to S3 and as
its console saves the event history; plain or gzip. However large a file is, one record is in memory at a time.

https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-log-file-examples.html
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, cast

import ijson

from broker_core.errors import Invalid

_GZIP = b"\x1f\x8b"


def read_trail(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Every record of every file, folders included (their ``*.json`` and ``*.json.gz``, at any depth). Raises Invalid
    naming the file and what is wrong with it."""
    for path in paths:
        for file in _files_of(path):
            yield from _read_file(file)


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(found for found in path.rglob("*.json*") if found.is_file() and found.name.endswith((".json", ".gz")))


def _read_file(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == _GZIP
            raw.seek(0)
            yield from _records(cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if is_gzip else raw, path)
    except (OSError, EOFError, zlib.error):
        raise _unreadable(path, "it cannot be read to its end") from None
    except (ijson.JSONError, UnicodeDecodeError):
        raise _unreadable(path, "it is not JSON, or is cut short") from None


def _records(stream: IO[bytes], path: Path) -> Iterator[dict[str, Any]]:
    has_list = False

    def noticing() -> Iterator[tuple[str, str, Any]]:
        nonlocal has_list
        for prefix, event, value in ijson.parse(stream):
            has_list |= (prefix, event) == ("Records", "start_array")
            yield prefix, event, float(value) if isinstance(value, Decimal) else value

    for record in ijson.items(noticing(), "Records.item"):
        if not isinstance(record, dict):
            raise _unreadable(path, "one of its Records is no object")
        yield record
    if not has_list:
        raise _unreadable(path, 'it has no list "Records"')


def _unreadable(path: Path, why: str) -> Invalid:
    return Invalid({"--cloudtrail": f"{path}: {why}; give CloudTrail's own files, plain or gzip"})
