"""A stand-in for the ``curl`` command, for machines that have none: the options that our documents use, no others.

It loads the standard library alone, so that a document's command takes no half second.
"""

from __future__ import annotations

import argparse
import http.client
import sys
from pathlib import Path
from urllib.parse import urlsplit


def stand_in(directory: Path) -> None:
    """Write the command into a directory, for a shell's PATH."""
    path = directory / "curl"
    path.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I -S '{Path(__file__).resolve()}' \"$@\"\n")
    path.chmod(0o755)


def main() -> int:
    """One request; the exit code is curl's for an error status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail-with-body", action="store_true", required=True)
    parser.add_argument("-sS", action="store_true", required=True, dest="quiet")
    parser.add_argument("-H", action="append", default=[], dest="headers")
    parser.add_argument("-X", default=None, dest="method")
    parser.add_argument("-d", default=None, dest="body")
    parser.add_argument("-o", default=None, dest="file")
    parser.add_argument("url")
    given = parser.parse_args()
    headers = dict(line.split(": ", 1) for line in given.headers)
    body = Path(given.body[1:]).read_bytes() if (given.body or "").startswith("@") else given.body
    method = given.method or ("GET" if body is None else "POST")
    url = urlsplit(given.url)
    assert url.scheme == "http"
    connection = http.client.HTTPConnection(url.netloc, timeout=60)
    connection.request(method, f"{url.path}?{url.query}" if url.query else url.path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if given.file is None:
        sys.stdout.buffer.write(content)
    else:
        Path(given.file).write_bytes(content)
    return 22 if answer.status >= 400 else 0


if __name__ == "__main__":
    sys.exit(main())
