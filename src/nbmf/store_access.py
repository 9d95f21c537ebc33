"""What the store's commands do between their arguments and a `Memory`."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from nbmf import transcode
from nbmf.codec.values import to_raw
from nbmf.errors import DataError, NbmfError, PolicyError, StoreError
from nbmf.memory import Memory
from nbmf.memory.adapters import MemoryDestination, source_of
from nbmf.memory.aging import disk_bytes
from nbmf.memory.items import META_MOST, now
from nbmf.memory.opening import holds_store, is_encrypted, is_postgres, public_address
from nbmf.policy.migrate import Destination, Report, Rollback, folder_for, migrate_to
from nbmf.policy.sources import Incoming, Source, Unreadable, open_source
from nbmf.policy.sources.base import minutes, parse_text
from nbmf.report import Tick
from nbmf.store.base import Namespace, check_address
from nbmf.store.keys import master_key

EVERYTHING: Final = "/"  # the prefix of all namespaces
NO_LIMIT: Final = 1 << 60
NBMF: Final = "nbmf"  # the kind of source that is a store of ours
BATCH: Final = 1024  # records of a file that are put in one transaction
BATCH_BYTES: Final = 8 << 20  # raw bytes after which a batch ends early


# -- addresses and values ----------------------------------------------------------------------------------------------


def namespace_of(text: str) -> Namespace:
    """The namespace that "a/b" stands for; `\\/` is a slash in a segment, `\\\\` a backslash. Raises PolicyError."""
    segments = [""]
    characters = iter(text)
    for character in characters:
        if character == "/":
            segments.append("")
            continue
        if character == "\\":
            character = next(characters, "")
            if character not in ("/", "\\"):
                raise PolicyError(f"namespace {text!r}: a backslash stands before a slash or another one only"[:200])
        segments[-1] += character
    namespace = tuple(segments)
    check_address(namespace)
    return namespace


def prefix_of(text: str) -> Namespace:
    """As `namespace_of`; "/" is the prefix of everything."""
    return () if text == EVERYTHING else namespace_of(text)


def namespace_text(namespace: Sequence[str]) -> str:
    """What `prefix_of` reads as this namespace."""
    return "/".join(part.replace("\\", "\\\\").replace("/", "\\/") for part in namespace) or EVERYTHING


def value_of(argument: str, kind: str) -> Any:
    """The value of an argument: itself, a file's (`@FILE`), or standard input's (`-`), read as text, json, bytes, auto.

    auto: JSON if it is a JSON object or array, else text if it is UTF-8, else bytes. Raises DataError, OSError.
    """
    if argument == "-":
        data = sys.stdin.buffer.read()
    elif argument.startswith("@"):
        data = Path(argument[1:]).read_bytes()
    else:
        data = os.fsencode(argument)
    if kind in ("text", "bytes"):
        return transcode.parse(data, kind)
    if kind == "json" or data.lstrip()[:1] in (b"{", b"["):
        try:
            value = parse_text(data)
            to_raw(value)
            return value
        except NbmfError as error:
            if kind == "json":
                raise DataError(f"the value is not one JSON value: {error}") from error
    return transcode.parse(data, "text" if _is_utf8(data) else "bytes")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def object_of(text: str | None, what: str) -> dict[str, Any] | None:
    """The JSON object of an option, None for none. Raises DataError naming the option."""
    if text is None:
        return None
    try:
        value = parse_text(os.fsencode(text))
    except NbmfError as error:
        raise DataError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{what} is a JSON object, not {text}"[:200])
    return value


# -- opening -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Access:
    """What opening a store takes besides its address."""

    policy: Path | None = None
    key_file: Path | None = None
    passphrase_env: str | None = None
    cold: str | None = None

    def open(self, address: str, *, create: bool = False, keyless: bool = False) -> Memory:
        """The store. `keyless`: without a key named here there is none, whatever NBMF_KEY says."""
        if self.key_file is not None and self.passphrase_env is not None:
            raise PolicyError("a store has a key or a passphrase, not both")
        passphrase = None
        if self.passphrase_env is not None:
            passphrase = os.environ.get(self.passphrase_env)
            if not passphrase:
                raise PolicyError(f"the environment has no passphrase in {self.passphrase_env}")
        key = master_key(self.key_file) if self.key_file is not None else None
        if key is None and passphrase is None and keyless:
            key = b""
        return Memory.open(address, policy=self.policy, key=key, passphrase=passphrase, cold=self.cold, create=create)


# -- putting -----------------------------------------------------------------------------------------------------------


def put_figures(memory: Memory, namespace: Namespace, key: str) -> dict[str, Any]:
    """What a record that was just put takes."""
    item = memory.item(namespace, key, refresh=False)
    if item is None:
        raise StoreError(f"{namespace_text(namespace)} {key} has expired already")
    raw, stored = len(transcode.raw_bytes(item.value)), item.stored_bytes
    return {
        "namespace": list(namespace),
        "key": key,
        "raw_bytes": raw,
        "stored_bytes": stored,
        "ratio": raw / stored if stored else None,
        "codec": item.codec,
    }


def put_lines(
    memory: Memory,
    file: str,
    namespace: Namespace,
    *,
    cls: str,
    ttl: float | None,
    meta: dict[str, Any] | None,
    tick: Tick,
) -> dict[str, Any]:
    """Puts every line of a file of JSON lines (`-`: standard input); namespace, class, ttl and meta are for lines that
    have none of their own.

    All lines are read before the first is put: one that cannot be kept is a DataError, and nothing was put.
    """
    started = time.monotonic()
    with _lines(file, namespace) as source:
        total = _survey(source)
        life = minutes(ttl, "the ttl")
        destination = MemoryDestination(memory)
        done = 0
        for batch in _batches(item for item in source.items() if isinstance(item, Incoming)):
            destination.put_many(
                [
                    replace(
                        item,
                        cls=item.cls or cls,
                        ttl=life if item.ttl is None and item.expires is None else item.ttl,
                        meta=item.meta or meta,
                    )
                    for item in batch
                ]
            )
            done += len(batch)
            tick("putting", done, total)
    sums = memory.codecs.metrics.snapshot()
    raw, stored = (int(sum(sums[f"nbmf_write_{name}_bytes"].values())) for name in ("raw", "stored"))
    return {
        "records": done,
        "raw_bytes": raw,
        "stored_bytes": stored,
        "ratio": raw / stored if stored else None,
        "seconds": time.monotonic() - started,
    }


@contextmanager
def _lines(file: str, namespace: Namespace) -> Iterator[Source]:
    with ExitStack() as stack:
        path = Path(file)
        if file == "-":
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nbmf-"))) / "stdin.jsonl"
            with path.open("wb") as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy)
        elif not path.exists():
            raise StoreError(f"{file} does not exist")
        yield stack.enter_context(open_source(path, "jsonl", namespace=namespace))


def _survey(source: Source) -> int:
    """How many lines there are. Raises DataError for one that is no record."""
    total = 0
    for item in source.items():
        if isinstance(item, Unreadable):
            raise DataError(f"{item.origin}: {item.reason}; nothing was put")
        try:
            to_raw(item.value)
            size = len(to_raw(item.meta or {})[1])
        except NbmfError as error:
            raise DataError(f"{item.origin}: {error}; nothing was put") from error
        if size > META_MOST:
            raise DataError(f"{item.origin}: metadata has at most {META_MOST} bytes, not {size}; nothing was put")
        total += 1
    return total


def _batches(items: Iterator[Incoming]) -> Iterator[list[Incoming]]:
    batch: list[Incoming] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(to_raw(item.value)[1])
        if len(batch) >= BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# -- upkeep ------------------------------------------------------------------------------------------------------------


def count_of(memory: Memory, prefix: Namespace) -> int:
    """How many live records there are in and below a prefix."""
    return sum(1 for _ in memory.live(prefix, now()))


def compact(access: Access, address: str, tick: Tick) -> dict[str, Any]:
    """Ages and packs a store; what was moved, and its bytes before and, once it is closed, after."""
    with access.open(address) as memory:
        before = memory.stats()["disk_bytes"]
        moved = memory.compact(tick)
        after = memory.stats()["disk_bytes"]
        folder = memory.parts.folder
        open_bytes = disk_bytes(folder) if folder is not None else 0
    if folder is not None:
        after += disk_bytes(folder) - open_bytes  # what closing gave back
    names = {"expire": "expired", "demote": "demoted", "promote": "promoted", "reencode": "encoded_anew"}
    return {
        **{name: moved.get(action, 0) for action, name in names.items()},
        "bytes_before": before,
        "bytes_after": after,
    }


def check(memory: Memory, tick: Tick) -> dict[str, Any]:
    """Every fault of a store, and how many records were decoded."""
    decoded = 0

    def counting(what: str, done: float, total: float | None = None) -> None:
        nonlocal decoded
        decoded = int(done)
        tick(what, done, total)

    faults = [{"where": fault.where, "what": fault.what} for fault in memory.check(counting)]
    return {"sound": not faults, "records": decoded, "faults": faults}


# -- migrating ---------------------------------------------------------------------------------------------------------


class Nothing:
    """The destination of a dry run into a store that is not there yet."""

    def put_many(self, items: Sequence[Incoming]) -> None:
        raise PolicyError("a dry run puts nothing")

    def read(self, namespace: Namespace, key: str) -> Incoming | None:
        return None

    def delete_many(self, addresses: Sequence[tuple[Namespace, str]]) -> None:
        raise PolicyError("a dry run deletes nothing")


def migrate(
    source: str,
    dest: str,
    *,
    kind: str | None,
    namespace: str | None,
    reading: Access,
    writing: Access,
    on_conflict: str,
    dry_run: bool,
    undo: bool,
    batch: int,
    tick: Tick,
) -> Report | Rollback:
    """Migrates into the store `dest`, made if need be. `reading` is for the source, `writing` for the destination."""
    ours = kind == NBMF or (kind is None and (is_postgres(source) or holds_store(Path(source))))
    if ours and namespace is not None:
        raise PolicyError("--namespace is for sources without namespaces of their own; those of an NBMF store stay")
    if not ours and (reading.cold is not None or reading.passphrase_env is not None):
        raise PolicyError("a passphrase and a cold tier of the source are those of an NBMF store")
    with ExitStack() as stack:
        destination: Destination = Nothing()
        seal = measure = None
        if not dry_run or is_postgres(dest) or holds_store(Path(dest)):
            memory = stack.enter_context(writing.open(dest, create=not undo))
            destination = MemoryDestination(memory)
            if memory.parts.keys is not None:
                seal = memory.parts.keys.store_key.derived("migration")
            if memory.parts.folder is not None:
                measure = lambda: _packed_bytes(memory)  # noqa: E731
        opened: str | Source = source
        if ours and not undo:
            keyless = not is_encrypted(Path(source))
            opened = stack.enter_context(source_of(stack.enter_context(reading.open(source, keyless=keyless))))
        key = None if ours or reading.key_file is None else _old_key(reading.key_file)
        return migrate_to(
            opened,
            destination,
            folder=folder_for(_place(source), _place(dest, Path.cwd())),
            kind=None if ours else kind,
            key=key,
            namespace=None if namespace is None else namespace_of(namespace),
            on_conflict=on_conflict,
            dry_run=dry_run,
            undo=undo,
            batch=batch,
            seal=seal,
            measure=measure,
            tick=tick,
        )


def _packed_bytes(memory: Memory) -> int:
    memory.warm.compact()
    return int(memory.stats()["disk_bytes"])


def _place(address: str, below: Path = Path("/")) -> Path:
    """The path of a folder, and what stands for one for a database: a name without its user and password."""
    if not is_postgres(address):
        return Path(address).absolute()
    parts = urlsplit(public_address(address))
    return below / f"{parts.path.strip('/') or 'postgresql'}@{parts.netloc or 'localhost'}"


def _old_key(file: Path) -> bytes:
    """The old store's key: a text's line ends are the editor's, those of other bytes are the key's."""
    data = file.read_bytes()
    text = data.rstrip(b"\r\n")
    return text if text.isascii() else data


__all__ = [
    "Access",
    "check",
    "compact",
    "count_of",
    "migrate",
    "namespace_of",
    "namespace_text",
    "object_of",
    "prefix_of",
    "public_address",
    "put_figures",
    "put_lines",
    "value_of",
]
