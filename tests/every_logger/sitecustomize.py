"""Python imports this at start-up where its directory is on PYTHONPATH: every logger is at DEBUG, whoever sets what.

It says once for each library that it did speak at DEBUG, so that a test can tell silence from a level that did not
work. Imports nothing of the project.
"""

import logging
import sys

_spoken: set[str] = set()
_hand_on = logging.Logger.callHandlers


def _noted(self: logging.Logger, record: logging.LogRecord) -> None:
    library = record.name.partition(".")[0]
    if record.levelno <= logging.DEBUG and library not in _spoken:
        _spoken.add(library)
        sys.stderr.write(f"[{library} speaks at DEBUG]\n")
    _hand_on(self, record)


logging.Logger.getEffectiveLevel = lambda self: logging.DEBUG  # type: ignore[method-assign]  # on purpose, see above
logging.Logger.isEnabledFor = lambda self, level: True  # type: ignore[method-assign]  # the same
logging.Logger.callHandlers = _noted  # type: ignore[method-assign]  # the same
