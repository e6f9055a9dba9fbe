"""Using a value: one upstream request (or a stdio server's environment), and nothing that lasts longer.

The order is fixed, and each step stands for a promise; ``injector.py`` is that order. The parts are pure:

    url.py      one parser for the upstream's URL
    binding.py  which secret may be used, and for which host
    kinds.py    how a value goes on a request
    redact.py   how it comes off the answer
    answer.py   which parts of an answer may be handed on
    uses.py     one use under way: its audit row, span and failure record

Imports no HTTP library: the way out is the ``Upstream`` port.
"""

from broker_core.inject.call import METHODS, BrokeredEnvironment, BrokeredResponse, Call

__all__ = ["METHODS", "BrokeredEnvironment", "BrokeredResponse", "Call"]
