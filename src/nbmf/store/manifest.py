"""The manifest: the one object of a cold tier that changes. It says which archives count, and what of them is dead.

Every change of the tier is one swap of it. docs/spec/archive.md is the specification.
"""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Final

import zstandard

from nbmf.errors import CorruptRecord, FormatError, NbmfError, PolicyError
from nbmf.store.address import flat, unflat
from nbmf.store.archive import CHECK_SIZE, RECORDS_MOST, Seal, check
from nbmf.store.base import JOURNAL, Namespace

NAME: Final = "manifest"
FOLDER: Final = "archives/"
CONTEXT: Final = b"nbmf manifest"
MAGIC: Final = b"NBMM"
READ_VERSION: Final = 1
WRITE_VERSION: Final = 1
SEALED: Final = 1
SIZE_MOST: Final = 256 << 20  # bytes of a manifest's JSON
LEVEL: Final = 9  # of zstd

_HEADER: Final = struct.Struct("<4sBBH")  # magic, read version, write version, flags
_START: Final = _HEADER.size + CHECK_SIZE  # of the JSON, compressed and maybe sealed


@dataclass(frozen=True, slots=True)
class Listed:
    """An archive of the tier. `group` names its tenant's key, and who coded it may depend on that.

    `dead` are the numbers of records that were deleted or replaced, `renewed` those that expire at another time than
    the archive says. No live record expires before `soonest`.
    """

    id: str  # 32 hex digits
    group: str
    size: int  # bytes of the object
    index: int  # bytes of index and trailer, at its end
    count: int
    first: bytes  # the namespaces it begins and ends with, flat
    last: bytes
    soonest: int | None
    dead: frozenset[int] = frozenset()
    renewed: Mapping[int, int] = field(default_factory=dict)  # number -> ms

    @property
    def name(self) -> str:
        return f"{FOLDER}{self.id}.nba"

    def spans(self, low: bytes, high: bytes) -> bool:
        """Whether namespaces from `low` to `high`, flat, may be in it."""
        return self.first <= high and low <= self.last


@dataclass(frozen=True, slots=True)
class Told:
    """A part of the journal: `count` changes, of records of one archive. `numbers` None: of all that have a code."""

    archive: str
    count: int
    numbers: tuple[int, ...] | None


@dataclass(frozen=True)
class Manifest:
    """What it says. `version` grows with every swap; `sweeps` when objects that it does not list are about to go."""

    version: int = 0
    sweeps: int = 0
    end: int = 0  # the journal's position
    journal: tuple[Told, ...] = ()  # its last parts
    archives: tuple[Listed, ...] = ()
    writable: bool = True

    def around(self, namespace: Namespace) -> Iterator[Listed]:
        """The archives that may hold records of a namespace."""
        low = flat(namespace)
        for part in (self._by_segment.get("".join(namespace[:1]), ()), self._by_segment[None]):
            yield from (listed for listed in part if listed.spans(low, low))

    @cached_property
    def _by_segment(self) -> dict[str | None, list[Listed]]:
        """Archives by the first segment of all their namespaces; under None where that differs."""
        found: dict[str | None, list[Listed]] = {None: []}
        for listed in self.archives:
            first, last = (unflat(namespace)[0] for namespace in (listed.first, listed.last))
            found.setdefault(first if first == last else None, []).append(listed)
        return found

    @property
    def start(self) -> int:
        """The position from which the journal tells everything."""
        return self.end - sum(told.count for told in self.journal)

    def next(
        self,
        archives: Sequence[Listed],
        told: Sequence[Told] = (),
        lost: bool = False,
        sweep: bool = False,
    ) -> Manifest:
        """The manifest after this one. `lost`: changes that the journal cannot tell were made as well."""
        parts = [*self.journal, *(part for part in told if part.count)]
        end = self.end + sum(part.count for part in told)
        there = {listed.id for listed in archives}
        # What was told of an archive that is gone cannot be read any more, nor may what stands before it be told alone.
        gone = [i for i, part in enumerate(parts) if part.archive not in there]
        parts = parts[gone[-1] + 1 :] if gone else parts
        if lost:
            end, parts = end + 1, []
        while parts and sum(part.count for part in parts[1:]) >= JOURNAL:
            parts = parts[1:]
        return replace(
            self,
            version=self.version + 1,
            sweeps=self.sweeps + sweep,
            end=end,
            journal=tuple(parts),
            archives=tuple(archives),
        )

    def since(self, position: int) -> list[Told] | None:
        """What the journal tells since a position; None if it does not reach back to it."""
        if not self.start <= position <= self.end:
            return None
        ends = accumulate((part.count for part in self.journal), initial=self.start)
        return [part for (_, end), part in zip(pairwise(ends), self.journal, strict=True) if end > position]

    def pack(self, seal: Seal | None) -> bytes:
        body = {
            "version": self.version,
            "sweeps": self.sweeps,
            "nonce": secrets.token_hex(8),
            "journal": {
                "end": self.end,
                "parts": [[part.archive, part.count, _gaps(part.numbers)] for part in self.journal],
            },
            "archives": [
                {
                    "id": listed.id,
                    "group": listed.group,
                    "size": listed.size,
                    "index": listed.index,
                    "count": listed.count,
                    "first": unflat(listed.first),
                    "last": unflat(listed.last),
                    "soonest": listed.soonest,
                    "dead": _gaps(sorted(listed.dead)),
                    "renewed": sorted(listed.renewed.items()),
                }
                for listed in self.archives
            ],
        }
        raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        stored = zstandard.ZstdCompressor(level=LEVEL).compress(raw)
        if seal:
            stored = seal.seal(stored, CONTEXT)
        header = _HEADER.pack(MAGIC, READ_VERSION, WRITE_VERSION, SEALED if seal else 0)
        return header + check(header + stored) + stored


def unpack(data: bytes, seal: Seal | None) -> Manifest:
    """Raises FormatError, CorruptRecord, PolicyError (sealed, and no key was given), or what the seal raises."""
    if len(data) < _START:
        raise FormatError("the manifest is cut short")
    header, stored = data[: _HEADER.size], data[_START:]
    magic, read_version, write_version, flags = _HEADER.unpack(header)
    if magic != MAGIC:
        raise FormatError("the manifest is none")
    if read_version != READ_VERSION:
        raise FormatError(f"the manifest is of read version {read_version}, not {READ_VERSION}")
    if flags & ~SEALED:
        raise FormatError(f"the manifest's flags {flags:#06x} have reserved bits set")
    if check(header + stored) != data[_HEADER.size : _START]:
        raise CorruptRecord("the manifest's check is wrong")
    if bool(flags & SEALED) != (seal is not None):
        raise PolicyError("the manifest is sealed, and no key was given" if not seal else "the manifest is not sealed")
    try:
        body = seal.unseal(stored, CONTEXT) if seal else stored
        if not 0 <= zstandard.frame_content_size(body) <= SIZE_MOST:
            raise CorruptRecord("the manifest's size is not stated, or too large")
        return _manifest(json.loads(zstandard.ZstdDecompressor().decompress(body)), write_version)
    except NbmfError:
        raise
    except (zstandard.ZstdError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptRecord(f"the manifest cannot be read: {type(error).__name__}") from None


def _manifest(body: dict[str, Any], write_version: int) -> Manifest:
    """Raises a ValueError and the like where the JSON is not that of a manifest."""
    archives = tuple(_listed(entry) for entry in body["archives"])
    ids = {listed.id for listed in archives}
    journal = tuple(Told(archive, _number(count), _numbers(gaps)) for archive, count, gaps in body["journal"]["parts"])
    if len(ids) != len(archives) or not ids >= {part.archive for part in journal}:
        raise ValueError
    manifest = Manifest(
        version=_number(body["version"]),
        sweeps=_number(body["sweeps"]),
        end=_number(body["journal"]["end"]),
        journal=journal,
        archives=archives,
        writable=write_version == WRITE_VERSION,
    )
    if manifest.start < 0:
        raise ValueError
    return manifest


def _listed(entry: dict[str, Any]) -> Listed:
    id, group, soonest = entry["id"], entry["group"], entry["soonest"]
    count = _number(entry["count"])
    dead = frozenset(_numbers(entry["dead"]) or ())
    renewed = {_number(number): int(expires) for number, expires in entry["renewed"]}
    spaces = [tuple(entry["first"]), tuple(entry["last"])]
    if not isinstance(id, str) or len(bytes.fromhex(id)) != 16 or not isinstance(group, str):
        raise ValueError
    if not 1 <= count <= RECORDS_MOST or max([*dead, *renewed, 0]) >= count:
        raise ValueError
    if not all(space and all(isinstance(segment, str) for segment in space) for space in spaces):
        raise ValueError
    return Listed(
        id=id,
        group=group,
        size=_number(entry["size"]),
        index=_number(entry["index"]),
        count=count,
        first=flat(spaces[0]),
        last=flat(spaces[1]),
        soonest=None if soonest is None else int(soonest),
        dead=dead,
        renewed=renewed,
    )


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _gaps(numbers: Sequence[int] | None) -> list[int] | None:
    """Ascending numbers as the first and the differences: short ones, many alike."""
    return None if numbers is None else [b - a for a, b in pairwise([0, *numbers])]


def _numbers(gaps: list[int] | None) -> tuple[int, ...] | None:
    return None if gaps is None else tuple(accumulate(_number(gap) for gap in gaps))


__all__ = ["FOLDER", "NAME", "Listed", "Manifest", "Told", "unpack"]
