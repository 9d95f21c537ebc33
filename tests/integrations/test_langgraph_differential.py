"""NBMFStore beside LangGraph's InMemoryStore: the same batches give the same answers.

Known differences are kept out of what is compared, each for a reason: InMemoryStore lists namespaces that hold nothing
any more, or were only read from; it orders a search by when a namespace was first met; it keeps the vector of a field
that a later value no longer has, and cannot embed one text for two items of a batch; and it raises for an order between
a number and a text, where NBMFStore, as SQL does, finds none.
"""

from __future__ import annotations

import itertools
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.store.base import GetOp, Item, ListNamespacesOp, MatchCondition, Op, PutOp, SearchItem, SearchOp
from langgraph.store.memory import InMemoryStore
from letters import DIMS, Letters

from nbmf.integrations.langgraph import NBMFStore
from nbmf.memory import Memory

SEGMENTS = st.sampled_from(["a", "b", "ab", "%", "é"])
NAMESPACES = st.lists(SEGMENTS, min_size=1, max_size=3).map(tuple)
KEYS = st.sampled_from(["k", "K", "k.1", "0"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["", "x", "é"]))
NUMBERS = st.one_of(st.integers(-3, 3), st.floats(-3, 3).map(lambda x: round(x, 1)))
VALUES = st.fixed_dictionaries(
    {"n": NUMBERS},
    optional={
        "s": SCALARS,
        "list": st.lists(SCALARS, max_size=2),
        "d": st.fixed_dictionaries({}, optional={"x": SCALARS, "y": st.integers(0, 2)}),
    },
)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "n": st.one_of(
            NUMBERS,
            st.dictionaries(st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), NUMBERS, min_size=1),
        ),
        "s": st.one_of(SCALARS, st.fixed_dictionaries({"$ne": SCALARS}), st.fixed_dictionaries({"$eq": SCALARS})),
        "list": st.lists(SCALARS, max_size=2),
        "d": st.fixed_dictionaries({}, optional={"x": SCALARS, "y": st.fixed_dictionaries({"$eq": st.integers(0, 2)})}),
        "none": st.one_of(st.none(), st.integers(0, 1)),
    },
)
PATHS = st.lists(st.one_of(SEGMENTS, st.just("*")), min_size=1, max_size=3).map(tuple)
CONDITIONS = st.lists(
    st.tuples(st.sampled_from(["prefix", "suffix"]), PATHS).map(lambda parts: MatchCondition(*parts)), max_size=2
).map(tuple)
WHOLE = 10_000

OPS = st.one_of(
    st.tuples(NAMESPACES, KEYS, VALUES).map(lambda parts: PutOp(*parts)),
    st.tuples(NAMESPACES, KEYS, VALUES).map(lambda parts: PutOp(*parts)),
    st.tuples(NAMESPACES, KEYS).map(lambda parts: PutOp(*parts, None)),
    st.tuples(NAMESPACES, KEYS).map(lambda parts: GetOp(*parts)),
    st.tuples(
        st.lists(SEGMENTS, max_size=2).map(tuple),
        st.one_of(st.none(), FILTERS),
        st.sampled_from([WHOLE, WHOLE, 2]),
        st.sampled_from([0, 0, 1]),
    ).map(lambda parts: SearchOp(*parts)),
    st.tuples(CONDITIONS, st.sampled_from([None, 1, 2])).map(lambda parts: ListNamespacesOp(*parts, WHOLE)),
)

# A value's texts are its own alone and its fields always the same: see above.
UNIQUE = itertools.count()
INDEXED = st.builds(lambda a, b: {"a": a, "b": b}, *[st.text("abcz", min_size=1, max_size=6)] * 2)


def fields(item: Item) -> tuple[Any, ...]:
    return item.namespace, item.key, repr(item.value)


def same(op: Op, ours: Any, theirs: Any) -> None:
    if isinstance(op, PutOp):
        assert ours is theirs is None
    elif isinstance(op, GetOp):
        assert (ours is None) == (theirs is None)
        assert ours is None or fields(ours) == fields(theirs)
    elif isinstance(op, ListNamespacesOp):
        assert ours == theirs
    else:
        assert all(type(item) is SearchItem and item.score is None for item in ours)
        assert len(ours) == len(theirs)
        if op.limit == WHOLE and not op.offset:
            assert sorted(map(fields, ours)) == sorted(map(fields, theirs))
        assert len(set(map(fields, ours))) == len(ours)


BATCHES = st.lists(st.lists(OPS, min_size=1, max_size=8), min_size=1, max_size=8)
OPTIONS: Any = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}


@settings(max_examples=20, **OPTIONS)
@given(BATCHES)
def test_the_same_batches_give_the_same_answers(batches: list[list[Op]]) -> None:
    compare(batches)


@pytest.mark.slow
@settings(max_examples=200, **OPTIONS)
@given(BATCHES)
def test_many_batches_give_the_same_answers(batches: list[list[Op]]) -> None:
    compare(batches)


def compare(batches: list[list[Op]]) -> None:
    theirs = InMemoryStore()
    with tempfile.TemporaryDirectory() as folder, Memory.open(folder, embedder=None) as memory:
        ours = NBMFStore(memory)
        for batch in batches:
            for empty in [namespace for namespace, held in theirs._data.items() if not held]:
                del theirs._data[empty]
            batch = sorted(batch, key=lambda op: not isinstance(op, ListNamespacesOp))
            expected, found = theirs.batch(batch), ours.batch(batch)
            for op, one, other in zip(batch, found, expected, strict=True):
                same(op, one, other)
        held = {(n, k): repr(item.value) for n, held in theirs._data.items() for k, item in held.items()}
        assert {(item.namespace, item.key): repr(item.value) for item in ours.search((), limit=WHOLE)} == held


@settings(max_examples=40, **OPTIONS)
@given(
    st.lists(st.tuples(NAMESPACES, KEYS, st.one_of(INDEXED, INDEXED, st.none())), min_size=1, max_size=25),
    st.lists(st.tuples(st.lists(SEGMENTS, max_size=2).map(tuple), st.text("abcz", min_size=1, max_size=5)), max_size=5),
)
def test_the_same_queries_give_the_same_scores(puts: list[Any], queries: list[Any]) -> None:
    config: Any = {"dims": DIMS, "embed": Letters(), "fields": ["a", "b"]}
    theirs = InMemoryStore(index=config)
    with tempfile.TemporaryDirectory() as folder, Memory.open(folder, embedder=None) as memory:
        ours = NBMFStore(memory, index=config)
        for namespace, key, value in puts:
            if value is not None:  # digits have no letters: every text its own, and the vectors as drawn
                value = {name: f"{text}{next(UNIQUE)}" for name, text in value.items()}
            for store in (ours, theirs):
                store.batch([PutOp(namespace, key, value)])
        for prefix, query in queries:
            found = ours.search(prefix, query=query, limit=WHOLE)
            expected = {
                (item.namespace, item.key): item.score for item in theirs.search(prefix, query=query, limit=WHOLE)
            }
            assert {(item.namespace, item.key): item.score for item in found} == pytest.approx(expected, abs=2e-3)
            assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)  # type: ignore[type-var]
            assert ours.search(prefix, query=query, limit=2, offset=1) == found[1:3]
