"""``python -m broker_core.api.document FILE`` writes the OpenAPI document; needs no settings and reaches nothing.

``make openapi`` does it for docs/openapi.json. A test compares that file with the application.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from broker_core.api.main import routed


def text() -> str:
    """The document, as it is checked in."""
    return json.dumps(routed().openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
