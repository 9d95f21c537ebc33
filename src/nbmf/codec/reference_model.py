"""Model and pack files -> arrays, checked once so that coding needs no checks. kernel.h and kernel_model.c in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from nbmf.codec.kernel import Buffer
from nbmf.codec.reference_context import KIND, mix64
from nbmf.errors import FormatError

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

# Lists: sparse distributions over the next byte, one per context. Those of the model's line table come first, then the
# ones learned inside the record, then those of a pack's line table.
N_STATIC, N_LOCAL, N_PACK = 12, 8, 8
N_BASE_LISTS: Final = N_STATIC + N_LOCAL
N_LISTS: Final = N_BASE_LISTS + N_PACK
LIST_LEN: Final = 8  # entries of one list: (symbol, weight 0..255)

# Mixer inputs (lanes): int16 logits, first those of the base lists. Lanes without a name stay 0.
LANE_O1, LANE_O2 = 20, 21
LANE_MATCH: Final = 22  # two lanes: expected bit, and the same when the match is long
LANE_PRIMER, LANE_STATE, LANE_BIAS = 24, 26, 31
LANE_PACK, LANE_PACK_PRIMER = 32, 40
LANES_BASE, LANES = 32, 48
SET_BASE: Final = (0, 288, 544, 800, 1824)  # first row of each mixer weight set
TOTAL_ROWS: Final = 2592
N_SETS: Final = len(SET_BASE)

LINE_BYTES: Final = 64  # 21 of uint16 (tag << 4 | weight code), 21 symbols, one byte unused
LINE_ENTRIES: Final = 21
SM_CELLS: Final = 2048  # [bit position][bucket of the mass on 1][bucket of the mass on 0]
MATCH_CELLS: Final = 256  # [min(length, 31)][bit position]
PRIMER_MIN: Final = 6
LOCAL_SLOTS: Final = 4096  # per local context
SEGMENT_SIZE: Final = 1 << 18
FILE_HEADER, FILE_ENTRY, FILE_SECTIONS = 64, 32, 64
PRIMER_BITS_MAX: Final = 20
TABLE_MAX: Final = 1 << 24


class Tables(NamedTuple):
    lines: U8  # [n][LINE_BYTES], a view of the file
    primer: memoryview
    primer_index: I32  # position after the hashed bytes, 0 none
    primer_bits: int


Expected = tuple[list[int], list[int]]  # [bit that is expected][MATCH_CELLS] logits


@dataclass(frozen=True, eq=False)
class Model:
    """The tables of a model file, and of a pack when there is one. Nothing changes them."""

    tables: list[Tables]  # of the model, of the pack
    sm: I32  # [lists * SM_CELLS] logits
    primer_sm: list[Expected]  # one for each of the tables
    match_sm: Expected
    o1: memoryview  # [256 * 256] logits by previous byte, node
    o2_row: memoryview  # [65536] row of the pair, 0 none
    o2: memoryview  # [rows * 256] logits / 16
    state_sm: memoryview  # [256 * 256] logits by (structure state, node)
    weights: I32  # [TOTAL_ROWS][lanes]
    final_weights: list[int]  # [256 * 8]
    squash: list[int]  # P(1) * 65536 at logit i - 2048
    rates: list[int]  # of the sets; the last is the final stage's
    lists: int
    lanes: int
    most: int  # no lane's magnitude is over it


class File(NamedTuple):
    data: memoryview
    kind: str


def fail(f: File, message: str) -> NoReturn:
    raise FormatError(f"{f.kind} file: {message}")


def le(data: bytes | memoryview) -> int:
    return int.from_bytes(data, "little")


def file_check(f: File, magic: bytes) -> None:
    size = len(f.data)
    if size < FILE_HEADER or f.data[:4] != magic:
        fail(f, f"it does not begin with {magic.decode()}")
    if f.data[5] > 1:
        fail(f, f"it needs a reader of version {f.data[5]}")
    sections, named = le(f.data[6:8]), le(f.data[8:16])
    if sections > FILE_SECTIONS or FILE_HEADER + sections * FILE_ENTRY > size:
        fail(f, "the section table is cut short")
    if named != size:
        fail(f, f"it has {size} bytes, not the {named} that it names")


def section(f: File, name: str, size: int, count: int = -1) -> memoryview:
    """The section's bytes: `count` items of `size` bytes; any whole number where count < 0."""
    for i in range(le(f.data[6:8])):
        entry = f.data[FILE_HEADER + i * FILE_ENTRY :][:FILE_ENTRY]
        if bytes(entry[:16]).split(b"\0")[0] != name.encode():
            continue
        at, n = le(entry[16:24]), le(entry[24:32])
        if at > len(f.data) or n > len(f.data) - at:
            fail(f, f"section {name} lies outside it")
        if n % size or (count >= 0 and n != count * size):
            fail(f, f"section {name} has a wrong size of {n} bytes")
        return f.data[at : at + n]
    fail(f, f"section {name} is missing")


def has_section(f: File, name: str) -> bool:
    entries = (f.data[FILE_HEADER + i * FILE_ENTRY :][:16] for i in range(le(f.data[6:8])))
    return any(bytes(entry).split(b"\0")[0] == name.encode() for entry in entries)


def items(f: File, name: str, dtype: str, count: int = -1) -> npt.NDArray[Any]:
    """The section's numbers, aligned and in host order: a view of the file where it has them so, else a copy."""
    kind = np.dtype(dtype)
    data = np.frombuffer(section(f, name, kind.itemsize, count), kind)
    return np.require(data, kind.newbyteorder("="), "A")


def expectation(f: File, name: str) -> Expected:
    """A match table by the bit that is expected: its logits are for a one. Negation wraps, as int16 does."""
    table = items(f, name, "<i2", MATCH_CELLS).astype(np.int16)
    return np.negative(table).tolist(), table.tolist()


def tables_open(f: File) -> Tables:
    lines = section(f, "lines", 1)
    if len(lines) % LINE_BYTES or not 1 <= len(lines) // LINE_BYTES <= TABLE_MAX:
        fail(f, "section lines has a wrong size")
    primer = section(f, "primer", 1)
    size = len(primer)
    if size > TABLE_MAX:
        fail(f, "section primer has a wrong size")
    bits = 1
    while bits < PRIMER_BITS_MAX and 1 << bits < 2 * size:
        bits += 1
    index = np.zeros(1 << bits, np.int32)
    text = np.frombuffer(primer, np.uint8)
    for first in range(0, size - PRIMER_MIN + 1, 1 << 16):  # in parts, to bound the memory
        windows = np.lib.stride_tricks.sliding_window_view(text[first : first + (1 << 16) + PRIMER_MIN - 1], PRIMER_MIN)
        pairs = np.full(len(windows), KIND[4], np.uint64)
        for j in range(PRIMER_MIN):
            pairs ^= windows[:, j].astype(np.uint64) << np.uint64(8 * (PRIMER_MIN - 1 - j))
        # Of positions with one hash the last stays.
        index[(mix64(pairs) >> np.uint64(64 - bits)).astype(np.intp)] = first + PRIMER_MIN + np.arange(len(windows))
    return Tables(np.frombuffer(lines, np.uint8).reshape(-1, LINE_BYTES), primer, index, bits)


def model_open(model: Buffer, pack: Buffer | None) -> Model:
    f = File(memoryview(model).cast("B"), "model")
    file_check(f, b"NBMM")
    tables = [tables_open(f)]
    sm = [items(f, "lists", "<i2", N_STATIC * SM_CELLS)]
    primer_sm = [expectation(f, "primer_match")]
    o1, o2_row = items(f, "order1", "<i2", 65536), items(f, "order2_row", "<u2", 65536)
    o2, state_sm = items(f, "order2", "i1"), items(f, "state", "<i2", 65536)
    sm.append(items(f, "local", "<i2", N_LOCAL * SM_CELLS))
    match_sm = expectation(f, "match")
    squash = items(f, "squash", "<u2", 4096).tolist()
    if max(o2_row.tolist()) >= len(o2) // 256:
        fail(f, "section order2_row points outside order2")
    if not all(squash):
        fail(f, "section squash holds a zero")
    prefix = "" if pack is None else "pack_"
    weights = items(f, prefix + "weights", "<i2", TOTAL_ROWS * LANES).reshape(TOTAL_ROWS, LANES)
    final_weights = items(f, prefix + "final", "<i2", 256 * 8).tolist()
    rates = items(f, prefix + "rates", "<i4", 8).tolist()
    if not all(0 <= rate <= 127 for rate in rates):
        fail(f, "section rates holds a value outside 0..127")
    lists, lanes = N_BASE_LISTS, LANES_BASE
    if pack is not None:
        g = File(memoryview(pack).cast("B"), "pack")
        file_check(g, b"NBMP")
        tables.append(tables_open(g))
        if section(g, "model_id", 1, 32) != f.data[16:48]:
            fail(g, "it was made for another model")
        sm.append(items(f, "pack_lists", "<i2", N_PACK * SM_CELLS))
        primer_sm.append(expectation(f, "pack_match"))
        lists, lanes = N_LISTS, LANES
    logits = np.concatenate(sm).astype(np.int32)
    seen = [logits, o1, state_sm, *match_sm, *(side for pair in primer_sm for side in pair)]
    most = max(16 * 128, *(int(np.abs(np.asarray(table, np.int32)).max()) for table in seen))
    wide = weights[:, :lanes].astype(np.int32, order="C")
    rows = o1.data, o2_row.data, o2.data, state_sm.data
    return Model(tables, logits, primer_sm, match_sm, *rows, wide, final_weights, squash, rates, lists, lanes, most)
