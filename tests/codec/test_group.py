"""Groups of records: exact, smaller than the records apart, and refused when damaged."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import by_kernel, same, short_values

from nbmf import samples
from nbmf.codec import kernel
from nbmf.codec.codec import Codec
from nbmf.codec.group import RECORDS_MOST, NeuralGroups
from nbmf.errors import CorruptRecord, FormatError, NbmfError

CODEC = Codec()
GROUPS = NeuralGroups(CODEC, lambda _id: CODEC)
SAMPLES = [sample.value for sample in samples.load()][: by_kernel(24, 6)]


def encoded(values: list[Any]) -> list[tuple[str, bytes]]:
    return [(CODEC.id, CODEC.encode(value, bare=True)) for value in values]


def decoded(group: bytes, count: int) -> list[Any]:
    return [CODEC.decode(blob, bare=True) for blob in GROUPS.decode(group, count)]


def test_samples_come_back_in_fewer_bytes() -> None:
    records = encoded(SAMPLES)
    group = GROUPS.encode(records)
    assert all(same(a, b) for a, b in zip(decoded(group, len(SAMPLES)), SAMPLES, strict=True))
    assert len(group) < sum(len(blob) for _, blob in records) * by_kernel(95, 99) / 100


@settings(max_examples=by_kernel(25, 4), deadline=None)
@given(st.lists(short_values, min_size=1, max_size=5))
def test_any_values_come_back(records: list[Any]) -> None:
    group = GROUPS.encode(encoded(records))
    assert all(same(a, b) for a, b in zip(decoded(group, len(records)), records, strict=True))


@pytest.mark.skipif(kernel.backend != "c", reason="a quarter of a megabyte takes the reference minutes")
def test_what_a_stream_cannot_hold_is_kept_as_blobs() -> None:
    records = ["long " * 60_000, "", b"\xff\x00" * 30, {"a": 1}]
    group = GROUPS.encode(encoded(records))
    assert group[0] == 2
    assert decoded(group, len(records)) == records


@pytest.mark.parametrize("version", [1, 2])
def test_damage_is_an_error_or_no_change(version: int) -> None:
    records = SAMPLES[:6]
    blobs = encoded(records)
    lengths = [bytes([len(blob) & 127 | 128, len(blob) >> 7]) for _, blob in blobs]
    group = GROUPS.encode(blobs)
    if version == 2:
        group = b"\2" + b"".join(length + blob for length, (_, blob) in zip(lengths, blobs, strict=True))
    step = max(1, len(group) // by_kernel(60, 6))
    for at in range(0, len(group), step):
        damaged = group[:at] + bytes([group[at] ^ 1 << at % 8]) + group[at + 1 :]
        try:
            found = decoded(damaged, len(records))
        except NbmfError:
            continue
        assert found == records
    for cut in range(0, len(group) - 3, step):
        with pytest.raises(NbmfError):
            GROUPS.decode(group[:cut], len(records))


def test_a_group_that_follows_another() -> None:
    first, second = encoded(SAMPLES[:4]), encoded(SAMPLES[1:3])
    alone, after = GROUPS.encode(second), GROUPS.encode(second, first)
    assert GROUPS.follows(after) and not GROUPS.follows(alone) and len(after) < len(alone)
    known = GROUPS.decode(GROUPS.encode(first), 4)
    found = [CODEC.decode(blob, bare=True) for blob in GROUPS.decode(after, 2, lambda: known)]
    assert all(same(a, b) for a, b in zip(found, SAMPLES[1:3], strict=True))
    with pytest.raises(CorruptRecord):
        GROUPS.decode(after, 2, lambda: known[:3])
    assert GROUPS.decode(alone, 2, lambda: pytest.fail("it follows nothing")) == GROUPS.decode(after, 2, lambda: known)


def test_wrong_counts_and_versions() -> None:
    group = GROUPS.encode(encoded(SAMPLES[:3]))
    for count in (0, 2, 4, RECORDS_MOST + 1):
        with pytest.raises(NbmfError):
            GROUPS.decode(group, count)
    with pytest.raises(FormatError):
        GROUPS.decode(b"\4" + group[1:], 3)
    with pytest.raises(FormatError):
        GROUPS.decode(b"\1\2" + group[2:], 3)
    with pytest.raises(FormatError):
        GROUPS.encode([])
    with pytest.raises(CorruptRecord):
        GROUPS.decode(b"\2\xff\xff\xff\xff\xff\xff", 1)
