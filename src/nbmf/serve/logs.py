"""Logs, a line for each event: JSON for machines, text for people.

No line of ours holds a namespace, a key or a value. Lines are written by a thread of their own, so that whoever reads
them slowly, or no longer, never holds up the server: then lines are lost, and counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections import deque
from typing import Any, Final

FORMATS: Final = ("json", "text")
LEVELS: Final = ("debug", "info", "warning", "error")
LAST: Final = 2.0  # seconds for the last lines to be written
PAUSE: Final = 0.05  # seconds between two looks
WAITING: Final = 10_000  # lines that wait to be written at most
log: Final = logging.getLogger("nbmf.serve")


class Json(logging.Formatter):
    """time (UTC), level, logger, event, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=True)


class Text(logging.Formatter):
    """The same for a person, the fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        line = f"{_time(record.created)} {record.levelname.lower():7} {record.getMessage()}{fields}"
        return line + "\n" + self.formatException(record.exc_info) if record.exc_info else line


class _Waiting(logging.Handler):
    """Keeps lines for the thread that writes them, which looks every PAUSE: waking it for each would cost more."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._waiting: deque[logging.LogRecord] = deque()
        self._lost = 0
        self._writing = threading.Lock()
        threading.Thread(target=self._write, name="nbmf-log", daemon=True).start()

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the handler's lock: a deque needs none."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._waiting) < WAITING:
            self._waiting.append(record)
        else:
            self._lost += 1

    def flush(self) -> None:
        """Writes what is waiting, unless nobody reads; logging calls it at the end of the process."""
        if self._writing.acquire(timeout=LAST):
            try:
                self._write_waiting()
            finally:
                self._writing.release()

    def _write(self) -> None:
        while True:
            time.sleep(PAUSE)
            with self._writing:
                self._write_waiting()

    def _write_waiting(self) -> None:
        lines = [self.format(self._waiting.popleft()) for _ in range(len(self._waiting))]
        if self._lost:
            lost, self._lost = self._lost, 0
            record = log.makeRecord(
                log.name, logging.WARNING, "", 0, "lines were lost", (), None, extra={"fields": {"lines": lost}}
            )
            lines.append(self.format(record))
        if lines:
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more
                sys.stderr.write("\n".join(lines) + "\n")
                sys.stderr.flush()


def configure(format: str, level: str) -> None:
    """Logs of this process to standard error. uvicorn's access log, which quotes queries with their keys, is off."""
    root = logging.getLogger()
    root.handlers[:] = [_Waiting(Json() if format == "json" else Text())]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "mcp"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)  # below it, the SDK's messages quote what a caller wrote
    logging.getLogger("uvicorn.access").disabled = True


def event(name: str, level: int = logging.INFO, *, error: BaseException | None = None, **fields: Any) -> None:
    """Logs an event and its fields; with `error`, its traceback."""
    if log.isEnabledFor(level):
        info = (type(error), error, error.__traceback__) if error is not None else None
        log.log(level, name, extra={"fields": fields}, exc_info=info)


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"


__all__ = ["FORMATS", "LEVELS", "configure", "event", "log"]
