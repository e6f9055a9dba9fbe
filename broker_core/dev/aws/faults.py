"""Faults on demand: errors, latency, silence, resets, quotas.

A `Fault` says which calls it is for and what happens to them. It is applied after the signature was checked and
before anything is decided, or, with `after=True`, when the work is done and only the answer is lost. Promise: rules
are tried in the order they were added; a rule with a `count` is spent after so many calls; `clear` and `close`
release what hangs. This module imports `wire`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from broker_core.dev.aws.wire import AwsError


class Dropped(Exception):
    """The connection is to be reset without an answer."""


@dataclass(frozen=True)
class Fault:
    """One rule. The first five fields choose calls; what is left out matches all."""

    action: str = "*"
    """`kms:Decrypt`, `kms:*`, `sts:AssumeRole`, …"""
    account: str | None = None
    """Of the key or role that is asked for."""
    key: str | None = None
    """ARN or id of a key."""
    role: str | None = None
    """ARN of the role that is assumed, or whose session calls."""
    context: tuple[str, str] | None = None
    """A pair of the encryption context."""
    count: int | None = None
    """For so many calls; None: until cleared."""
    error: str | None = None
    """AWS's code. With `per_second` and no code: the service's throttling code."""
    status: int | None = None
    """HTTP status of the error; None: the code's usual one."""
    message: str = "The double was told to fail."
    latency: float = 0.0
    """Seconds to wait, before anything else of this rule."""
    hang: bool = False
    """Never answer: until cleared or closed, then reset."""
    reset: bool = False
    """Reset the connection (RST)."""
    per_second: int | None = None
    """Only for calls above so many in the last second."""
    after: bool = False
    """Do the work first: the call counts, its answer is lost."""


@dataclass(frozen=True)
class Subject:
    """What rules are matched against."""

    action: str
    account: str
    key: str | None
    role: str | None
    context: tuple[tuple[str, str], ...]


class Faults:
    """The rules in force. Every method may be called from any thread. `clock` gives seconds that only go forward."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []
        self._released = threading.Event()
        self._hanging = 0

    def add(self, fault: Fault) -> Fault:
        """Puts a rule in force, after those that are."""
        with self._lock:
            self._rules.append(_Rule(fault, fault.count, deque()))
        return fault

    def remove(self, fault: Fault) -> None:
        """Takes one rule away; calls that hang by it stay so until `clear`."""
        with self._lock:
            self._rules = [rule for rule in self._rules if rule.fault is not fault]

    def clear(self) -> None:
        """Takes every rule away and releases what hangs."""
        with self._lock:
            self._rules = []
            self._hanging = 0
            released, self._released = self._released, threading.Event()
        released.set()

    close = clear

    @property
    def hanging(self) -> int:
        """How many calls hang: none once they were released, however late their threads come to it."""
        return self._hanging

    def __len__(self) -> int:
        return len(self._rules)

    def apply(self, subject: Subject, after: bool) -> None:
        """Waits, raises AwsError or Dropped as the first matching rule says, or returns."""
        if not self._rules:
            return
        with self._lock:
            fault = self._claim(subject, after)
            released = self._released
        if fault is None:
            return
        if fault.latency:
            released.wait(fault.latency)
        if fault.hang:
            self._hang(released)
        _fail(fault, subject)

    def _hang(self, released: threading.Event) -> None:
        with self._lock:
            if released is self._released:
                self._hanging += 1
        released.wait()

    def _claim(self, subject: Subject, after: bool) -> Fault | None:
        for rule in self._rules:
            if rule.fault.after is after and _matches(rule.fault, subject) and rule.fires(self._clock()):
                if rule.left == 0:
                    self._rules.remove(rule)
                return rule.fault
        return None


@dataclass
class _Rule:
    fault: Fault
    left: int | None
    recent: deque[float]

    def fires(self, now: float) -> bool:
        """Counts this call; False while it is within the quota."""
        if self.fault.per_second is not None:
            while self.recent and self.recent[0] <= now - 1.0:
                self.recent.popleft()
            if len(self.recent) < self.fault.per_second:
                self.recent.append(now)
                return False
        if self.left is not None:
            self.left -= 1
        return True


def _matches(fault: Fault, subject: Subject) -> bool:
    return (
        fnmatchcase(subject.action, fault.action)
        and fault.account in (None, subject.account)
        and fault.role in (None, subject.role)
        and (fault.key is None or (subject.key or "").rpartition("/")[2] == fault.key.rpartition("/")[2])
        and (fault.context is None or fault.context in subject.context)
    )


def _fail(fault: Fault, subject: Subject) -> None:
    if fault.hang or fault.reset:
        raise Dropped
    code = fault.error
    if code is None and fault.per_second is not None:
        code = "ThrottlingException" if subject.action.startswith("kms:") else "Throttling"
    if code is not None:
        message = "Rate exceeded" if "Throttl" in code else fault.message
        raise AwsError(code, message, fault.status)
