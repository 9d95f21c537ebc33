"""The dense profile's networks: kernel_dense.h, kernel_dense_loop.h and their part of kernel_model.c in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nbmf.codec.reference_context import Context, hash_pair
from nbmf.codec.reference_model import I64, File, fail, has_section, items

I8 = npt.NDArray[np.int8]

LAYERS: Final = 2
WIDTH_MAX: Final = 512
INPUTS: Final = 72  # of the bit network: 32 logits, then the masses on one and on zero of 20 lists
LOGITS: Final = 32
ONES, TWOS = 64, 32  # its units in the first layer, and in the second
DENSE_ONE: Final = 1024
WEIGHT_MOST: Final = 4095  # of a weight of the bit network, so that no sum passes 32 bits
MISS_START: Final = 1 << 15
# Rows of the embedding table by context: order 1, 2, 3, word, two words before, key, key above, what is known,
# position, match, its byte, type, miss, pack.
SIZES: Final = (256, 4096, 8192, 8192, 8192, 4096, 2048, 1024, 128, 64, 32, 257, 64, 32, 17)
BASES: Final = [sum(SIZES[:i]) for i in range(len(SIZES))]
ROWS: Final = sum(SIZES)


class Affine(NamedTuple):
    weights: I64  # [outputs][inputs]
    scale: I64
    bias: I64


@dataclass(frozen=True, eq=False)
class Dense:
    """The networks' integers, widened to 64 bits apart from the embedding."""

    rows: I8  # [ROWS][width]
    layers: list[Affine]
    middle: Affine
    context: Affine
    byte: I64  # [256][middle]
    byte_scale: I64
    node: I64  # [256][ONES]
    first: I64  # [ONES][INPUTS]
    second: I64  # [TWOS][ONES]
    second_bias: I64
    third: I64  # [TWOS + 1]: the last is the bias
    skip: I64  # [256][LOGITS]
    squash: I64


class State:
    """What a record changes."""

    def __init__(self, d: Dense, value_type: int) -> None:
        self.state = np.zeros((LAYERS, d.rows.shape[1]), np.int64)
        self.value_type, self.miss, self.missed = value_type, MISS_START, 0
        self.middle = self.context = np.zeros(0, np.int64)


def affine_open(f: File, name: str, scale: str, outputs: int, inputs: int) -> Affine:
    weights = items(f, name, "i1", outputs * inputs).astype(np.int64).reshape(outputs, inputs)
    return Affine(weights, *items(f, scale, "<i2", 2 * outputs).astype(np.int64).reshape(2, outputs))


def dense_open(f: File, squash: Sequence[int]) -> Dense | None:
    if not has_section(f, "dense_rows"):
        return None
    rows = items(f, "dense_rows", "i1")
    if not len(rows) or len(rows) % (32 * ROWS) or len(rows) > WIDTH_MAX * ROWS:
        fail(f, "section dense_rows has a wrong size")
    width = len(rows) // ROWS
    size = len(items(f, "dense_middle", "i1"))
    if not size or size % (32 * width) or size > WIDTH_MAX * width:
        fail(f, "section dense_middle has a wrong size")
    middle = size // width

    def words(name: str, *shape: int) -> I64:
        count = int(np.prod(shape))
        return items(f, name, "<i2", count).astype(np.int64).reshape(shape)

    layers = [affine_open(f, f"dense_layer{i}", f"dense_scale{i}", 2 * width, width) for i in (1, 2)]
    made = Dense(
        rows.reshape(ROWS, width),
        layers,
        affine_open(f, "dense_middle", "dense_mid_scale", middle, width),
        affine_open(f, "dense_context", "dense_ctx_scale", ONES, middle),
        items(f, "dense_byte", "i1", 256 * middle).astype(np.int64).reshape(256, middle),
        words("dense_byte_scal", 256),
        words("dense_node", 256, ONES),
        words("dense_first", ONES, INPUTS),
        words("dense_second", TWOS, ONES),
        words("dense_second_b", TWOS),
        words("dense_third", TWOS + 1),
        words("dense_skip", 256, LOGITS),
        np.array(squash, np.int64),
    )
    held = (made.first, made.second, made.third, made.skip, made.byte_scale)
    if any(np.abs(weights).max() > WEIGHT_MOST for weights in held):
        fail(f, "a weight of the dense profile lies outside -4095..4095")
    return made


def dense_hash(kind: int, a: int, b: int, bits: int) -> int:
    return hash_pair(kind, a, b) >> 64 - bits


def dense_log(n: int) -> int:
    """0..63 on a logarithmic scale, four steps an octave."""
    if n < 4:
        return n
    lg = n.bit_length() - 1
    return min(lg * 4 + (n >> lg - 2 & 3) - 4, 63)


def dense_rows(x: Context, z: State, set3: int, position: int, match: tuple[int, int], pack: int) -> list[int]:
    """The embedding row of each context of the next byte. match: length and byte; pack: 0 without one."""
    last, d, tree = x.hist & 0xFFFFFFFF, x.depth, int(x.depth > 0)
    length, byte = match
    at = [
        last & 0xFF,
        dense_hash(40, 0, last & 0xFFFF, 12),
        dense_hash(41, 0, last & 0xFFFFFF, 13),
        dense_hash(42, x.word, 0 if x.word else (last & 0xFF) + 1, 13),
        dense_hash(43, x.word1, 0, 13),
        dense_hash(44, x.word2, 0, 12),
        dense_hash(45, x.key[d] if tree else x.shape, tree, 11),
        dense_hash(46, x.key[d - 1] if tree else x.field, tree, 10),
        set3 >> 3,
        dense_log(position),
        min(length, 31),
        byte + 1 if length else 0,
        z.value_type * 16 + min(d, 7) * 2 + int(x.in_string),
        min(z.miss >> 12, 31),
        pack,
    ]
    return [base + row for base, row in zip(BASES, at, strict=True)]


def round15(x: I64) -> I64:
    return (x + 16384) >> 15


def held16(x: I64) -> I64:
    return np.clip(x, -32768, 32767)


def wrapped(x: Any) -> Any:
    """As 32 bits hold it: a hostile model's logits may pass what a trained one's keep to."""
    return (x + (1 << 31) & 0xFFFFFFFF) - (1 << 31)


def affine(a: Affine, x: I64) -> I64:
    return held16(round15(held16(a.weights.dot(x) >> 4) * a.scale) + a.bias)


def dense_begin_byte(d: Dense, z: State, rows: list[int]) -> None:
    """Steps the network over what is known before the next byte."""
    y: Any = np.clip(d.rows[rows].sum(0, dtype=np.int64), -127, 127)
    n = len(y)
    for i, layer in enumerate(d.layers):
        t = d.squash[np.clip(affine(layer, y), -2047, 2047) + 2048]
        gate, value = t[:n] >> 1, t[n:] - 32768
        h = held16(z.state[i] - round15(gate * z.state[i]))
        z.state[i] = h = held16(h + round15(gate * value))
        y = (y + (h >> 8)) >> 1
    z.middle = np.clip(affine(d.middle, y), 0, 127)
    z.context = affine(d.context, z.middle)
    z.missed = 0


def dense_predict(d: Dense, z: State, inputs: I64, total: int, c0: int) -> int:
    """Probability of a one in 1..65535, corrected from what the mixer's total gave."""
    one = np.clip((wrapped(d.first.dot(inputs)) >> 10) + d.node[c0] + z.context, 0, WEIGHT_MOST)
    two = np.clip((d.second.dot(one) >> 10) + d.second_bias, 0, WEIGHT_MOST)
    out = int(d.third[TWOS]) * DENSE_ONE + int(two.dot(d.third[:TWOS])) + int(inputs[:LOGITS].dot(d.skip[c0]))
    out += (int(d.byte[c0].dot(z.middle)) >> 4) * int(d.byte_scale[c0]) >> 2
    return int(d.squash[min(max(total + (wrapped(out) >> 11), -2047), 2047) + 2048])


def dense_end_byte(z: State) -> None:
    z.miss += z.missed - z.miss >> 4
