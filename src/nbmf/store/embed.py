"""Texts to unit vectors, and JSON values to the texts that stand for them.

The static embedder keeps one vector a token and averages them. Its weights and its tokenizer are read, as files, from
the installed wheel: nothing is ever fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from nbmf.errors import NbmfError, PolicyError

Floats = npt.NDArray[np.float32]

EMBED_MOST: Final = 4096  # characters of a text that are embedded; the rest is left out
TEXT_MOST: Final = 16384  # characters that `text_of` returns at most
INTEGER_BITS: Final = 1024  # a longer integer is data, and Python may refuse to write it
WORDS_MOST: Final = 65536  # words whose tokens are remembered, about 200 bytes each
WORD_MOST: Final = 48  # characters of a word that is remembered

WORDLLAMA_WEIGHTS: Final = "weights/l2_supercat_256.safetensors"
WORDLLAMA_TOKENIZER: Final = "tokenizers/l2_supercat_tokenizer_config.json"
# Tokens below are bytes and control tokens; those from there on stand in the order in which they were learned, so that
# a token's number grows with its rarity.
FIRST_LEARNED: Final = 259
BYTE_BITS: Final = 8.0
LONE_SPACE: Final = 29871
SPACE: Final = (
    "\u2581"  # stands for a space in the tokenizer's vocabulary: the first token of every word begins with it
)
TOGETHER: Final = 256  # words that are tokenized in one call
NORM_WEIGHT: Final = 2.0
NUMBER_BONUS: Final = 20.0
SUM_UNIT: Final = 4096  # of the sums in integers: a weight is a whole number of 1/4096
NUMBER_LEAST: Final = 4  # characters of a token with digits from which on it is likely an identifier


class Embedder(Protocol):
    """Texts to vectors. `id` names the weights: codes of embedders with different ids are never compared."""

    @property
    def id(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> Floats:
        """float32[len(texts), dim]; rows have norm 1, that of an empty text 0."""
        ...


class WordLlama:
    """The 256-dimensional static embedder of the `wordllama` wheel. Thread-safe; about 48 MB when loaded.

    Raises NbmfError when the extra `nbmf[search]` is not installed, or the wheel's files are not what they should be.
    """

    dim: Final = 256

    def __init__(self) -> None:
        folder = _package_folder("wordllama")
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise NbmfError("semantic recall needs nbmf[search]") from None
        try:
            tokenizer = (folder / WORDLLAMA_TOKENIZER).read_bytes()
            weights = (folder / WORDLLAMA_WEIGHTS).read_bytes()
            self._table = _tensor(weights, "embedding.weight").astype(np.float32)
            self._tokenizer = Tokenizer.from_str(tokenizer.decode())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NbmfError(f"the files of wordllama in {folder} cannot be read: {error}"[:200]) from None
        if self._table.ndim != 2 or self._table.shape[1] != self.dim:
            raise NbmfError(f"the weights of wordllama have shape {self._table.shape}, not (tokens, {self.dim})")
        self.id = "wordllama-256-" + hashlib.sha256(weights + tokenizer).hexdigest()[:16]
        vocabulary = self._tokenizer.get_vocab()
        self._begins = [False] * (1 + max(vocabulary.values()))  # by token: whether it begins a word
        for token, id in vocabulary.items():
            self._begins[id] = token.startswith(SPACE)
        # What else begins a token, or a text within a text: words with one of these are tokenized alone.
        self._marks = (SPACE, *map(str, self._tokenizer.get_added_tokens_decoder().values()))
        self._words = _Words(self._ids)
        self._whole: npt.NDArray[np.int32] | None = None  # the table in whole units, made when first asked for
        self._rarities: dict[str, float] = {}
        self._norms = np.sqrt(np.einsum("ij,ij->i", self._table, self._table))
        ranks = np.maximum(np.arange(len(self._table)) - FIRST_LEARNED + 10, 1)
        self._bits = np.where(np.arange(len(ranks)) < FIRST_LEARNED, BYTE_BITS, np.log2(ranks)).tolist()

    def _ids(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens of each word, below len(table). No token but runs of spaces crosses a word's border, so they are
        tokenized as one text, which takes half the time of a call for each.
        """
        # Lone surrogates, which the tokenizer refuses, become question marks.
        text = " ".join(words).encode("utf-8", "replace").decode()
        if len(words) > 1 and any(mark in text for mark in self._marks):
            return [self._ids([word])[0] for word in words]
        found = self._tokenizer.encode(text, add_special_tokens=False).ids
        if len(words) == 1:
            return [tuple(found)]
        starts = [i for i, id in enumerate(found) if self._begins[id]]
        return [tuple(found[i:j]) for i, j in zip(starts, [*starts[1:], len(found)], strict=True)]

    def embed(self, texts: Sequence[str]) -> Floats:
        """float32[len(texts), 256]: the mean over the tokens of the first EMBED_MOST characters, scaled to norm 1.

        Sums run in the order of the text, and the norm is taken in double precision: machines agree to the last bits.
        """
        out = np.zeros((len(texts), self.dim), np.float32)
        get = self._words.__getitem__
        split = [text[:EMBED_MOST].split() for text in texts]
        with self._words.met([word for words in split for word in words]):
            for row, words in zip(out, split, strict=True):
                ids = np.fromiter(chain.from_iterable(map(get, words)), np.intp)
                if len(ids):
                    np.add.reduce(self._table.take(ids, axis=0), axis=0, out=row)
                    wide = row.astype(np.float64)
                    norm = math.sqrt(np.dot(wide, wide))
                    if norm > 0:
                        row /= np.float32(norm)
        return out

    def sums(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """int64[len(texts), 256]: the sum over the same tokens of weights in whole 1/4096: equal on every machine."""
        if self._whole is None:
            self._whole = np.rint(self._table * np.float32(SUM_UNIT)).astype(np.int32)
        out = np.zeros((len(texts), self.dim), np.int64)
        split = [text[:EMBED_MOST].split() for text in texts]
        with self._words.met([word for words in split for word in words]):
            for row, words in zip(out, split, strict=True):
                ids = [id for word in words for id in self._words[word]]
                if ids:
                    np.sum(self._whole[ids], axis=0, dtype=np.int64, out=row)
        return out

    def rarity(self, token: str) -> float:
        """How rare a keyword is, in bits or so: "the" 6, a name 40, an order number 80. The same on every machine.

        Rare words are built from late or from many tokens, and carry longer vectors; those with digits are identifiers.
        """
        known = self._rarities.get(token)
        if known is not None:
            return known
        ids = [id for id in self._words[token] if id != LONE_SPACE]
        rarity: float = sum(self._bits[id] for id in ids)
        if ids:
            rarity += NORM_WEIGHT * float(self._norms[ids].max())
        if len(token) >= NUMBER_LEAST and any(map(str.isdigit, token)):
            rarity += NUMBER_BONUS
        if len(self._rarities) >= WORDS_MOST:
            self._rarities.clear()
        if len(token) <= WORD_MOST:
            self._rarities[token] = rarity
        return rarity


class UserEmbedder:
    """Any callable from texts to vectors. `id` must change whenever its vectors do."""

    def __init__(self, embed: Callable[[Sequence[str]], Any], dim: int, id: str) -> None:
        if dim < 1 or not id:
            raise PolicyError(f"an embedder has a dimension of at least 1 and a name, not {dim} and {id!r}"[:200])
        self._embed, self.dim, self.id = embed, dim, f"user-{dim}-{id}"

    def embed(self, texts: Sequence[str]) -> Floats:
        """float32[len(texts), dim], rows scaled to norm 1. Raises PolicyError for an answer of another shape."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        return unit(self._embed(texts), len(texts), self.dim)


def unit(vectors: Any, count: int, dim: int) -> Floats:
    """float32[count, dim], rows of norm 1, or 0 where they were 0. Raises PolicyError for a wrong shape or a NaN."""
    try:
        rows = np.array(vectors, np.float32)
    except (ValueError, TypeError):
        raise PolicyError("vectors are lists of numbers, all of one length") from None
    if rows.shape != (count, dim):
        raise PolicyError(f"vectors of shape {rows.shape} where ({count}, {dim}) was due")
    if not np.isfinite(rows).all():
        raise PolicyError("a vector holds a number that is not finite")
    # Divided by the largest first, so that no square overflows.
    rows /= np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.float32(1e-30))
    rows /= np.maximum(np.sqrt((rows * rows).sum(axis=1, keepdims=True)), np.float32(1e-30))
    return rows


class _Words(dict[str, tuple[int, ...]]):
    """Tokens by word. Every step is atomic: what another thread takes away costs a second look-up, no more."""

    def __init__(self, tokenize: Callable[[Sequence[str]], list[tuple[int, ...]]]) -> None:
        self._tokenize = tokenize

    @contextlib.contextmanager
    def met(self, words: Sequence[str]) -> Iterator[None]:
        """Tokenizes the words that are new together. Inside the context all are known, long ones too."""
        new = [word for word in dict.fromkeys(words) if word not in self]
        if len(self) + len(new) > WORDS_MOST:
            self.clear()
            new = list(dict.fromkeys(words))
        for at in range(0, len(new), TOGETHER):
            part = new[at : at + TOGETHER]
            self.update(zip(part, self._tokenize(part), strict=True))
        try:
            yield
        finally:
            for word in new:
                if len(word) > WORD_MOST:
                    self.pop(word, None)
            if len(self) > WORDS_MOST:
                self.clear()

    def __missing__(self, word: str) -> tuple[int, ...]:
        [ids] = self._tokenize([word])
        if len(word) <= WORD_MOST:
            if len(self) >= WORDS_MOST:
                self.clear()
            self[word] = ids
        return ids


def _package_folder(name: str) -> Path:
    """Where a package lies, found without running it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise NbmfError("semantic recall needs nbmf[search]")
    return Path(spec.submodule_search_locations[0])


def _tensor(data: bytes, name: str) -> npt.NDArray[Any]:
    """One tensor of a safetensors file: u64 length of a JSON header, the header, the data it gives offsets into."""
    size = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + size])[name]
    begin, end = entry["data_offsets"]
    kind = {"F16": "<f2", "F32": "<f4"}[entry["dtype"]]
    return np.frombuffer(data[8 + size + begin : 8 + size + end], kind).reshape(entry["shape"])


# -- texts of values ---------------------------------------------------------------------------------------------------


def text_of(value: Any, fields: Sequence[str] | None = None) -> str:
    """The text of a JSON value that is embedded and searched: at most TEXT_MOST characters.

    Without `fields`, everything in document order, parted by spaces: strings as they are, numbers as JSON, true and
    false, and the name of a field where it is first met. `fields` are paths: "text", "metadata.title", "items[0]",
    "items[*].name", "*", "{title,body}", "$" (everything); parts that are not there are left out.
    Bytes, vectors and integers of over INTEGER_BITS bits have no text. Raises PolicyError for a path that is malformed.
    """
    if isinstance(value, str) and fields is None:
        return value[:TEXT_MOST]
    if isinstance(fields, str):
        raise PolicyError(f"fields is a list of paths, not the text {fields!r}"[:200])
    pieces: list[str] = []
    seen: set[str] = set()
    parts = [value] if fields is None else chain.from_iterable(_at(value, parse_path(path)) for path in fields)
    room = TEXT_MOST
    for part in parts:
        room = _walk(part, seen, pieces, room)
        if room < 0:
            break
    return " ".join(pieces)[:TEXT_MOST]


def _walk(value: Any, seen: set[str], pieces: list[str], room: int) -> int:
    """Adds the pieces of a value, in document order, until they have over `room` characters; the room that is left.

    With a stack of its own: values may be nested deeper than Python's.
    """
    stack: list[tuple[bool, Iterator[Any]]] = [(False, iter((value,)))]  # whether of a dict, as names and values
    while stack and room >= 0:
        named, items = stack[-1]
        for item in items:
            if named:
                name, item = str(item[0]), item[1]
                if name not in seen:
                    seen.add(name)
                    pieces.append(name)
                    room -= len(name) + 1
            if isinstance(item, str):
                if item:
                    pieces.append(item)
                    room -= len(item) + 1
            elif isinstance(item, (bool, int, float)):
                if isinstance(item, float) or item.bit_length() <= INTEGER_BITS:
                    pieces.append(json.dumps(item))
                    room -= len(pieces[-1]) + 1
            elif isinstance(item, dict):
                stack.append((True, iter(item.items())))
                break
            elif isinstance(item, (list, tuple)):
                stack.append((False, iter(item)))
                break
            if room < 0:
                break
        else:
            stack.pop()
    return room


def parse_path(path: str) -> list[str]:
    """The steps of a path: a field's name, "*", "[n]", "[*]" or "{a,b.c}". [] for "$" and "". Raises PolicyError."""
    if not isinstance(path, str):
        raise PolicyError(f"a path is a text, not {path!r}"[:200])
    if path in ("", "$"):
        return []
    steps: list[str] = []
    at = 0
    while at < len(path):
        mark = path[at]
        if mark in "[{":
            end = path.find("]" if mark == "[" else "}", at)
            inner = path[at + 1 : end].strip()
            if end < 0 or not inner:
                raise PolicyError(f"the path {path!r} has an open or empty {mark}"[:200])
            if mark == "[" and inner != "*" and not inner.removeprefix("-").isdecimal():
                raise PolicyError(f"the path {path!r} has an index that is neither a number nor *"[:200])
            steps.append(mark + inner + path[end])
            at = end + 1
            if at < len(path) and path[at] not in ".[{":
                raise PolicyError(f"the path {path!r} needs a dot after {path[end]}"[:200])
            at += at < len(path) and path[at] == "."
        else:
            end = min((i for i in (path.find(c, at) for c in ".[{") if i >= 0), default=len(path))
            if end == at:
                raise PolicyError(f"the path {path!r} has an empty step"[:200])
            steps.append(path[at:end])
            at = end + (end < len(path) and path[end] == ".")
    if steps[0] == "$":
        del steps[0]
    return steps


def _at(value: Any, steps: list[str]) -> Iterator[Any]:
    """Every part of `value` that the steps lead to."""
    if not steps:
        yield value
        return
    step, rest = steps[0], steps[1:]
    if step[0] == "{":
        for path in step[1:-1].split(","):
            yield from _at(value, parse_path(path.strip()) + rest)
    elif step in ("*", "[*]"):
        if isinstance(value, dict) and step == "*":
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            for part in value:
                yield from _at(part, rest)
    elif step[0] == "[":
        index = int(step[1:-1])
        if isinstance(value, (list, tuple)) and -len(value) <= index < len(value):
            yield from _at(value[index], rest)
    elif isinstance(value, dict) and step in value:
        yield from _at(value[step], rest)


__all__ = ["EMBED_MOST", "TEXT_MOST", "Embedder", "UserEmbedder", "WordLlama", "parse_path", "text_of", "unit"]
