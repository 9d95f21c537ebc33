"""Contexts: what the model knows of the bytes before the next one. kernel_context.h in plain integers."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import numpy.typing as npt

DEPTH_MAX: Final = 16
PRIME: Final = 0x2C1B3C6D
MASK32, MASK64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
KIND: Final = [kind * 0xA24BAED4963EE407 & MASK64 for kind in range(47)]
LETTER: Final = [97 <= c | 32 <= 122 or c >= 128 for c in range(256)]
CLASS: Final = [1 if 48 <= c <= 57 else 2 if LETTER[c] else 3 if c == 32 else 4 for c in range(256)]
NEWLINE, QUOTE, COMMA, COLON, BACKSLASH, OPEN_ARRAY = b'\n",:\\['
SEPARATORS, OPENERS, CLOSERS = frozenset(b" ,\t|;"), frozenset(b"{["), frozenset(b"}]")

Word = TypeVar("Word", int, npt.NDArray[Any])


class Context:
    """A pure function of the record so far. Hashes are uint32, `hist` is uint64."""

    def __init__(self, value_type: int) -> None:
        self.hist = value_type  # types are small: no byte of text equals them, so the first byte knows its type
        self.word = self.word1 = self.word2 = 0  # hash of the unit so far, of the one before, and before that
        self.line = self.shape = self.field = self.token = 0  # since the line began; token: since the last separator
        self.string = self.value = self.last_string = 0  # since the JSON string, the JSON value began
        self.key, self.prev_key = [0] * DEPTH_MAX, [0] * DEPTH_MAX
        self.is_array = [False] * DEPTH_MAX
        self.depth = self.char_class = 0
        self.in_string = self.escaped = self.in_value = False


def mix64(x: Word) -> Word:
    """Bijective on 64 bits, so distinct contexts of one kind collide only in the bits that are kept."""
    x = x * 0x9E3779B97F4A7C15 & MASK64
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93 & MASK64
    return x ^ x >> 29


def hash_pair(kind: int, a: int, b: int) -> int:
    return mix64((a << 32 | b) ^ KIND[kind])


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


def context_hashes(x: Context) -> list[int]:
    """Order 3, 4, 5, 6, 8, word, word pair, word triple, word skip, three of structure; then order 1 and 2.

    The last two are no static contexts. Order 6 (index 3) is what finds matches in a primer.
    """
    t, word, word1, word2, d = x.hist, x.word, x.word1, x.word2, x.depth
    c1, low, high = t & 0xFF, t & MASK32, t >> 32
    here = word or c1
    hashes = [
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
    key, up, before = x.key[d], x.key[d - 1], x.prev_key[d]
    if not d:
        hashes += hash_pair(16, 0, x.line), hash_pair(17, x.field, x.token), hash_pair(18, c1, x.shape)
    elif x.in_value:
        v = x.value
        hashes += hash_pair(10, key, v), hash_pair(11, key, word or c1 + 256), hash_pair(12, key * 3 + up & MASK32, v)
    else:
        s = x.string * 2 + x.in_string & MASK32
        hashes += hash_pair(13, before, s), hash_pair(14, up, s), hash_pair(15, before * 3 + up & MASK32, s)
    hashes += hash_pair(19, 0, c1), hash_pair(20, 0, t & 0xFFFF)
    return hashes


LOCAL_HASHES: Final = (12, 13, 0, 1, 3, 5, 6, 9)  # order 1, 2, 3, 4, 6, word, word pair, structure
PACK_HASHES: Final = (13, 0, 1, 3, 5, 6, 9, 10)  # order 2, 3, 4, 6, word, word pair, structure twice
