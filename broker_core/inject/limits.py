"""How long and how much: the limits of an injection. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InjectLimits:
    """Seconds and bytes.

    ``send``: ``upstream_seconds`` bounds the whole injection, from the connecting to the last byte. ``stream``: it
    bounds what comes before the answer's head but for the request's body; the whole has ``stream_seconds``.
    """

    upstream_seconds: float = 30.0
    key_seconds: float = 10.0  # of it, at most so many for one use of a key
    max_bytes: int = 10 * 1024 * 1024  # of a request's body, and of an answer's, decoded
    stream_seconds: float = 3600.0
    stream_idle_seconds: float = 300.0  # between two bytes of a stream, either way; servers send a sign of life sooner
    stream_max_bytes: int = 1 << 30  # of a streamed request's body, and of a streamed answer's, decoded
    max_inflation: int = 100  # bytes that an encoded answer may give for each of its own, beside its first megabyte
