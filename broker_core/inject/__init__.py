"""Using a value: one upstream request (or a stdio server's environment), and nothing that lasts longer.

The order is fixed, and each step stands for a promise; ``injector.py`` is that order. The parts:

    url.py       one parser for the upstream's URL
    handle.py    ``{{secret:NAME}}``: selects, and is removed
    binding.py   which secret may be used, and for which host
    kinds.py     how a value goes on a request
    opening.py   asking the key
    exchange.py  open, send once, redact, wipe
    forms.py     how an echo writes a value
    search.py    finding many texts in data that comes in pieces
    redact.py    how a value comes off the answer
    readings.py  how a server may read what a caller sends
    screen.py    looking through a request's body while it passes
    answer.py    which parts of an answer may be handed on
    stream.py    an answer that is handed on while it comes
    watch.py     wiping when the time is up
    uses.py      one use under way
    ledger.py    how it ended: audit row, failure record, log line

Imports no HTTP library: the way out is the ``Upstream`` port.
"""

from broker_core.inject.call import METHODS, BrokeredEnvironment, BrokeredResponse, Call, Cancellation

__all__ = ["METHODS", "BrokeredEnvironment", "BrokeredResponse", "Call", "Cancellation"]
