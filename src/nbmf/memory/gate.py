"""The gate of a store: those who write records pass it together, whoever moves records between tiers goes alone.

A move reads a record here and writes it there. Were it replaced, deleted or forgotten in between, an old value would
come back, or a new one be lost. So moves happen alone, over all threads and processes; what they need is made before,
and they look once more. Readers need no gate.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

from nbmf.errors import StoreError
from nbmf.store.files import FileLock, store_error

TIMEOUT: Final = 120.0  # seconds; a move takes a few at most
_PAUSES: Final = (0.0001, 0.002)  # seconds: the first between two tries, the longest

DOOR: Final = "gate.door"
GATE: Final = "gate"


class Gate(Protocol):
    """No thread may pass it twice at a time."""

    def shared(self) -> contextlib.AbstractContextManager[None]:
        """Holds off those who go alone. Raises StoreError (timeout, medium)."""

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Holds off everybody else. Raises StoreError (timeout, medium)."""


class FolderGate:
    """The gate of a store in a folder: locks on two empty files. A process that dies lets go of them.

    Whoever wants to go alone holds the door, so that those who come later wait behind him.
    """

    def __init__(self, folder: Path) -> None:
        self._door, self._gate = folder / DOOR, folder / GATE
        # Where the system has no shared locks, all go one at a time.
        self._single = FileLock(self._gate, TIMEOUT) if sys.platform == "win32" else None

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        if self._single is not None:
            with self._single.held():
                yield
            return
        with contextlib.ExitStack() as stack:
            with _locked(self._door, alone=False):
                stack.enter_context(_locked(self._gate, alone=False))
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        if self._single is not None:
            with self._single.held():
                yield
            return
        with _locked(self._door, alone=True), _locked(self._gate, alone=True):
            yield


class ServerGate:
    """The gate of a store on a server: `turn(alone)` holds the server's own lock."""

    def __init__(self, turn: Callable[[bool], contextlib.AbstractContextManager[None]]) -> None:
        self._turn = turn

    def shared(self) -> contextlib.AbstractContextManager[None]:
        return self._turn(False)

    def alone(self) -> contextlib.AbstractContextManager[None]:
        return self._turn(True)


@contextlib.contextmanager
def _locked(path: Path, alone: bool) -> Iterator[None]:
    """A lock of its own, also beside others of this process."""
    import fcntl

    kind = (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise store_error(path, error) from error
    try:
        end = time.monotonic() + TIMEOUT
        pause = _PAUSES[0]
        while True:
            try:
                fcntl.flock(descriptor, kind)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise StoreError(f"{path} is busy: another process moves records") from None
            except OSError as error:
                raise store_error(path, error) from error
            time.sleep(pause)
            pause = min(2 * pause, _PAUSES[1])
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor too
    finally:
        os.close(descriptor)


__all__ = ["FolderGate", "Gate", "ServerGate"]
