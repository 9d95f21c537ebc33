"""The kernel in NumPy and plain integers: the living definition of the model, its mixer and the range coder.

It gives the bytes and the errors of the C kernel (kernel.c), on hosts of either byte order. Names, and the order of the
functions, are those of the C files: kernel_context.h, kernel_state.h, kernel_loop.h, kernel.c, kernel_model.c.

Arithmetic is that of C on fixed widths. Plain Python integers are masked where C wraps; arrays are widened to 32 or 64
bits before they are multiplied, and wrap as C does under -fwrapv. Every right shift is arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt

from nbmf.codec.kernel import Buffer
from nbmf.errors import FormatError, StreamError, StreamLimit

__all__ = ["SEGMENT_SIZE", "Coder", "load"]

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bits = npt.NDArray[np.bool_]

# -- kernel.h ----------------------------------------------------------------------------------------------------------

# Lists: sparse distributions over the next byte, one per context.
N_STATIC: Final = 12  # contexts looked up in the model's line table
N_LOCAL: Final = 8  # contexts learned inside the record
N_PACK: Final = 8  # contexts looked up in the domain pack's line table
N_BASE_LISTS: Final = N_STATIC + N_LOCAL
N_LISTS: Final = N_BASE_LISTS + N_PACK
LIST_LEN: Final = 8  # entries of one list: (symbol, weight 0..255)

# Mixer inputs (lanes), signed logits in int16. Those named nowhere stay 0.
LANE_LOCAL: Final = N_STATIC
LANE_O1: Final = 20
LANE_O2: Final = 21
LANE_MATCH: Final = 22  # two lanes: expected bit, and the same when the match is long
LANE_PRIMER: Final = 24
LANE_STATE: Final = 26
LANE_PACK: Final = 32
LANE_PACK_PRIMER: Final = 40
LANES_BASE: Final = 32
LANES: Final = 48

SET_SIZE: Final = (288, 256, 256, 1024, 768)  # rows of each mixer weight set
SET_BASE: Final = (0, 288, 544, 800, 1824)
TOTAL_ROWS: Final = sum(SET_SIZE)
N_SETS: Final = len(SET_SIZE)

LINE_BYTES: Final = 64  # 21 uint16 (tag << 4 | weight code), 21 symbols, one byte unused
LINE_ENTRIES: Final = 21
SM_CELLS: Final = 2048  # bit position, bucket of the mass on 1, bucket of the mass on 0
MATCH_CELLS: Final = 256  # [min(length, 31)][bit position]
PRIMER_MIN: Final = 6
LOCAL_SLOTS: Final = 4096  # per local context
SEGMENT_SIZE: Final = 1 << 18

FILE_HEADER: Final = 64
FILE_ENTRY: Final = 32
FILE_SECTIONS: Final = 64
PRIMER_BITS_MAX: Final = 20
TABLE_MAX: Final = 1 << 24


@dataclass(frozen=True, eq=False)
class Tables:
    """What a file brings of its own: its line table and its primer."""

    lines: U8  # [n][LINE_BYTES], a view of the file
    primer: memoryview
    primer_index: I32  # position after the hashed bytes, 0 none
    primer_bits: int


@dataclass(frozen=True, eq=False)
class Model:
    """The tables of a model file, and of a pack when there is one. Nothing changes them."""

    tables: tuple[Tables, ...]  # of the model, of the pack
    sm: I32  # [lists * SM_CELLS] logits
    primer_sm: tuple[tuple[list[int], list[int]], ...]  # per table: [bit][MATCH_CELLS]
    match_sm: tuple[list[int], list[int]]  # [bit][MATCH_CELLS]
    o1: memoryview  # [256 * 256]
    o2_row: memoryview  # [65536]
    o2: memoryview  # [rows * 256] logits / 16
    state_sm: memoryview  # [256 * 256]
    weights: I32  # [TOTAL_ROWS][lanes]
    final_weights: list[int]  # [256 * 8]
    squash: list[int]  # P(1) * 65536 at logit i - 2048
    rates: list[int]  # of the sets; the last is the final stage's
    lists: int
    lanes: int


# -- kernel_context.h: what the model knows of the bytes before the next one -------------------------------------------

DEPTH_MAX: Final = 16
PRIME: Final = 0x2C1B3C6D
MASK32: Final = 0xFFFFFFFF
MASK64: Final = 0xFFFFFFFFFFFFFFFF
MIX_A: Final = np.uint64(0x9E3779B97F4A7C15)
MIX_B: Final = np.uint64(0xD6E8FEB86659FD93)
KIND: Final = [kind * 0xA24BAED4963EE407 & MASK64 for kind in range(21)]
U20, U29, U30, U32, U52 = (np.uint64(n) for n in (20, 29, 30, 32, 52))

LETTER: Final = [97 <= c | 32 <= 122 or c >= 128 for c in range(256)]
CLASS: Final = [1 if 48 <= c <= 57 else 2 if LETTER[c] else 3 if c == 32 else 4 for c in range(256)]
NEWLINE, SPACE, QUOTE, COMMA, COLON, BACKSLASH = b'\n ",:\\'
SEPARATORS: Final = frozenset(b" ,\t|;")
OPENERS: Final = frozenset(b"{[")
CLOSERS: Final = frozenset(b"}]")


class Context:
    """A pure function of the record so far. Hashes are uint32, `hist` is uint64."""

    __slots__ = (
        *("hist", "word", "word1", "word2", "line", "shape", "field", "token", "string", "value", "last_string"),
        *("key", "prev_key", "is_array", "depth", "in_string", "escaped", "in_value", "char_class"),
    )

    def __init__(self, value_type: int) -> None:
        self.hist = value_type  # types are small: no byte of text equals them, so the first byte knows its type
        self.word = self.word1 = self.word2 = 0  # hash of the unit so far, of the one before, and before that
        self.line = self.shape = self.field = self.token = 0  # since the line began; token: since the last separator
        self.string = self.value = self.last_string = 0  # since the JSON string, the JSON value began
        self.key = [0] * DEPTH_MAX
        self.prev_key = [0] * DEPTH_MAX
        self.is_array = [False] * DEPTH_MAX
        self.depth = self.char_class = 0
        self.in_string = self.escaped = self.in_value = False


def mix64(x: U64) -> U64:
    """Bijective on 64 bits, so distinct contexts of one kind collide only in the bits that are kept."""
    x = x * MIX_A
    x ^= x >> U32
    x *= MIX_B
    x ^= x >> U29
    return x


def hash_pair(kind: int, a: int, b: int) -> int:
    """What mix64 makes the hash of; a and b are uint32. mix64 runs on all of a byte's pairs at once."""
    return (a << 32 | b) ^ KIND[kind]


def fold(h: int, x: int) -> int:
    h = (h + x + 1) * PRIME & MASK32
    return h ^ h >> 15


def context_update(x: Context, c: int) -> None:
    x.hist = (x.hist << 8 | c) & MASK64
    letter = LETTER[c]
    if x.word and (not letter or 0xE3 <= c <= 0xED):
        x.word2, x.word1, x.word = x.word1, x.word, 0
    if letter:
        x.word = fold(x.word, c | 32 if c < 128 else c)
    if c == NEWLINE:
        x.line = x.shape = x.field = x.token = x.char_class = 0
        x.in_string = False
    else:
        kind = CLASS[c]
        x.line = fold(x.line, c)
        if kind == 4:
            x.shape = fold(x.shape, c)
        elif kind != x.char_class:
            x.shape = fold(x.shape, kind)
        x.char_class = kind
        if c in SEPARATORS:
            x.field += 1
            x.token = 0
        else:
            x.token = fold(x.token, c)
    if x.in_value:
        x.value = fold(x.value, c)
    if x.in_string:
        if x.escaped:
            x.escaped = False
            x.string = fold(x.string, c)
        elif c == BACKSLASH:
            x.escaped = True
        elif c == QUOTE:
            x.in_string = False
            x.last_string = x.string
        else:
            x.string = fold(x.string, c)
        return
    d = x.depth
    if c == QUOTE:
        x.in_string, x.escaped, x.string = True, False, 0
    elif c == COLON:
        if d and not x.is_array[d] and not x.in_value:
            x.key[d], x.in_value, x.value = x.last_string, True, 0
    elif c == COMMA:
        if d:
            if not x.is_array[d]:
                x.prev_key[d], x.in_value, x.string = x.key[d], False, 0
            x.value = 0
    elif c in OPENERS:
        array = c == 0x5B
        if d < DEPTH_MAX - 1:
            d = x.depth = d + 1
        x.is_array[d] = x.in_value = array
        x.key[d] = x.key[d - 1] if array else 0
        x.prev_key[d] = x.value = x.string = 0
    elif c in CLOSERS and d:
        x.depth, x.in_value, x.value = d - 1, True, 1


def context_state(x: Context) -> int:
    """0..7: where in a JSON value the next byte lies, or plain text."""
    if not x.depth:
        return 1 if x.in_string else 0
    if x.in_value:
        return 2 if x.in_string else 3 if x.is_array[x.depth] else 4
    return 5 if x.in_string else 6 if x.string == 0 else 7


def context_hashes(x: Context) -> U64:
    """Order 3, 4, 5, 6, 8, word, word pair, word triple, word skip, three of structure; then order 1 and 2.

    The last two are no static contexts. Order 6 (index 3) is primer_hash, which finds matches in a primer.
    """
    t, word, word1, word2, d = x.hist, x.word, x.word1, x.word2, x.depth
    c1, low, high = t & 0xFF, t & MASK32, t >> 32
    here = word or c1
    pairs = [
        hash_pair(1, 0, t & 0xFFFFFF),
        hash_pair(2, 0, low),
        hash_pair(3, high & 0xFF, low),
        hash_pair(4, high & 0xFFFF, low),
        hash_pair(5, high, low),
        hash_pair(6, 0 if word else word1, here),
        hash_pair(7, word1 if word else word1 ^ (word2 * 5 & MASK32), here),
        hash_pair(8, (word1 * 3 + word2 * PRIME) & MASK32, here),
        hash_pair(9, word2, here),
    ]
    if d:
        key, up = x.key[d], x.key[d - 1]
        if x.in_value:
            pairs += (
                hash_pair(10, key, x.value),
                hash_pair(11, key, word or c1 + 256),
                hash_pair(12, (key * 3 + up) & MASK32, x.value),
            )
        else:
            s, before = (x.string * 2 + x.in_string) & MASK32, x.prev_key[d]
            pairs += hash_pair(13, before, s), hash_pair(14, up, s), hash_pair(15, (before * 3 + up) & MASK32, s)
    else:
        pairs += hash_pair(16, 0, x.line), hash_pair(17, x.field, x.token), hash_pair(18, c1, x.shape)
    pairs += hash_pair(19, 0, c1), hash_pair(20, 0, t & 0xFFFF)
    return mix64(np.array(pairs, np.uint64))


LOCAL_HASHES: Final = np.array([12, 13, 0, 1, 3, 5, 6, 9])  # order 1, 2, 3, 4, 6, word, word pair, structure
PACK_HASHES: Final = np.array([13, 0, 1, 3, 5, 6, 9, 10])  # order 2, 3, 4, 6, word, word pair, structure twice

# -- kernel_state.h: what a record changes while it is coded -----------------------------------------------------------

MATCH_MIN: Final = 4
MATCH_VERIFY: Final = 32  # bytes compared when a match is found; longer ones grow as they go
SPENT_MAX: Final = 4  # implied zero bytes a whole stream may need past its end

# Weight of a list entry by its 4-bit code: probability * 255.
WEIGHTS: Final = np.array([1, 2, 3, 4, 5, 7, 10, 14, 22, 40, 56, 80, 112, 160, 210, 240], np.uint8)
# Mass or count on a logarithmic scale, 16 steps, by where each step begins.
STEPS: Final = np.array([1, 2, 3, 4, 5, 7, 9, 12, 16, 32, 48, 64, 96, 128, 192])
EMPTY: Final = bytes(LIST_LEN)
# What one sighting of another symbol makes of a local count.
FADE: Final = bytes(n if n <= 2 else (n + 1) >> 1 for n in range(256))


class LocalSlot:
    """Seven symbols and their counts, one unused; counts fill from the front and never return to 0."""

    __slots__ = ("count", "sym", "tag")

    def __init__(self, tag: int, c: int) -> None:
        self.tag = tag
        self.sym = bytearray(LIST_LEN)
        self.count = bytearray(LIST_LEN)
        self.sym[0], self.count[0] = c, 1


class Primer:
    """A match in a primer: it is on while length > 0, and then expects `byte`."""

    __slots__ = ("byte", "length", "pos")

    def __init__(self) -> None:
        self.pos = self.length = self.byte = 0


class Scratch:
    """All that changes while one record is coded; made anew for each.

    Lists lie as [entry][list], so that sums over the entries of all lists are sums of rows. The arrays from `ones` on
    are workspace, kept to save allocations.
    """

    __slots__ = (
        *(
            "buf",
            "cells",
            "context",
            "dots",
            "final_weights",
            "first_cell",
            "hashes",
            "inputs",
            "local",
            "mass",
            "masks",
        ),
        *(
            "match_at",
            "match_byte",
            "match_len",
            "match_pos",
            "o1_at",
            "o2_at",
            "ones",
            "p",
            "p_zero",
            "pairs",
            "primers",
        ),
        *("products", "rows", "set0", "set3", "slot_keys", "slot_tags", "state", "total", "weight", "weights", "wide"),
    )

    def __init__(self, m: Model, value_type: int) -> None:
        self.context = Context(value_type)
        self.buf = bytearray()  # the record so far
        self.p_zero = 16384 if value_type == 2 else 256
        self.p = self.match_len = self.match_at = self.match_byte = self.state = self.set0 = self.set3 = 0
        self.o1_at = self.o2_at = 0  # where the rows of the last byte, the last pair begin
        self.match_pos: dict[int, int] = {}  # hash of the last four bytes -> position after them
        self.primers = [Primer() for _ in m.tables]
        self.local: dict[int, LocalSlot] = {}
        self.slot_keys: list[int] = []
        self.slot_tags: list[int] = []
        self.hashes: list[int] = []
        self.weights = m.weights.copy()
        self.final_weights = m.final_weights.copy()
        self.inputs = np.zeros(m.lanes, np.int32)
        self.inputs[31] = 256
        self.weight = np.zeros((LIST_LEN, m.lists), np.int64)
        self.total = np.zeros(m.lists, np.int64)  # sum of each list's weights
        self.masks = np.zeros((8, LIST_LEN, m.lists), np.int64)  # [bit position] -1 where the symbol's bit is 1
        self.first_cell = np.arange(8)[:, None] * 256 + np.arange(m.lists) * SM_CELLS  # [bit position][list]
        self.ones = np.zeros((LIST_LEN, m.lists), np.int64)
        self.mass = np.zeros((2, m.lists), np.int64)
        self.cells = np.zeros(m.lists, np.int64)
        self.rows: list[int] = []
        self.dots: list[int] = []
        self.wide = np.zeros((N_SETS, m.lanes), np.int32)  # the rows of weights in use
        self.products = np.zeros((N_SETS, m.lanes), np.int32)
        self.pairs = np.zeros((N_SETS, m.lanes // 2), np.int32)


def length_class(n: int) -> int:
    return 0 if n == 0 else 1 if n < 12 else 2 if n < 24 else 3


class Encoder:
    """Range coder: 32-bit range, `low` with one bit of carry, 16-bit probabilities of a one."""

    __slots__ = ("cache", "low", "out", "pending", "range")

    def __init__(self) -> None:
        self.low, self.range, self.cache, self.pending = 0, MASK32, 0, 1
        self.out = bytearray()  # begins with one byte, always zero, that is no part of the code


def encoder_shift(e: Encoder) -> None:
    if e.low < 0xFF000000 or e.low >> 32:
        carry = e.low >> 32
        e.out.append(e.cache + carry & 0xFF)
        e.out += bytes([0xFF + carry & 0xFF]) * (e.pending - 1)
        e.pending = 0
        e.cache = e.low >> 24 & 0xFF
    e.pending += 1
    e.low = (e.low & 0x00FFFFFF) << 8


def encode_bit(e: Encoder, p: int, bit: int) -> None:
    bound = (e.range >> 16) * p
    if bit:
        e.range = bound
    else:
        e.low += bound
        e.range -= bound
    while e.range < 1 << 24:
        encoder_shift(e)
        e.range <<= 8


class Decoder:
    """`code` may equal `range` when the stream is none, so its shifts are masked."""

    __slots__ = ("code", "data", "pos", "range", "spent")

    def __init__(self, data: bytes) -> None:
        self.data, self.pos, self.spent = data, 0, 0
        self.code, self.range = 0, MASK32
        for _ in range(4):
            self.code = self.code << 8 | decoder_byte(self)


def decoder_byte(d: Decoder) -> int:
    if d.pos < len(d.data):
        d.pos += 1
        return d.data[d.pos - 1]
    d.spent += 1
    return 0


def decode_bit(d: Decoder, p: int) -> int:
    bound = (d.range >> 16) * p
    bit = d.code < bound
    if bit:
        d.range = bound
    else:
        d.code -= bound
        d.range -= bound
    while d.range < 1 << 24:
        d.code = (d.code << 8 | decoder_byte(d)) & MASK32
        d.range <<= 8
    return int(bit)


def bit_cost(p: int) -> int:
    """-log2(p / 65536) * 256, for p in 1..65536, to the nearest 1/256 bit."""
    lg = p.bit_length() - 1
    x, f = p << 31 - lg, 0  # x in [2^31, 2^32)
    for _ in range(9):
        x = x * x >> 31
        f = f << 1 | x >> 32
        x >>= x >> 32
    return (16 - lg << 8) - (f + 1 >> 1)


def common_suffix(a: bytearray, na: int, b: bytearray | memoryview, nb: int) -> int:
    n, most = 0, min(MATCH_VERIFY, na, nb)
    while n < most and a[na - 1 - n] == b[nb - 1 - n]:
        n += 1
    return n


def primer_find(t: Tables, s: Scratch, p: Primer) -> None:
    size = len(t.primer)
    if not p.length and len(s.buf) >= PRIMER_MIN and size:
        at = int(t.primer_index[s.hashes[3] >> 64 - t.primer_bits])
        n = common_suffix(s.buf, len(s.buf), t.primer, at)
        if n >= PRIMER_MIN:
            p.length, p.pos = n, at
    if p.length and p.pos >= size:
        p.length = 0
    if p.length:
        p.byte = t.primer[p.pos]


def match_find(m: Model, s: Scratch) -> None:
    pos = len(s.buf)
    if pos >= MATCH_MIN:
        slot = s.hashes[1] >> 51
        at = s.match_pos.get(slot, 0)
        if not s.match_len and at:
            n = common_suffix(s.buf, pos, s.buf, at)
            if n >= MATCH_MIN:
                s.match_len, s.match_at = n, at
        s.match_pos[slot] = pos
    if s.match_len:
        s.match_byte = s.buf[s.match_at]
    for t, p in zip(m.tables, s.primers, strict=True):
        primer_find(t, s, p)


def local_update(s: Scratch, c: int) -> None:
    for key, tag in zip(s.slot_keys, s.slot_tags, strict=True):
        slot = s.local.get(key)
        if slot is None or slot.tag != tag:
            s.local[key] = LocalSlot(tag, c)
            continue
        old, at = slot.count, slot.sym.find(c, 0, 7)
        slot.count = old.translate(FADE)
        if at >= 0 and old[at]:
            slot.count[at] = min(old[at] + 1, 255)
        else:
            low = slot.count.index(min(slot.count[:7]))
            slot.sym[low], slot.count[low] = c, 1


def end_byte(s: Scratch, c: int) -> None:
    local_update(s, c)
    s.buf.append(c)
    if s.match_len:
        if s.match_byte == c:
            s.match_len += 1
            s.match_at += 1
        else:
            s.match_len = 0
    for p in s.primers:
        if p.length:
            if p.byte == c:
                p.length += 1
                p.pos += 1
            else:
                p.length = 0
    context_update(s.context, c)


def zero_update(s: Scratch, literal: int) -> None:
    s.p_zero = min(max(s.p_zero + ((65535 if literal else 0) - s.p_zero >> 4), 64), 65472)


# -- kernel_loop.h: the predictor and coder ----------------------------------------------------------------------------


def _cell_table() -> I64:
    """By mass on 1 * 256 + mass on 0: the cell; 1 << 16 when 1 has more, 1 << 24 when 0 has."""
    mass = np.arange(256)
    bucket = np.searchsorted(STEPS, mass, side="right")
    one, zero = mass[:, None], mass[None, :]
    table = bucket[:, None] << 4 | bucket[None, :] | (one > zero) << 16 | (zero > one) << 24
    return table.astype(np.int64).ravel()


CELLS: Final = _cell_table()
RUN: Final = np.arange(LIST_LEN)
LOCAL_FIRST: Final = np.arange(N_LOCAL) * LOCAL_SLOTS
SHIFT_TAG, MASK_TAG = np.uint64(20), np.uint64(0xFFF)
FULL: Final = np.array(255)
BYTE: Final = np.array(256)
HALF: Final = np.array(16384, np.int32)
LEARN_SHIFT: Final = np.array(15, np.int32)
DOT_SHIFT: Final = np.array(6, np.int32)
MOST: Final = np.array(32767, np.int32)
LEAST: Final = np.array(-32768, np.int32)


def line_match(line: U8, tag: npt.NDArray[np.uint16]) -> Bits:
    """Which of each line's entries have its tag; LIST_LEN more that never do."""
    found = np.zeros((len(line), LINE_ENTRIES + LIST_LEN), np.bool_)
    np.equal(line.view("<u2")[:, :LINE_ENTRIES] >> 4, tag[:, None], out=found[:, :LINE_ENTRIES])
    return found


def list_load(t: Tables, h: U64) -> tuple[U8, U8, int]:
    """The lists of hashes h: symbols and weights as [entry][list], and a bit per context that is present.

    A list is the run of entries with the tag from the first on, at most LIST_LEN; absent entries have weight 0.
    """
    line = t.lines[((h >> U32) * np.uint64(len(t.lines)) >> U32).astype(np.intp)]
    found = line_match(line, (h >> SHIFT_TAG & MASK_TAG).astype(np.uint16))
    row = np.arange(len(h))
    at = RUN[:, None] + found.argmax(axis=1)
    keep = np.logical_and.accumulate(found[row, at], axis=0)
    np.minimum(at, LINE_ENTRIES - 1, out=at)
    weight = WEIGHTS[line[row, 2 * at] & 15] * keep
    present = le(np.packbits(keep[0], bitorder="little").tobytes())
    return line[row, 2 * LINE_ENTRIES + at], weight, present


def split(s: Scratch, k: int) -> None:
    """Splits the mass of every list by the next bit: mass on 1, mass on 0."""
    one, zero = s.mass
    np.bitwise_and(s.weight, s.masks[7 - k], out=s.ones)
    np.add.reduce(s.ones, axis=0, out=one)
    np.subtract(s.total, one, out=zero)


def narrow(s: Scratch, bit: int) -> None:
    """Keeps the entries whose next bit was `bit`."""
    if bit:
        s.weight, s.ones = s.ones, s.weight
    else:
        s.weight -= s.ones
    s.total[:] = s.mass[1 - bit]


def dot(s: Scratch) -> list[int]:
    """Per set: sum over lane pairs of (in * w + in * w) >> 6; a pair wraps at 32 bits."""
    np.multiply(s.wide, s.inputs, out=s.products)
    np.add(s.products[:, 0::2], s.products[:, 1::2], out=s.pairs)
    np.right_shift(s.pairs, DOT_SHIFT, out=s.pairs)
    sums: list[int] = np.add.reduce(s.pairs, axis=1).tolist()
    return sums


def learn(s: Scratch, errors: list[int]) -> None:
    """w += round(in * e / 32768), saturating to int16; |e| < 32768, so a product fits 32 bits."""
    step = np.multiply(s.inputs, np.array(errors, np.int32)[:, None], out=s.products)
    step += HALF
    step >>= LEARN_SHIFT
    step += s.wide
    np.minimum(step, MOST, out=step)
    np.maximum(step, LEAST, out=step)
    s.weights[s.rows] = step


def begin_byte(m: Model, s: Scratch) -> None:
    x = s.context
    h = context_hashes(x)
    s.hashes = h.tolist()
    local = h[LOCAL_HASHES]
    s.slot_keys = ((local >> U52).astype(np.int64) + LOCAL_FIRST).tolist()
    s.slot_tags = ((local >> U30).astype(np.uint16) | 1).tolist()
    sym, weight, present = list_load(m.tables[0], h[:N_STATIC])
    symbols, counts = [], []
    for i, (key, tag) in enumerate(zip(s.slot_keys, s.slot_tags, strict=True)):
        slot = s.local.get(key)
        if slot is not None and slot.tag == tag:
            symbols.append(slot.sym)
            counts.append(slot.count)
            present |= 1 << LANE_LOCAL + i
        else:
            symbols.append(EMPTY)
            counts.append(EMPTY)
    syms = [sym, np.frombuffer(b"".join(symbols), np.uint8).reshape(N_LOCAL, LIST_LEN).T]
    weights = [weight, np.frombuffer(b"".join(counts), np.uint8).reshape(N_LOCAL, LIST_LEN).T]
    if len(m.tables) > 1:
        sym, weight, _ = list_load(m.tables[1], h[PACK_HASHES])
        syms.append(sym)
        weights.append(weight)
    np.concatenate(weights, axis=1, out=s.weight)
    np.add.reduce(s.weight, axis=0, out=s.total)
    bits = np.unpackbits(np.concatenate(syms, axis=1)[None], axis=0)
    np.negative(bits, out=s.masks, dtype=np.int64)
    match_find(m, s)
    t = x.hist
    s.o1_at = (t & 0xFF) << 8
    s.o2_at = m.o2_row[t & 0xFFFF] << 8
    s.state = context_state(x)
    top = 5 if present & 16 else 4 if present & 8 else 3 if present & 4 else 2 if present & 2 else present & 1
    longest = max(p.length for p in s.primers)
    s.set0 = (top * 4 + length_class(s.match_len)) * 4 + length_class(longest)
    words = 3 if present & 128 else 2 if present & 64 else 1 if present & 32 else 0
    own = present >> LANE_LOCAL
    locals_ = 3 if own & 16 else 2 if own & 8 else 1 if own & 4 else 0
    s.set3 = ((words * 4 + locals_) * 8 + s.state) * 8


def predict(m: Model, s: Scratch, c0: int, k: int) -> int:
    """Probability of a one in 1..65535 of 65536 for bit k (7 first) after node c0 (1..255)."""
    split(s, k)
    x = s.inputs
    one, zero = np.minimum(s.mass, FULL)
    one *= BYTE
    one += zero
    CELLS.take(one, out=s.cells, mode="clip")
    counts = int(np.add.reduce(s.cells[:N_BASE_LISTS]))
    n1, n0 = min(counts >> 16 & 0xFF, 15), min(counts >> 24, 15)
    s.cells &= 0xFF
    s.cells += s.first_cell[7 - k]
    logits = m.sm[s.cells]
    x[:N_BASE_LISTS] = logits[:N_BASE_LISTS]
    if m.lists > N_BASE_LISTS:
        x[LANE_PACK : LANE_PACK + N_PACK] = logits[N_BASE_LISTS:]
    x[LANE_O1] = m.o1[s.o1_at + c0]
    x[LANE_O2] = m.o2[s.o2_at + c0] * 16
    x[LANE_STATE] = m.state_sm[s.state << 8 | c0]
    v = 0
    if s.match_len and (s.match_byte | 256) >> k + 1 == c0:
        v = m.match_sm[s.match_byte >> k & 1][min(s.match_len, 31) * 8 + 7 - k]
    x[LANE_MATCH] = v
    x[LANE_MATCH + 1] = v if s.match_len >= 16 else 0
    for lane, p, table in zip((LANE_PRIMER, LANE_PACK_PRIMER), s.primers, m.primer_sm, strict=False):
        v = 0
        if p.length and (p.byte | 256) >> k + 1 == c0:
            v = table[p.byte >> k & 1][min(p.length, 31) * 8 + 7 - k]
        x[lane] = v
    group = 0 if k == 7 else 1 if k >= 4 else 2
    s.rows = [
        SET_BASE[0] + s.set0 * 3 + group,
        SET_BASE[1] + c0,
        SET_BASE[2] + (s.context.hist & 0xFF),
        SET_BASE[3] + s.set3 + 7 - k,
        SET_BASE[4] + (n1 * 16 + n0) * 3 + group,
    ]
    s.weights.take(s.rows, axis=0, out=s.wide, mode="clip")
    s.dots = [2047 if d > 2047 else -2047 if d < -2047 else d for d in [d >> 8 for d in dot(s)]]
    fw = s.final_weights
    at = c0 * 8
    total = sum([d * fw[at + j] for j, d in enumerate(s.dots)]) >> 14
    s.p = m.squash[min(max(total, -2047), 2047) + 2048]
    return s.p


def update(m: Model, s: Scratch, c0: int, bit: int) -> None:
    goal = 65535 if bit else 0
    squash, rates, fw = m.squash, m.rates, s.final_weights
    learn(s, [(goal - squash[d + 2048]) * rates[j] >> 8 for j, d in enumerate(s.dots)])
    e = (goal - s.p) * rates[7] >> 10
    for at, d in enumerate(s.dots, c0 * 8):
        fw[at] = min(max(fw[at] + (d * e + 32768 >> 16), -32768), 32767)
    narrow(s, bit)


def run_encode(m: Model, value_type: int, raw: bytes, rc: Encoder | None, cost: list[int] | None) -> None:
    s = Scratch(m, value_type)
    for i in range(len(raw) + 1):
        c = raw[i] if i < len(raw) else 0
        c0, spent = 1, 0
        begin_byte(m, s)
        for k in range(7, -1, -1):
            bit = c >> k & 1
            p = predict(m, s, c0, k)
            if rc is not None:
                encode_bit(rc, p, bit)
            if cost is not None:
                spent += bit_cost(p if bit else 65536 - p)
            update(m, s, c0, bit)
            c0 = c0 * 2 + bit
        if not c:
            literal = int(i < len(raw))
            if rc is not None:
                encode_bit(rc, s.p_zero, literal)
            if cost is not None:
                spent += bit_cost(s.p_zero if literal else 65536 - s.p_zero)
            zero_update(s, literal)
        if cost is not None:
            cost.append(min(spent, 65535))
        if i < len(raw):
            end_byte(s, c)


def run_decode(m: Model, value_type: int, rc: Decoder, cap: int) -> bytes:
    s = Scratch(m, value_type)
    while True:
        c0 = 1
        begin_byte(m, s)
        for k in range(7, -1, -1):
            bit = decode_bit(rc, predict(m, s, c0, k))
            update(m, s, c0, bit)
            c0 = c0 * 2 + bit
        c = c0 & 0xFF
        if not c:
            literal = decode_bit(rc, s.p_zero)
            zero_update(s, literal)
            if not literal:
                return bytes(s.buf)
        if rc.spent > SPENT_MAX:
            raise StreamError("the stream does not decode")
        if len(s.buf) == cap:
            raise StreamLimit("decoded size is over the limit")
        end_byte(s, c)


# -- kernel.c ----------------------------------------------------------------------------------------------------------


def encoder_flush(e: Encoder) -> None:
    """Ends the stream with the fewest bytes that, followed by zeros, lie in [low, low + range)."""
    n = 0
    while n < 4:
        mask = (1 << 32 - 8 * n) - 1
        v = e.low + mask & ~mask
        if v < e.low + e.range:
            e.low = v
            break
        n += 1
    for _ in range(n + 1):
        encoder_shift(e)


# -- kernel_model.c: model and pack files, checked once so that coding needs no checks ---------------------------------


@dataclass(frozen=True, eq=False)
class File:
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


def items(f: File, name: str, dtype: str, count: int = -1) -> npt.NDArray[np.generic]:
    """The section's numbers in host order. A view of the file, where the host's order is the file's."""
    kind = np.dtype(dtype)
    return np.frombuffer(section(f, name, kind.itemsize, count), kind).astype(kind.newbyteorder("="), copy=False)


def lookup(f: File, name: str, dtype: str, count: int = -1) -> memoryview:
    """The section's numbers, each a Python integer when indexed."""
    return memoryview(items(f, name, dtype, count))


def signed(f: File, name: str) -> tuple[list[int], list[int]]:
    """A match table by the bit that is expected: its logits are for a one. Negation wraps, as int16 does."""
    table = items(f, name, "<i2", MATCH_CELLS).astype(np.int16)
    return np.negative(table).tolist(), table.tolist()


def tables_open(f: File) -> Tables:
    lines = section(f, "lines", LINE_BYTES)
    if not 1 <= len(lines) // LINE_BYTES <= TABLE_MAX:
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
    primer_sm = [signed(f, "primer_match")]
    o1 = lookup(f, "order1", "<i2", 65536)
    o2_row = items(f, "order2_row", "<u2", 65536)
    o2 = lookup(f, "order2", "i1")
    state_sm = lookup(f, "state", "<i2", 65536)
    sm.append(items(f, "local", "<i2", N_LOCAL * SM_CELLS))
    match_sm = signed(f, "match")
    squash = items(f, "squash", "<u2", 4096)
    if int(o2_row.astype(np.int64).max()) >= len(o2) // 256:
        fail(f, "section order2_row points outside order2")
    if not squash.all():
        fail(f, "section squash holds a zero")
    prefix = "" if pack is None else "pack_"
    weights = items(f, f"{prefix}weights", "<i2", TOTAL_ROWS * LANES)
    final_weights = items(f, f"{prefix}final", "<i2", 256 * 8)
    rates: list[int] = items(f, f"{prefix}rates", "<i4", 8).tolist()
    if not all(0 <= rate <= 127 for rate in rates):
        fail(f, "section rates holds a value outside 0..127")
    if pack is not None:
        g = File(memoryview(pack).cast("B"), "pack")
        file_check(g, b"NBMP")
        tables.append(tables_open(g))
        if section(g, "model_id", 1, 32) != f.data[16:48]:
            fail(g, "it was made for another model")
        sm.append(items(f, "pack_lists", "<i2", N_PACK * SM_CELLS))
        primer_sm.append(signed(f, "pack_match"))
    lanes = LANES_BASE if pack is None else LANES
    return Model(
        tables=tuple(tables),
        sm=np.concatenate(sm).astype(np.int32),
        primer_sm=tuple(primer_sm),
        match_sm=match_sm,
        o1=o1,
        o2_row=memoryview(o2_row),
        o2=o2,
        state_sm=state_sm,
        weights=weights.reshape(TOTAL_ROWS, LANES)[:, :lanes].astype(np.int32, order="C"),
        final_weights=final_weights.tolist(),
        squash=squash.tolist(),
        rates=rates,
        lists=N_BASE_LISTS if pack is None else N_LISTS,
        lanes=lanes,
    )


# -- _kernelmodule.c ---------------------------------------------------------------------------------------------------


def check_call(value_type: int, profile: int, n: int) -> None:
    if not 0 <= value_type <= 3:
        raise ValueError(f"value type {value_type} is not 0..3")
    if profile != 0:
        raise ValueError(f"profile {profile} is not in this model")
    if n > SEGMENT_SIZE:
        raise ValueError(f"{n} bytes are over one segment ({SEGMENT_SIZE})")


class Coder:
    """The loaded integer model. Thread-safe: what a record changes is made for each call."""

    def __init__(self, model: Buffer, pack: Buffer | None = None) -> None:
        self._model = model_open(model, pack)

    def encode(self, raw: Buffer, value_type: int, profile: int = 0) -> bytes:
        """The payload of `raw`, which ends by itself."""
        data = bytes(memoryview(raw))
        check_call(value_type, profile, len(data))
        e = Encoder()
        run_encode(self._model, value_type, data, e, None)
        encoder_flush(e)
        return bytes(e.out[1:])

    def decode(self, payload: Buffer, value_type: int, profile: int = 0, max_out: int = SEGMENT_SIZE) -> bytes:
        """The raw bytes of `payload`. Raises StreamError, and StreamLimit past `max_out` bytes."""
        data = bytes(memoryview(payload))
        check_call(value_type, profile, 0)
        d = Decoder(data)
        raw = run_decode(self._model, value_type, d, min(max(max_out, 0), SEGMENT_SIZE))
        if d.pos < len(data):  # bytes after the end
            raise StreamError("the stream does not decode")
        return raw

    def costs(self, raw: Buffer, value_type: int, profile: int = 0) -> bytes:
        """Little-endian uint16 costs in 1/256 bit, saturating: one a byte and one for the end."""
        data = bytes(memoryview(raw))
        check_call(value_type, profile, len(data))
        cost: list[int] = []
        run_encode(self._model, value_type, data, None, cost)
        return np.array(cost, "<u2").tobytes()

    def encode_many(self, raws: list[bytes], value_types: bytes, profile: int, threads: int) -> list[bytes]:
        """`encode` of each. One after the other: threads would not speed it up."""
        self._check_many(raws, value_types, profile, True)
        return [self.encode(raw, kind, profile) for raw, kind in zip(raws, value_types, strict=True)]

    def decode_many(
        self, payloads: list[bytes], value_types: bytes, profile: int, threads: int, max_out: int = SEGMENT_SIZE
    ) -> list[bytes]:
        """`decode` of each; `max_out` holds for each alone."""
        self._check_many(payloads, value_types, profile, False)
        return [self.decode(data, kind, profile, max_out) for data, kind in zip(payloads, value_types, strict=True)]

    @staticmethod
    def _check_many(data: list[bytes], value_types: bytes, profile: int, sized: bool) -> None:
        """Every call is checked before the first is made."""
        if len(value_types) != len(data):
            raise ValueError("one type per item is wanted")
        for item, kind in zip(data, value_types, strict=True):
            check_call(kind, profile, memoryview(item).nbytes if sized else 0)


def load(model: Buffer, pack: Buffer | None = None) -> Coder:
    """The coder of a model file and, if given, of a pack made for it. Raises FormatError; both stay referenced."""
    return Coder(model, pack)
