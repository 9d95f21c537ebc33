"""Search by meaning and keywords: who is found, in which order, and who must not be."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbmf import samples
from nbmf.errors import PolicyError
from nbmf.memory import Memory, PutOp, items, recall
from nbmf.policy.policy import Policy
from nbmf.store.embed import Embedder, UserEmbedder, WordLlama, text_of
from nbmf.store.keywords import Query, fuse

COLD = Policy.parse('[default]\ncold_after = "0s"\npromote_heat = "never"\n')
NS = ("users", "ann")
NOTES = {
    "tea": "prefers green tea over coffee",
    "violin": "plays the violin on Sundays",
    "order": "the parcel A-88231 was lost on its way",
    "cat": "her cat is called Murr",
    "doctor": "has an appointment with the dentist on Friday",
}


@pytest.fixture(scope="module")
def words() -> Embedder:
    """The static embedder, loaded once."""
    pytest.importorskip("wordllama")
    return WordLlama()


@pytest.fixture(params=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, tmp_path: Path, words: Embedder) -> dict[str, Any]:
    key = bytes(range(32)) if request.param == "encrypted" else None
    return {"address": tmp_path / "s", "key": key, "embedder": words}


def opened(store: dict[str, Any], **options: Any) -> Memory:
    return Memory.open(**{**store, **options})


def keys_of(memory: Memory, query: str | None, prefix: tuple[str, ...] = (), **options: Any) -> list[str]:
    return [item.key for item in memory.search(prefix, query, **{"limit": 99, **options})]


def test_the_best_come_first_in_either_tier(store: dict[str, Any]) -> None:
    with opened(store, policy=COLD) as memory:
        for key, text in NOTES.items():
            memory.put(NS, key, {"text": text})
        memory.put(NS, "surrogate", "cut \ud83d here")
        for tier in ("warm", "cold"):
            for query, best in (("hot drinks", "tea"), ("music", "violin"), ("A-88231", "order"), ("pets", "cat")):
                found = memory.search((), query, limit=99)
                assert found[0].key == best and found[0].tier == tier
                scores = [item.score for item in found]
                assert all(score is not None and 0 <= score <= 1 for score in scores)
                assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
                assert keys_of(memory, query, limit=2, offset=1) == [item.key for item in found[1:3]]
            assert keys_of(memory, "\ud83d") is not None
            assert keys_of(memory, "") == keys_of(memory, None)
            memory.compact()
        memory.put(NS, "tea", {"text": "now drinks water only"})
        assert memory.search((), "water to drink")[0].tier == "warm"
        assert len(keys_of(memory, "drinks")) == len(NOTES) + 1


def test_what_is_not_there_is_not_found(store: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 1_750_000_000_000

        def time_ns(self) -> int:
            return self.now * 1_000_000

    clock = Clock()
    monkeypatch.setattr(items, "time", clock)
    with opened(store, policy=COLD) as memory:
        for tier in ("warm", "cold"):
            for namespace in (NS, ("users_", "ann"), ("users%",), ("userss", "ann")):
                for what in ("deleted", "expired", "replaced", "kept"):
                    ttl = 1 if what == "expired" else None
                    memory.put(namespace, what, "hot drinks: coffee", ttl=ttl)
            if tier == "cold":
                memory.compact()
            assert len(keys_of(memory, "coffee")) == 16
            memory.delete(NS, "deleted")
            memory.put(NS, "replaced", "hot drinks: coffee", index=False)
            clock.now += 70_000
            assert keys_of(memory, "coffee", NS) == ["kept"]
            assert keys_of(memory, "coffee", ("users",)) == ["kept"]
            assert memory.forget(("users",)) >= 2
            assert keys_of(memory, "coffee", ("users",)) == []
            assert sorted(keys_of(memory, "coffee", ("users_",))) == ["deleted", "kept", "replaced"]
            memory.forget(())
            assert keys_of(memory, "coffee") == []


@pytest.mark.parametrize("narrow", [{"filter": {"n": {"$gte": 290}}}, {"cls": "rare"}])
def test_few_of_many_alike(store: dict[str, Any], narrow: dict[str, Any]) -> None:
    """However many better ones a filter leaves out."""
    with opened(store) as memory:
        memory.put_many(
            PutOp(NS, f"k{i:03}", {"text": "green tea" if i < 290 else "a walk in the rain", "n": i}, cls="many")
            for i in range(298)
        )
        memory.put_many(PutOp(NS, f"k{i:03}", {"text": "unlike", "n": i}, cls="rare") for i in range(298, 300))
        wanted = {f"k{i:03}" for i in range(290 if "filter" in narrow else 298, 300)}
        assert set(keys_of(memory, "green tea", **narrow)) == wanted
        assert len(keys_of(memory, "green tea", limit=1, **narrow)) == 1
        assert len(keys_of(memory, "green tea", limit=300)) == 300


def test_another_handle_is_followed(store: dict[str, Any]) -> None:
    with opened(store, policy=COLD) as one, opened(store) as other:
        assert keys_of(one, "tea") == []
        other.put(NS, "tea", NOTES["tea"])
        assert keys_of(one, "tea") == ["tea"]
        other.put(NS, "tea", NOTES["violin"])
        assert [item.value for item in one.search((), "violin")] == [NOTES["violin"]]
        other.put_many(PutOp(NS, f"k{i}", f"note {i}") for i in range(40))
        one.compact()
        assert len(keys_of(other, "note")) == 41 and {item.tier for item in other.search((), "note")} == {"cold"}
        other.forget(NS)
        assert keys_of(one, "violin") == []


class Many:
    """Generated records in a store, and what exact search says of them."""

    COUNT = 2000

    def __init__(self, memory: Memory, words: Embedder) -> None:
        values = [sample.value for sample in samples.generate(self.COUNT, 11)]
        memory.put_many(PutOp(("t", f"u{i % 7}"), f"k{i}", value) for i, value in enumerate(values))
        self.memory, self.words = memory, words
        self.texts = [text_of(value) for value in values]
        self.vectors = words.embed(self.texts)

    def queries(self, count: int) -> list[str]:
        """A few words in a row out of a record."""
        draw, found = random.Random(5), []
        while len(found) < count:
            parts = draw.choice(self.texts).split()
            start = draw.randrange(len(parts) or 1)
            if parts:
                found.append(" ".join(parts[start : start + draw.randint(3, 8)]))
        return found

    def recall(self, count: int) -> float:
        """The share of exact search's ten nearest that a search by the vector alone finds; equal ones count as one."""
        hits = 0
        for vector in self.words.embed(self.queries(count)):
            exact = self.vectors @ vector
            least = np.partition(exact, -10)[-10] - 1e-5
            found = self.memory.search((), vector=vector.tolist(), limit=10)
            assert [one.score for one in found] == pytest.approx([exact[int(one.key[1:])] for one in found], abs=1e-5)
            hits += sum(exact[int(one.key[1:])] >= least for one in found)
        return hits / (10 * count)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, words: Embedder) -> Any:
    with Memory.open(tmp_path_factory.mktemp("many") / "s", embedder=words, policy=COLD) as memory:
        yield Many(memory, words)


def test_recall_against_exact_search(many: Many) -> None:
    assert many.recall(60) >= 0.95


@pytest.mark.parametrize("effort", [0, 10**9])
def test_scores_are_true_however_little_was_read(many: Many, monkeypatch: pytest.MonkeyPatch, effort: int) -> None:
    """What is returned has the score of its own text; what was guessed to be worse is left out."""
    monkeypatch.setattr(recall, "EFFORT", effort)
    monkeypatch.setattr(recall, "EFFORT_WORDS", effort)
    for text, vector in zip(queries := many.queries(20), many.words.embed(queries), strict=True):
        words = Query.of(text, many.words.rarity)  # type: ignore[attr-defined]
        for prefix in ((), ("t", "u3")):
            found = many.memory.search(prefix, text, limit=8)
            places = [int(one.key[1:]) for one in found]
            true = [fuse(float(many.vectors[i] @ vector), words.match(many.texts[i])) for i in places]
            assert [one.score for one in found] == pytest.approx(true, abs=1e-5)
            assert true == sorted(true, reverse=True) and len(set(places)) == 8
            assert all(one.namespace[: len(prefix)] == prefix for one in found)


def test_hot_warm_and_cold_give_the_same(many: Many) -> None:
    """Last of those that share the records: it moves them."""
    queries = many.queries(6)

    def answers() -> list[list[tuple[str, float | None]]]:
        return [[(one.key, one.score) for one in many.memory.search(("t",), text)] for text in queries]

    many.memory.hot.clear()
    warm = answers()
    assert answers() == warm and many.memory.hot.hits > 0
    gone = [many.memory.search((), text, limit=1)[0] for text in queries[:2]]
    many.memory.compact()
    many.memory.hot.clear()
    assert {one.tier for one in many.memory.search((), queries[0])} == {"cold"}
    assert answers() == warm
    for one in gone:
        many.memory.delete(one.namespace, one.key)
        assert one.key not in keys_of(many.memory, str(text_of(one.value)), one.namespace)


def test_which_fields(store: dict[str, Any]) -> None:
    policy = Policy.parse('[class.none]\nindex = false\n\n[class.some]\nindex = ["text"]\n')
    value = {"text": "green tea", "hidden": "violin"}
    with opened(store, policy=policy) as memory:
        memory.put(NS, "all", value)
        memory.put(NS, "none", value, cls="none")
        memory.put(NS, "some", value, cls="some")
        memory.put(NS, "asked", value, cls="none", index=True)
        memory.put(NS, "given", value, index=["text"])
        memory.put(NS, "empty", value, index=[])
        memory.put(NS, "elsewhere", value, index=["nothing.here"])
        assert sorted(keys_of(memory, "green tea")) == ["all", "asked", "given", "some"]
        found = {item.key: item.score or 0 for item in memory.search((), "a stringed instrument", limit=9)}
        assert min(found["all"], found["asked"]) > max(found["some"], found["given"])
        for bad in ("text", [1], ["a..b"]):
            with pytest.raises(PolicyError):
                memory.put(NS, "bad", value, index=bad)  # type: ignore[arg-type]
        assert memory.get(NS, "bad") is None


def test_vectors_of_the_users_own(tmp_path: Path) -> None:
    def embed(texts: Sequence[str]) -> Any:
        return [[len(text), *(text.count(chr(32 + i)) for i in range(79))] for text in texts]

    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((50, 80)).astype(np.float32)
    with Memory.open(tmp_path / "s", embedder=UserEmbedder(embed, 80, "letters"), policy=COLD) as memory:
        for i, vector in enumerate(vectors):  # an image, a text that says something else, and a JSON value
            value: Any = [b"\xff\xd8%d" % i, f"aaa {i}", {"i": i}][i % 3]
            memory.put(NS, f"k{i}", value, vector=vector.tolist())
        memory.put(NS, "text", "abc abc")
        for _ in ("warm", "cold"):
            for i in (0, 1, 2, 30):
                best = memory.search((), vector=vectors[i].tolist(), limit=3)
                assert best[0].key == f"k{i}" and (best[0].score or 0) > 0.8
            assert memory.search((), "abc abc")[0].key == "text"
            memory.compact()
        for bad in ([1.0] * 79, [float("nan")] * 80, ["x"] * 80):
            with pytest.raises(PolicyError):
                memory.put(NS, "bad", 1, vector=bad)  # type: ignore[arg-type]
            with pytest.raises(PolicyError):
                memory.search((), vector=bad)  # type: ignore[arg-type]
        assert memory.get(NS, "bad") is None
    # Codes of another embedder are not looked at.
    with Memory.open(tmp_path / "s", embedder=UserEmbedder(embed, 80, "others")) as memory:
        assert memory.search((), "abc abc") == []
        memory.put(NS, "text", "abc abc")
        assert [item.key for item in memory.search((), "abc abc")] == ["text"]


def test_recall_of_vectors_of_the_users_own(tmp_path: Path) -> None:
    """They are kept whole: no text tells them again."""
    rng = np.random.default_rng(2)
    rows = np.repeat(rng.standard_normal((120, 64)), 10, axis=0) + 0.5 * rng.standard_normal((1200, 64))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    mine = UserEmbedder(lambda texts: np.ones((len(texts), 64)), 64, "mine")
    with Memory.open(tmp_path / "s", embedder=mine) as memory:
        memory.put_many(PutOp(NS, f"k{i}", b"\xff%d" % i, vector=row.tolist()) for i, row in enumerate(rows))
    hits = 0
    with Memory.open(tmp_path / "s", embedder=mine) as memory:
        for query in rows[::40] + 0.05 * rng.standard_normal((30, 64)):
            exact = rows @ (query / np.linalg.norm(query))
            best = {f"k{i}" for i in np.argsort(-exact)[:10]}
            found = memory.search((), vector=query.tolist(), limit=10)
            hits += len(best & {one.key for one in found})
            for one in found:
                assert one.score == pytest.approx(max(exact[int(one.key[1:])], 0), abs=0.01)
    assert hits >= 0.95 * 300


def test_codes_that_other_machines_rounded(tmp_path: Path, words: Embedder) -> None:
    """A few bits of a code may differ where sums are rounded otherwise; more are of another text's."""
    with Memory.open(tmp_path / "s", embedder=words) as memory:
        memory.put(NS, "k", NOTES["tea"])
        record = memory.warm.get(NS, "k", 0)
        assert record is not None
        for flipped, same in ((3, True), (60, False)):
            code = bytearray(record.code)
            for bit in range(flipped):
                code[1 + bit % 8] ^= 1 << (bit // 8)
            memory.warm.put(replace(record, code=bytes(code)))
            score = memory.search((), NOTES["tea"])[0].score
            true = fuse(1.0, 1.0)
            assert (score == pytest.approx(true, abs=1e-6)) is same


def test_bad_questions(tmp_path: Path, words: Embedder) -> None:
    with Memory.open(tmp_path / "s", embedder=words) as memory:
        memory.put(NS, "k", {"a": 1})
        for bad in (
            {"query": 3},
            {"query": "x", "limit": -1},
            {"limit": 1.5},
            {"offset": None},
            {"filter": "x"},
            {"filter": {3: 1}},
            {"query": "x", "filter": {"a": {"$like": 1}}},
            {"prefix": "users"},
            {"prefix": ("users", "")},
        ):
            with pytest.raises(PolicyError):
                memory.search(**bad)
        assert memory.search((), "x", limit=0) == memory.search((), limit=0) == []


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(recall.importlib.util, "find_spec", lambda name: None if name == "wordllama" else find(name))
    with Memory.open(tmp_path / "s") as memory:
        memory.put(NS, "k", NOTES["tea"])
        assert memory.get(NS, "k") == NOTES["tea"]
        assert [item.key for item in memory.search(NS)] == ["k"]
        with pytest.raises(PolicyError, match=r"nbmf\[search\]"):
            memory.search(NS, "tea")
    monkeypatch.undo()
    with Memory.open(tmp_path / "s") as memory:  # what was put without is there, and not found by meaning
        assert keys_of(memory, "tea") == []
        memory.put(NS, "k", NOTES["tea"])
        assert keys_of(memory, "tea") == ["k"]
