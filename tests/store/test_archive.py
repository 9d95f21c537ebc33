"""The archive file: what goes in comes out, ranges, sizes, and that damage and hostile files are found."""

from __future__ import annotations

import hashlib
import random
import struct
import time
import tracemalloc
import uuid
from collections.abc import Sequence
from dataclasses import replace

import pytest
from conformance import records as any_record
from group_coder import ZstdCoder, coded, decoded
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf.errors import CorruptRecord, FormatError, NbmfError, PolicyError
from nbmf.store import archive as format
from nbmf.store import archive_writer
from nbmf.store.address import Address, address, flat, unflat
from nbmf.store.archive import TRAILER_SIZE, Archive
from nbmf.store.archive_writer import Writer
from nbmf.store.base import Record, within
from nbmf.store.columns import Reader, put_keys, put_numbers, put_sorted, put_texts
from nbmf.store.keys import DataKey

NOW = 1_760_000_000_000  # ms
BUDGET = 1 << 24
KEY = DataKey(b"k" * 32)


def ordered(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda record: address(record.namespace, record.key))


def build(
    records: Sequence[Record], block_size: int = 2000, seal: DataKey | None = None, primer_size: int = 1500
) -> bytes:
    writer = Writer(ZstdCoder(), seal, block_size, primer_size=primer_size)
    for record in ordered(records):
        writer.add(record)
    return writer.finish().data


def read(data: bytes, seal: DataKey | None = None) -> list[Record]:
    """Everything, by way of every check."""
    archive = Archive(data, len(data), seal)
    assert list(archive.verify(data)) == []
    return [archive.record(number, blob) for number, blob in enumerate(decoded(archive, data))]


def blocks_of(data: bytes, seal: DataKey | None = None) -> list[bytes]:
    """What the coder wrote."""
    return coded(Archive(data, len(data), seal), data)


def sample(count: int, seed: int = 1) -> list[Record]:
    at = random.Random(seed)
    out = []
    for i in range(count):
        key = str(uuid.UUID(int=at.getrandbits(128), version=4)) if i % 2 else f"note-{i}"
        out.append(
            Record(
                ("acme", f"user-{at.randrange(7)}"),
                key,
                b"\0\0\0" + at.choice([b"likes tea", b"prefers the early train", b"n"]) * at.randrange(1, 9),
                cls=at.choice(["fact", "chat"]),
                fidelity=at.choice(["lossless", "semantic"]),
                created=NOW + i * 1000,
                updated=NOW + i * 1000 + at.choice([0, 0, 777]),
                expires=at.choice([None, NOW + 10**9]),
                ttl=at.choice([None, 10**6]),
                meta=at.choice([b"", b'{"source":"mail"}']),
                code=at.choice([b"", at.randbytes(16)]),
            )
        )
    return out


# -- columns -----------------------------------------------------------------------------------------------------------

numbers = st.integers(-(1 << 60), 1 << 60)
columns = (
    st.lists(numbers)
    | st.lists(st.integers(-3, 3))
    | st.tuples(numbers, st.integers(-9, 9), st.integers(0, 40)).map(
        lambda of: [of[0] + of[1] * i for i in range(of[2])]
    )
    | st.tuples(st.lists(st.integers(0, 300)), st.sampled_from([1000, 1 << 40])).map(
        lambda of: [n * of[1] for n in of[0]]
    )
)


@given(columns)
def test_any_numbers(values: list[int]) -> None:
    out = bytearray()
    put_numbers(out, values)
    reader = Reader(bytes(out), BUDGET)
    assert reader.numbers(len(values)).tolist() == values
    assert reader.at == len(out)


@given(st.lists(st.binary(max_size=40), max_size=50))
def test_any_texts(texts: list[bytes]) -> None:
    out = bytearray()
    put_texts(out, texts)
    put_sorted(out, texts)
    reader = Reader(bytes(out), BUDGET)
    assert reader.texts(len(texts)) == texts and reader.sorted(len(texts)) == texts


hexes = st.binary(min_size=16, max_size=16).map(bytes.hex)
any_key = (
    hexes
    | hexes.map(str.upper)
    | st.uuids().map(str)
    | st.uuids().map(lambda id: str(id).upper())
    | st.text(max_size=40)
    | st.sampled_from(["-" * 36, "0" * 36, "0" * 31 + " ", "0" * 31 + "é", "a" * 32, "0" * 8 + "-" + "0" * 27])
)


@given(st.lists(any_key, max_size=60))
def test_any_keys(keys: list[str]) -> None:
    raws = [key.encode() for key in keys]
    out = bytearray()
    put_keys(out, raws)
    assert Reader(bytes(out), BUDGET).keys(len(raws)) == raws


def test_what_columns_cost() -> None:
    """Numbers of even steps cost nothing; random UUIDs less than their 16 bytes; counters two or three."""

    def cost(put: object, values: Sequence[object]) -> float:
        out = bytearray()
        put(out, values)  # type: ignore[operator]
        return len(out) / len(values)

    at = random.Random(5)
    ids = sorted(str(uuid.UUID(int=at.getrandbits(128), version=4)).encode() for _ in range(1024))
    assert cost(put_numbers, range(NOW, NOW + 1024 * 60_000, 60_000)) < 0.02
    assert cost(put_numbers, [at.randrange(200) * 1000 for _ in range(1024)]) < 1.02
    assert cost(put_keys, ids) < 14.6
    assert cost(put_keys, [f"message-{i:05}".encode() for i in range(1024)]) < 1


# -- addresses ---------------------------------------------------------------------------------------------------------


@given(any_record, any_record)
def test_what_is_below_a_namespace_is_a_range(a: Record, b: Record) -> None:
    assert unflat(flat(a.namespace)) == a.namespace
    for depth in range(len(b.namespace) + 1):
        prefix = b.namespace[:depth]
        inside = flat(prefix) <= flat(a.namespace) < flat(prefix) + b"\xff"
        assert inside == within(a.namespace, prefix)


def test_a_zero_byte_cannot_stand_for_a_border() -> None:
    with pytest.raises(PolicyError):
        flat(("a\0b",))


# -- the file ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(any_record, min_size=1, max_size=30, unique_by=lambda record: (record.namespace, record.key)),
    st.sampled_from([1, 300, 16_384]),
    st.sampled_from([None, KEY]),
    st.sampled_from([0, 1, 200]),
)
def test_any_records(records: list[Record], block_size: int, seal: DataKey | None, primer_size: int) -> None:
    found = read(build(records, block_size, seal, primer_size), seal)
    assert found == [replace(record, codec="") for record in ordered(records)]


def test_records_are_found_and_only_those() -> None:
    records = sample(3000)
    data = build(records)
    archive = Archive(data, len(data))
    assert len(archive.blocks) > 20
    in_order = sorted(address(record.namespace, record.key) for record in records)
    assert [Address(namespace, key) for namespace, key, _ in archive.addresses(0, 3000)] == in_order
    at = random.Random(2)
    for i in [0, 1, 1023, 1024, 1025, 2999, *at.sample(range(3000), 200)]:
        assert archive.at(i) == in_order[i]
        assert archive.place(in_order[i]) == (i, True)
        assert archive.place(Address(in_order[i].namespace, in_order[i].key + b"\0")) == (i + 1, False)
        block = archive.blocks[archive.block_of(i)]
        assert block.first <= i < block.first + block.records
    assert archive.place(Address(b"", b"")) == (0, False)
    assert archive.place(Address(b"zzz\0", b"")) == (3000, False)
    assert archive.place(Address(flat(("acme",)), b"k")) == (0, False)
    assert archive.span(b"") == archive.span(flat(("acme",))) == (0, 3000)
    assert archive.span(flat(("acme", "user"))) in {(0, 0), (3000, 3000)}
    spans = [archive.span(flat(("acme", f"user-{i}"))) for i in range(7)]
    assert [(start, end) for _, start, end in archive.spaces(b"")] == spans
    assert (spans[0][0], spans[-1][1]) == (0, 3000)


def test_one_read_for_the_index_and_two_for_a_record() -> None:
    """What a reader needs lies together: the index and the trailer at the end, and two blocks."""
    records = sample(500)
    writer = Writer(ZstdCoder(), block_size=2000, primer_size=1000)
    for record in ordered(records):
        writer.add(record)
    built = writer.finish()
    archive = Archive(built.data[-built.index :], len(built.data))
    number, found = archive.place(address(records[7].namespace, records[7].key))
    first, block = archive.blocks[0], archive.blocks[archive.block_of(number)]
    one, two = (
        archive.open_block(i, built.data[at.start : at.start + at.length])
        for i, at in ((0, first), (archive.block_of(number), block))
    )
    blobs = ZstdCoder().decode(two, block.records, lambda: ZstdCoder().decode(one, first.records))
    assert block != first and found
    assert archive.record(number, blobs[number - block.first]) == records[7]


def test_every_block_but_the_first_follows_it() -> None:
    """And is smaller for that, and read with nothing else."""
    records = ordered(sample(600))
    data, alone = build(records), build(records, primer_size=0)
    archive, blocks = Archive(data, len(data)), blocks_of(data)
    assert [ZstdCoder().follows(block) for block in blocks] == [False, *[True] * (len(blocks) - 1)]
    assert not any(map(ZstdCoder().follows, blocks_of(alone)))
    assert archive.blocks[0].raw <= 1500 < max(block.raw for block in archive.blocks[1:]) <= 2000
    assert len(data) < len(alone)
    wrong = [[], [record.blob for record in records[1:]], [record.blob for record in records[: len(records) // 2]]]
    for known in wrong:
        with pytest.raises(CorruptRecord, match="other records"):
            ZstdCoder().decode(blocks[1], archive.blocks[1].records, lambda known=known: known)


@pytest.mark.parametrize(("first", "follow"), [(1500, True), (1501, False), (9000, False)])
def test_nothing_follows_a_first_record_that_is_too_large(first: int, follow: bool) -> None:
    """It would have to be decoded for each of the others."""
    records = [Record(("a",), f"{i}", random.Random(i).randbytes(first if i == 0 else 900)) for i in range(9)]
    data = build(records)
    assert Archive(data, len(data)).blocks[0].records == 1
    assert read(data) == records
    assert [ZstdCoder().follows(block) for block in blocks_of(data)[1:]] == [follow] * 4


def test_a_block_larger_than_others_follows_too() -> None:
    records = [Record(("a",), f"{i}", random.Random(i).randbytes(9000 if i == 5 else 900)) for i in range(9)]
    data = build(records)
    assert read(data) == records
    assert all(map(ZstdCoder().follows, blocks_of(data)[1:]))
    assert max(block.raw for block in Archive(data, len(data)).blocks) == 9000


def copied(data: bytes, writer: Writer, records: Sequence[Record]) -> list[int]:
    """The numbers of the blocks that a writer takes from a sealed archive. It gets the records of the others."""
    old, blocks = Archive(data, len(data), KEY), blocks_of(data, KEY)
    out = []
    for i, block in enumerate(old.blocks):
        mine = records[block.first :][: block.records]
        if writer.takes(old, i, blocks[i], lambda: blocks[0]):
            if len(writer):  # only the first block's blobs are looked at
                mine = [replace(record, blob=b"") for record in mine]
            writer.copy(mine, blocks[i], block.raw)
            out.append(i)
        else:
            for record in mine:
                writer.add(record)
    return out


def test_copied_blocks_are_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    records = ordered(sample(200))
    data = build(records, seal=KEY)
    writer = Writer(ZstdCoder(), KEY, 2000, primer_size=1500)
    monkeypatch.setattr(ZstdCoder, "encode", lambda *_: pytest.fail("a copied block is not coded again"))
    assert copied(data, writer, records) == [0, 1, 2, 3, 4, 5]
    assert read(writer.finish().data, KEY) == records


@pytest.mark.parametrize(
    ("before", "block_size", "primer_size", "expected"),
    [
        ("nothing", 2000, 1500, "all"),
        ("nothing", 2000, 0, "all"),  # what follows may be copied still, with what it follows
        ("nothing", 2000, 1000, "none"),  # the first block is too large for a primer
        ("nothing", 9000, 1500, "the first"),  # the others are small now
        ("another", 2000, 1500, "none"),  # they would follow what they do not know
        ("another", 2000, 0, "the first"),
    ],
)
def test_which_blocks_may_be_copied(before: str, block_size: int, primer_size: int, expected: str) -> None:
    """A block that follows another stands only where that is the first; and what is copied or not, all is read."""
    records = ordered(sample(200))
    data = build(records, seal=KEY)
    count = len(blocks_of(data, KEY))
    writer = Writer(ZstdCoder(), KEY, block_size, primer_size=primer_size)
    other = Record(("aa",), "k", b"x" * 1400)
    if before == "another":
        writer.add(other)
    found = copied(data, writer, records)
    assert found == {"all": list(range(count)), "the first": [0], "none": []}[expected]
    new = writer.finish().data
    assert read(new, KEY) == [other, *records] if before == "another" else read(new, KEY) == records


def test_blocks_that_stand_alone_may_be_copied_anywhere() -> None:
    """Those of a writer without primers only by another such: with one they would be smaller."""
    records = ordered(sample(200))
    data = build(records, seal=KEY, primer_size=0)
    count = len(blocks_of(data, KEY))
    for primer_size, expected in ((0, list(range(count))), (1500, [])):
        writer = Writer(ZstdCoder(), KEY, 2000, primer_size=primer_size)
        writer.add(Record(("aa",), "k", b"x" * 1400))
        assert copied(data, writer, records) == expected
        assert read(writer.finish().data, KEY)[1:] == records


def test_large_records_are_copied_anywhere() -> None:
    class Alone(ZstdCoder):
        """As a coder does that leaves what is too large for it alone."""

        def encode(self, records: Sequence[tuple[str, bytes]], after: Sequence[tuple[str, bytes]] = ()) -> bytes:
            return super().encode(records, () if len(records[0][1]) > 5000 else after)

    records = [Record(("a",), f"{i}", random.Random(i).randbytes(9000 if i in (0, 4, 5) else 900)) for i in range(9)]
    data = build(records, seal=KEY)
    writer = Writer(Alone(), KEY, 2000, primer_size=1500)
    writer.add(Record(("0",), "k", b"x" * 1400))
    blocks = Archive(data, len(data), KEY).blocks
    assert [blocks[i].raw for i in copied(data, writer, records)] == [9000] * 3
    assert read(writer.finish().data, KEY)[1:] == records


def test_another_coders_blocks_are_not_copied() -> None:
    class Later(ZstdCoder):
        id = "3e" * 32

    records = ordered(sample(200))
    writer = Writer(Later(), KEY, 2000, primer_size=1500)
    assert copied(build(records, seal=KEY), writer, records) == []
    assert read(writer.finish().data, KEY) == records


def test_overhead_per_record_is_small() -> None:
    """All but the blocks, of 2,000 records of 200 namespaces, a time of its own each."""
    at = random.Random(3)
    for short, most in ((True, 8), (False, 20)):
        writer = Writer(ZstdCoder())
        records = []
        for i in range(2000):
            key = f"turn-{i}" if short else str(uuid.UUID(int=at.getrandbits(128), version=4))
            when = NOW + at.randrange(10**8)
            blob = at.randbytes(60)
            records.append(
                Record(("acme", f"user-{at.randrange(200)}"), key, blob, "ab", "chat", "lossless", when, when)
            )
        for record in sorted(records, key=lambda record: address(record.namespace, record.key)):
            writer.add(record)
        built = writer.finish()
        archive = Archive(built.data, len(built.data))
        assert (len(built.data) - sum(block.length for block in archive.blocks)) / 2000 < most


def test_a_writer_refuses_what_it_cannot_keep() -> None:
    writer = Writer(ZstdCoder())
    writer.add(Record(("b",), "k", b""))
    for record in (Record(("b",), "k", b""), Record(("a",), "k", b"")):
        with pytest.raises(ValueError, match="order"):
            writer.add(record)
    for record in (
        Record(("c",), "k", b"", created=1 << 62),
        Record(("c",), "k", b"", expires=-(1 << 62)),
        Record(("c",), "k", b"", fidelity="rough"),
        Record(("c",), "k", b"", meta=bytes(archive_writer.FIELD_MOST + 1)),
    ):
        with pytest.raises(PolicyError):
            writer.add(record)
    assert len(writer) == 1


def test_an_archive_has_an_end() -> None:
    writer = Writer(ZstdCoder())
    big = bytes(archive_writer.BLOBS_MOST // 4)
    for i in range(4):
        assert not writer.full
        writer.add(Record(("a",), f"{i}", big))
    assert writer.full


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seal", [None, KEY], ids=["open", "sealed"])
def test_every_flipped_bit_is_found(seal: DataKey | None) -> None:
    data = build(sample(30), 500, seal)
    for i in range(len(data)):
        broken = bytearray(data)
        broken[i] ^= 1 << i % 8
        with pytest.raises((NbmfError, AssertionError)):
            read(bytes(broken), seal)


def test_every_cut_is_found() -> None:
    data = build(sample(30), 500)
    for i in range(len(data)):
        for broken in (data[:i], data[i + 1 :], data[:i] + data[i + 1 :]):
            with pytest.raises((CorruptRecord, FormatError, AssertionError)):
                read(broken)


def test_a_block_in_another_place_is_found() -> None:
    records = [Record(("a",), f"{i}", random.Random(i).randbytes(150)) for i in range(4)]
    data = bytearray(build(records, 100, primer_size=100))
    archive = Archive(bytes(data), len(data))
    one, two = archive.blocks[1], archive.blocks[2]
    assert one.length == two.length
    data[one.start : one.start + one.length], data[two.start : two.start + two.length] = (
        data[two.start : two.start + two.length],
        data[one.start : one.start + one.length],
    )
    assert [fault.split(":")[0] for fault in archive.verify(bytes(data))] == ["block 1", "block 2"]


def test_another_key_opens_nothing() -> None:
    data = build(sample(5), seal=KEY)
    with pytest.raises(CorruptRecord):
        Archive(data, len(data), DataKey(b"x" * 32))
    with pytest.raises(PolicyError, match="no key"):
        Archive(data, len(data))
    with pytest.raises(PolicyError, match="not sealed"):
        plain = build(sample(5))
        Archive(plain, len(plain), KEY)


def test_nothing_is_readable_in_a_sealed_archive() -> None:
    record = Record(("tenant-acme", "ann"), "secret-key", b"secret blob", "", "secret class", meta=b"secret meta")
    sealed, plain = build([record], seal=KEY), build([record])
    for word in (b"secret", b"acme", b"ann\0"):
        assert word not in sealed and word in plain


@pytest.mark.parametrize(
    ("offset", "value", "error"),
    [(4, 2, "read version 2"), (6, 3, "reserved"), (7, 0x80, "reserved"), (0, 0x4D, "not an archive")],
)
def test_versions_and_reserved_bits(offset: int, value: int, error: str) -> None:
    data = bytearray(build(sample(3)))
    for start in (0, len(data) - TRAILER_SIZE):
        data[start + offset] = value
    with pytest.raises(FormatError, match=error):
        read(rechecked(bytes(data)))


def test_a_later_writer_is_still_read() -> None:
    data = bytearray(build(sample(3)))
    for start in (0, len(data) - TRAILER_SIZE):
        data[start + 5] = 9
    again = rechecked(bytes(data))
    assert len(read(again)) == 3
    assert Archive(again, len(again)).write_version == 9


# -- hostile files: every check is right, what it covers is not --------------------------------------------------------


def rechecked(data: bytes, index: bytes | None = None) -> bytes:
    """With another index, and the trailer's checks as they must be."""
    trailer = data[-TRAILER_SIZE:-8]
    header, id, count, start, length, _ = struct.unpack("<8s16sIQQ16s", trailer)
    if index is None:
        index = data[start : start + length]
    check = hashlib.blake2b(index, digest_size=16).digest()
    trailer = struct.pack("<8s16sIQQ16s", header, id, count, start, len(index), check)
    return data[:start] + index + trailer + hashlib.blake2b(trailer, digest_size=8).digest()


def test_hostile_indexes_end_in_an_error_soon_and_in_little_memory() -> None:
    data = build(sample(100), 500)
    start, length = struct.unpack("<QQ", data[-TRAILER_SIZE + 28 : -TRAILER_SIZE + 44])
    index = data[start : start + length]
    at = random.Random(4)
    outcomes = {"read": 0, "refused": 0}
    tracemalloc.start()
    began = time.process_time()
    for _ in range(500):
        broken = bytearray(index)
        for _ in range(at.choice([1, 1, 2, 5])):
            where = at.randrange(len(broken))
            match at.randrange(4):
                case 0:
                    broken[where] ^= 1 << at.randrange(8)
                case 1:
                    broken[where : where + at.randrange(1, 9)] = b"\xff" * at.randrange(10)
                case 2:
                    del broken[where : where + at.randrange(1, 20)]
                case _:
                    broken[where] = at.choice([0, 1, 0x7F, 0x80, 0xFF])
        try:
            archive = Archive(hostile := rechecked(data, bytes(broken)), len(hostile))
            list(archive.verify(hostile))
            outcomes["read"] += 1
        except NbmfError:
            outcomes["refused"] += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - began < 60
    assert peak < 4 * format.PART_MOST
    assert outcomes["read"] and outcomes["refused"]
