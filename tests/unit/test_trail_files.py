"""CloudTrail's files: plain, gzip and many, one record at a time, and what is said of those that are none."""

from __future__ import annotations

import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker_core.adapters.trail_files import LARGEST_RECORD, read_trail
from broker_core.errors import Invalid

RECORDS = [{"eventID": str(number), "deep": {"list": [1, 2.5, None]}} for number in range(3)]
TEXT = json.dumps({"Records": RECORDS}).encode()


def test_a_plain_file(tmp_path: Path) -> None:
    """The records come as they are written."""
    (tmp_path / "a.json").write_bytes(TEXT)

    assert list(read_trail([tmp_path / "a.json"])) == RECORDS


def test_a_gzip_file_whatever_its_name(tmp_path: Path) -> None:
    """The content decides, not the ending."""
    (tmp_path / "download").write_bytes(gzip.compress(TEXT))

    assert list(read_trail([tmp_path / "download"])) == RECORDS


def test_a_pipe(tmp_path: Path) -> None:
    """As a shell's ``<(aws s3 cp …)`` gives one: it cannot be read from its beginning again."""
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        pool.submit((tmp_path / "pipe").write_bytes, gzip.compress(TEXT))
        assert list(read_trail([tmp_path / "pipe"])) == RECORDS


def test_a_folder_as_cloudtrail_lays_it_out(tmp_path: Path) -> None:
    """Every file below it is read, in order of its path; what is no export is left out."""
    for day in ("2026/05/19", "2026/05/20"):
        folder = tmp_path / "AWSLogs" / day
        folder.mkdir(parents=True)
        (folder / "x.json.gz").write_bytes(gzip.compress(TEXT))
    (tmp_path / "notes.txt").write_text("no JSON")

    assert len(list(read_trail([tmp_path]))) == 6


def test_a_bucket_with_digests(tmp_path: Path) -> None:
    """Beside its trail CloudTrail writes digests of it, in a folder of their own: who copies all gets the trail."""
    for kind, data in (("CloudTrail", TEXT), ("CloudTrail-Digest", b'{"digestSignature": "aa", "logFiles": []}')):
        folder = tmp_path / "AWSLogs" / "222222222222" / kind / "eu-west-1"
        folder.mkdir(parents=True)
        (folder / "x.json.gz").write_bytes(gzip.compress(data))

    assert list(read_trail([tmp_path])) == RECORDS


@pytest.mark.parametrize(
    "data",
    [
        b'{"Records": [{"eventID": "' + b"A" * (LARGEST_RECORD + 200_000) + b'"}]}',
        b'{"Records": [' + b'{"a":' * (LARGEST_RECORD // 5 + 40_000),
        b'{"Records": [' + b" " * (LARGEST_RECORD + 200_000) + b"]}",
    ],
    ids=["a text", "nesting", "nothing"],
)
def test_a_bomb(tmp_path: Path, data: bytes) -> None:
    """A small file that unpacks to one endless record ends with a message, not with the machine's memory."""
    (tmp_path / "bad.json").write_bytes(gzip.compress(data))

    with pytest.raises(Invalid, match="larger than"):
        list(read_trail([tmp_path / "bad.json"]))


def test_a_large_file_of_small_records(tmp_path: Path) -> None:
    """It is the record that is bounded."""
    record = {"eventID": "x" * 100_000}
    (tmp_path / "a.json").write_text(json.dumps({"Records": [record] * (LARGEST_RECORD // 50_000)}))

    assert sum(1 for _ in read_trail([tmp_path / "a.json"])) == LARGEST_RECORD // 50_000


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (TEXT[:-5], "not JSON, or is cut short"),
        (gzip.compress(TEXT, mtime=0)[:-9], "cannot be read to its end"),
        (b'{"Events": []}', 'no list "Records"'),
        (b"[]", 'no list "Records"'),
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b'{"Records": [1]}', "no object"),
    ],
)
def test_a_file_that_is_no_export_is_named(tmp_path: Path, data: bytes, why: str) -> None:
    """Nothing is taken for an empty trail."""
    (tmp_path / "bad.json").write_bytes(data)

    with pytest.raises(Invalid, match=why) as refused:
        list(read_trail([tmp_path / "bad.json"]))
    assert "bad.json" in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A misspelt path is no empty trail either."""
    with pytest.raises(Invalid, match=r"gone\.json"):
        list(read_trail([tmp_path / "gone.json"]))
