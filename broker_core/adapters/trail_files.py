"""The customer's CloudTrail export, read as a stream: ``{"Records": [...]}``, as CloudTrail delivers it to S3 and as
its console saves the event history; plain or gzip. However large a file is, one record is in memory at a time, and
one that is larger than any of CloudTrail's ends it: a gzip file of some kilobytes can unpack to a record of gigabytes.

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
#: bytes between the ends of two records; CloudTrail's own have 256 KB at most, those of others' making some MB
LARGEST_RECORD = 8 * 1024 * 1024
#: objects and lists within one another: what is kept of the way to one grows with the square of it
DEEPEST_RECORD = 100
_DEEPER = {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}
#: CloudTrail's own hashes of its files, in the same bucket
_DIGESTS = "CloudTrail-Digest"


def read_trail(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Every record of every file, folders included (their ``*.json`` and ``*.json.gz``, at any depth). Raises Invalid
    naming the file and what is wrong with it."""
    for path in paths:
        for file in _files_of(path):
            yield from _read_file(file)


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(
        found for found in path.rglob("*.json*") if found.is_file() and _is_of_a_trail(found.relative_to(path))
    )


def _is_of_a_trail(path: Path) -> bool:
    return path.name.endswith((".json", ".gz")) and _DIGESTS not in path.parts


def _read_file(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as raw:
            is_gzip = raw.peek(2)[:2] == _GZIP  # looked at, not read: it may be a pipe
            yield from _records(_Bounded(cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if is_gzip else raw), path)
    except _TooLarge:
        raise _unreadable(path, "a record is larger than CloudTrail's are, or deeper") from None
    except (OSError, EOFError, zlib.error):
        raise _unreadable(path, "it cannot be read to its end") from None
    except (ijson.JSONError, UnicodeDecodeError):
        raise _unreadable(path, "it is not JSON, or is cut short") from None


class _TooLarge(Exception):
    """See ``LARGEST_RECORD`` and ``DEEPEST_RECORD``."""


class _Bounded:
    """A stream of which so much is read and no more, until somebody says that a record has ended."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._since = 0

    def read(self, size: int = -1) -> bytes:
        """As a file's."""
        if self._since > LARGEST_RECORD:
            raise _TooLarge
        data = self._stream.read(size)
        self._since += len(data)
        return data

    def a_record_ended(self) -> None:
        """Count anew."""
        self._since = 0


def _records(stream: _Bounded, path: Path) -> Iterator[dict[str, Any]]:
    has_list = False

    def watched() -> Iterator[tuple[str, Any]]:
        nonlocal has_list
        depth, name = 0, ""
        for event, value in ijson.basic_parse(stream):
            if event in _DEEPER:
                has_list |= depth == 1 and (name, event) == ("Records", "start_array")
                depth += _DEEPER[event]
                if depth > DEEPEST_RECORD:
                    raise _TooLarge
            elif depth == 1:
                name = value
            yield event, float(value) if isinstance(value, Decimal) else value

    for record in ijson.items(ijson.parse(watched()), "Records.item"):
        if not isinstance(record, dict):
            raise _unreadable(path, "one of its Records is no object")
        stream.a_record_ended()
        yield record
    if not has_list:
        raise _unreadable(path, 'it has no list "Records"')


def _unreadable(path: Path, why: str) -> Invalid:
    return Invalid({"--cloudtrail": f"{path}: {why}; give CloudTrail's own files, plain or gzip"})
