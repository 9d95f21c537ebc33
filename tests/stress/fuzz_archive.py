"""Damaged and hostile archives and manifests into their readers, until the time is over.

    python tests/stress/fuzz_archive.py [seconds] [seed]

Damaged: bytes changed, cut out or put in, checks as they were; every one must be found. Hostile: the same within an
index, blocks or a manifest's JSON, with checks that are right again; every one must end in an NbmfError, or be read,
within SECONDS_MOST and MEMORY_MOST. To read an archive is to read its every record. Prints a line a second; the first
failure is written to a file and ends it.
"""

from __future__ import annotations

import hashlib
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "store"))

from group_coder import ZstdCoder

from nbmf.errors import NbmfError
from nbmf.store import manifest as manifests
from nbmf.store.address import address
from nbmf.store.archive import TRAILER_SIZE, Archive
from nbmf.store.archive_writer import Writer
from nbmf.store.base import Record
from nbmf.store.manifest import Listed, Manifest, Told
from nbmf.store.objects import Directory
from nbmf.store.shelf import Shelf

SECONDS_MOST = 20.0  # for one input
MEMORY_MOST = 4 << 30  # bytes of address space
HEADER = 8  # bytes
CHECK = 16
NOW = 1_760_000_000_000  # ms
NOWHERE = tempfile.gettempdir()  # nothing is read from there


class Hostile(ZstdCoder):
    """Its blocks are changed, one in a few."""

    def __init__(self, at: random.Random) -> None:
        self.at = at

    def encode(self, records: Sequence[tuple[str, bytes]], after: Sequence[tuple[str, bytes]] = ()) -> bytes:
        block = super().encode(records, after)
        return block if self.at.randrange(4) else changed(block, self.at) or b"\0"


def archive(at: random.Random, coder: ZstdCoder | None = None) -> bytes:
    """A good one, of any shape, unless its coder is none."""
    writer = Writer(
        coder or ZstdCoder(), block_size=at.choice([1, 200, 5000]), primer_size=at.choice([0, 1, 200, 3000])
    )
    found = {}
    for _ in range(at.choice([1, 2, 30, 1500])):
        namespace = tuple(at.choice("abc") * at.randrange(1, 4) for _ in range(at.randrange(1, 4)))
        id = f"{at.getrandbits(128):032x}"
        dashed = "-".join((id[:8], id[8:12], id[12:16], id[16:20], id[20:]))
        key = at.choice([f"k{at.randrange(10**6)}", id, dashed])
        when = NOW + at.randrange(10**9)
        blob, meta, code = (at.randbytes(at.choice([0, 0, 5, 60])) for _ in range(3))
        expires, ttl = at.choice([None, when + 5]), at.choice([None, 77])
        found[address(namespace, key)] = Record(
            namespace, key, blob, "", at.choice("xy"), "lossless", when, when, expires, ttl, meta, code
        )
    for _, record in sorted(found.items()):
        writer.add(record)
    return writer.finish().data


def manifest(at: random.Random) -> bytes:
    ids = [at.randbytes(16).hex() for _ in range(at.randrange(1, 6))]
    archives = [
        Listed(id, "a", 900, 300, 50, b"a\0", b"a\0b\0", None, frozenset(at.sample(range(50), 5)), {3: NOW})
        for id in ids
    ]
    journal = [Told(ids[0], 7, None), Told(ids[-1], 2, (4, 9))]
    return Manifest().next(archives, journal).pack(None)


def changed(data: bytes, at: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(at.choice([1, 1, 2, 8])):
        where = at.randrange(len(out)) if out else 0
        match at.randrange(6):
            case 0 if out:
                out[where] ^= 1 << at.randrange(8)
            case 1 if out:
                out[where] = at.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF])
            case 2:
                del out[where : where + at.choice([1, 3, 40, 4000])]
            case 3:
                out[where:where] = at.choice([b"\xff" * 9, b"\0" * 9, b"\x80" * 30, at.randbytes(5)])
            case 4:
                start = at.randrange(len(out)) if out else 0
                out[where : where + 8] = out[start : start + at.choice([8, 64])]
            case _:
                del out[where:]
    return bytes(out)


def read_archive(data: bytes) -> bool:
    """Whether nothing is wrong with it."""
    found = Archive(data, len(data))
    faults = list(found.verify(data))
    listed = Listed(found.id.hex(), "", len(data), len(data), found.count, b"", b"", None)
    shelf = Shelf(Directory(NOWHERE), lambda id: ZstdCoder(), lambda group: None, 1 << 20)
    try:
        blobs = shelf.blobs(listed, found, range(found.count), data)
    except NbmfError:
        if not faults:
            raise
        return False
    for number in range(0, found.count, 1 + found.count // 50):
        assert shelf.blobs(listed, found, [number], data)[number] == blobs[number]
        found.record(number, blobs[number])
        found.place(found.at(number))
    return not faults


def hostile_blocks(data: bytes, at: random.Random) -> bytes:
    """Another archive than the given one."""
    return archive(at, Hostile(at))


def read_manifest(data: bytes) -> bool:
    return manifests.unpack(data, None).version >= 0


def hostile_archive(data: bytes, at: random.Random) -> bytes:
    """Another index, with the trailer and the checks that it must have."""
    trailer = data[-TRAILER_SIZE:-8]
    header, id, count, start, length, _ = struct.unpack("<8s16sIQQ16s", trailer)
    index = changed(data[start : start + length], at)
    count = at.choice([count] * 9 + [at.randrange(1 << 17)])
    check = hashlib.blake2b(index, digest_size=CHECK).digest()
    trailer = struct.pack("<8s16sIQQ16s", header, id, count, start, len(index), check)
    return data[:start] + index + trailer + hashlib.blake2b(trailer, digest_size=8).digest()


def hostile_manifest(data: bytes, at: random.Random) -> bytes:
    text = changed(zstandard.ZstdDecompressor().decompress(data[HEADER + CHECK :]), at)
    stored = zstandard.compress(text) if at.randrange(4) else changed(data[HEADER + CHECK :], at)
    return data[:HEADER] + hashlib.blake2b(data[:HEADER] + stored, digest_size=CHECK).digest() + stored


def main(seconds: float, seed: int) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MOST, MEMORY_MOST))
    at = random.Random(seed)
    kinds: dict[
        str, tuple[Callable[[random.Random], bytes], Callable[[bytes, random.Random], bytes], Callable[[bytes], bool]]
    ]
    kinds = {
        "damaged archive": (archive, changed, read_archive),
        "hostile archive": (archive, hostile_archive, read_archive),
        "hostile blocks": (archive, hostile_blocks, read_archive),
        "damaged manifest": (manifest, changed, read_manifest),
        "hostile manifest": (manifest, hostile_manifest, read_manifest),
    }
    tally: Counter[str] = Counter()
    end, told, slowest = time.monotonic() + seconds, time.monotonic(), 0.0
    good = {kind: make(at) for kind, (make, _, _) in kinds.items()}
    while time.monotonic() < end:
        kind = at.choice(list(kinds))
        make, change, read = kinds[kind]
        if at.randrange(50) == 0:
            good[kind] = make(at)
            assert read(good[kind])
        data = change(good[kind], at)
        began = time.monotonic()
        failure = None
        try:
            sound = read(data)
            if sound and kind.startswith("damaged") and data != good[kind]:
                failure = "damage was not found"
            tally[f"{kind}, {'read' if sound else 'faults'}"] += 1
        except NbmfError:
            tally[f"{kind}, refused"] += 1
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        took = time.monotonic() - began
        slowest = max(slowest, took)
        if took > SECONDS_MOST:
            failure = f"{took:.1f} s"
        if failure:
            path = Path(tempfile.mkdtemp(), kind.replace(" ", "-"))
            path.write_bytes(data)
            print(f"{kind}: {failure}; input in {path}")
            return 1
        if time.monotonic() - told > 1:
            told = time.monotonic()
            print(f"{sum(tally.values())} inputs, slowest {slowest:.2f} s", flush=True)
    print(*(f"{name}: {count}" for name, count in sorted(tally.items())), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60, int(sys.argv[2]) if len(sys.argv) > 2 else 1))
