"""Small files that several processes share: replaced whole and durably, and changed under a lock."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from nbmf.errors import StoreError

LOCK_TIMEOUT: Final = 30.0  # seconds
# Seconds: the first pause, the longest. With a longer one, who waits starves behind whoever locks again at once.
_LOCK_POLLS: Final = (0.00005, 0.001)


def store_error(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path}: {error.strerror or type(error).__name__}")


def sync_directory(path: Path) -> None:
    """Makes what was created, renamed or deleted in the directory durable, where the system can."""
    if sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _private(path: str, flags: int) -> int:
    """Only its owner may read a file that is made."""
    return os.open(path, flags, 0o600)


def replace_file(path: Path, data: bytes, mtime_ns: int | None = None) -> None:
    """The file's content is `data` durably, or what it was: never a part. Raises OSError. Call it under a lock."""
    temporary = path.with_name(path.name + ".new")
    try:
        with open(temporary, "wb", opener=_private) as file:
            file.write(data)
            file.flush()
            if mtime_ns is not None:
                os.utime(temporary, ns=(mtime_ns, mtime_ns))
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


class FileLock:
    """One holder at a time among the threads and processes that lock the same file; a dead process holds nothing."""

    def __init__(self, path: Path, timeout: float = LOCK_TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout
        self._threads = threading.RLock()
        self._depth = 0
        self._file: IO[bytes] | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Holds it; a thread may nest. Yields whether this is the outermost time. Raises StoreError (timeout)."""
        deadline = time.monotonic() + self._timeout
        if not self._threads.acquire(timeout=self._timeout):
            raise StoreError(f"{self.path} is busy: another thread holds it")
        try:
            if not self._depth:
                self._take(deadline)
            self._depth += 1
            try:
                yield self._depth == 1
            finally:
                self._depth -= 1
                if not self._depth and self._file is not None:
                    self._file.close()
                    self._file = None
        finally:
            self._threads.release()

    def _take(self, deadline: float) -> None:
        try:
            file = open(self.path, "ab")  # noqa: SIM115
        except OSError as error:
            raise store_error(self.path, error) from error
        pause = _LOCK_POLLS[0]
        while not _try_lock(file):
            if time.monotonic() > deadline:
                file.close()
                raise StoreError(f"{self.path} is busy: another process holds it")
            time.sleep(pause)
            pause = min(2 * pause, _LOCK_POLLS[1])
        self._file = file


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


__all__ = ["FileLock", "replace_file", "store_error", "sync_directory"]
