"""Which secret a call may use, and for which host. Pure.

The caller's ids and a handle decide; the URL's host never chooses a secret (it would let an agent pick by where it
points), it can only forbid one. What the store gave is checked again, so that a row that was changed behind our back
widens nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set

from broker_core.errors import InjectionRefused
from broker_core.inject.call import Call
from broker_core.injection import Injection, Kind, parse_target
from broker_core.ports import Candidate, Destination


def choose(candidates: Sequence[Candidate], call: Call, kinds: Set[Kind]) -> Candidate:
    """The one secret for a request: by name if the call names one, else the most specific level.

    Raises InjectionRefused: ``no_binding`` or ``ambiguous_binding``.
    """
    fitting = [one for one in _bound(candidates, call, kinds) if call.secret in (None, one.name)]
    return _most_specific(fitting)


def choose_environment(candidates: Sequence[Candidate], call: Call) -> dict[str, Candidate]:
    """Every bound variable, per variable the most specific; empty where none is bound.

    Raises InjectionRefused (``ambiguous_binding``): a tie for one variable refuses all.
    """
    by_variable: defaultdict[str, list[Candidate]] = defaultdict(list)
    for one in _bound(candidates, call, frozenset({Kind.STDIO_ENV})):
        by_variable[one.injection.binding_key or ""].append(one)
    return {variable: _most_specific(fitting) for variable, fitting in sorted(by_variable.items())}


def _bound(candidates: Sequence[Candidate], call: Call, kinds: Set[Kind]) -> list[Candidate]:
    return [
        one
        for one in candidates
        if one.workspace_id == call.workspace_id
        and one.injection.kind in kinds
        and one.injection.agent_id in (None, call.agent_id)
        and one.injection.mcp_server_id in (None, call.mcp_server_id)
        and level(one.injection) > 0
    ]


def level(injection: Injection) -> int:
    """How specific a binding is: server and agent (3) over server (2) over agent (1); 0 is bound to nobody."""
    return 2 * (injection.mcp_server_id is not None) + (injection.agent_id is not None)


def _most_specific(fitting: Sequence[Candidate]) -> Candidate:
    if not fitting:
        raise InjectionRefused("no secret of this caller fits this call", code="no_binding")
    best = max(level(one.injection) for one in fitting)
    chosen, *others = [one for one in fitting if level(one.injection) == best]
    if others:
        raise InjectionRefused("more than one secret fits; name one", code="ambiguous_binding")
    if chosen.injection.problems():
        raise InjectionRefused("the secret's stored binding is not valid; rotate it", code="no_binding")
    return chosen


def check_host(injection: Injection, destination: Destination) -> None:
    """The destination must be the secret's ``targetHost``, and its port if it names one, else 443; over plain http the
    port must be named, so that no binding made for TLS is used without it.

    Raises InjectionRefused (``host_mismatch``).
    """
    host, port = parse_target(injection.target_host or "")
    is_same = (host, port or 443) == (destination.host, destination.port)
    if not is_same or (port is None and not destination.tls):
        raise InjectionRefused("the URL's host is not the one that this secret is for", code="host_mismatch")
