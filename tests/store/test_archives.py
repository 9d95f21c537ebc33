"""The cold tier: the shared suite on a directory, sealed too, and on S3; damage, crashes, writers side by side."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from conformance import NOW, Conformance, Medium, rec
from group_coder import ZstdCoder
from s3_server import new_bucket, s3, s3_server

from nbmf.errors import CorruptRecord, FormatError, NbmfError, PolicyError, StoreError, UnknownModel
from nbmf.store.address import unflat
from nbmf.store.archive import Archive, Seal
from nbmf.store.archives import ArchiveTier
from nbmf.store.base import Delete, Fault, Forget, Op, Put, Record, Tier
from nbmf.store.keys import DataKey
from nbmf.store.manifest import NAME, unpack
from nbmf.store.objects import Directory, Objects


class WithCodecs(Tier):
    """A cold tier gives back blobs that need no model, and no codec's id. The suite wants it: it is in the metadata."""

    def __init__(self, tier: ArchiveTier) -> None:
        self.tier = tier

    def batch(self, ops: Sequence[Op]) -> list[Any]:
        out = self.tier.batch([replace(op, record=_hide(op.record)) if isinstance(op, Put) else op for op in ops])
        return [
            [_show(one) if isinstance(one, Record) else one for one in result]
            if isinstance(result, list)
            else _show(result)
            if isinstance(result, Record)
            else result
            for result in out
        ]

    def version(self) -> int:
        return self.tier.version()

    def check(self) -> Iterator[Fault]:
        return self.tier.check()

    def compact(self) -> None:
        self.tier.compact()

    def sizes(self) -> dict[str, int]:
        return self.tier.sizes()

    def close(self) -> None:
        self.tier.close()


def _hide(record: Record) -> Record:
    return replace(record, codec="", meta=record.codec.encode() + b"\0" + record.meta)


def _show(record: Record) -> Record:
    assert record.codec == ""
    codec, meta = record.meta.split(b"\0", 1)
    return replace(record, codec=codec.decode(), meta=meta)


class InDirectory(Medium):
    def __init__(self, folder: Path, seals: bool = False, **options: Any) -> None:
        self.root = folder / "cold"
        self.readable = folder / "readable"
        self.options = options
        self.key = DataKey(b"k" * 32) if seals else None
        self.tier: ArchiveTier | None = None

    def seal_of(self, group: str) -> Seal | None:
        return self.key

    def open(self) -> Tier:
        return WithCodecs(ArchiveTier(Directory(self.root), ZstdCoder(), seal_of=self.seal_of, **self.options))

    def files(self) -> list[Path]:
        """Of every object, orphans too: its bytes, and what is in its blocks, index and JSON, unsealed and unpacked."""
        self.readable.mkdir(exist_ok=True)
        out = []
        for path in (path for path in sorted(self.root.rglob("*")) if path.is_file()):
            raw = path.read_bytes()
            texts = [raw]
            if path.name == NAME:
                texts.append(repr(unpack(raw, self.key)).encode())
            elif path.suffix == ".nba":
                archive = Archive(raw, len(raw), self.key)
                texts.append(repr(archive.classes).encode())
                for i, block in enumerate(archive.blocks):
                    coded = archive.open_block(i, raw[block.start : block.start + block.length])
                    blobs = ZstdCoder().decode(coded, block.records)
                    texts += [repr(archive.record(block.first + n, blob)).encode() for n, blob in enumerate(blobs)]
            copy = self.readable / path.name
            copy.write_bytes(b"\n".join(texts))
            out.append(copy)
        return out


class ColdConformance(Conformance):
    def test_sizes_are_bytes_and_a_count(self, tier: Tier) -> None:
        """With values that do not vanish when they are coded together."""
        at = random.Random(1)
        tier.batch([Put(rec(f"k{i}", blob=at.randbytes(100))) for i in range(100)])
        sizes = tier.sizes()
        assert sizes.pop("count") == 100
        assert all(size >= 0 for size in sizes.values())
        assert sum(sizes.values()) > 100 * 100


@pytest.mark.slow
class TestDirectory(ColdConformance):
    @pytest.fixture
    def medium(self, tmp_path: Path) -> Medium:
        return InDirectory(tmp_path)


class TestSealedInSmallBlocks(ColdConformance):
    @pytest.fixture
    def medium(self, tmp_path: Path) -> Medium:
        return InDirectory(tmp_path, seals=True, block_size=500, cache_size=100_000)


class InBucket(Medium):
    def __init__(self, address: str) -> None:
        self.address, self.bucket = address, new_bucket(address)

    def open(self) -> Tier:
        return WithCodecs(ArchiveTier(s3(self.address, self.bucket), ZstdCoder()))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.mark.slow
class TestS3(ColdConformance):
    @pytest.fixture
    def medium(self, server: str) -> Medium:
        return InBucket(server)


# -- the tier's own ----------------------------------------------------------------------------------------------------


def open_tier(root: Path | Objects, **options: Any) -> ArchiveTier:
    objects = Directory(root) if isinstance(root, Path) else root
    return ArchiveTier(objects, options.pop("coder", ZstdCoder()), **options)


def sample(count: int, tenant: str = "acme", size: int = 60, **fields: Any) -> list[Record]:
    """Values that a block cannot make vanish, of no codec."""
    at = random.Random(f"{tenant}{count}")
    spaces = [(tenant, f"user-{at.randrange(9)}") for _ in range(count)]
    return [rec(f"k{i:05}", spaces[i], at.randbytes(size), codec="", **fields) for i in range(count)]


def everything(tier: Tier) -> set[Record]:
    found = list(tier.scan())
    assert len(set(found)) == len(found)
    return set(found)


def archives(root: Path) -> list[Path]:
    return sorted((root / "archives").glob("*"))


class Watched(Directory):
    """Tells what is asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[tuple[str, int]] = []

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        data = super().get(name, start, length)
        if name != NAME:
            self.reads.append((name, len(data)))
        return data


def test_the_same_on_s3(server: str) -> None:
    """What the slow suite does at length."""
    bucket = new_bucket(server)
    records = sample(60) + sample(30, "other")
    with closing(open_tier(s3(server, bucket))) as tier, closing(open_tier(s3(server, bucket))) as beside:
        tier.batch([Put(record) for record in records])
        assert everything(beside) == set(records)
        beside.delete(records[0].namespace, records[0].key)
        assert beside.put(replace(records[1], blob=b"new"), expected=records[1].blob)
        assert tier.get(records[0].namespace, records[0].key, NOW) is None
        tier.compact()
        assert tier.batch([Forget(("other",))]) == [30]
        assert everything(beside) == {replace(records[1], blob=b"new"), *records[2:60]}
        assert list(beside.check()) == []
        assert len(list(s3(server, bucket).list("archives/"))) == 1


def test_an_archive_is_of_one_tenant(tmp_path: Path) -> None:
    with closing(open_tier(tmp_path)) as tier:
        tier.batch([Put(record) for tenant in ("a", "b", "c") for record in sample(20, tenant)])
        tier.compact()
    for path in archives(tmp_path):
        data = path.read_bytes()
        assert len({unflat(namespace)[0] for namespace in Archive(data, len(data)).namespaces}) == 1
    assert len(archives(tmp_path)) == 3


def test_each_tenant_has_its_key_and_the_manifest_one_more(tmp_path: Path) -> None:
    keys = {group: DataKey(group.encode() * 32) for group in ("a", "b")} | {"": DataKey(b"m" * 32)}
    with closing(open_tier(tmp_path, seal_of=keys.get)) as tier:
        tier.batch([Put(record) for tenant in ("a", "b") for record in sample(20, tenant)])
        everything(tier)
    for path in [*archives(tmp_path), tmp_path / NAME]:
        assert not any(word in path.read_bytes() for word in (b"user-", b"k00001", b"fact"))
    with closing(open_tier(tmp_path, seal_of=(keys | {"a": keys["b"]}).get)) as tier:
        assert len(list(tier.scan(("b",)))) == 20
        with pytest.raises(CorruptRecord, match=r"archive [0-9a-f]{32}: "):
            list(tier.scan(("a",)))
        assert len(list(tier.check())) == 1
        # A tenant whose key was shredded can still be forgotten.
        assert tier.batch([Forget(("a",))]) == [20]
        assert list(tier.check()) == [] and len(archives(tmp_path)) == 1
    for seals in (lambda group: None, lambda group: DataKey(b"x" * 32)):
        with pytest.raises(NbmfError):
            open_tier(tmp_path, seal_of=seals)


def test_a_get_is_one_read_once_the_index_is_known(tmp_path: Path) -> None:
    records = sample(2000)
    with closing(open_tier(tmp_path)) as tier:
        tier.batch([Put(record) for record in records])
    watched = Watched(tmp_path)
    with closing(open_tier(watched, block_size=4000)) as tier:
        tier.get(("acme", "user-0"), "none", NOW)
        assert len(watched.reads) == 1
        at = random.Random(1)
        for record in at.sample(records, 50):
            watched.reads.clear()
            assert tier.get(record.namespace, record.key, NOW) == record
            assert len(watched.reads) <= 1 and sum(size for _, size in watched.reads) < 20_000
        watched.reads.clear()
        assert len(list(tier.scan(("acme",)))) == 2000
        assert len(watched.reads) <= 5


def test_what_is_kept_in_memory_has_a_bound(tmp_path: Path) -> None:
    with closing(open_tier(tmp_path, cache_size=200_000)) as tier:
        for i in range(20):
            tier.batch([Put(record) for record in sample(200, f"t{i}", 500)])
        everything(tier)
        cache = tier._shelf._cache
        assert 0 < cache._cost <= 200_000
        assert cache._cost == sum(cost for _, cost in cache._held.values())


def test_compact_copies_what_is_whole_and_codes_the_rest(tmp_path: Path) -> None:
    coded: list[int] = []

    class Counting(ZstdCoder):
        def encode(self, records: Sequence[tuple[str, bytes]]) -> bytes:
            coded.append(len(records))
            return super().encode(records)

    records = sample(1000)
    with closing(open_tier(tmp_path, coder=Counting(), block_size=2000)) as tier:
        tier.batch([Put(record) for record in records])
        assert len(coded) > 25
        coded.clear()
        tier.delete(records[500].namespace, records[500].key)
        before = archives(tmp_path)
        tier.compact()
        assert len(coded) <= 2  # the block that lost a record, and the last, if it is small
        assert everything(tier) == set(records) - {records[500]}
        assert len(archives(tmp_path)) == 1 and archives(tmp_path) != before
        before = archives(tmp_path)
        tier.compact()
        assert archives(tmp_path) == before


def test_compact_merges_small_archives(tmp_path: Path) -> None:
    records = sample(300)
    with closing(open_tier(tmp_path)) as tier:
        for start in range(0, 300, 30):
            tier.batch([Put(record) for record in records[start : start + 30]])
        before = tier.sizes()
        assert len(archives(tmp_path)) == 10
        tier.compact()
        assert len(archives(tmp_path)) == 1
        assert sum(tier.sizes().values()) < sum(before.values())
        assert everything(tier) == set(records) and list(tier.check()) == []


def test_a_batch_that_is_too_much_for_one_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbmf.store.archive.RECORDS_MOST", 1000)
    records = sample(1500)
    with closing(open_tier(tmp_path)) as tier:
        tier.batch([Put(record) for record in records])
        assert len(archives(tmp_path)) > 1
        assert everything(tier) == set(records) and list(tier.check()) == []


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    with closing(open_tier(tmp_path)) as tier:
        tier.batch([Put(record) for record in sample(100)])
        Directory(tmp_path).put("archives/orphan.nba", bytes(77))
        sizes = tier.sizes()
        assert sizes.pop("count") == 100 and sizes["orphans"] == 77
        assert sum(sizes.values()) == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())


def test_an_unknown_coder_is_said_to_be(tmp_path: Path) -> None:
    class Later(ZstdCoder):
        id = "3e" * 32

    record = sample(1)[0]
    with closing(open_tier(tmp_path)) as tier:
        tier.put(record)
    with closing(open_tier(tmp_path, coder=Later())) as tier:
        with pytest.raises(UnknownModel, match="2d2d2d"):
            tier.get(record.namespace, record.key, NOW)
        assert [fault.what for fault in tier.check()] == [f"no model or pack {ZstdCoder.id} found"]
    coders = {coder.id: coder for coder in (ZstdCoder(), Later())}
    with closing(open_tier(tmp_path, coder=Later(), coder_by_id=coders.__getitem__)) as tier:
        assert tier.get(record.namespace, record.key, NOW) == record
        tier.put(replace(record, key="other"))
        tier.compact()
        assert len(list(tier.scan())) == 2
        data = archives(tmp_path)[0].read_bytes()
        assert Archive(data, len(data)).coder == Later.id


def test_a_coder_that_fails_changes_nothing(tmp_path: Path) -> None:
    class Failing(ZstdCoder):
        def encode(self, records: Sequence[tuple[str, bytes]]) -> bytes:
            raise CorruptRecord("what was coded is not what came")

    with closing(open_tier(tmp_path, coder=Failing())) as tier:
        with pytest.raises(CorruptRecord, match="what was coded"):
            tier.batch([Put(record) for record in sample(10)])
        assert everything(tier) == set() and archives(tmp_path) == []


# -- damage ------------------------------------------------------------------------------------------------------------


def test_every_flipped_byte_of_every_object_is_found(tmp_path: Path) -> None:
    """By `check`, and by whoever reads what is broken: an error, or what was put, and never anything else."""
    records = sample(12, size=10)
    with closing(open_tier(tmp_path, block_size=40)) as tier:
        tier.batch([Put(record) for record in records])
        tier.delete(records[0].namespace, records[0].key)
    for path in [tmp_path / NAME, *archives(tmp_path)]:
        whole = path.read_bytes()
        for i in range(len(whole)):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
            if path.name == NAME:
                with pytest.raises(NbmfError, match="manifest"):
                    open_tier(tmp_path)
                continue
            with closing(open_tier(tmp_path)) as tier:
                assert [fault.where for fault in tier.check()] == [f"archives/{path.name}"]
                for record in records[1:]:
                    try:
                        assert tier.get(record.namespace, record.key, NOW) == record
                    except (CorruptRecord, FormatError) as error:
                        assert path.stem in str(error)
        path.write_bytes(whole)
    with closing(open_tier(tmp_path)) as tier:
        assert list(tier.check()) == []


def test_a_broken_block_is_named(tmp_path: Path) -> None:
    records = sample(200)
    with closing(open_tier(tmp_path, block_size=2000)) as tier:
        tier.batch([Put(record) for record in records])
        path = archives(tmp_path)[0]
        data = bytearray(path.read_bytes())
        data[Archive(bytes(data), len(data)).blocks[3].start] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptRecord, match=f"archive {path.stem}: block 3: its check is wrong"):
            list(tier.scan())
        assert list(tier.check()) == [Fault(f"archives/{path.name}", "block 3: its check is wrong")]


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_an_object_that_is_not_what_the_manifest_says(tmp_path: Path, damage: str) -> None:
    with closing(open_tier(tmp_path)) as tier:
        tier.batch([Put(record) for record in sample(20) + sample(30, "other")])
    first, second = archives(tmp_path)
    if damage == "missing":
        first.unlink()
    else:
        first.write_bytes(first.read_bytes()[:-1] if damage == "cut" else second.read_bytes())
    with closing(open_tier(tmp_path)) as tier:
        assert [fault.where for fault in tier.check()] == [f"archives/{first.name}"]
        with pytest.raises((CorruptRecord, FormatError), match=first.stem):
            everything(tier)


def test_archives_without_a_manifest_are_no_new_tier(tmp_path: Path) -> None:
    with closing(open_tier(tmp_path)) as tier:
        tier.put(sample(1)[0])
        (tmp_path / NAME).unlink()
        with pytest.raises(StoreError, match="gone"):
            tier.get(("a",), "k", NOW)
    with pytest.raises(StoreError, match="no manifest"):
        open_tier(tmp_path)
    assert len(archives(tmp_path)) == 1


def manifest(header: bytes, stored: bytes) -> bytes:
    """One with the right check."""
    return header + hashlib.blake2b(header + stored, digest_size=16).digest() + stored


def test_a_manifest_of_a_later_version(tmp_path: Path) -> None:
    record = sample(1)[0]
    with closing(open_tier(tmp_path)) as tier:
        tier.put(record)
    path = tmp_path / NAME
    data = path.read_bytes()
    path.write_bytes(manifest(data[:5] + b"\2" + data[6:8], data[24:]))
    with closing(open_tier(tmp_path)) as tier:
        assert tier.get(record.namespace, record.key, NOW) == record
        ops: list[Op] = [Put(record), Delete(record.namespace, record.key), Forget(())]
        for op in ops:
            with pytest.raises(PolicyError, match="only be read"):
                tier.batch([op])
        assert everything(tier) == {record}
    path.write_bytes(manifest(data[:4] + b"\2\2" + data[6:8], data[24:]))
    with pytest.raises(FormatError, match="read version 2"):
        open_tier(tmp_path)


# -- crashes and other writers -----------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of a process: nothing catches it, and nothing works after it."""


class Mortal(Directory):
    """Dies at the nth call that changes something, before it or after."""

    def __init__(self, root: Path, calls: int, after: bool) -> None:
        super().__init__(root)
        self.calls, self.after = calls, after

    def _step(self, change: Callable[[], Any]) -> Any:
        if self.calls <= 0:
            raise Killed
        self.calls -= 1
        if self.calls == 0 and not self.after:
            raise Killed
        out = change()
        if self.calls == 0:
            raise Killed
        return out

    def put(self, name: str, data: bytes, overwrite: bool = False) -> None:
        self._step(lambda: super(Mortal, self).put(name, data, overwrite))

    def swap(self, name: str, data: bytes, tag: str) -> str:
        return str(self._step(lambda: super(Mortal, self).swap(name, data, tag)))

    def delete(self, name: str) -> None:
        self._step(lambda: super(Mortal, self).delete(name))


def change_much(tier: ArchiveTier, records: Sequence[Record]) -> list[Op]:
    ops: list[Op] = [Put(replace(record, blob=b"new" + record.blob)) for record in records[:40]]
    ops += [Delete(record.namespace, record.key) for record in records[60:80]]
    return [*ops, Forget(("gone",)), *(Put(record) for record in sample(10, "more"))]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("act", ["batch", "compact"])
def test_a_crash_at_any_step(tmp_path: Path, act: str, after: bool) -> None:
    """Either all of a batch is there or nothing; `compact` changes no record; and what was left behind goes."""
    records = sample(100) + sample(20, "gone")
    for calls in itertools.count(1):
        root = tmp_path / f"{calls}"
        with closing(open_tier(root, block_size=1000)) as tier:
            for start in range(0, 120, 40):
                tier.batch([Put(record) for record in records[start : start + 40]])
            ops = change_much(tier, records)
            if act == "compact":
                tier.batch(ops[:60])
            old = everything(tier)
        mortal = Mortal(root, calls, after)
        tier = open_tier(mortal, block_size=1000)
        with suppress(Killed):
            tier.batch(ops) if act == "batch" else tier.compact()
        done = mortal.calls > 0
        with closing(open_tier(root, block_size=1000)) as tier:
            assert list(tier.check()) == []
            found = everything(tier)
            new = old
            if act == "batch":
                gone = {(record.namespace, record.key) for record in records[:40] + records[60:80]}
                new = {r for r in old if (r.namespace, r.key) not in gone and r.namespace[0] != "gone"}
                new |= {replace(record, blob=b"new" + record.blob) for record in records[:40]} | set(sample(10, "more"))
            assert found == new or (found == old and not done)
            tier.batch([Forget(("gone",))])
            tier.compact()
            assert everything(tier) == {record for record in found if record.namespace[0] != "gone"}
            assert list(tier.check()) == []
            assert tier.sizes()["orphans"] == 0
            assert not any(b"gone" in path.read_bytes() for path in archives(root))
        if done:
            break
    assert calls > 4


def test_forget_sweeps_what_a_crashed_writer_left(tmp_path: Path) -> None:
    records = sample(20, "secret")
    with closing(open_tier(tmp_path)):
        pass
    with pytest.raises(Killed):
        open_tier(Mortal(tmp_path, 1, after=True)).batch([Put(record) for record in records])
    assert len(archives(tmp_path)) == 1
    with closing(open_tier(tmp_path)) as tier:
        assert tier.batch([Forget(("secret",))]) == [0]
        assert archives(tmp_path) == []


class Interrupted(Directory):
    """Something else happens between a writer's objects and its swap."""

    def __init__(self, root: Path, other: Callable[[], None]) -> None:
        super().__init__(root)
        self.other: Callable[[], None] | None = other

    def swap(self, name: str, data: bytes, tag: str) -> str:
        if self.other and tag:
            other, self.other = self.other, None
            other()
        return super().swap(name, data, tag)


@pytest.mark.parametrize("other", ["put", "same", "delete", "compact", "forget"])
def test_what_others_do_before_the_swap(tmp_path: Path, other: str) -> None:
    """The writer starts over with what is there now, and its objects are swept only if it writes them again."""
    records = sample(50)
    with closing(open_tier(tmp_path)) as tier:
        tier.batch([Put(record) for record in records[:10]])
        tier.batch([Put(record) for record in records[10:20]])
        acts: dict[str, Callable[[], Any]] = {
            "put": lambda: tier.batch([Put(record) for record in records[40:]]),
            "same": lambda: tier.put(replace(records[20], blob=b"theirs", created=5)),
            "delete": lambda: tier.delete(records[0].namespace, records[0].key),
            "compact": tier.compact,
            "forget": lambda: tier.batch([Forget(("nothing",))]),
        }
        with closing(open_tier(Interrupted(tmp_path, acts[other]))) as writer:
            done = writer.batch([Put(record) for record in records[20:30]])
        expected = set(records[:30])
        if other == "put":
            expected |= set(records[40:])
        elif other == "same":
            expected = expected - {records[20]} | {replace(records[20], created=5)}
        elif other == "delete":
            expected -= {records[0]}
        assert done == [other == "same", *[False] * 9]
        assert everything(tier) == expected
        assert list(tier.check()) == [] and tier.sizes()["orphans"] == 0


@pytest.mark.parametrize("other", ["put", "delete", "compact", "renew"])
def test_what_others_do_while_compact_works(tmp_path: Path, other: str) -> None:
    records = sample(30, expires=NOW + 5, ttl=50)
    with closing(open_tier(tmp_path)) as tier:
        tier.batch([Put(record) for record in records[:10]])
        tier.batch([Put(record) for record in records[10:20]])
        acts: dict[str, Callable[[], Any]] = {
            "put": lambda: tier.batch([Put(record) for record in records[20:]]),
            "delete": lambda: tier.delete(records[0].namespace, records[0].key),
            "compact": tier.compact,
            "renew": lambda: tier.get(records[0].namespace, records[0].key, NOW, renew=True),
        }
        with closing(open_tier(Interrupted(tmp_path, acts[other]))) as compacting:
            compacting.compact()
        expected = set(records[: 30 if other == "put" else 20])
        if other in ("delete", "renew"):
            expected -= {records[0]}
        if other == "renew":
            expected.add(replace(records[0], expires=NOW + 50))
        assert everything(tier) == expected
        assert list(tier.check()) == [] and tier.sizes()["orphans"] == 0


def test_a_reader_whose_archive_is_compacted_away_reads_on(tmp_path: Path) -> None:
    records = sample(40)
    with closing(open_tier(tmp_path)) as tier:
        tier.batch([Put(record) for record in records[:20]])
        tier.batch([Put(record) for record in records[20:]])

        class Slow(Directory):
            def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
                if name != NAME:
                    tier.compact()
                return super().get(name, start, length)

        with closing(open_tier(Slow(tmp_path))) as reader:
            assert everything(reader) == set(records)


def test_a_swap_of_which_nobody_knows_keeps_the_objects(tmp_path: Path) -> None:
    class Deaf(Directory):
        def swap(self, name: str, data: bytes, tag: str) -> str:
            super().swap(name, data, tag)
            if tag:
                raise StoreError("the connection was lost")
            return ""

    with closing(open_tier(Deaf(tmp_path))) as tier, pytest.raises(StoreError, match="lost"):
        tier.put(sample(1)[0])
    with closing(open_tier(tmp_path)) as tier:
        assert everything(tier) == {sample(1)[0]} and list(tier.check()) == []


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from group_coder import ZstdCoder
from nbmf.store.archives import ArchiveTier
from nbmf.store.base import Put, Record
from nbmf.store.objects import Directory
tier = ArchiveTier(Directory(sys.argv[1]), ZstdCoder())
me = sys.argv[3]
for i in range(int(sys.argv[4])):
    tier.batch([Put(Record((me, "own"), f"{i}-{n}", b"%d" % i)) for n in range(5)])
    while True:
        old = tier.get(("shared",), "counter", 0)
        if tier.put(Record(("shared",), "counter", b"%d" % (int(old.blob) + 1)), expected=old.blob):
            break
    if i % 5 == 4:
        tier.compact()
    print(i, flush=True)
"""


def writer(root: Path, name: str, turns: int) -> subprocess.Popen[bytes]:
    run = [sys.executable, "-c", WRITER, str(root), str(Path(__file__).parent), name, f"{turns}"]
    return subprocess.Popen(run, stdout=subprocess.PIPE)


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    with closing(open_tier(tmp_path)) as tier:
        tier.put(Record(("shared",), "counter", b"0"))
        with writer(tmp_path, "a", 12) as one, writer(tmp_path, "b", 12) as two:
            assert (one.wait(), two.wait()) == (0, 0)
        counter = tier.get(("shared",), "counter", 0)
        assert counter is not None and counter.blob == b"24"
        for name in "ab":
            assert {record.key for record in tier.scan((name,))} == {f"{i}-{n}" for i in range(12) for n in range(5)}
        tier.compact()
        assert list(tier.check()) == [] and tier.sizes()["orphans"] == 0


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_writers_lose_nothing_acknowledged(tmp_path: Path, kills: int) -> None:
    at = random.Random(kills)
    with closing(open_tier(tmp_path)) as tier:
        tier.put(Record(("shared",), "counter", b"0"))
        for kill in range(kills):
            with writer(tmp_path, f"w{kill}", 10_000) as process:
                assert process.stdout is not None
                seen = [process.stdout.readline() for _ in range(at.randrange(1, 12))]
                time.sleep(at.random() * 0.03)
                os.kill(process.pid, signal.SIGKILL)
                seen += process.stdout.readlines()
            done = len([line for line in seen if line.endswith(b"\n")])
            own = {record.key for record in tier.scan((f"w{kill}",))}
            assert own >= {f"{i}-{n}" for i in range(done) for n in range(5)}
            assert len(own) % 5 == 0
            assert list(tier.check()) == []
        tier.compact()
        assert tier.sizes()["orphans"] == 0 and list(tier.check()) == []
        assert [name for name, _ in Directory(tmp_path).list("tmp/")] == []


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    records = sample(20)
    with closing(open_tier(tmp_path)) as tier:
        tier.batch([Put(record) for record in records])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
        try:
            with pytest.raises(StoreError, match="too large"):
                tier.batch([Put(record) for record in sample(300, "other")])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert everything(tier) == set(records)
        assert list(tier.check()) == [] and tier.sizes()["orphans"] == 0
        tier.batch([Put(record) for record in sample(300, "other")])


def test_a_manifest_says_only_what_it_may(tmp_path: Path) -> None:
    """Its JSON broken, its check right."""
    with closing(open_tier(tmp_path)) as tier:
        tier.batch([Put(record) for record in sample(20, code=b"c")])
        tier.delete(sample(20)[0].namespace, sample(20)[0].key)
    data = (tmp_path / NAME).read_bytes()
    raw = zstandard.ZstdDecompressor().decompress(data[24:])
    at = random.Random(6)
    broken = [raw[:i] + raw[i + at.randrange(1, 9) :] for i in range(0, len(raw), 2)]
    broken += [raw.replace(b":", word, n) for n in range(1, 9) for word in (b":-", b":[", b":9", b":null,", b"")]
    good = 0
    for text in [raw, *broken, b"", b"[]", b"{}", b"[" * 100_000]:
        stored = zstandard.compress(text)
        try:
            unpack(manifest(data[:8], stored), None)
            good += 1
        except (CorruptRecord, FormatError):
            pass
    assert 1 <= good < len(broken) // 2
