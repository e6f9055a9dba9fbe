"""The shell of somebody who has nothing of ours but the checkout: an empty home, no settings, temporary files apart."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def bare_environment(home: Path) -> dict[str, str]:
    """A person's shell with an empty home, and no settings."""
    return {"PATH": os.environ["PATH"], "HOME": str(home)}


@contextmanager
def temporary() -> Iterator[Path]:
    """A directory for temporary files, under a name that is short enough for sockets below it."""
    with tempfile.TemporaryDirectory(prefix="demo") as directory:
        os.chmod(directory, 0o755)  # as root PostgreSQL runs as nobody, and has to come through
        yield Path(directory)
