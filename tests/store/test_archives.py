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
from group_coder import ZstdCoder, coded, decoded
from s3_server import new_bucket, s3, s3_server

from nbmf import samples
from nbmf.codec import kernel
from nbmf.codec.codec import Codec
from nbmf.codec.group import NeuralGroups
from nbmf.errors import CorruptRecord, FormatError, NbmfError, PolicyError, StoreError, UnknownModel
from nbmf.store.address import unflat
from nbmf.store.archive import Archive, Seal
from nbmf.store.archive_writer import Writer
from nbmf.store.archives import ArchiveTier
from nbmf.store.base import Delete, Fault, Forget, Op, Put, Record, Tier
from nbmf.store.keys import DataKey
from nbmf.store.manifest import NAME, Listed, unpack
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
                texts += [repr(archive.record(i, blob)).encode() for i, blob in enumerate(decoded(archive, raw))]
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
        return InDirectory(tmp_path, seals=True, block_size=500, primer_size=300, cache_size=400_000)


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
    """With a `block_size`, the first block has as much, unless told otherwise."""
    objects = Directory(root) if isinstance(root, Path) else root
    if "block_size" in options:
        options.setdefault("primer_size", options["block_size"])
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


def blocks(path: Path) -> list[bytes]:
    """What the coder wrote as each block of an archive."""
    data = path.read_bytes()
    return coded(Archive(data, len(data)), data)


class Counting(ZstdCoder):
    """Knows the records of every block that it has coded."""

    def __init__(self) -> None:
        self.coded: list[int] = []

    def encode(self, records: Sequence[tuple[str, bytes]], after: Sequence[tuple[str, bytes]] = ()) -> bytes:
        self.coded.append(len(records))
        return super().encode(records, after)


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


def test_a_get_is_one_read_once_index_and_first_block_are_known(tmp_path: Path) -> None:
    records = sample(2000)
    with closing(open_tier(tmp_path, block_size=10_000, primer_size=5000)) as tier:
        tier.batch([Put(record) for record in records])
        last = list(tier.scan())[-1]
    watched = Watched(tmp_path)
    with closing(open_tier(watched)) as tier:
        tier.get(("acme", "user-0"), "none", NOW)
        assert len(watched.reads) == 1
        watched.reads.clear()
        assert tier.get(last.namespace, last.key, NOW) == last
        assert len(watched.reads) == 2 and sum(size for _, size in watched.reads) < 20_000
        at = random.Random(1)
        for record in at.sample(records, 50):
            watched.reads.clear()
            assert tier.get(record.namespace, record.key, NOW) == record
            assert len(watched.reads) <= 1 and sum(size for _, size in watched.reads) < 15_000
        watched.reads.clear()
        assert len(list(tier.scan(("acme",)))) == 2000
        assert len(watched.reads) <= 9


@pytest.mark.parametrize("primer_size", [0, 300, 2000])
def test_with_next_to_no_cache_all_is_read(tmp_path: Path, primer_size: int) -> None:
    records = sample(150)
    with closing(open_tier(tmp_path, block_size=1000, primer_size=primer_size, cache_size=1)) as tier:
        tier.batch([Put(record) for record in records])
        assert sum(map(ZstdCoder().follows, blocks(archives(tmp_path)[0]))) > 5 or not primer_size
        assert everything(tier) == set(records)
        for record in records[::29]:
            assert tier.get(record.namespace, record.key, NOW) == record
        tier.delete(records[75].namespace, records[75].key)
        tier.compact()
        assert everything(tier) == set(records) - {records[75]}


def test_what_is_kept_in_memory_has_a_bound(tmp_path: Path) -> None:
    with closing(open_tier(tmp_path, cache_size=200_000)) as tier:
        for i in range(20):
            tier.batch([Put(record) for record in sample(200, f"t{i}", 500)])
        everything(tier)
        cache = tier._shelf._cache
        assert 0 < cache._cost <= 200_000
        assert cache._cost == sum(cost for _, cost in cache._held.values())


@pytest.mark.parametrize("primer_size", [0, 1000])
def test_compact_copies_what_is_whole_and_codes_the_rest(tmp_path: Path, primer_size: int) -> None:
    coder, records = Counting(), sample(1000)
    with closing(open_tier(tmp_path, coder=coder, block_size=2000, primer_size=primer_size)) as tier:
        tier.batch([Put(record) for record in records])
        order = list(tier.scan())
        old, count = blocks(archives(tmp_path)[0]), len(coder.coded)
        assert count > 25
        coder.coded.clear()
        tier.delete(order[500].namespace, order[500].key)
        before = archives(tmp_path)
        tier.compact()
        assert len(coder.coded) <= 2  # the block that lost a record, and the last, if it is small
        assert everything(tier) == set(records) - {order[500]}
        assert len(archives(tmp_path)) == 1 and archives(tmp_path) != before
        assert len(set(old) & set(blocks(archives(tmp_path)[0]))) >= count - 2
        before = archives(tmp_path)
        tier.compact()
        assert archives(tmp_path) == before


def test_when_the_first_block_loses_a_record_all_are_coded_anew(tmp_path: Path) -> None:
    coder, records = Counting(), sample(1000)
    with closing(open_tier(tmp_path, coder=coder, block_size=2000, primer_size=1000)) as tier:
        tier.batch([Put(record) for record in records])
        order = list(tier.scan())
        old = blocks(archives(tmp_path)[0])
        coder.coded.clear()
        tier.delete(order[3].namespace, order[3].key)
        tier.compact()
        new = blocks(archives(tmp_path)[0])
        assert sum(coder.coded) == 999 and not set(old) & set(new)
        assert [coder.follows(block) for block in new] == [False, *[True] * (len(new) - 1)]
        assert everything(tier) == set(records) - {order[3]} and list(tier.check()) == []


def test_what_is_merged_follows_the_first_block_of_all(tmp_path: Path) -> None:
    """That of the archive with the lowest addresses is copied, with what follows it; the rest is coded anew."""
    coder = Counting()
    records = [rec(f"{n:05}", blob=random.Random(n).randbytes(60), codec="") for n in range(600)]
    one, two = records[:300], records[300:]
    with closing(open_tier(tmp_path, coder=coder, block_size=2000, primer_size=1000)) as tier:
        tier.batch([Put(record) for record in one])
        old = blocks(archives(tmp_path)[0])
        tier.batch([Put(record) for record in two])
        coder.coded.clear()
        tier.compact()
        assert len(archives(tmp_path)) == 1
        new = blocks(archives(tmp_path)[0])
        assert new[: len(old) - 1] == old[:-1]
        assert 300 <= sum(coder.coded) <= 330
        assert [coder.follows(block) for block in new] == [False, *[True] * (len(new) - 1)]
        assert everything(tier) == set(records)


def test_large_archives_keep_their_first_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewritten at the same time they are not merged, or all of the second would be coded anew."""
    monkeypatch.setattr("nbmf.store.archives.MERGE_RECORDS", 200)
    coder = Counting()
    records = [rec(f"{n:05}", blob=random.Random(n).randbytes(60), codec="") for n in range(600)]
    one, two = records[:300], records[300:]
    with closing(open_tier(tmp_path, coder=coder, block_size=2000, primer_size=1000)) as tier:
        for part in (one, two):
            tier.batch([Put(record) for record in part])
            tier.delete(part[150].namespace, part[150].key)
        old = {block for path in archives(tmp_path) for block in blocks(path)}
        coder.coded.clear()
        tier.compact()
        assert len(archives(tmp_path)) == 2
        new = {block for path in archives(tmp_path) for block in blocks(path)}
        assert len(old - new) <= 4 and len(coder.coded) <= 4
        assert everything(tier) == set(records) - {one[150], two[150]}


@pytest.mark.parametrize("rounds", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_whatever_is_rewritten_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """Archives that overlap or not, large and small ones, with the sizes of blocks changing."""
    monkeypatch.setattr("nbmf.store.archives.MERGE_RECORDS", 60)
    monkeypatch.setattr("nbmf.store.archives.AHEAD", 3000)
    monkeypatch.setattr("nbmf.store.archive_writer.RECORDS_MOST", 512 + 250)
    at = random.Random(rounds)
    expected: dict[tuple[Any, str], Record] = {}
    for _ in range(rounds):
        sizes = {"block_size": at.choice([400, 1500]), "primer_size": at.choice([0, 300, 900])}
        with closing(open_tier(tmp_path, **sizes, cache_size=at.choice([1, 10**7]))) as tier:
            for _ in range(at.randrange(1, 4)):
                start, step = at.randrange(1000), at.choice([1, 1, 7])
                new = [
                    rec(f"{n:05}", ("acme", f"{n // 90}"), at.randbytes(at.choice([0, 9, 60, 60, 950])), codec="")
                    for n in range(start, start + at.choice([10, 150]) * step, step)
                ]
                tier.batch([Put(record) for record in new])
                expected |= {(record.namespace, record.key): record for record in new}
            for gone in at.sample(sorted(expected), at.choice([0, 1, 30])):
                tier.delete(*gone)
                del expected[gone]
            if at.randrange(3) == 0:
                space = ("acme", f"{at.randrange(12)}")
                tier.batch([Forget(space)])
                expected = {of: record for of, record in expected.items() if of[0] != space}
            if at.randrange(3):
                tier.compact()
            assert everything(tier) == set(expected.values())
            assert list(tier.check()) == []
            for path in archives(tmp_path):
                data = path.read_bytes()
                assert len(decoded(Archive(data, len(data)), data)) <= 762


@pytest.mark.skipif(kernel.backend != "c", reason="the reference takes a minute")
def test_the_neural_coder_does_all_this_too(tmp_path: Path) -> None:
    codec = Codec()
    coder = NeuralGroups(codec, lambda id: codec)
    values = [sample.value for sample in samples.load()][:80]
    records = [rec(f"{i:02}", blob=codec.encode(value, bare=True), codec=codec.id) for i, value in enumerate(values)]
    options = {"coder": coder, "block_size": 1500, "size": lambda id, blob: len(codec.raw(blob, bare=True)[1])}

    def found(tier: ArchiveTier) -> list[Any]:
        assert list(tier.check()) == []
        return [codec.decode(record.blob, bare=True) for record in tier.scan()]

    with closing(open_tier(tmp_path / "alone", **options, primer_size=0)) as tier:
        tier.batch([Put(record) for record in records])
        alone = tier.sizes()["blocks"]
    with closing(open_tier(tmp_path, **options, primer_size=1500)) as tier:
        tier.batch([Put(record) for record in records[:60]])
        tier.batch([Put(record) for record in records[60:]])
        assert found(tier) == values
        tier.compact()
        assert found(tier) == values and tier.sizes()["blocks"] < alone
        old = blocks(next(tmp_path.glob("archives/*")))
        assert [coder.follows(block) for block in old] == [False, *[True] * (len(old) - 1)] and len(old) > 5
        for gone, copied in ((50, len(old) - 3), (1, 0)):
            tier.delete(records[gone].namespace, records[gone].key)
            del values[gone]
            tier.compact()
            assert found(tier) == values
            assert len(set(old) & set(blocks(next(tmp_path.glob("archives/*"))))) >= copied
        assert not set(old) & set(blocks(next(tmp_path.glob("archives/*"))))


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
    monkeypatch.setattr("nbmf.store.archive_writer.RECORDS_MOST", 1000)
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
        def encode(self, records: Sequence[tuple[str, bytes]], after: Sequence[tuple[str, bytes]] = ()) -> bytes:
            raise CorruptRecord("what was coded is not what came")

    with closing(open_tier(tmp_path, coder=Failing())) as tier:
        with pytest.raises(CorruptRecord, match="what was coded"):
            tier.batch([Put(record) for record in sample(10)])
        assert everything(tier) == set() and archives(tmp_path) == []


# -- damage ------------------------------------------------------------------------------------------------------------


def test_every_flipped_byte_of_every_object_is_found(tmp_path: Path) -> None:
    """By `check`, and by whoever reads what is broken: an error, or what was put, and never anything else."""
    records = sample(8, size=10)
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


@pytest.mark.parametrize("broken", [0, 3])
def test_a_broken_block_is_named(tmp_path: Path, broken: int) -> None:
    """And takes the others with it if it is the first, which they follow."""
    records = sample(200)
    with closing(open_tier(tmp_path, block_size=2000)) as tier:
        tier.batch([Put(record) for record in records])
        order = list(tier.scan())
    path = archives(tmp_path)[0]
    data = bytearray(path.read_bytes())
    archive = Archive(bytes(data), len(data))
    data[archive.blocks[broken].start] ^= 1
    path.write_bytes(data)
    with closing(open_tier(tmp_path)) as tier:
        with pytest.raises(CorruptRecord, match=f"archive {path.stem}: block {broken}: its check is wrong"):
            list(tier.scan())
        assert list(tier.check()) == [Fault(f"archives/{path.name}", f"block {broken}: its check is wrong")]
        for number, record in enumerate(order):
            if broken == 0 or archive.block_of(number) == broken:
                with pytest.raises(CorruptRecord, match=f"archive {path.stem}: block {broken}: its check is wrong"):
                    tier.get(record.namespace, record.key, NOW)
            else:
                assert tier.get(record.namespace, record.key, NOW) == record


def forged(root: Path, first: Sequence[Record], others: Sequence[bytes], count: int) -> list[Record]:
    """An archive of these records and blocks with right checks, in the place of the tier's only one. Its records."""
    path = archives(root)[0]
    writer = Writer(ZstdCoder(), block_size=2000, primer_size=2000)
    for record in first:
        writer.add(record)
    more = [rec(f"z{i:05}", ("acme", "zz"), b"", codec="") for i in range(count * len(others))]
    for i, block in enumerate(others):
        writer.copy(more[i * count : (i + 1) * count], block, 2000)
    built = writer.finish()
    (root / "archives" / f"{built.id}.nba").write_bytes(built.data)
    path.unlink()
    listed = Listed(built.id, "acme", len(built.data), built.index, built.count, built.first, built.last, None)
    (root / NAME).write_bytes(unpack((root / NAME).read_bytes(), None).next([listed]).pack(None))
    return more


def test_a_block_after_another_than_it_follows_is_no_record(tmp_path: Path) -> None:
    """Every check of the archive is right; the coder knows better."""
    records = sample(200)
    with closing(open_tier(tmp_path, block_size=2000)) as tier:
        tier.batch([Put(record) for record in records])
        order = list(tier.scan())
    path = archives(tmp_path)[0]
    data, old = path.read_bytes(), blocks(path)
    at = Archive(data, len(data)).blocks
    assert at[1].records == at[2].records
    more = forged(tmp_path, order[1:20], old[1:3], at[1].records)
    with closing(open_tier(tmp_path)) as tier:
        assert tier.get(order[5].namespace, order[5].key, NOW) == order[5]
        for record in (more[0], more[-1]):
            with pytest.raises(CorruptRecord, match=r"archive [0-9a-f]{32}: block [12]: a block follows other records"):
                tier.get(record.namespace, record.key, NOW)


def test_a_first_block_follows_none(tmp_path: Path) -> None:
    records = sample(200)
    with closing(open_tier(tmp_path, block_size=2000)) as tier:
        tier.batch([Put(record) for record in records])
    path = archives(tmp_path)[0]
    data, old = path.read_bytes(), blocks(path)
    more = forged(tmp_path, [], old[1:3], Archive(data, len(data)).blocks[1].records)
    with closing(open_tier(tmp_path)) as tier:
        for record in (more[0], more[-1]):
            with pytest.raises(CorruptRecord, match="block 0: it is the first, and follows another"):
                tier.get(record.namespace, record.key, NOW)
        assert [fault.what for fault in tier.check()] == ["block 0: it is the first, and follows another"]


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
