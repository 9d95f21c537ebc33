"""What a migration and its rollback tell: as JSON, and as text for a person."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from nbmf.errors import StoreError
from nbmf.store.base import Namespace

LISTED: Final = 1000  # conflicts and failures that a report lists; all are counted
SHOWN: Final = 20  # lines of a list in the text
JSON_NAME: Final = "report.json"
TEXT_NAME: Final = "report.txt"


@dataclass
class Report:
    """What became of every item of the source: `items` is the sum of put, same, replaced, kept, twins, expired and
    the unreadable.

    | field                      | counts                                                                            |
    |----------------------------|-----------------------------------------------------------------------------------|
    | put, replaced              | records written: new, and in the place of a different one                         |
    | same                       | already there with the same content; a rollback leaves them                       |
    | kept                       | not written, since the destination has a different one; listed in `conflicts`     |
    | twins                      | the same address and content as an earlier item                                   |
    | overridden                 | items whose address a later item of the source took; counted in put too           |
    | expired                    | not written, because their time had passed                                        |
    | lapsed                     | written, and expired before they were read back; counted in put too               |
    | verified                   | records read back and equal, counts of same ones included                         |
    | failures                   | records that are missing or differ; [] on success                                 |
    | raw_bytes                  | values and keys of what was read                                                  |
    | bytes_before, bytes_after  | the source's and the destination's on the medium; None when not known             |
    | left_behind                | what the source holds besides items, by name                                      |
    """

    source: dict[str, str]
    on_conflict: str = "fail"
    dry_run: bool = False
    resumed: bool = False
    finished_before: bool = False  # an earlier run finished this migration: nothing was done
    remark: str = ""
    items: int = 0
    put: int = 0
    same: int = 0
    replaced: int = 0
    kept: int = 0
    twins: int = 0
    overridden: int = 0
    expired: int = 0
    lapsed: int = 0
    verified: int = 0
    raw_bytes: int = 0
    bytes_before: int | None = None
    bytes_after: int | None = None
    seconds: float = 0.0  # of this run
    classes: dict[str, int] = field(default_factory=dict)  # readable items of each class
    fidelities: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    left_behind: dict[str, int] = field(default_factory=dict)
    conflict_count: int = 0
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    failure_count: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[dict[str, Any]] = field(default_factory=list)  # origin, reason, file, bytes

    @property
    def ok(self) -> bool:
        """Whether every record that was to be there is; a dry run: whether nothing stands in the way."""
        return self.failure_count == 0 and not (self.dry_run and self.on_conflict == "fail" and self.conflict_count)

    def conflict(self, origin: str, namespace: Namespace, key: str, reason: str) -> None:
        self.conflict_count += 1
        if len(self.conflicts) < LISTED:
            self.conflicts.append({"origin": origin, "namespace": list(namespace), "key": key, "reason": reason})

    def failure(self, origin: str, namespace: Namespace, key: str, reason: str) -> None:
        self.failure_count += 1
        if len(self.failures) < LISTED:
            self.failures.append({"origin": origin, "namespace": list(namespace), "key": key, "reason": reason})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"ok": self.ok, **asdict(self)}

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Report:
        return cls(**{name: value for name, value in kept.items() if name != "ok"})

    def text(self) -> str:
        """For a person: what happened first, figures, then the lists."""
        lines = [self._headline()]
        if self.remark:
            lines.append(self.remark)
        lines.append("")
        figures = {
            "items read": self.items,
            "would be put" if self.dry_run else "put": self.put,
            "replaced": self.replaced,
            "already there": self.same,
            "kept as they were": self.kept,
            "repeated in the source": self.twins,
            "overridden by a later item": self.overridden,
            "expired": self.expired,
            "expired before verifying": self.lapsed,
            "unreadable, kept": len(self.unreadable),
            "verified": self.verified,
        }
        lines += [f"{name:28}{count:>14,}" for name, count in figures.items() if count or name in _ALWAYS]
        for name, size in (
            ("raw bytes, values and keys", self.raw_bytes),
            ("bytes before", self.bytes_before),
            ("bytes after", self.bytes_after),
        ):
            if size is not None:
                lines.append(f"{name:28}{size:>14,}")
        lines.append(f"{'seconds':28}{self.seconds:>14,.1f}")
        for title, counts in (
            ("by class", {name or "(none)": count for name, count in self.classes.items()}),
            ("by fidelity", self.fidelities),
            ("marked", self.notes),
            ("not migrated", self.left_behind),
        ):
            if counts:
                lines += ["", title]
                lines += [f"  {name:26}{count:>14,}" for name, count in counts.items()]
        for title, count, entries in (
            ("unreadable", len(self.unreadable), self.unreadable),
            ("conflicts", self.conflict_count, self.conflicts),
            ("failures", self.failure_count, self.failures),
        ):
            if count:
                lines += ["", title, *(f"  {entry['origin']}: {entry['reason']}" for entry in entries[:SHOWN])]
                if count > SHOWN:
                    lines.append(f"  ... and {count - SHOWN:,} more")
        return "\n".join(lines) + "\n"

    def _headline(self) -> str:
        what = f"{self.source['kind']} {self.source['address']}"
        if self.finished_before:
            return f"{what}: this migration is finished already; nothing was done"
        if self.dry_run:
            return f"{what}: dry run, nothing was written"
        if self.failure_count:
            return f"{what}: {self.failure_count:,} records are missing or differ"
        return f"{what}: migrated, every record read back and verified"


_ALWAYS: Final = frozenset(("items read", "would be put", "put", "unreadable, kept", "verified"))


@dataclass
class Rollback:
    """What a rollback did: records deleted, older ones put back, and those left because they were changed since."""

    deleted: int = 0
    restored: int = 0
    missing: int = 0  # gone already
    changed_count: int = 0
    changed: list[dict[str, Any]] = field(default_factory=list)  # namespace, key; at most LISTED
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"ok": self.ok, **asdict(self)}

    def text(self) -> str:
        lines = [
            f"rolled back: {self.deleted:,} deleted, {self.restored:,} restored, {self.missing:,} gone already, "
            f"{self.changed_count:,} left because they were changed since"
        ]
        lines += [f"  {'/'.join(entry['namespace'])} {entry['key']}" for entry in self.changed[:SHOWN]]
        if self.changed_count > SHOWN:
            lines.append(f"  ... and {self.changed_count - SHOWN:,} more")
        return "\n".join(lines) + "\n"


def write_report(report: Report, folder: Path) -> None:
    """Both forms, each whole or not at all. Raises StoreError."""
    forms = {JSON_NAME: json.dumps(report.to_dict(), indent=2) + "\n", TEXT_NAME: report.text()}
    try:
        for name, text in forms.items():
            fresh = folder / (name + ".new")
            fresh.write_text(text, encoding="utf-8", errors="backslashreplace")
            os.replace(fresh, folder / name)
    except OSError as error:
        raise StoreError(f"the report cannot be written to {folder}: {error.strerror or error}") from None
