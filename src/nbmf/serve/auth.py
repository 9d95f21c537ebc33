"""Who may do what: bearer tokens, each for some namespaces, kept as hashes.

[[token]]
name = "ann"                   # what logs call it
sha256 = "6b1a..."             # of the token, in hex; `nbmf token` makes one
namespaces = ["users/ann"]     # each with all that is below it; "/" is everything
access = "write"               # or "read"
metrics = false                # may it read /metrics, which tells of the whole store?
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nbmf.errors import PolicyError, StoreError
from nbmf.store.base import Namespace, within
from nbmf.store_access import namespace_text, prefix_of

TOKENS_VARIABLE: Final = "NBMF_TOKENS"  # the text of a tokens file
TOKEN_VARIABLE: Final = "NBMF_TOKEN"  # one token, for everything
TOKEN_LEAST: Final = 32  # characters of a token that somebody chose
LOOK: Final = 2.0  # seconds between two looks at the file
ACCESS: Final = ("read", "write")

_FIELDS: Final = {"name", "sha256", "namespaces", "access", "metrics"}
_HASH: Final = re.compile("[0-9a-f]{64}")


class Denied(PolicyError):
    """The token does not reach so far."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What the bearer of a token may do. `prefixes` are whole segments; () among them is everything."""

    name: str
    prefixes: tuple[Namespace, ...]
    write: bool = True
    metrics: bool = False

    @property
    def everything(self) -> bool:
        return () in self.prefixes

    def reaches(self, namespace: Sequence[str]) -> bool:
        """Whether a namespace, or a prefix and so all below it, is within reach."""
        return any(within(tuple(namespace), prefix) for prefix in self.prefixes)

    def check(self, namespace: Sequence[str], *, write: bool = False) -> None:
        """Raises Denied. The message names no namespace but the one that was asked for."""
        if not self.reaches(namespace):
            raise Denied(f"this token does not reach {namespace_text(namespace)}"[:200])
        if write and not self.write:
            raise Denied("this token may only read")

    @property
    def metrics_too(self) -> bool:
        """Whether the bearer may read metrics, which tell of the whole store."""
        return self.metrics or (self.everything and self.write)

    def check_metrics(self) -> None:
        """Raises Denied."""
        if not self.metrics_too:
            raise Denied("this token may not read the metrics of the whole store")


OPEN: Final = Grant("anyone", ((),), metrics=True)  # where no tokens are asked for


class Tokens:
    """The tokens that a server accepts. Thread-safe. Those of a file are read anew when it changes."""

    def __init__(self, entries: Iterable[tuple[bytes, Grant]], path: Path | None = None) -> None:
        self._entries = tuple(entries)
        self._path = path
        self._seen = None if path is None else _stamp(path)
        self._next = time.monotonic() + LOOK
        self._lock = threading.Lock()
        self.fault: str | None = None  # what is wrong with the file as it is now; the tokens are those before

    @classmethod
    def of_file(cls, path: Path) -> Tokens:
        """Raises PolicyError (what is wrong, and where), StoreError (not readable)."""
        return cls(_parsed(_read(path), str(path)), path)

    @classmethod
    def of_environment(cls) -> Tokens | None:
        """Those of NBMF_TOKENS and NBMF_TOKEN; None where neither is set. Raises PolicyError."""
        entries: list[tuple[bytes, Grant]] = []
        if (text := os.environ.get(TOKENS_VARIABLE)) is not None:
            entries += _parsed(text, TOKENS_VARIABLE)
        if (token := os.environ.get(TOKEN_VARIABLE)) is not None:
            if len(token) < TOKEN_LEAST:
                raise PolicyError(f"{TOKEN_VARIABLE} is too easily guessed: {TOKEN_LEAST} characters at least")
            entries.append((hash_of(token), Grant("environment", ((),), metrics=True)))
        return cls(entries) if entries else None

    def __len__(self) -> int:
        return len(self._entries)

    def grant(self, token: str) -> Grant | None:
        """What a token grants, None if it is unknown; in the same time whichever it is."""
        if self._path is not None and time.monotonic() > self._next:
            self._refresh()
        digest = hash_of(token)
        found = None
        for known, grant in self._entries:
            if hmac.compare_digest(known, digest):
                found = grant
        return found

    def _refresh(self) -> None:
        assert self._path is not None
        with self._lock:
            self._next = time.monotonic() + LOOK
            stamp = _stamp(self._path)
            if stamp == self._seen:
                return
            self._seen = stamp
            try:
                self._entries = tuple(_parsed(_read(self._path), str(self._path)))
                self.fault = None
            except (PolicyError, StoreError) as error:
                self.fault = str(error)


def hash_of(token: str) -> bytes:
    """The SHA-256 of a token: it is random and long, so that no slower hash is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def new_token() -> str:
    """A random token of 256 bits."""
    return "nbmf_" + secrets.token_urlsafe(32)


def entry_text(token: str, name: str, namespaces: Sequence[str], access: str, metrics: bool) -> str:
    """A token's entry for a tokens file. Raises PolicyError for what the file could not hold."""
    lines = [
        "[[token]]",
        f"name = {_toml(name)}",
        f'sha256 = "{hash_of(token).hex()}"',
        f"namespaces = [{', '.join(_toml(text) for text in namespaces)}]",
        f'access = "{access}"',
    ]
    if metrics:
        lines.append("metrics = true")
    text = "\n".join(lines) + "\n"
    _parsed(text, "the token")
    return text


def add_entry(path: Path, entry: str) -> None:
    """Adds an entry to a tokens file, made for its owner alone if it is not there. Raises PolicyError, StoreError."""
    before = _read(path) if path.exists() else ""
    joined = before + ("\n" if before and not before.endswith("\n\n") else "") + entry
    _parsed(joined, str(path))
    try:
        with open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(joined[len(before) :])
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error


def _toml(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else "\\" + c if c in '"\\' else c for c in text
    )
    return f'"{escaped}"'


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise PolicyError(f"{path} is not UTF-8") from None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _parsed(text: str, where: str) -> list[tuple[bytes, Grant]]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{where}: {error}") from error
    entries = table.pop("token", [])
    if table or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise PolicyError(f"{where}: tokens are given as [[token]] tables, and nothing else")
    out = [_entry(entry, f"{where}: token {number}") for number, entry in enumerate(entries, 1)]
    if len({grant.name for _, grant in out}) < len(out):
        raise PolicyError(f"{where}: two tokens have one name")
    return out


def _entry(entry: dict[str, Any], where: str) -> tuple[bytes, Grant]:
    if unknown := sorted(entry.keys() - _FIELDS):
        raise PolicyError(f"{where}: {unknown[0]!r} is none of {', '.join(sorted(_FIELDS))}"[:200])
    name, digest, namespaces = entry.get("name"), entry.get("sha256"), entry.get("namespaces")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise PolicyError(f"{where}: name is a printable text")
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise PolicyError(f"{where}: sha256 is the token's SHA-256, 64 digits of hex in lower case")
    if not isinstance(namespaces, list) or not namespaces or not all(isinstance(one, str) for one in namespaces):
        raise PolicyError(f'{where}: namespaces is a list of texts such as "users/ann"; "/" is everything')
    access, metrics = entry.get("access", "write"), entry.get("metrics", False)
    if access not in ACCESS or not isinstance(metrics, bool):
        raise PolicyError(f'{where}: access is "read" or "write", metrics true or false')
    try:
        prefixes = tuple(prefix_of(one) for one in namespaces)
    except PolicyError as error:
        raise PolicyError(f"{where}: {error}") from None
    if any("*" in prefix for prefix in prefixes):
        raise PolicyError(f"{where}: a segment that is * would match others where namespaces are listed")
    return bytes.fromhex(digest), Grant(name, prefixes, access == "write", metrics)


__all__ = ["OPEN", "Denied", "Grant", "Tokens", "add_entry", "entry_text", "hash_of", "new_token"]
