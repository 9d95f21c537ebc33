"""What the tests of the tiers share: records to put, and the contract of `batch` once more over a dict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from nbmf.store.base import Delete, Expire, Forget, Get, Namespace, Namespaces, Op, Put, Record, Scan, Tier, within

NOW = 1_760_000_000_000  # ms
HOUR = 3_600_000  # ms
CODEC = "5f" * 32
ANN = ("users", "ann")


def rec(key: str = "k", namespace: Namespace = ANN, blob: bytes = b"blob", **fields: Any) -> Record:
    return Record(namespace, key, blob, **{"codec": CODEC, "created": NOW, "updated": NOW, "cls": "fact", **fields})


def pages(tier: Tier, prefix: Namespace, limit: int, **options: Any) -> list[Record]:
    """A scan by pages of `limit`."""
    out: list[Record] = []
    after = None
    while page := tier.batch([Scan(prefix, options.get("now"), after, limit, options.get("cls"))])[0]:
        assert len(page) <= limit
        out += page
        after = (page[-1].namespace, page[-1].key)
    return out


segments = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12) | st.sampled_from(
    ["a", "a%", "a_", "ab", "A", "a/b", "é", "\U0001f600", "\uffff", "\x01", "\x7f", "."]
)
namespaces = st.lists(segments, min_size=1, max_size=4).map(tuple)
keys = (
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
    | st.uuids().map(str)
    | st.uuids().map(lambda id: str(id).upper())
    | st.uuids().map(lambda id: id.hex)
    | st.binary(min_size=8, max_size=40).map(bytes.hex)
)
times = st.integers(-(1 << 40), 1 << 44)
records = st.builds(
    Record,
    namespace=namespaces,
    key=keys,
    blob=st.binary(max_size=300),
    codec=st.sampled_from(["", CODEC, "00" * 32]),
    cls=st.sampled_from(["", "fact", "chat", "é"]),
    fidelity=st.sampled_from(["lossless", "semantic"]),
    created=times,
    updated=times,
    expires=st.none() | st.integers(1 << 45, 1 << 46),
    ttl=st.none() | st.integers(1, 1 << 40),
    meta=st.sampled_from([b"", b'{"a":1}']) | st.binary(max_size=40),
    code=st.binary(max_size=64),
)


class Oracle:
    """The contract of `batch` once more, over a dict: what a tier is compared with."""

    def __init__(self) -> None:
        self.held: dict[tuple[Namespace, str], Record] = {}

    def apply(self, op: Op) -> Any:
        held = self.held
        match op:
            case Get(namespace, key, now, renew):
                record = held.get((namespace, key))
                if record is None or not record.at(now):
                    return None
                if renew and record.ttl is not None:
                    record = held[namespace, key] = replace(record, expires=now + record.ttl)
                return record
            case Put(record, expected):
                at = (record.namespace, record.key)
                old = held.get(at)
                if old is not None and not old.at(record.updated):
                    old = None
                if expected is not None and (old is None or old.blob != expected):
                    return False
                held[at] = record if old is None else replace(record, created=old.created)
                return old is not None
            case Delete(namespace, key, expected):
                old = held.get((namespace, key))
                if old is None or (expected is not None and old.blob != expected):
                    return False
                del held[namespace, key]
                return True
            case Namespaces(prefix, now):
                return sorted({ns for (ns, _), r in held.items() if within(ns, prefix) and r.at(now)})
            case Forget(prefix):
                gone = [at for at in held if within(at[0], prefix)]
            case Expire(now, limit):
                gone = [at for at, record in held.items() if not record.at(now)]
                assert len(gone) <= limit
            case _:
                raise AssertionError(op)
        for at in gone:
            del held[at]
        return len(gone)
