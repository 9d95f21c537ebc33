"""What one request may take, as a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes and seconds of one request; `connections` of the server at a time."""

    body_bytes: int = 16 << 20
    body_seconds: float = 30.0  # until a body has arrived
    seconds: float = 60.0  # until an answer is there
    idle_seconds: int = 75  # that a connection without a request stays open
    drain_seconds: int = 30  # for requests under way when the server stops
    connections: int = 1000
