"""Migration: copies every item of a source into a destination, then reads every record back and compares.

Each batch is announced in the journal, on the disk, before the destination puts it in one transaction. So after a crash
only the last batch is in doubt, and reading the destination settles it. On resuming, source and journal are walked side
by side: each item must have the fingerprint that was announced. The journal also knows which records this migration
put, and what it replaced, which is what a rollback undoes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from nbmf.codec import values
from nbmf.errors import NbmfError, OutputLimit, PolicyError, StoreError, UnsupportedValue
from nbmf.policy.migration.journal import Journal, Row, sync_folder
from nbmf.policy.migration.report import Report, Rollback, write_report
from nbmf.policy.migration.rollback import rollback
from nbmf.policy.migration.rows import (
    BAD,
    BATCH,
    EXPIRED,
    KEPT,
    OVER,
    PUT,
    REPLACE,
    SAME,
    TWIN,
    WRITTEN,
    Address,
    Destination,
    Tick,
    address_of,
    fingerprint,
    fingerprint_and_size,
    last_writers,
    pack,
    place_of,
    read_all,
    read_each,
    replaced_fingerprint,
)
from nbmf.policy.sources import Incoming, Item, Source, Unreadable, open_source, parse_namespace
from nbmf.store.base import Namespace

BATCH_BYTES: Final = 8 << 20  # raw bytes of values after which a batch ends early
UNREADABLE: Final = "unreadable"  # the folder beside the journal
JOURNAL_NAME: Final = "journal"
STUB_KEY: Final = "NBMF_STUB_KEY"  # the environment's key for the old store's sealed records
ON_CONFLICT: Final = ("fail", "keep", "replace")
_SAMPLE: Final = 16  # records that tell whether a journal and a destination belong together


class _Ready(NamedTuple):
    """An item with what is computed once: its fingerprint, its address's digest, and bytes of value and key."""

    item: Item
    fingerprint: str
    place: bytes
    size: int


def migrate(
    source: Source,
    destination: Destination,
    *,
    journal: Path,
    dry_run: bool = False,
    batch: int = BATCH,
    on_conflict: str = "fail",
    seal: bytes | None = None,
    measure: Callable[[], int] | None = None,
    tick: Tick = lambda *_: None,
) -> Report:
    """Migrates, resumes, or finds that all is done. The report and unreadable items' bytes go beside the journal.

    `on_conflict` tells what happens when a different record has an item's address already: "fail" before anything is
    written, "keep" it, or "replace" it. `dry_run` writes nothing at all. `seal` is a key for the journal, which holds
    names and replaced records; `measure` gives the destination's bytes on the medium. Memory grows by some 100 bytes a
    record.

    Raises PolicyError (a conflict; a source that changed since the migration began; a journal of another migration),
    StoreError, FormatError (a damaged journal). A record that does not verify is no error but a failure in the report.
    """
    if on_conflict not in ON_CONFLICT:
        raise PolicyError(f"on_conflict {on_conflict!r} is none of {', '.join(ON_CONFLICT)}"[:200])
    if batch < 1:
        raise PolicyError(f"a batch has at least one item, not {batch}")
    started = time.monotonic()
    run = _Run(source, destination, journal.parent / UNREADABLE, batch, on_conflict, tick)
    if dry_run:
        report = run.survey()
        report.dry_run = True
        report.seconds = time.monotonic() - started
        return report
    with Journal(journal, seal) as log:
        if log.header is not None and log.header.get("source") != run.about:
            raise PolicyError(f"the journal {journal} is that of {log.header.get('source')}"[:400])
        if log.report is not None:
            return run.finished(log)
        resumed = log.header is not None
        if not resumed:
            if on_conflict == "fail":
                run.refuse_conflicts()
            log.begin({"source": run.about, "started": run.now})
        if log.copied is None:
            run.copy(log)
        report = run.verify(log)
        report.resumed = resumed
        report.bytes_after = measure() if measure else None
        report.seconds = time.monotonic() - started
        write_report(report, journal.parent)
        if report.ok:
            log.finish(report.to_dict())
    return report


def migrate_to(
    source: str | Path | Source,
    destination: Destination,
    *,
    folder: Path,
    kind: str | None = None,
    key: bytes | None = None,
    namespace: str | Namespace | None = None,
    on_conflict: str = "fail",
    dry_run: bool = False,
    undo: bool = False,
    batch: int = BATCH,
    seal: bytes | None = None,
    measure: Callable[[], int] | None = None,
    tick: Tick = lambda *_: None,
) -> Report | Rollback:
    """All of `nbmf migrate` but its printing: plain arguments in, `to_dict()`, `text()` and `ok` out.

    `source` is an address, or a source that the caller has made (another NBMF store) and closes. `folder` takes
    journal, report and unreadable items; `folder_for` gives the usual one. `kind` is one of sources.KINDS. `key`, or
    the text in NBMF_STUB_KEY, opens the old store's sealed records. `namespace` may be "a/b". `undo` rolls back. The
    rest as `migrate`.
    """
    journal = folder / JOURNAL_NAME
    if undo:
        return rollback(destination, journal=journal, seal=seal, batch=batch, tick=tick)
    options: dict[str, Any] = {
        "journal": journal,
        "dry_run": dry_run,
        "batch": batch,
        "on_conflict": on_conflict,
        "seal": seal,
        "measure": measure,
        "tick": tick,
    }
    if isinstance(source, Source):
        return migrate(source, destination, **options)
    if key is None and STUB_KEY in os.environ:
        key = os.fsencode(os.environ[STUB_KEY])
    if isinstance(namespace, str):
        namespace = parse_namespace(namespace)
    with open_source(source, kind, key=key, namespace=namespace) as opened:
        return migrate(opened, destination, **options)


def folder_for(source: str | Path, destination: Path) -> Path:
    """The usual folder of the migration of `source` into the store in the folder `destination`, beside that store."""
    path = Path(source).absolute()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in path.name)[:60]
    return destination.parent / f"{destination.name}.migrations" / f"{stem or 'source'}-{digest}"


def _ready(items: Iterable[Item]) -> Iterator[_Ready]:
    for item in items:
        if isinstance(item, Unreadable):
            yield _Ready(item, hashlib.sha256(item.raw).hexdigest()[:32], b"", len(item.raw))
            continue
        try:
            found, size = fingerprint_and_size(item)
        except UnsupportedValue as error:
            raise UnsupportedValue(f"{item.origin}: {error}") from None
        yield _Ready(item, found, place_of(item.namespace, item.key), size)


class _Run:
    """One run of a migration: its parts and what it has learned so far."""

    def __init__(
        self, source: Source, destination: Destination, unreadable: Path, batch: int, on_conflict: str, tick: Tick
    ) -> None:
        self.source = source
        self.destination = destination
        self.unreadable = unreadable
        self.batch = batch
        self.on_conflict = on_conflict
        self.tick = tick
        self.about = {"kind": source.kind, "address": source.address}
        self.now = int(time.time() * 1000)
        self.ours: set[bytes] = set()  # places that this migration put a record at

    def _report(self) -> Report:
        return Report(
            self.about, self.on_conflict, bytes_before=self.source.size(), left_behind=self.source.left_behind()
        )

    # -- before ----------------------------------------------------------------------------------------------------

    def finished(self, log: Journal) -> Report:
        report = Report.from_dict(log.report or {})
        report.finished_before = True
        sample = [address_of(row) for row, _ in zip(self._put_rows(log), range(_SAMPLE), strict=False)]
        if sample and not any(read_all(self.destination, sample)):
            report.remark = (
                f"The destination has none of the first {len(sample)} records any more. If it is another one, remove "
                f"{log.path} to migrate again."
            )
        return report

    def _put_rows(self, log: Journal) -> Iterator[Row]:
        return (row for rows in log.batches() for row in rows if row[0] == PUT)

    def refuse_conflicts(self) -> None:
        report = self.survey()
        if report.conflict_count:
            first = report.conflicts[0]
            raise PolicyError(
                f"{report.conflict_count} conflicts, the first {first['origin']}: {first['reason']}; nothing was "
                "written: choose keep or replace, or see them all in a dry run"
            )

    def survey(self) -> Report:
        """What a migration would do, by reading both sides."""
        report = self._report()
        seen: set[bytes] = set()
        double: set[bytes] = set()
        total = self.source.count()
        for group in self._groups(_ready(self.source.items())):
            for ready, there in self._beside(group):
                item = ready.item
                self._count(report, ready)
                if isinstance(item, Unreadable):
                    report.unreadable.append(_listed(item.origin, item.reason, None, len(item.raw)))
                    continue
                if self._past(item):
                    report.expired += 1
                    continue
                if ready.place in seen:
                    double.add(ready.place)
                    report.twins += 1
                elif there is None:
                    report.put += 1
                elif fingerprint(there) == ready.fingerprint:
                    report.same += 1
                else:
                    self._conflict(report, item, "the destination has a different record")
                seen.add(ready.place)
            self.tick("looking", report.items, total)
        if double:
            self._compare_doubles(double, report)
        return report

    def _compare_doubles(self, double: set[bytes], report: Report) -> None:
        """Finds which items that share an address differ."""
        first: dict[bytes, _Ready] = {}
        for ready in _ready(self.source.items()):
            item = ready.item
            if ready.place in double and isinstance(item, Incoming) and not self._past(item):
                earlier = first.setdefault(ready.place, ready)
                if earlier.fingerprint != ready.fingerprint:
                    report.twins -= 1
                    self._conflict(report, item, f"{earlier.item.origin} has the same address, and differs")

    def _conflict(self, report: Report, item: Incoming, reason: str) -> None:
        report.conflict(item.origin, item.namespace, item.key, reason)
        if self.on_conflict == "keep":
            report.kept += 1
        elif self.on_conflict == "replace":
            report.replaced += 1

    # -- copying ---------------------------------------------------------------------------------------------------

    def copy(self, log: Journal) -> None:
        items = _ready(self.source.items())
        total = self.source.count()
        done = 0
        last: list[tuple[Row, _Ready]] = []
        sample: list[Address] = []
        for rows in log.batches():
            if len(sample) < _SAMPLE:  # of batches that were put for certain: all but the last
                sample += [address_of(row) for row, ready in last if row[0] == PUT and not self._past(ready.item)]
            last = [(row, self._matching(row, next(items, None))) for row in rows]
            self.ours.update(ready.place for row, ready in last if row[0] in WRITTEN)
            done += len(rows)
        if sample and not any(read_all(self.destination, sample[:_SAMPLE])):
            raise PolicyError(
                f"the destination has none of the records that {log.path} says were put: it is another one, or it was "
                "emptied; remove the journal to begin anew"
            )
        self._settle(log, last)
        for group in self._groups(items):
            rows, puts = self._decide(group)
            log.append(rows)
            self._put(log, puts)
            done += len(rows)
            self.tick("copying", done, total)
        log.end_copy(done)

    def _groups(self, items: Iterable[_Ready]) -> Iterator[list[_Ready]]:
        """Batches; no address stands in one twice."""
        group: list[_Ready] = []
        places: set[bytes] = set()
        size = 0
        for ready in items:
            if len(group) >= self.batch or (group and size + ready.size > BATCH_BYTES) or ready.place in places:
                yield group
                group, size = [], 0
                places.clear()
            group.append(ready)
            size += ready.size
            if ready.place:
                places.add(ready.place)
        if group:
            yield group

    def _beside(self, group: Sequence[_Ready]) -> Iterator[tuple[_Ready, Incoming | None]]:
        """Each item with the record that the destination has at its address."""
        addresses = [(ready.item.namespace, ready.item.key) for ready in group if isinstance(ready.item, Incoming)]
        found = iter(read_all(self.destination, addresses))
        for ready in group:
            yield ready, next(found) if isinstance(ready.item, Incoming) else None

    def _decide(self, group: Sequence[_Ready]) -> tuple[list[Row], list[tuple[int, _Ready]]]:
        """The rows of a batch, and the items to put with their places in the batch."""
        rows: list[Row] = []
        puts: list[tuple[int, _Ready]] = []
        for ready, there in self._beside(group):
            item = ready.item
            if isinstance(item, Unreadable):
                rows.append(self._kept_back(ready, item.reason, item.raw))
                continue
            kind = self._kind(ready, item, there)
            row: Row = [kind, ready.fingerprint]
            if kind in WRITTEN:
                row += [list(item.namespace), item.key]
                if kind == REPLACE and there is not None:
                    row.append(pack(there))
                self.ours.add(ready.place)
                puts.append((len(rows), ready))
            rows.append(row)
        return rows, puts

    def _kind(self, ready: _Ready, item: Incoming, there: Incoming | None) -> str:
        ours = ready.place in self.ours
        if self._past(item):
            return EXPIRED
        if there is None:
            return OVER if ours else PUT
        if fingerprint(there) == ready.fingerprint:
            return TWIN if ours else SAME
        if self.on_conflict == "keep":
            return KEPT
        if self.on_conflict == "replace":
            return OVER if ours else REPLACE
        raise PolicyError(f"{item.origin}: the destination has a different record; choose keep or replace to go on")

    def _kept_back(self, ready: _Ready, reason: str, raw: bytes) -> Row:
        """The row of an item that cannot be put, its bytes safe in a file."""
        name = hashlib.sha256(raw).hexdigest()[:32] + ".bin"
        path = self.unreadable / name
        try:
            if not path.exists():
                self.unreadable.mkdir(parents=True, exist_ok=True)
                fresh = path.with_suffix(".new")
                with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                    file.write(raw)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(fresh, path)
                sync_folder(self.unreadable)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror or error}") from None
        return [BAD, ready.fingerprint, ready.item.origin, reason, f"{UNREADABLE}/{name}"]

    def _put(self, log: Journal, puts: Sequence[tuple[int, _Ready]]) -> None:
        """Puts the items of a batch; those that the destination refuses are kept as unreadable ones are."""
        if not puts:
            return
        try:
            self.destination.put_many([ready.item for _, ready in puts if isinstance(ready.item, Incoming)])
            return
        except (UnsupportedValue, OutputLimit):
            pass  # some of them, each by its own fault
        refused: list[tuple[int, Row]] = []
        for place, ready in puts:
            assert isinstance(ready.item, Incoming)
            try:
                self.destination.put_many([ready.item])
            except (UnsupportedValue, OutputLimit) as error:
                raw = values.to_raw(ready.item.value, allow_nan=True)[1]
                refused.append((place, self._kept_back(ready, f"the destination refuses it: {error}", raw)))
        log.refuse(refused)

    def _settle(self, log: Journal, last: Sequence[tuple[Row, _Ready]]) -> None:
        """Puts what the last batch announced and a crash kept from happening."""
        missing: list[tuple[int, _Ready]] = []
        rows = {id(ready): (at, row) for at, (row, ready) in enumerate(last) if row[0] in WRITTEN}
        for ready, there in self._beside([ready for _, ready in last if id(ready) in rows]):
            at, row = rows[id(ready)]
            if there is not None and (now := fingerprint(there)) == ready.fingerprint:
                continue
            expected = row[0] == OVER or (row[0] == REPLACE and there is not None and now == replaced_fingerprint(row))
            if there is not None and not expected and self.on_conflict != "replace":
                raise PolicyError(f"{ready.item.origin}: a different record was put meanwhile; choose replace to go on")
            if not self._past(ready.item):
                missing.append((at, ready))
        self._put(log, missing)

    def _matching(self, row: Row, ready: _Ready | None) -> _Ready:
        if ready is None:
            raise PolicyError("the source has fewer items than when the migration began: roll back and begin anew")
        if ready.fingerprint != row[1]:
            raise PolicyError(f"{ready.item.origin} has changed since the migration began: roll back and begin anew")
        return ready

    def _past(self, item: Item) -> bool:
        return isinstance(item, Incoming) and item.expires is not None and item.expires <= self.now

    # -- verifying -------------------------------------------------------------------------------------------------

    def verify(self, log: Journal) -> Report:
        """Reads every record back and compares it with the source, which is read once more."""
        report = self._report()
        last = last_writers(log)
        items = _ready(self.source.items())
        index = 0
        for rows in log.batches():
            pairs: list[tuple[Row, _Ready]] = []
            for row in rows:
                ready = self._matching(row, next(items, None))
                self._count(report, ready)
                if self._counted(report, row, ready) and last.get(ready.place, index) == index:
                    pairs.append((row, ready))
                elif row[0] in WRITTEN:
                    report.overridden += 1
                index += 1
            addresses = [(item.namespace, item.key) for _, (item, *_) in pairs if isinstance(item, Incoming)]
            for (row, ready), there in zip(pairs, read_each(self.destination, addresses), strict=True):
                self._compare(report, row, ready, there)
            self.tick("verifying", report.items, log.copied)
        if next(items, None) is not None or report.items != log.copied:
            raise PolicyError("the source has more items than when the migration began: roll back and begin anew")
        return report

    def _count(self, report: Report, ready: _Ready) -> None:
        item = ready.item
        report.items += 1
        if isinstance(item, Incoming):
            report.raw_bytes += ready.size
            report.classes[item.cls] = report.classes.get(item.cls, 0) + 1
            report.fidelities[item.fidelity] = report.fidelities.get(item.fidelity, 0) + 1
            if item.note:
                report.notes[item.note] = report.notes.get(item.note, 0) + 1

    def _counted(self, report: Report, row: Row, ready: _Ready) -> bool:
        """Counts what became of an item; whether the destination must now hold it."""
        kind, item = row[0], ready.item
        if kind == BAD:
            path = self.unreadable.parent / row[4]
            size = path.stat().st_size if path.exists() else -1
            if size < 0:
                report.failure(row[2], (), "", f"its bytes are not in {row[4]} any more")
            report.unreadable.append(_listed(row[2], row[3], row[4], max(0, size)))
            return False
        assert isinstance(item, Incoming)
        if kind == EXPIRED:
            report.expired += 1
        elif kind == TWIN:
            report.twins += 1
        elif kind == KEPT:
            report.kept += 1
            report.conflict(item.origin, item.namespace, item.key, "the destination kept a different record")
        elif kind == SAME:
            report.same += 1
            return True
        elif kind == REPLACE:
            report.replaced += 1
            return True
        else:
            report.put += 1
            return True
        return False

    def _compare(self, report: Report, row: Row, ready: _Ready, there: Incoming | NbmfError | None) -> None:
        item = ready.item
        assert isinstance(item, Incoming)
        if there is None and item.expires is not None and item.expires <= int(time.time() * 1000):
            report.lapsed += 1
            return
        if isinstance(there, NbmfError):
            report.failure(item.origin, item.namespace, item.key, f"unreadable in the destination: {there}")
            return
        # A record that was there before keeps its own times, a replaced one its time of creation.
        times: tuple[str, ...] = ("updated", "expires", "ttl") if row[0] != SAME else ()
        if row[0] == PUT:
            times = ("created", *times)
        if reason := _difference(item, ready.fingerprint, there, times):
            report.failure(item.origin, item.namespace, item.key, reason)
        else:
            report.verified += 1


def _difference(wanted: Incoming, mark: str, there: Incoming | None, times: Iterable[str]) -> str:
    """What differs between an item and the record that it became; "" when nothing does."""
    if there is None:
        return "missing"
    if fingerprint(there) != mark:
        if values.to_raw(wanted.value, allow_nan=True) != values.to_raw(there.value, allow_nan=True):
            return "the value differs"
        return "class, fidelity or meta differs"
    for name in times:
        if getattr(wanted, name) not in (None, getattr(there, name)):
            return f"{name} is {getattr(there, name)}, not {getattr(wanted, name)}"
    return ""


def _listed(origin: str, reason: str, file: str | None, size: int) -> dict[str, Any]:
    return {"origin": origin, "reason": reason, "file": file, "bytes": size}


__all__ = [
    "ON_CONFLICT",
    "Destination",
    "Report",
    "Rollback",
    "fingerprint",
    "folder_for",
    "migrate",
    "migrate_to",
    "rollback",
]
