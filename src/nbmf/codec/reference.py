"""The kernel in NumPy and plain integers: the living definition of the model, its mixer and the range coder.

It gives the bytes and the errors of the C kernel, on hosts of either byte order. Names, and the order of the functions,
are those of the C files: here kernel_state.h, kernel_loop.h and kernel.c; kernel_context.h in reference_context.py;
kernel.h and kernel_model.c in reference_model.py.

Arithmetic is that of C on fixed widths. Plain integers are masked where C wraps; arrays are widened to 32 or 64 bits
before they are multiplied, and wrap as C does under -fwrapv. Every right shift is arithmetic.
"""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np

from nbmf.codec.kernel import Buffer
from nbmf.codec.reference_context import (
    LOCAL_HASHES,
    MASK32,
    PACK_HASHES,
    Context,
    context_hashes,
    context_state,
    context_update,
)
from nbmf.codec.reference_dense import (
    Dense,
    State,
    dense_begin_byte,
    dense_end_byte,
    dense_open,
    dense_predict,
    dense_rows,
)
from nbmf.codec.reference_model import (
    I64,
    LANE_BIAS,
    LANE_MATCH,
    LANE_O1,
    LANE_O2,
    LANE_PACK,
    LANE_PACK_PRIMER,
    LANE_PRIMER,
    LANE_STATE,
    LINE_BYTES,
    LINE_ENTRIES,
    LIST_LEN,
    LOCAL_SLOTS,
    N_BASE_LISTS,
    N_SETS,
    N_STATIC,
    PRIMER_MIN,
    SEGMENT_SIZE,
    SET_BASE,
    SM_CELLS,
    U8,
    Expected,
    File,
    Model,
    Tables,
    model_open,
)
from nbmf.errors import StreamError, StreamLimit

__all__ = ["SEGMENT_SIZE", "Coder", "load"]

# -- kernel_state.h: what a record changes while it is coded -----------------------------------------------------------

MATCH_MIN: Final = 4
MATCH_VERIFY: Final = 32  # bytes compared when a match is found; longer ones grow as they go
SPENT_MAX: Final = 4  # implied zero bytes a whole stream may need past its end
# Weight of a list entry (probability * 255) by the byte whose low half is its code.
WEIGHTS: Final = bytes((1, 2, 3, 4, 5, 7, 10, 14, 22, 40, 56, 80, 112, 160, 210, 240)) * 16
# Mass or count on a logarithmic scale, 16 steps, by where each step after the first begins.
STEPS: Final = (1, 2, 3, 4, 5, 7, 9, 12, 16, 32, 48, 64, 96, 128, 192)
# What the sighting of another symbol makes of a local count.
FADE: Final = bytes(n if n <= 2 else (n + 1) >> 1 for n in range(256))
EMPTY: Final = bytes(LIST_LEN)
Entries = bytes | bytearray  # LIST_LEN symbols, or weights


class LocalSlot:
    """Seven symbols and their counts, and one unused; counts fill from the front and never return to 0."""

    def __init__(self, tag: int, c: int) -> None:
        self.tag = tag
        self.sym, self.count = bytearray(LIST_LEN), bytearray(LIST_LEN)
        self.sym[0], self.count[0] = c, 1


class Primer:
    """A match in a primer: it is on while length > 0, and then expects `byte`."""

    pos = length = byte = 0


class Scratch:
    """All that changes while one record is coded, made anew for each; lists lie in it as [entry][list]."""

    def __init__(self, m: Model, value_type: int, d: Dense | None = None) -> None:
        self.context = Context(value_type)
        self.d = d
        self.z = State(d, value_type) if d else None  # of the dense profile
        self.buf = bytearray()  # the record so far
        self.p_zero = 16384 if value_type == 2 else 256
        self.p = self.sum = self.state = self.set0 = self.set3 = 0
        self.o1_at = self.o2_at = 0  # where the rows of the last byte, the last pair begin
        self.match_len = self.match_at = self.match_byte = 0
        self.match_pos: dict[int, int] = {}  # hash of the last four bytes -> position after them
        self.primers = [Primer() for _ in m.tables]
        self.local: dict[int, LocalSlot] = {}
        self.slots: list[tuple[int, int]] = []  # of the local contexts: key and tag
        self.hashes: list[int] = []
        self.weight = np.zeros((LIST_LEN, m.lists), np.int64)
        self.total = np.zeros(m.lists, np.int64)  # sum of each list's weights
        self.masks = np.zeros((8, LIST_LEN, m.lists), np.int64)  # [bit position]; -1 where that bit of the symbol is 1
        self.ones = np.zeros((LIST_LEN, m.lists), np.int64)  # the weights of entries whose next bit is 1
        self.mass = np.zeros((2, m.lists), np.int64)  # on 1, on 0
        self.one, self.zero = self.mass
        self.cells = np.zeros(m.lists, np.int64)
        self.base_cells, self.pack_cells = self.cells[:N_BASE_LISTS], self.cells[N_BASE_LISTS:]
        self.first_cell = np.arange(8)[:, None] * 256 + np.arange(m.lists) * SM_CELLS  # [bit position][list]
        self.inputs = np.zeros(m.lanes, np.int32)
        self.base_inputs, self.pack_inputs = self.inputs[:N_BASE_LISTS], self.inputs[LANE_PACK:LANE_PACK_PRIMER]
        self.lane = self.inputs.data
        self.lane[LANE_BIAS] = 256
        self.weights = m.weights.copy()
        self.final_weights = m.final_weights.copy()
        self.rows: list[int] = []  # of weights, in use for this bit
        self.dots: list[int] = []
        self.used = np.zeros((N_SETS, m.lanes), np.int32)  # a copy of those rows
        self.products = np.zeros((N_SETS, m.lanes), np.int32)
        self.even, self.odd = self.products[:, 0::2], self.products[:, 1::2]
        self.pairs, self.each_pair = np.zeros((N_SETS, m.lanes // 2), np.int32), np.ones(m.lanes // 2, np.int32)


def length_class(n: int) -> int:
    return 0 if n == 0 else 1 if n < 12 else 2 if n < 24 else 3


class Encoder:
    """Range coder: 32-bit range, `low` with one bit of carry, 16-bit probabilities of a one."""

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
        if not s.match_len and 0 < at < pos:  # at pos itself after an empty record of a sequence
            n = common_suffix(s.buf, pos, s.buf, at)
            if n >= MATCH_MIN:
                s.match_len, s.match_at = n, at
        s.match_pos[slot] = pos
    if s.match_len:
        s.match_byte = s.buf[s.match_at]
    for t, p in zip(m.tables, s.primers, strict=True):
        primer_find(t, s, p)


def zero_update(s: Scratch, literal: int) -> None:
    s.p_zero = min(max(s.p_zero + ((65535 if literal else 0) - s.p_zero >> 4), 64), 65472)


def record_next(s: Scratch, value_type: int) -> None:
    """The next record of a sequence: a new context, while all that was learned goes on."""
    s.context = Context(value_type)
    s.z = State(s.d, value_type) if s.d else None
    s.match_len = 0
    for p in s.primers:
        p.length = 0


# -- kernel_loop.h: the predictor and coder ----------------------------------------------------------------------------


def cell_table() -> I64:
    """By mass on 1 * 256 + mass on 0: the cell, plus 1 << 16 when 1 has more, plus 1 << 24 when 0 has."""
    one, zero = np.divmod(np.arange(65536), 256)
    bucket = np.searchsorted(STEPS, np.arange(256), side="right")
    return (bucket[one] << 4 | bucket[zero] | (one > zero) << 16 | (zero > one) << 24).astype(np.int64)


CELLS: Final = cell_table()
POWERS: Final = 1 << np.arange(LINE_ENTRIES)
FULL, BYTE, LOW_BYTE, EACH = np.array(255), np.array(256), np.array(0xFF), np.ones(N_BASE_LISTS, np.int64)
DOT_SHIFT, LEARN_SHIFT, HALF, LEAST, MOST = (np.array(n, np.int32) for n in (6, 15, 16384, -32768, 32767))


def line_match(lines: U8, tags: list[int]) -> list[int]:
    """For each line, a bit for every entry with its tag."""
    found: list[int] = ((lines.view("<u2")[:, :LINE_ENTRIES] >> 4) == np.array(tags)[:, None]).dot(POWERS).tolist()
    return found


def list_load(t: Tables, hashes: list[int], sym: list[Entries], weight: list[Entries]) -> int:
    """Appends the lists of the hashes. Returns a bit for each context that is present.

    A list is the run of entries that begins with the first of its tag; absent entries have weight 0.
    """
    lines = t.lines[[(h >> 32) * len(t.lines) >> 32 for h in hashes]]
    data, present = lines.tobytes(), 0
    for i, m in enumerate(line_match(lines, [h >> 20 & 0xFFF for h in hashes])):
        if m:
            present |= 1 << i
            first = (m & -m).bit_length() - 1
            run = m >> first
            count = min((run + 1 & ~run).bit_length() - 1, LIST_LEN)
            code, at = i * LINE_BYTES + 2 * first, i * LINE_BYTES + 2 * LINE_ENTRIES + first
            sym.append(data[at : at + count].ljust(LIST_LEN, b"\0"))
            weight.append(data[code : code + 2 * count : 2].translate(WEIGHTS).ljust(LIST_LEN, b"\0"))
        else:
            sym.append(EMPTY)
            weight.append(EMPTY)
    return present


def split(s: Scratch, k: int) -> None:
    """Splits the mass of every list by the next bit."""
    np.bitwise_and(s.weight, s.masks[7 - k], out=s.ones)
    np.add.reduce(s.ones, axis=0, out=s.one)
    np.subtract(s.total, s.one, out=s.zero)


def narrow(s: Scratch, bit: int) -> None:
    """Keeps the entries whose next bit was `bit`."""
    if bit:
        s.weight, s.ones = s.ones, s.weight
    else:
        s.weight -= s.ones
    np.copyto(s.total, s.one if bit else s.zero)


def dot(s: Scratch) -> list[int]:
    """Per set: sum over lane pairs of (in * w + in * w) >> 6. A pair wraps at 32 bits."""
    np.multiply(s.used, s.inputs, out=s.products)
    np.add(s.even, s.odd, out=s.pairs)
    np.right_shift(s.pairs, DOT_SHIFT, out=s.pairs)
    sums: list[int] = s.pairs.dot(s.each_pair).tolist()
    return sums


def learn(s: Scratch, errors: list[int]) -> None:
    """w += round(in * e / 32768), saturating to int16; |e| < 32768, so a product fits 32 bits."""
    step = np.multiply(s.inputs, np.array(errors, np.int32)[:, None], out=s.products)
    np.add(step, HALF, out=step)
    np.right_shift(step, LEARN_SHIFT, out=step)
    np.add(step, s.used, out=step)
    np.minimum(step, MOST, out=step)
    np.maximum(step, LEAST, out=step)
    s.weights[s.rows] = step


def local_update(s: Scratch, c: int) -> None:
    """A symbol's count grows by one, those over 2 of the others halve (upward); a new symbol replaces the rarest."""
    for key, tag in s.slots:
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
    context_update(s.context, c)
    local_update(s, c)
    s.buf.append(c)
    s.match_len = s.match_len + 1 if s.match_len and s.match_byte == c else 0
    s.match_at += 1
    for p in s.primers:
        p.length = p.length + 1 if p.length and p.byte == c else 0
        p.pos += 1


def begin_byte(m: Model, s: Scratch) -> None:
    x = s.context
    s.hashes = h = context_hashes(x)
    s.slots = [(i * LOCAL_SLOTS + (h[j] >> 52), h[j] >> 30 & 0xFFFF | 1) for i, j in enumerate(LOCAL_HASHES)]
    sym: list[Entries] = []
    weight: list[Entries] = []
    present = list_load(m.tables[0], h[:N_STATIC], sym, weight)
    for i, (key, tag) in enumerate(s.slots, N_STATIC):
        slot = s.local.get(key)
        known = slot is not None and slot.tag == tag
        present |= known << i
        sym.append(slot.sym if slot and known else EMPTY)
        weight.append(slot.count if slot and known else EMPTY)
    in_pack = 0
    for t in m.tables[1:]:
        in_pack = list_load(t, [h[j] for j in PACK_HASHES], sym, weight)
    s.weight[:] = np.frombuffer(b"".join(weight), np.uint8).reshape(-1, LIST_LEN).T
    np.add.reduce(s.weight, axis=0, out=s.total)
    bits = np.unpackbits(np.frombuffer(b"".join(sym), np.uint8)).reshape(-1, LIST_LEN, 8)
    np.negative(bits.T, out=s.masks, dtype=np.int64)
    match_find(m, s)
    last = x.hist & 0xFFFF
    s.o1_at, s.o2_at = (last & 0xFF) << 8, m.o2_row[last] << 8
    s.state = context_state(x)
    top = 5 if present & 16 else 4 if present & 8 else 3 if present & 4 else 2 if present & 2 else present & 1
    s.set0 = (top * 4 + length_class(s.match_len)) * 4 + length_class(max([p.length for p in s.primers]))
    words = 3 if present & 128 else 2 if present & 64 else 1 if present & 32 else 0
    own = present >> N_STATIC
    own = 3 if own & 16 else 2 if own & 8 else 1 if own & 4 else 0
    if len(m.tables) > 1:  # the pack's order 6 or structure, order 4, order 3, or none of them
        own = 3 if in_pack & 0x48 else 2 if in_pack & 4 else 1 if in_pack & 2 else 0
    s.set3 = ((words * 4 + own) * 8 + s.state) * 8
    if s.d and s.z:
        pack = 1 + own * 4 + length_class(s.primers[1].length) if len(m.tables) > 1 else 0
        match = s.match_len, s.match_byte
        dense_begin_byte(s.d, s.z, dense_rows(x, s.z, s.set3, len(s.buf), match, pack))


def expected(table: Expected, length: int, byte: int, c0: int, k: int) -> int:
    """The logit of a match of this length that expects `byte`; 0 where there is none, or it is refuted already."""
    if not length or (byte | 256) >> k + 1 != c0:
        return 0
    return table[byte >> k & 1][min(length, 31) * 8 + 7 - k]


def predict(m: Model, s: Scratch, c0: int, k: int) -> int:
    """Probability of a one in 1..65535 of 65536 for bit k (7 first) after node c0 (1..255)."""
    split(s, k)
    one, zero = np.minimum(s.mass, FULL)
    np.multiply(one, BYTE, out=one)
    np.add(one, zero, out=one)
    CELLS.take(one, out=s.cells, mode="clip")
    counts = int(s.base_cells.dot(EACH))
    n1, n0 = min(counts >> 16 & 0xFF, 15), min(counts >> 24, 15)
    np.bitwise_and(s.cells, LOW_BYTE, out=s.cells)
    np.add(s.cells, s.first_cell[7 - k], out=s.cells)
    m.sm.take(s.base_cells, out=s.base_inputs, mode="clip")
    x = s.lane
    x[LANE_O1] = m.o1[s.o1_at + c0]
    x[LANE_O2] = m.o2[s.o2_at + c0] * 16
    x[LANE_MATCH] = found = expected(m.match_sm, s.match_len, s.match_byte, c0, k)
    x[LANE_MATCH + 1] = found if s.match_len >= 16 else 0
    p = s.primers[0]
    x[LANE_PRIMER] = expected(m.primer_sm[0], p.length, p.byte, c0, k)
    x[LANE_STATE] = m.state_sm[s.state << 8 | c0]
    if m.lists > N_BASE_LISTS:
        m.sm.take(s.pack_cells, out=s.pack_inputs, mode="clip")
        p = s.primers[1]
        x[LANE_PACK_PRIMER] = expected(m.primer_sm[1], p.length, p.byte, c0, k)
    group = 0 if k == 7 else 1 if k >= 4 else 2
    s.rows = [
        SET_BASE[0] + s.set0 * 3 + group,
        SET_BASE[1] + c0,
        SET_BASE[2] + (s.context.hist & 0xFF),
        SET_BASE[3] + s.set3 + 7 - k,
        SET_BASE[4] + (n1 * 16 + n0) * 3 + group,
    ]
    s.weights.take(s.rows, axis=0, out=s.used, mode="clip")
    s.dots = [-2047 if d < -2047 * 256 else d >> 8 if d < 2048 * 256 else 2047 for d in dot(s)]
    fw, at = s.final_weights, c0 * 8
    total = sum([d * fw[at + j] for j, d in enumerate(s.dots)]) >> 14
    s.sum = min(max(total, -2047), 2047)
    s.p = m.squash[s.sum + 2048]
    return dense_predict(s.d, s.z, dense_inputs(s), s.sum, c0) if s.d and s.z else s.p


def dense_inputs(s: Scratch) -> I64:
    """What the bit network looks at: 26 lanes, the five sums and their total; the masses of each list."""
    cells = s.base_cells & 0xFF
    lanes = [*s.inputs[:25].tolist(), s.lane[LANE_STATE], *s.dots, s.sum]
    return np.concatenate([np.array(lanes, np.int64), cells & 0xF0, (cells & 15) << 4])


def update(m: Model, s: Scratch, c0: int, bit: int) -> None:
    goal = 65535 if bit else 0
    squash, rates, fw = m.squash, m.rates, s.final_weights
    errors = [(goal - squash[d + 2048]) * rates[j] >> 8 for j, d in enumerate(s.dots)]
    if (max(errors) if bit else -min(errors)) * m.most >= 16384:  # else every step rounds to 0
        learn(s, errors)
    e = (goal - s.p) * rates[7] >> 10
    if e:
        for at, d in enumerate(s.dots, c0 * 8):
            w = fw[at] + (d * e + 32768 >> 16)
            fw[at] = w if -32768 <= w <= 32767 else 32767 if w > 0 else -32768
    narrow(s, bit)
    if s.z:
        s.z.missed += goal - s.p if bit else s.p


def follow(m: Model, s: Scratch, raw: bytes, rc: Encoder | None, cost: list[int] | None) -> None:
    """One record that is known: coded, counted, and learned from in any case."""
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
        if s.z:
            dense_end_byte(s.z)
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


def run_encode(
    m: Model,
    d: Dense | None,
    types: bytes,
    raws: list[bytes],
    rc: Encoder | None,
    cost: list[int] | None,
    primed: int = 0,
) -> None:
    """Codes records after learning from the first `primed` of them."""
    s = Scratch(m, types[0], d)
    for number, raw in enumerate(raws):
        if number:
            record_next(s, types[number])
        follow(m, s, raw, None if number < primed else rc, cost)


def run_decode(m: Model, d: Dense | None, types: bytes, rc: Decoder, cap: int, primed: list[bytes]) -> list[bytes]:
    s = Scratch(m, types[0], d)
    for number, raw in enumerate(primed):
        if number:
            record_next(s, types[number])
        follow(m, s, raw, None, None)
    number = len(primed)
    if number:
        record_next(s, types[number])
    ends = [len(s.buf)]
    while True:
        c0 = 1
        begin_byte(m, s)
        for k in range(7, -1, -1):
            bit = decode_bit(rc, predict(m, s, c0, k))
            update(m, s, c0, bit)
            c0 = c0 * 2 + bit
        if s.z:
            dense_end_byte(s.z)
        c = c0 & 0xFF
        if not c:
            literal = decode_bit(rc, s.p_zero)
            zero_update(s, literal)
            if not literal:
                ends.append(len(s.buf))
                number += 1
                if number == len(types):
                    return [bytes(s.buf[a:b]) for a, b in itertools.pairwise(ends)]
                if rc.spent > SPENT_MAX:
                    raise StreamError("the stream does not decode")
                record_next(s, types[number])
                continue
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


# -- _kernelmodule.c ---------------------------------------------------------------------------------------------------


def check_call(profiles: int, value_type: int, profile: int, n: int) -> None:
    if not 0 <= value_type <= 3:
        raise ValueError(f"value type {value_type} is not 0..3")
    if not 0 <= profile < profiles:
        raise ValueError(f"profile {profile} is not in this model")
    if n > SEGMENT_SIZE:
        raise ValueError(f"{n} bytes are over one segment ({SEGMENT_SIZE})")


class Coder:
    """The loaded integer model. Thread-safe: what a record changes is made for each call."""

    def __init__(self, model: Buffer, pack: Buffer | None = None) -> None:
        self._model = model_open(model, pack)
        self._dense = dense_open(File(memoryview(model).cast("B"), "model"), self._model.squash)
        self._profiles = 2 if self._dense else 1

    def _check(self, value_type: int, profile: int, n: int) -> Dense | None:
        """The dense profile's networks where it is asked for."""
        check_call(self._profiles, value_type, profile, n)
        return self._dense if profile else None

    def encode(self, raw: Buffer, value_type: int, profile: int = 0) -> bytes:
        """The payload of `raw`, which ends by itself."""
        data = bytes(memoryview(raw))
        d = self._check(value_type, profile, len(data))
        e = Encoder()
        run_encode(self._model, d, bytes([value_type]), [data], e, None)
        encoder_flush(e)
        return bytes(e.out[1:])

    def decode(self, payload: Buffer, value_type: int, profile: int = 0, max_out: int = SEGMENT_SIZE) -> bytes:
        """The raw bytes of `payload`. Raises StreamError, and StreamLimit past `max_out` bytes."""
        self._check(value_type, profile, 0)
        return self.decode_sequence(payload, bytes([value_type]), profile, max_out)[0]

    def encode_sequence(self, raws: list[bytes], value_types: bytes, profile: int, primed: int = 0) -> bytes:
        """One payload of records that are coded one after the other, the first `primed` only learned from."""
        if len(value_types) != len(raws) or not 0 <= primed < len(raws):
            raise ValueError("one type per item is wanted, and an item")
        data = self._joined(raws, value_types, profile)
        e = Encoder()
        run_encode(self._model, self._dense if profile else None, value_types, data, e, None, primed)
        encoder_flush(e)
        return bytes(e.out[1:])

    def decode_sequence(
        self,
        payload: Buffer,
        value_types: bytes,
        profile: int,
        max_out: int = SEGMENT_SIZE,
        primed: list[bytes] = [],  # noqa: B006
    ) -> list[bytes]:
        """The raw bytes of the records after the primed ones; types and `max_out` are of all together."""
        data = bytes(memoryview(payload))
        if len(primed) >= len(value_types):
            raise ValueError("one type per item is wanted, and an item")
        for kind in value_types:
            self._check(kind, profile, 0)
        known = self._joined(primed, value_types, profile)
        cap = min(max(max_out, 0), SEGMENT_SIZE)
        if sum(map(len, known)) > cap:
            raise StreamLimit("decoded size is over the limit")
        rc = Decoder(data)
        raws = run_decode(self._model, self._dense if profile else None, value_types, rc, cap, known)
        if rc.pos < len(data):  # bytes after the end
            raise StreamError("the stream does not decode")
        return raws

    def _joined(self, raws: list[bytes], value_types: bytes, profile: int) -> list[bytes]:
        data, total = [bytes(memoryview(raw)) for raw in raws], 0
        for raw, kind in zip(data, value_types, strict=False):
            total += len(raw)
            self._check(kind, profile, total)
        return data

    def costs(self, raw: Buffer, value_type: int, profile: int = 0) -> bytes:
        """Little-endian uint16 costs in 1/256 bit, saturating: one a byte and one for the end."""
        data = bytes(memoryview(raw))
        d = self._check(value_type, profile, len(data))
        cost: list[int] = []
        run_encode(self._model, d, bytes([value_type]), [data], None, cost)
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

    def _check_many(self, data: list[bytes], value_types: bytes, profile: int, sized: bool) -> None:
        """Every call is checked before the first is made."""
        if len(value_types) != len(data):
            raise ValueError("one type per item is wanted")
        for item, kind in zip(data, value_types, strict=True):
            self._check(kind, profile, memoryview(item).nbytes if sized else 0)


def load(model: Buffer, pack: Buffer | None = None) -> Coder:
    """The coder of a model file and, if given, of a pack made for it. Raises FormatError; both stay referenced."""
    return Coder(model, pack)
