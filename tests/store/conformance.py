"""What every tier promises (src/nbmf/store/base.py), as tests. A tier passes them all, or is none.

A test module subclasses `Conformance` and gives it a fixture `medium`: a fresh, empty place where a tier keeps its
records. `test_conformance.py` shows how.
"""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from oracle import ANN, CODEC, HOUR, NOW, Oracle, pages, rec, records

from nbmf.errors import PolicyError, StoreError
from nbmf.store.base import (
    JOURNAL,
    Changes,
    Codes,
    Delete,
    Expire,
    Forget,
    Get,
    Namespace,
    Namespaces,
    Op,
    Put,
    Record,
    Scan,
    Tier,
    within,
)


class Medium(ABC):
    """A place for one tier's records. `open` opens it again and again; whoever opens a tier closes it."""

    several = True  # whether two tiers may have it open at one time
    plain = True  # whether its files are readable text

    @abstractmethod
    def open(self) -> Tier: ...

    def files(self) -> list[Path]:
        """Those in which nothing of a forgotten record may stay; [] where they are a server's."""
        return []


def addresses(records: list[Record]) -> list[tuple[Namespace, str]]:
    return [(record.namespace, record.key) for record in records]


def found_in(files: list[Path], *needles: bytes) -> list[tuple[str, bytes]]:
    """Which of the needles are in which of the files, byte for byte."""
    raws = [(path.name, path.read_bytes()) for path in files]
    return [(name, needle) for name, raw in raws for needle in needles if needle in raw]


class Conformance:
    """All of it. `tier` is empty and open; `medium` opens it again."""

    @pytest.fixture
    def tier(self, medium: Medium) -> Iterator[Tier]:
        with closing(medium.open()) as tier:
            yield tier

    @contextmanager
    def another(self, medium: Medium, tier: Tier) -> Iterator[Tier]:
        """A second tier over the same records, beside the first where that may be, else after it."""
        if not medium.several:
            tier.close()
        with closing(medium.open()) as other:
            yield other

    # -- get, put, delete ----------------------------------------------------------------------------------------------

    def test_put_then_get(self, tier: Tier) -> None:
        record = rec(expires=NOW + HOUR, ttl=HOUR, meta=b'{"a":1}', code=b"\x01\x02", fidelity="semantic")
        assert tier.get(ANN, "k", NOW) is None
        assert tier.put(record) is False
        assert tier.get(ANN, "k", NOW) == record
        assert tier.get(ANN, "other", NOW) is None
        assert tier.get(("users",), "k", NOW) is None

    def test_the_defaults_of_a_record(self, tier: Tier) -> None:
        record = Record(("n",), "k", b"")
        tier.put(record)
        assert tier.get(("n",), "k", NOW) == record

    def test_a_put_replaces_and_keeps_created(self, tier: Tier) -> None:
        tier.put(rec(expires=NOW + HOUR, ttl=5, meta=b"{}", code=b"c"))
        later = rec(blob=b"later", created=NOW + 7, updated=NOW + 7, cls="chat", codec="")
        assert tier.put(later) is True
        assert tier.get(ANN, "k", NOW + 8) == replace(later, created=NOW)
        assert tier.sizes()["count"] == 1

    def test_a_put_over_an_expired_record_is_a_first_one(self, tier: Tier) -> None:
        tier.put(rec(expires=NOW + 5))
        later = rec(blob=b"later", created=NOW + 5, updated=NOW + 5)
        assert tier.put(later, expected=b"blob") is False
        assert tier.get(ANN, "k", NOW + 5) is None
        assert tier.put(later) is False
        assert tier.get(ANN, "k", NOW + 5) == later

    def test_a_put_may_expect_a_blob(self, tier: Tier) -> None:
        assert tier.put(rec(blob=b"new"), expected=b"old") is False
        assert tier.get(ANN, "k", NOW) is None
        tier.put(rec(blob=b"old"))
        assert tier.put(rec(blob=b"new"), expected=b"older") is False
        assert tier.get(ANN, "k", NOW) == rec(blob=b"old")
        assert tier.put(rec(blob=b"new", created=1), expected=b"old") is True
        assert tier.get(ANN, "k", NOW) == rec(blob=b"new")
        assert tier.put(rec(blob=b""), expected=b"new") is True
        assert tier.put(rec(blob=b"x"), expected=b"") is True

    def test_delete(self, tier: Tier) -> None:
        assert tier.delete(ANN, "k") is False
        tier.put(rec())
        tier.put(rec("l"))
        assert tier.delete(("users",), "k") is False
        assert tier.delete(ANN, "k", expected=b"other") is False
        assert tier.get(ANN, "k", NOW) is not None
        assert tier.delete(ANN, "k", expected=b"blob") is True
        assert tier.get(ANN, "k", NOW) is None
        assert tier.delete(ANN, "l") is True
        assert tier.delete(ANN, "l") is False
        assert tier.sizes()["count"] == 0

    def test_a_record_is_gone_when_it_expires(self, tier: Tier) -> None:
        tier.put(rec(expires=NOW + 5))
        assert tier.get(ANN, "k", NOW + 4) is not None
        assert tier.get(ANN, "k", NOW + 5) is None
        assert tier.get(ANN, "k", NOW + 4) is not None  # a read deletes nothing

    def test_a_read_renews_only_if_asked_and_only_with_a_ttl(self, tier: Tier) -> None:
        tier.put(rec(expires=NOW + 5, ttl=10))
        tier.put(rec("still", expires=NOW + 5))
        tier.get(ANN, "k", NOW + 4)
        assert tier.get(ANN, "k", NOW + 5) is None
        assert tier.get(ANN, "k", NOW + 4, renew=True) is not None
        assert tier.get(ANN, "k", NOW + 13) == rec(expires=NOW + 14, ttl=10)
        assert tier.get(ANN, "k", NOW + 14) is None
        assert tier.get(ANN, "k", NOW + 14, renew=True) is None  # too late
        assert tier.get(ANN, "k", NOW + 13) is not None
        tier.get(ANN, "still", NOW + 4, renew=True)
        assert tier.get(ANN, "still", NOW + 5) is None
        assert list(tier.check()) == []

    def test_a_record_with_a_ttl_that_has_no_end_yet_gets_one(self, tier: Tier) -> None:
        tier.put(rec(ttl=10))
        tier.get(ANN, "k", NOW, renew=True)
        assert tier.get(ANN, "k", NOW + 9) is not None
        assert tier.get(ANN, "k", NOW + 10) is None

    def test_any_record_comes_back_as_it_went(self, tier: Tier) -> None:
        @settings(max_examples=60, deadline=None)
        @given(records)
        def comes_back(record: Record) -> None:
            tier.delete(record.namespace, record.key)
            tier.put(record)
            assert tier.get(record.namespace, record.key, NOW) == record
            assert record in tier.scan(record.namespace)

        comes_back()

    @pytest.mark.parametrize(
        ("namespace", "key"),
        [
            (("a",), ""),
            (("a",), "\0"),
            (("a", ""), "k"),
            ((), "k"),
            (("a\0b",), "k"),
            (("a",), "\ud800"),
            (("\udfff",), "k"),
            (("a",), "k" * 1025),
            (("a",) * 33, "k"),
        ],
    )
    def test_an_address_that_cannot_be_kept_is_refused(self, tier: Tier, namespace: Namespace, key: str) -> None:
        with pytest.raises(PolicyError):
            tier.put(rec(key, namespace))
        assert tier.sizes()["count"] == 0

    def test_the_longest_address(self, tier: Tier) -> None:
        record = rec("é" * 512, ("n" * 32,) * 32)
        tier.put(record)
        assert tier.get(record.namespace, record.key, NOW) == record
        assert list(tier.scan(record.namespace[:31])) == [record]

    def test_big_values(self, tier: Tier) -> None:
        sizes = (0, 1, 950, 1000, 4000, 5000, 70_000, 6_000_000)
        blobs = {f"{size}": random.Random(size).randbytes(size) for size in sizes}
        tier.batch([Put(rec(key, blob=blob)) for key, blob in blobs.items()])
        for key, blob in blobs.items():
            assert tier.get(ANN, key, NOW) == rec(key, blob=blob)
        assert {record.key: record.blob for record in tier.scan()} == blobs
        tier.compact()
        assert {record.key: record.blob for record in tier.scan()} == blobs
        assert list(tier.check()) == []

    def test_keys_that_look_alike_are_not_the_same(self, tier: Tier) -> None:
        id = "0123abcd-4567-89ab-cdef-0123456789ab"
        hexed = id.replace("-", "")
        alike = [
            id,
            id.upper(),
            hexed,
            hexed.upper(),
            id + " ",
            "{" + id + "}",
            id[:-1],
            bytes.fromhex(hexed).hex()[:24],
        ]
        alike += ["K", "k", "k ", " k", "1", "01", "1.0", "é", "e\u0301", "a\n", "a", "0x00", "x'00'", "NULL"]
        alike += ["0123456789abcdef", "0" * 15 + "-", "0" * 36, "-" * 36, "0" * 24, "0" * 40, "0" * 64, "\u00e9" * 8]
        for i, key in enumerate(alike):
            assert tier.put(rec(key, blob=b"%d" % i)) is False
        for i, key in enumerate(alike):
            assert tier.get(ANN, key, NOW) == rec(key, blob=b"%d" % i)
        assert sorted(record.key for record in tier.scan()) == sorted(alike)

    # -- scan ----------------------------------------------------------------------------------------------------------

    def test_a_prefix_ends_at_a_segment(self, tier: Tier) -> None:
        spaces = [
            ("foo",), ("foo", "bar"), ("foo", "bar", "x"), ("foobar",), ("foo%",), ("foo_",), ("fo",), ("foo\x01",),
            ("foo ",), ("foo/bar",), ("Foo",), ("f_o",), ("%",), ("_",), ("foo", "b"), ("foo", "barn"), ("fooé",),
        ]  # fmt: skip
        tier.batch([Put(rec("k", space)) for space in spaces])
        for prefix in [*spaces, ("f",), ("%", "foo"), ("foo", "%"), ("foo", "ba"), ("nothing",), ()]:
            inside = sorted(space for space in spaces if within(space, prefix))
            assert sorted(record.namespace for record in tier.scan(prefix)) == inside
            assert tier.batch([Namespaces(prefix, NOW)]) == [inside]

    def test_pages_hold_everything_once_and_in_one_order(self, tier: Tier) -> None:
        at = random.Random(7)
        spaces = [("a",), ("a", "b"), ("a", "b", "c"), ("a", "c"), ("ab",), ("b",), ("é", "z")]
        put = {(at.choice(spaces), at.choice(["k", "é", "", "0" * 23]) + f"{at.randrange(10**6)}") for _ in range(150)}
        put |= {(at.choice(spaces), f"{at.getrandbits(128):032x}"[: at.choice([24, 32])]) for _ in range(40)}
        tier.batch([Put(rec(key, space)) for space, key in sorted(put)])
        whole = addresses(list(tier.scan()))
        assert len(whole) == len(put) and set(whole) == put
        for space in spaces:  # those of a namespace stand together
            places = [i for i, address in enumerate(whole) if address[0] == space]
            assert places == list(range(places[0], places[-1] + 1))
        for prefix in [(), ("a",), ("a", "b"), ("é",)]:
            inside = [address for address in whole if within(address[0], prefix)]
            for limit in (1, 3, 64, 1000):
                assert addresses(pages(tier, prefix, limit)) == inside
        assert len(tier.batch([Scan((), None, None, 7)])[0]) == 7

    def test_a_page_starts_after_a_place_not_a_record(self, tier: Tier) -> None:
        put = [rec(f"k{i}", ("a", f"{j}")) for i in range(4) for j in range(3)]
        tier.batch([Put(record) for record in put])
        whole = addresses(list(tier.scan()))
        for i, (namespace, key) in enumerate(whole):
            tier.batch([Delete(namespace, key)])  # the namespace too, with its last record
            assert addresses(tier.batch([Scan((), None, (namespace, key))])[0]) == whole[i + 1 :]
            assert addresses(tier.batch([Scan(("a",), None, (namespace, key), 2)])[0]) == whole[i + 1 : i + 3]

    def test_a_scan_leaves_out_what_expired_and_other_classes(self, tier: Tier) -> None:
        tier.batch(
            [
                Put(rec("a", cls="fact")),
                Put(rec("b", cls="chat")),
                Put(rec("c", cls="fact", expires=NOW)),
                Put(rec("d", cls="", expires=NOW + 1)),
                Put(rec("e", cls="fact", fidelity="semantic", codec="")),
            ]
        )
        assert {record.key for record in tier.scan(now=NOW)} == set("abde")
        assert {record.key for record in tier.scan()} == set("abcde")
        assert {record.key for record in tier.scan(now=NOW, cls="fact")} == set("ae")
        assert {record.key for record in tier.scan(cls="fact")} == set("ace")
        assert {record.key for record in tier.scan(cls="")} == set("d")
        assert list(tier.scan(cls="other")) == []
        assert {record.key for record in pages(tier, (), 1, now=NOW, cls="fact")} == set("ae")

    # -- namespaces, forget, expire ------------------------------------------------------------------------------------

    def test_namespaces_are_those_with_a_live_record(self, tier: Tier) -> None:
        spaces = [("b",), ("a", "z"), ("a",), ("a", "b", "c"), ("é",), ("\U0001f600",), ("\uffff",), ("a ", "b")]
        tier.batch([Put(rec("k", space)) for space in spaces])
        tier.put(rec("k", ("old",), expires=NOW))
        assert tier.batch([Namespaces((), NOW)]) == [sorted(spaces)]
        assert tier.batch([Namespaces(("a",), NOW)]) == [[("a",), ("a", "b", "c"), ("a", "z")]]
        assert tier.batch([Namespaces((), NOW - 1)]) == [sorted([*spaces, ("old",)])]
        tier.delete(("a", "z"), "k")
        assert tier.batch([Namespaces(("a",), NOW)]) == [[("a",), ("a", "b", "c")]]

    def test_forget_deletes_what_is_below_and_nothing_beside(self, tier: Tier) -> None:
        keep = [rec("k", space) for space in [("foobar",), ("fo",), ("foo%",), ("bar", "foo")]]
        lose = [rec(key, space) for key in "kl" for space in [("foo",), ("foo", "bar"), ("foo", "bar", "x")]]
        lose.append(rec("m", ("foo",), expires=NOW - HOUR))
        tier.batch([Put(record) for record in keep + lose])
        assert tier.batch([Forget(("nothing",)), Forget(("foo",)), Forget(("foo",))]) == [0, len(lose), 0]
        assert sorted(addresses(list(tier.scan()))) == sorted(addresses(keep))
        assert tier.batch([Namespaces((), NOW)]) == [sorted(record.namespace for record in keep)]
        assert tier.put(rec("k", ("foo",))) is False
        assert tier.batch([Forget(())]) == [len(keep) + 1]
        assert list(tier.scan()) == [] and tier.sizes()["count"] == 0
        assert list(tier.check()) == []

    def test_nothing_of_a_forgotten_record_stays_in_the_files(self, medium: Medium, tier: Tier) -> None:
        at = random.Random(3)
        names = [f"{'secret' if i % 3 == 0 else 'plain'}-{i:04}" for i in range(900)]
        at.shuffle(names)
        for start in range(0, len(names), 300):
            tier.batch(
                [
                    Put(rec(f"key-{name}", ("t", name.split("-")[0], f"ns-{name}"), f"<{name}>".encode() * 9, code=b"c",
                            cls=f"cls-{name[:6]}", meta=f"meta-{name}".encode()))
                    for name in names[start : start + 300]
                ]
            )  # fmt: skip
        tier.batch([Put(rec(f"key-{name}", ("t", name.split("-")[0], f"ns-{name}"), b"re" + name.encode(), code=b"d"))
                    for name in names[:300]])  # fmt: skip
        for name in names[300:600]:
            if name.startswith("secret"):
                tier.delete(("t", "secret", f"ns-{name}"), f"key-{name}")
        assert tier.batch([Forget(("t", "secret"))])[0] > 0
        assert found_in(medium.files(), b"secret") == []
        assert {record.key for record in tier.scan()} == {f"key-{name}" for name in names if name.startswith("plain")}
        if medium.plain and medium.files():
            assert found_in(medium.files(), b"plain-0001")  # so that the search above can find something
        assert list(tier.check()) == []

    def test_nothing_of_a_deleted_record_stays_after_compact(self, medium: Medium, tier: Tier) -> None:
        tier.batch(
            [Put(rec(f"key-{i:03}", ("t", f"secret-{i % 7}"), b"value%03d" % i * 20, code=b"c")) for i in range(200)]
        )
        tier.put(rec("key-001", ("t", "secret-1"), b"replaced", code=b"c"))
        for i in range(0, 200, 7):
            tier.delete(("t", "secret-0"), f"key-{i:03}")
        before = list(tier.scan())
        tier.compact()
        assert list(tier.scan()) == before
        assert found_in(medium.files(), b"secret-0", b"key-007", b"value007", b"value001") == []
        assert list(tier.check()) == []

    def test_expire_deletes_at_most_so_many_and_only_what_expired(self, tier: Tier) -> None:
        tier.batch([Put(rec(f"k{i}", ("a", f"{i % 3}"), expires=NOW + i)) for i in range(20)])
        tier.put(rec("keep"))
        assert tier.batch([Expire(NOW - 1)]) == [0]
        assert tier.batch([Expire(NOW + 9, 4)]) == [4]
        assert tier.batch([Expire(NOW + 9, 100)]) == [6]
        assert tier.batch([Expire(NOW + 9)]) == [0]
        assert {record.key for record in tier.scan()} == {"keep", *(f"k{i}" for i in range(10, 20))}
        assert tier.batch([Expire(NOW + 100), Namespaces((), NOW)]) == [10, [ANN]]
        assert list(tier.check()) == []

    # -- codes, changes, version ---------------------------------------------------------------------------------------

    def test_codes_are_those_of_records_that_have_one(self, tier: Tier) -> None:
        put = [rec(f"k{i}", ("a", f"{i % 3}"), code=b"" if i % 4 == 0 else b"code%d" % i) for i in range(20)]
        put.append(rec("old", ("a",), code=b"old", expires=NOW - HOUR))
        tier.batch([Put(record) for record in put])
        coded = [(record.namespace, record.key, record.code) for record in tier.scan() if record.code]
        assert len(coded) == 16
        assert tier.batch([Codes()]) == [coded]
        paged: list[tuple[Namespace, str, bytes]] = []
        while page := tier.batch([Codes((paged[-1][0], paged[-1][1]) if paged else None, 5)])[0]:
            assert len(page) <= 5
            paged += page
        assert paged == coded
        tier.put(rec("k1", ("a", "1")))
        tier.delete(("a", "2"), "k2")
        assert tier.batch([Codes()]) == [[code for code in coded if code[1] not in ("k1", "k2")]]

    def test_changes_tell_what_was_put_or_deleted_since(self, tier: Tier) -> None:
        assert tier.batch([Changes(0)]) == [(0, [])]
        tier.put(rec("none"))
        tier.put(rec("a", code=b"1"))
        tier.put(rec("b", ("other",), code=b"2"))
        first, changed = tier.batch([Changes(0)])[0]
        assert first > 0 and set(changed) == {(ANN, "a"), (("other",), "b")}
        assert tier.batch([Changes(first)]) == [(first, [])]
        tier.put(rec("a"))  # had one
        tier.put(rec("none", blob=b"x"))
        tier.delete(("other",), "b")
        second, changed = tier.batch([Changes(first)])[0]
        assert second > first and set(changed) == {(ANN, "a"), (("other",), "b")}
        tier.delete(ANN, "none")
        tier.put(rec("a", blob=b"y"))
        tier.put(rec("b", blob=b"y", code=b"x"), expected=b"not there")
        assert tier.batch([Changes(second)]) == [(second, [])]

    @pytest.mark.parametrize("op", [Forget(("users",)), Expire(NOW + HOUR), Forget(())], ids=repr)
    def test_changes_tell_of_deletes_in_bulk(self, tier: Tier, op: Op) -> None:
        tier.put(rec("a", code=b"1", expires=NOW))
        before = tier.batch([Changes(0)])[0][0]
        assert tier.batch([op]) == [1]
        after, changed = tier.batch([Changes(before)])[0]
        assert after > before and (changed is None or changed == [(ANN, "a")])
        assert tier.batch([Changes(after)]) == [(after, [])]

    def test_changes_after_compact_are_told_or_known_to_be_lost(self, tier: Tier) -> None:
        tier.put(rec("a", code=b"1"))
        before = tier.batch([Changes(0)])[0][0]
        tier.delete(ANN, "a")
        tier.compact()
        after, changed = tier.batch([Changes(before)])[0]
        assert after > before and (changed is None or changed == [(ANN, "a")])
        tier.put(rec("a", code=b"1"))
        assert tier.batch([Changes(after)])[0][1] == [(ANN, "a")]

    @pytest.mark.slow
    def test_the_journal_keeps_so_many_changes(self, tier: Tier) -> None:
        positions = [0]
        for turn in range(2):
            tier.batch([Put(rec(f"k{i % 50}-{turn}", blob=b"", code=b"c")) for i in range(JOURNAL - 500)])
            positions.append(tier.batch([Changes(positions[-1])])[0][0])
        assert all(a < b for a, b in pairwise(positions))
        now_at, changed = tier.batch([Changes(positions[-2])])[0]
        assert now_at == positions[-1]
        assert set(changed) == {(ANN, f"k{i}-1") for i in range(50)}
        for since in positions[:-2]:
            now_at, changed = tier.batch([Changes(since)])[0]
            assert now_at == positions[-1]
            assert changed is None or {(ANN, f"k{i}-{turn}") for i in range(50) for turn in (0, 1)} <= set(changed)

    def test_version_differs_after_a_change_by_anyone(self, medium: Medium, tier: Tier) -> None:
        seen = tier.version()
        assert tier.version() == seen
        changes: list[Op] = [Put(rec(expires=NOW, ttl=9)), Put(rec()), Delete(ANN, "k"), Put(rec()), Forget(ANN)]
        for op in changes:
            tier.batch([op])
            assert tier.version() != seen
            seen = tier.version()
        tier.get(ANN, "k", NOW)
        assert tier.version() == seen
        if medium.several:
            with closing(medium.open()) as other:
                seen = tier.version()
                other.put(rec())
                assert tier.version() != seen

    # -- batches, threads, several openers -----------------------------------------------------------------------------

    def test_a_batch_sees_what_it_did(self, tier: Tier) -> None:
        out = tier.batch(
            [
                Get(ANN, "k", NOW),
                Put(rec()),
                Get(ANN, "k", NOW),
                Put(rec(blob=b"2"), expected=b"blob"),
                Scan(("users",), NOW),
                Namespaces((), NOW),
                Delete(ANN, "k"),
                Get(ANN, "k", NOW),
                Scan((), NOW),
                Put(rec(blob=b"3")),
            ]
        )
        assert out == [None, False, rec(), True, [rec(blob=b"2")], [ANN], True, None, [], False]
        assert tier.batch([]) == []
        assert tier.get(ANN, "k", NOW) == rec(blob=b"3")

    def test_a_batch_happens_whole_or_not_at_all(self, medium: Medium, tier: Tier) -> None:
        tier.put(rec("there"))
        seen = tier.batch([Changes(0)])
        with pytest.raises(PolicyError):
            tier.batch([Put(rec("new", code=b"c")), Delete(ANN, "there"), Forget(ANN), Put(rec("bad\0"))])
        assert list(tier.scan()) == [rec("there")]
        assert tier.batch([Changes(0)]) == seen
        assert list(tier.check()) == []
        with self.another(medium, tier) as other:
            assert list(other.scan()) == [rec("there")]

    @pytest.mark.parametrize("seed", range(3))
    def test_any_sequence_does_as_the_contract_says(self, medium: Medium, tier: Tier, seed: int) -> None:
        at, oracle = random.Random(seed), Oracle()
        spaces = [("a",), ("a", "b"), ("a", "b", "c"), ("ab",), ("b",)]
        names = ["k", "K", "é", "0123abcd-4567-89ab-cdef-0123456789ab", "0123abcd456789abcdef0123456789ab"]

        def op() -> Op:
            now = NOW + at.randrange(40)
            space, key = at.choice(spaces), at.choice(names)
            blob = b"%d" % at.randrange(4) * at.choice([1, 40])
            expected = at.choice([None, None, blob, b"0", b"1" * 40])
            kind = at.random()
            if kind < 0.5:
                code, ttl = at.choice([b"", b"c"]), at.choice([None, 10])
                expires = at.choice([None, None, now + at.randrange(30)])
                put = Record(space, key, blob, at.choice(["", CODEC]), at.choice("xy"), "lossless", now, now, expires)
                return Put(replace(put, ttl=ttl, code=code, meta=at.choice([b"", b"m"])), expected)
            if kind < 0.7:
                return Get(space, key, now, at.random() < 0.5)
            if kind < 0.9:
                return Delete(space, key, expected)
            if kind < 0.95:
                return Namespaces(at.choice([(), ("a",)]), now)
            return Expire(now) if kind < 0.985 else Forget(at.choice(spaces))

        for _ in range(120):
            ops = [op() for _ in range(at.choice([1, 1, 3]))]
            assert tier.batch(ops) == [oracle.apply(one) for one in ops], ops
            if at.random() < 0.05:
                tier.compact()
        tier.compact()
        by_address = sorted(tier.scan(), key=lambda record: (record.namespace, record.key))
        assert by_address == [record for _, record in sorted(oracle.held.items())]
        assert tier.sizes()["count"] == len(oracle.held)
        assert list(tier.check()) == []
        with self.another(medium, tier) as other:
            assert {(r.namespace, r.key): r for r in other.scan()} == oracle.held

    def test_threads_lose_nothing(self, tier: Tier) -> None:
        """Each puts its own, and all count one counter up, each step only over the value it read."""
        steps, failures = 12, []
        tier.put(rec("counter", blob=b"0"))

        def work(me: int) -> None:
            try:
                for i in range(steps):
                    tier.put(rec(f"{me}-{i}", ("own", f"{me}"), b"%d" % i))
                    assert tier.get(("own", f"{me}"), f"{me}-{i}", NOW) is not None
                    while True:
                        old = tier.get(ANN, "counter", NOW)
                        assert old is not None
                        if tier.put(rec("counter", blob=b"%d" % (int(old.blob) + 1)), expected=old.blob):
                            break
                    list(tier.scan(("own",)))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        counter = tier.get(ANN, "counter", NOW)
        assert counter is not None and int(counter.blob) == 4 * steps
        assert len(list(tier.scan(("own",)))) == 4 * steps
        assert list(tier.check()) == []

    def test_what_was_put_is_there_when_opened_again(self, medium: Medium) -> None:
        put = [rec(f"k{i}", ("n", f"{i % 5}"), b"%d" % i, code=b"c") for i in range(50)]
        with closing(medium.open()) as tier:
            tier.batch([Put(record) for record in put])
            position = tier.batch([Changes(0)])[0][0]
            whole = list(tier.scan())
        with closing(medium.open()) as tier:
            assert list(tier.scan()) == whole and len(whole) == len(put)
            assert tier.batch([Changes(position)]) == [(position, [])]
            tier.compact()
            assert list(tier.check()) == []
        with closing(medium.open()) as tier:
            assert list(tier.scan()) == whole
            assert tier.batch([Changes(position)])[0][0] >= position

    def test_two_openers_see_each_other(self, medium: Medium, tier: Tier) -> None:
        if not medium.several:
            pytest.skip("one opener at a time")
        with closing(medium.open()) as other:
            tier.put(rec("a"))
            assert other.get(ANN, "a", NOW) == rec("a")
            other.put(rec("b", ("only", "here")))
            assert tier.batch([Namespaces((), NOW)]) == [[("only", "here"), ANN]]
            assert other.put(rec("a", blob=b"2"), expected=b"blob")
            assert not tier.put(rec("a", blob=b"3"), expected=b"blob")
            tier.compact()
            other.delete(("only", "here"), "b")
            assert [record.key for record in tier.scan()] == ["a"]
            assert list(tier.check()) == [] and list(other.check()) == []

    def test_sizes_are_bytes_and_a_count(self, tier: Tier) -> None:
        tier.batch([Put(rec(f"k{i}", blob=bytes(100))) for i in range(100)])
        sizes = tier.sizes()
        assert sizes.pop("count") == 100
        assert all(size >= 0 for size in sizes.values())
        assert sum(sizes.values()) > 100 * 100

    def test_a_closed_tier_says_so(self, medium: Medium) -> None:
        tier = medium.open()
        tier.close()
        tier.close()
        with pytest.raises(StoreError, match="closed"):
            tier.get(ANN, "k", NOW)
        with pytest.raises(StoreError, match="closed"):
            tier.put(rec())
