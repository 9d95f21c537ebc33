"""The journal of a migration: a file of lines, each on the disk before what it announces is done.

    <CRC-32 of the body, 8 hex digits> <body>\\n

A body is JSON: a header first, then a list of rows for each batch, {"refused": [[place in the batch, row], ...]} after
a batch of which the destination refused some, {"copied": n} when the source is at its end, {"done": report}.

With a key, a body is base64 of a nonce and AES-GCM of that JSON, the line's number as associated data, so that lines
are neither read nor exchanged.

A last line that is torn, as a crash leaves it, announced nothing that was done, and is cut off. A wrong line before the
last is damage, and refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from nbmf.codec import values
from nbmf.errors import CorruptRecord, FormatError, NbmfError, PolicyError, StoreError

VERSION: Final = 1
MARK: Final = "nbmf_migration"  # the header's entry with the version
_CHECK: Final = 9  # bytes of check and space before a body
_NONCE: Final = 12  # bytes

Row = list[Any]


class Journal:
    """The journal at `path`, locked against another migration (on POSIX systems) until it is closed.

    `header` is None for a new one, of which nothing is on the disk until `begin`. `copied` counts the items copied once
    the source was at its end, `report` is that of a finished migration; both are None before.

    Raises PolicyError (in use, or sealed with another key), FormatError (not a journal, or damaged), StoreError.
    """

    def __init__(self, path: Path, key: bytes | None = None) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.copied: int | None = None
        self.report: dict[str, Any] | None = None
        self._key = hashlib.sha256(key).digest() if key is not None else None
        self._lines = 0
        self._file: int | None = None
        self._lock: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
            if path.exists():
                self._load()
        except OSError as error:
            self.close()
            raise StoreError(f"the journal {path} cannot be opened: {error.strerror or error}") from None
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        end = 0
        for body, at in self._bodies():
            end = at
            if self._lines == 0:
                if type(body) is not dict or MARK not in body:
                    raise FormatError(f"{self.path} is not the journal of a migration")
                if body[MARK] != VERSION:
                    raise FormatError(f"{self.path} is a journal of version {body[MARK]!r}; this one knows {VERSION}")
                self.header = body
            elif type(body) is dict:
                self.copied = body.get("copied", self.copied)
                self.report = body.get("done", self.report)
            self._lines += 1
        if self.header is None:
            raise FormatError(f"{self.path} is not the journal of a migration")
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        if end != os.fstat(self._file).st_size:
            os.ftruncate(self._file, end)
            os.fsync(self._file)

    def _bodies(self) -> Iterator[tuple[Any, int]]:
        """Each good line's body, and where the line ends. Raises FormatError for a bad line that is not the last."""
        end = 0
        bad = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if bad:
                    raise FormatError(f"{self.path}: line {bad} is damaged")
                checked = line.endswith(b"\n") and line[: _CHECK - 1] == b"%08x" % zlib.crc32(line[_CHECK:-1])
                if not checked:
                    bad = number + 1
                    continue
                end += len(line)
                yield self._unseal(line[_CHECK:-1], number), end

    def batches(self) -> Iterator[list[Row]]:
        """The rows of each batch, from the first, with those of refused records in their place."""
        if self.header is None:
            return
        rows: list[Row] = []
        for body, _ in self._bodies():
            if type(body) is list:
                if rows:
                    yield rows
                rows = body
            else:
                for place, row in body.get("refused", ()):
                    rows[place] = row
        if rows:
            yield rows

    def begin(self, header: dict[str, Any]) -> None:
        """Makes the file, whole or not at all."""
        self.header = {MARK: VERSION, **header}
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            fresh.unlink(missing_ok=True)
            file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            self._file = file
            self._write(self._line(self.header))
            os.replace(fresh, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise self._failed(error) from None

    def append(self, rows: Sequence[Row]) -> None:
        """Announces a batch: on the disk when this returns."""
        self._add(list(rows))

    def refuse(self, rows: Sequence[tuple[int, Row]]) -> None:
        """Puts rows in the place of those of the last batch whose records the destination refused."""
        self._add({"refused": [[place, row] for place, row in rows]})

    def end_copy(self, count: int) -> None:
        self._add({"copied": count})
        self.copied = count

    def finish(self, report: dict[str, Any]) -> None:
        self._add({"done": report})
        self.report = report

    def retire(self, suffix: str) -> Path:
        """Closes the journal and puts it aside under another name, so that the next migration begins anew."""
        self.close()
        aside = self.path.with_name(self.path.name + suffix)
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}{suffix}-{number}")
        try:
            os.replace(self.path, aside)
            sync_folder(self.path.parent)
        except OSError as error:
            raise self._failed(error) from None
        return aside

    def close(self) -> None:
        for file in (self._file, self._lock):
            if file is not None:
                os.close(file)
        self._file = self._lock = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, body: Any) -> None:
        try:
            self._write(self._line(body))
        except OSError as error:
            raise self._failed(error) from None

    def _line(self, body: Any) -> bytes:
        # Escaped to ASCII: names may hold anything that a source has.
        text = json.dumps(body, separators=(",", ":")).encode("ascii")
        if self._key is not None:
            nonce = os.urandom(_NONCE)
            text = base64.b64encode(nonce + _cipher(self._key).encrypt(nonce, text, b"%d" % self._lines))
        return b"%08x %s\n" % (zlib.crc32(text), text)

    def _write(self, line: bytes) -> None:
        if self._file is None:
            raise PolicyError(f"the journal {self.path} is closed")
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fsync(self._file)
        self._lines += 1

    def _unseal(self, body: bytes, number: int) -> Any:
        if self._key is None:
            if not body.startswith((b"{", b"[")):
                raise PolicyError(f"the journal {self.path} is sealed: the store's key is wanted")
        else:
            from cryptography.exceptions import InvalidTag

            try:
                sealed = base64.b64decode(body, validate=True)
                body = _cipher(self._key).decrypt(sealed[:_NONCE], sealed[_NONCE:], b"%d" % number)
            except (InvalidTag, ValueError, binascii.Error):
                raise PolicyError(f"the key does not open the journal {self.path}") from None
        try:
            return json.loads(body)
        except ValueError:
            raise FormatError(f"{self.path} is not the journal of a migration") from None

    def _failed(self, error: OSError) -> StoreError:
        return StoreError(f"the journal {self.path} cannot be written: {error.strerror or error}")


def sealed_value(value: Any) -> list[Any]:
    """A value of any type as JSON, exactly: its type's number and base64 of its raw bytes."""
    value_type, raw = values.to_raw(value, allow_nan=True)
    return [value_type, base64.b64encode(raw).decode("ascii")]


def opened_value(kept: list[Any]) -> Any:
    """The value that `sealed_value` kept. Raises CorruptRecord."""
    try:
        return values.from_raw(kept[0], base64.b64decode(kept[1], validate=True))
    except (TypeError, ValueError, IndexError):
        raise CorruptRecord("a value kept in the journal is damaged") from None


def sync_folder(folder: Path) -> None:
    """Makes names made or changed in a folder durable, where the system can."""
    if sys.platform != "win32":
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _lock(path: Path) -> int | None:
    """A lock on the journal's folder, which the system gives back however the process ends."""
    if sys.platform == "win32":
        return None
    import fcntl

    file = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise PolicyError(f"another migration is at work with the journal {path}") from None
    except BaseException:
        os.close(file)
        raise
    return file


def _cipher(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise NbmfError("a sealed journal needs nbmf[encrypt]") from None
    return AESGCM(key)
