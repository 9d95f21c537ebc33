"""Semantic recall: what is put is embedded and kept as a compact code; a query finds codes, then records decide."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nbmf.errors import PolicyError
from nbmf.memory.encoding import value_of
from nbmf.memory.items import Item, PutOp, SearchOp, item_of, matches, now
from nbmf.memory.tiers import Address
from nbmf.policy.router import tenant_of
from nbmf.store.base import Namespace, Tier
from nbmf.store.embed import Embedder, WordLlama, text_of, unit
from nbmf.store.keywords import Query, fuse, plain_rarity, signature
from nbmf.store.vectors import CANDIDATES, EXTRA, CodeIndex, VectorCode

if TYPE_CHECKING:
    from nbmf.memory.memory import Memory

NEEDED: Final = ("wordllama", "tokenizers")  # packages of the static embedder
SPARE: Final = 2  # times as many candidates as items that are wanted, at least CANDIDATES
WIDER: Final = 4  # times as many when too few of them were left
STEP: Final = 256  # candidates that are read at a time


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
        assert self._code is not None
        missing = [n for n, i in enumerate(places) if ops[i].vector is None]
        vectors = np.zeros((len(places), embedder.dim), np.float32)
        if missing:
            vectors[missing] = embedder.embed([texts[n] for n in missing])
        for n, i in enumerate(places):
            given = ops[i].vector
            if given is not None:
                vectors[n] = unit([given], 1, embedder.dim)[0]
            out[i] = self._code.encode(vectors[n], signature(texts[n], self._rarity()))
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
        candidates = max(CANDIDATES, SPARE * wanted)
        seen: set[Address] = set()
        items: list[Item] = []
        while True:
            fresh: dict[Address, None] = {}
            more = False
            for index in indexes:
                found = index.search(vector, op.prefix, candidates, query.terms, EXTRA if query.terms else 0)
                more |= len(found) >= candidates
                fresh.update(((namespace, key), None) for namespace, key, _ in found if (namespace, key) not in seen)
            seen.update(fresh)
            items += self._scored(memory, list(fresh), vector, query, op)
            if len(items) >= wanted or not more:
                items.sort(key=lambda item: (-(item.score or 0.0), item.namespace, item.key))
                return items[:wanted]
            candidates *= WIDER

    def _scored(self, memory: Memory, addresses: list[Address], vector: Any, query: Query, op: SearchOp) -> list[Item]:
        """Those of the candidates that are there, indexed and pass the filter, each with its score."""
        items: list[Item] = []
        texts: list[str] = []
        codes: list[bytes] = []
        for at in range(0, len(addresses), STEP):
            found = [one for one in memory.fetch(addresses[at : at + STEP], now()) if one is not None]
            found = [one for one in found if one[0].code and op.cls in (None, one[0].cls)]
            pairs = memory.pairs([record for record, _ in found])
            for (record, tier), pair in zip(found, pairs, strict=True):
                item = item_of(record, tier, value_of(pair))
                if matches(item.value, op.filter):
                    items.append(item)
                    fields = memory.policy.rules(tenant_of(record.namespace), record.cls).index
                    texts.append(text_of(item.value, fields or None))
                    codes.append(record.code)
        if not items:
            return []
        cosines = self._cosines(texts, codes, vector)
        return [
            replace(item, score=fuse(cosine, query.match(text)))
            for item, cosine, text in zip(items, cosines, texts, strict=True)
        ]

    def _cosines(self, texts: list[str], codes: list[bytes], vector: Any) -> list[float]:
        """How near each record is: by its text in full precision, unless another vector was put with it.

        That one, the user's own or that of other fields, only its code tells.
        """
        code = self._code
        assert code is not None
        embedded = self.embedder().embed(texts)
        out = []
        for own, stored in zip(embedded, codes, strict=True):
            if not code.fits(stored) or code.encode(own)[: code.size] == stored[: code.size]:
                out.append(float(own @ vector))
            else:
                out.append(float(code.decode(stored)[0] @ vector))
        return out

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
