"""Semantic recall: what is put is embedded and kept as a compact code; a query finds codes, then records decide."""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nbmf.errors import PolicyError
from nbmf.memory.encoding import value_of
from nbmf.memory.items import Item, PutOp, SearchOp, item_of, matches, now
from nbmf.memory.tiers import Address
from nbmf.policy.router import tenant_of
from nbmf.store.base import Namespace, Record, Tier
from nbmf.store.codes import SHRINK, SLACK, SPREAD, VectorCode
from nbmf.store.embed import Embedder, WordLlama, text_of, unit
from nbmf.store.keywords import Query, fuse, plain_rarity, signature
from nbmf.store.vectors import CANDIDATES, CodeIndex, Near, ranked

if TYPE_CHECKING:
    from nbmf.memory.memory import Memory

NEEDED: Final = ("wordllama", "tokenizers")  # packages of the static embedder
CANDIDATES_WORDS: Final = 28  # as CANDIDATES, of a query that has keywords
SPARE: Final = 1.5  # times as many candidates as items that are wanted, at least CANDIDATES
WIDER: Final = 4  # times as many when too few of them were left
STEP: Final = 256  # candidates that are read at a time
MARGIN: Final = 1.4  # times SPREAD: how far a guess may be off
# Raw bytes that are decoded for one search, about: by the vector alone, where close ones must be told apart, and with
# keywords. Half as many as the first that are wanted have, if that is more.
EFFORT: Final = 27_000
EFFORT_WORDS: Final = 15_000


GUESSED, READ, KNOWN = range(3)  # by what a candidate's score is: its code, that and its text, its text's embedding


@dataclass(slots=True, eq=False)
class _Scored:
    """A candidate. It has value, raw bytes, text and the text's match once it is READ; `cosine` is by its code."""

    score: float
    cosine: float
    record: Record
    tier: str
    stage: int = GUESSED
    value: Any = None
    raw: int = 0
    text: str = ""
    match: float = 0.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a search is for. `margin`: so far below the last of the best a guess may lie, and is looked into."""

    op: SearchOp
    query: Query
    vector: Any
    margin: float


def _order(one: _Scored) -> tuple[float, Namespace, str]:
    """The best first."""
    return -one.score, one.record.namespace, one.record.key


class Recall:
    """The embedder of a store, and an index for each of its tiers, built at the first search. Thread-safe."""

    def __init__(self, embedder: Any) -> None:
        if embedder == "auto":
            self._wanted = all(importlib.util.find_spec(name) is not None for name in NEEDED)
            self._embedder: Embedder | None = None
        else:
            self._wanted = embedder is not None
            self._embedder = embedder
        self._lock = threading.Lock()
        self._code: VectorCode | None = None
        self._indexes: dict[str, CodeIndex] = {}

    @property
    def on(self) -> bool:
        """Whether there is an embedder."""
        return self._wanted

    def embedder(self) -> Embedder:
        """The embedder, loaded when first asked for. Raises PolicyError when the store has none."""
        if not self._wanted:
            raise PolicyError("search by meaning needs an embedder: install nbmf[search], or open the store with one")
        with self._lock:
            if self._embedder is None:
                self._embedder = WordLlama()
            if self._code is None:
                self._code = VectorCode(self._embedder.id, self._embedder.dim)
        return self._embedder

    def _rarity(self) -> Any:
        return getattr(self._embedder, "rarity", plain_rarity)

    # -- writing -------------------------------------------------------------------------------------------------------

    def codes(self, ops: Sequence[PutOp], indexed: Sequence[tuple[str, ...] | None]) -> list[bytes]:
        """The code of each put, b"" for what is not to be found by meaning. `indexed` is what the policy says."""
        out = [b""] * len(ops)
        places: list[int] = []
        texts: list[str] = []
        for i, (op, by_policy) in enumerate(zip(ops, indexed, strict=True)):
            if op.vector is not None and not self.on:
                raise PolicyError("a record's vector needs an embedder: open the store with one")
            fields = _fields(op.index, by_policy)
            if fields is None or not self.on:
                continue
            text = text_of(op.value, fields or None)
            if text or op.vector is not None:
                places.append(i)
                texts.append(text)
        if not places:
            return out
        embedder = self.embedder()
        code = self._code
        assert code is not None
        own = [ops[i].vector is None for i in places]
        vectors = embedder.embed([text for text, computed in zip(texts, own, strict=True) if computed])
        rows = iter(code.encode_many(vectors))
        for i, text, computed in zip(places, texts, own, strict=True):
            signed = signature(text, self._rarity())
            if computed:
                out[i] = next(rows).tobytes() + signed
            else:
                out[i] = code.encode(unit([ops[i].vector], 1, embedder.dim)[0], signed, whole=True)
        return out

    # -- reading -------------------------------------------------------------------------------------------------------

    def search(self, memory: Memory, op: SearchOp, wanted: int) -> list[Item]:
        """The best `wanted` items for a query, best first: candidates by code, then scored by what they say."""
        if not wanted:
            return []
        embedder = self.embedder()
        query = Query.of(op.query or "", self._rarity())
        vector = unit([op.vector], 1, embedder.dim)[0] if op.vector is not None else embedder.embed([op.query or ""])[0]
        indexes = [self._index("warm", memory.warm)]
        if (cold := memory.cold()) is not None:
            indexes.append(self._index("cold", cold))
        most = max(CANDIDATES_WORDS if query.terms else CANDIDATES, math.ceil(SPARE * wanted))
        seen: set[Address] = set()
        best: list[_Scored] = []
        asked = _Asked(op, query, vector, MARGIN * SPREAD / math.sqrt(embedder.dim))
        while True:
            near: list[Near] = []
            more = False
            for index in indexes:
                found = index.search(vector, op.prefix, most, query.terms, query.total)
                more |= len(found) >= most
                near += found
            more |= len(near) > most
            fresh = {(one.namespace, one.key): one for one in ranked(near, most)}
            chosen = [one for address, one in fresh.items() if address not in seen]
            seen.update(fresh)
            for at in range(0, len(chosen), STEP):
                self._rank(memory, chosen[at : at + STEP], best, wanted, asked)
            if len(best) >= wanted or not more:
                return [item_of(one.record, one.tier, one.value, one.score) for one in best[:wanted]]
            most *= WIDER

    def _rank(
        self, memory: Memory, candidates: Sequence[Near], best: list[_Scored], wanted: int, asked: _Asked
    ) -> None:
        """Adds those of the candidates that are there, indexed and pass the filter to `best`, and sorts it anew.

        The first `wanted` of `best` then have true scores. What takes the time is to decode, then to embed: both are
        spared those that are not likely to be among them.
        """
        op = asked.op
        there = memory.fetch([(one.namespace, one.key) for one in candidates], now())
        found = [
            _Scored(near.score, near.cosine, *one)
            for near, one in zip(candidates, there, strict=True)
            if one is not None and one[0].code and op.cls in (None, one[0].cls)
        ]
        by_words = bool(asked.query.terms)
        first = len(found) if op.filter else wanted
        read = self._read(memory, found[:first], asked)
        if not by_words:
            self._measure(read, asked)
        best += read
        best.sort(key=_order)
        # A signature holds few words, so a guess without any of them tells nothing of the text's own.
        least = -1.0 if by_words or len(best) < wanted else best[wanted - 1].score - asked.margin
        coded = sum(len(one.record.blob) for one in found[:first])
        raw = sum(one.raw for one in found[:first])
        ratio = raw / max(coded, 1)  # what is near is alike, in this too
        room = max((EFFORT_WORDS if by_words else EFFORT) - raw, raw // 2)
        likely: list[_Scored] = []
        for one in found[first:]:
            size = round(ratio * len(one.record.blob))
            if one.score >= least and size <= room:
                likely.append(one)
                room -= size
            else:
                best.append(one)
        best += self._read(memory, likely, asked)
        best.sort(key=_order)
        least = best[wanted - 1].score - asked.margin if len(best) >= wanted else -1.0
        self._measure([one for one in best if one.stage == READ and one.score >= least], asked)
        best.sort(key=_order)
        while guessed := [one for one in best[:wanted] if one.stage != KNOWN]:
            self._measure(self._read(memory, [one for one in guessed if one.stage == GUESSED], asked), asked)
            self._measure([one for one in guessed if one.stage == READ], asked)
            best.sort(key=_order)

    def _read(self, memory: Memory, found: Sequence[_Scored], asked: _Asked) -> list[_Scored]:
        """Decodes them; those that pass the filter, with scores by their texts' own keywords."""
        out: list[_Scored] = []
        for one, pair in zip(found, memory.pairs([one.record for one in found]), strict=True):
            one.value, one.raw = value_of(pair), len(pair[1])
            if matches(one.value, asked.op.filter):
                fields = memory.policy.rules(tenant_of(one.record.namespace), one.record.cls).index
                one.text = text_of(one.value, fields or None)
                one.match = asked.query.match(one.text)
                one.score, one.stage = fuse(one.cosine, one.match), READ
                out.append(one)
        return out

    def _measure(self, read: Sequence[_Scored], asked: _Asked) -> None:
        """Gives them their true scores."""
        if not read:
            return
        cosines = self._cosines([one.text for one in read], [one.record.code for one in read], asked.vector)
        for one, cosine in zip(read, cosines, strict=True):
            one.score, one.stage = fuse(cosine, one.match), KNOWN

    def _cosines(self, texts: Sequence[str], codes: Sequence[bytes], vector: Any) -> list[float]:
        """How near each record is: by its text in full precision, unless another vector was put with it.

        That one, the user's own or that of other fields, only its code tells.
        """
        code = self._code
        assert code is not None
        own = self.embedder().embed(texts)
        cosines: list[float] = (own @ vector).tolist()
        for i, (stored, fresh) in enumerate(zip(codes, code.encode_many(own), strict=True)):
            if not code.fits(stored):
                continue
            if code.is_whole(stored):
                cosines[i] = float(code.decode(stored)[0] @ vector)
            elif stored[: code.size] != (plain := fresh.tobytes()):
                unlike = np.frombuffer(stored, np.uint8, code.size) ^ np.frombuffer(plain, np.uint8)
                if int(np.unpackbits(unlike).sum()) > SLACK:
                    cosines[i] = float(code.decode(stored)[0] @ vector) / SHRINK
        return cosines

    def _index(self, name: str, tier: Tier) -> CodeIndex:
        embedder = self.embedder()
        with self._lock:
            index = self._indexes.setdefault(name, CodeIndex(embedder.id, embedder.dim))
        index.follow(tier)
        return index

    def forget(self, prefix: Namespace) -> None:
        """Drops what the indexes hold of a prefix."""
        for index in list(self._indexes.values()):
            index.forget(prefix)

    @property
    def bytes(self) -> int:
        """Memory of the indexes."""
        return sum(index.nbytes for index in self._indexes.values())


def _fields(index: bool | Sequence[str] | None, by_policy: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Names of the fields to embed, () for all, None for none. Raises PolicyError."""
    if index is None:
        return by_policy
    if isinstance(index, bool):
        return () if index else None
    if isinstance(index, str) or not all(isinstance(field, str) for field in index):
        raise PolicyError(f"index is True, False or a list of fields, not {index!r}"[:200])
    return tuple(index) or None
