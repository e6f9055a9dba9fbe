"""A backend of hypothesis whose examples are drawn independently of one another.

Its own engine keeps a tree of all that was drawn, and makes most examples of earlier ones, with parts of them repeated:
that finds what needs the same value twice. Where an example is a request, most of those parts are how a value was
drawn and not the value, and a third of the requests come out as they were before.
"""

from __future__ import annotations

from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider

#: for ``settings(backend=…)``
INDEPENDENT = "independent"


class Independent(HypothesisProvider):
    """Draws as hypothesis does: only what its engine does around a backend of its own is left out."""


AVAILABLE_PROVIDERS[INDEPENDENT] = f"{__name__}.{Independent.__name__}"
