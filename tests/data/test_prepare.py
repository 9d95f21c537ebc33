"""Preparing: what is left out and why, what stays together, and that the same input gives the same files."""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmf import samples
from nbmf.data import near, page, pii, prepare, split
from nbmf.data.lines import Line
from nbmf.errors import DataError

PARTS = ("train", "val", "test")


def quiet(*_: object) -> None:
    """A Tick for nobody."""


def run(tmp_path: Path, lines: Sequence[bytes | Line], name: str = "out", **options: Any) -> dict[str, Any]:
    """Prepares lines into the folder `name`."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join(line.bytes() if isinstance(line, Line) else line + b"\n" for line in lines))
    return prepare.run([source], tmp_path / name, prepare.Options(**options), quiet)


def part(tmp_path: Path, name: str, folder: str = "out") -> list[dict[str, Any]]:
    with lzma.open(tmp_path / folder / f"{name}.jsonl.xz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def every(tmp_path: Path, folder: str = "out") -> list[dict[str, Any]]:
    return [line for name in PARTS for line in part(tmp_path, name, folder)]


def listed(tmp_path: Path, name: str = "left_out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out" / name).read_text(encoding="utf-8").splitlines()]


def conversations(count: int, turns: int = 10) -> list[Line]:
    rng = random.Random(5)
    return [
        Line(
            " ".join(rng.choices(WORDS, k=12)),
            {"source": f"s{c % 7}", "kind": "turn", "conversation": str(c)},
            f"{c}/{t}",
        )
        for c in range(count)
        for t in range(turns)
    ]


BEGINS, ENDS = ("ba", "ko", "mi", "te", "lu", "ra", "sho", "qi"), ("nd", "rp", "st", "ll", "mm", "ck", "x", "ven")
WORDS = [f"{begin}{end}" for begin in BEGINS for end in ENDS]


def test_what_is_left_out_is_listed_with_its_reason(tmp_path: Path) -> None:
    long = "the quick brown fox jumps over the lazy dog while the band plays on and nobody listens to it " * 3
    result = run(
        tmp_path,
        [
            b'{"data": "kept", "id": "a"}',
            b"not json",
            b"\xff\xfe",
            b'{"data": "lone \\ud800"}',
            b'{"data": " \\n"}',
            b'{"data": {"text": "", "tags": [null, []]}}',
            b'{"data": 0, "id": "zero"}',
            json.dumps({"data": "x" * 3001}).encode(),
            json.dumps({"data": "\x00\x01\x02 abc"}).encode(),
            b'{"data": "kept", "id": "again"}',
            json.dumps({"data": long, "id": "long"}).encode(),
            json.dumps({"data": long.upper().replace("FOX", "FOX,"), "id": "near"}).encode(),
            b'"kept"',
        ],
        most_bytes=3000,
    )
    reasons = [(line["reason"], line.get("of")) for line in listed(tmp_path)]
    assert reasons == [
        ("invalid", None), ("invalid", None), ("surrogates", None), ("empty", None), ("empty", None),
        ("too long", None), ("binary", None), ("exact copy", "a"), ("near copy", "long"), ("exact copy", "a"),
    ]  # fmt: skip
    assert sorted(line["id"] for line in every(tmp_path)) == ["a", "long", "zero"]
    assert result["kept"] == 3 and sum(result["left_out"].values()) == 10 and result["lines"] == 13


def test_a_conversation_is_never_in_two_parts(tmp_path: Path) -> None:
    lines = conversations(100)
    result = run(tmp_path, lines)
    where = [
        {(line["metadata"]["source"], line["metadata"]["conversation"]) for line in part(tmp_path, p)} for p in PARTS
    ]
    assert not (where[0] & where[1] or where[0] & where[2] or where[1] & where[2])
    assert [row["records"] for row in result["splits"]] == [900, 50, 50]
    assert result["grouped_by"].startswith("conversation") and result["groups"] == 100
    assert sorted(line["id"] for line in every(tmp_path)) == sorted(line.id for line in lines)


def test_sources_are_dealt_out_whole_when_there_are_enough(tmp_path: Path) -> None:
    lines = [
        Line(f"record {n} of source {n % 40}: {n * n}", {"source": f"s{n % 40}", "kind": "k"}, str(n))
        for n in range(400)
    ]
    result = run(tmp_path, lines, near=0)
    names = [{line["metadata"]["source"] for line in part(tmp_path, name)} for name in PARTS]
    assert [len(one) for one in names] == [36, 2, 2] and not names[0] & (names[1] | names[2])
    assert result["grouped_by"] == "source"


def test_one_source_alone_is_dealt_out_by_record(tmp_path: Path) -> None:
    result = run(tmp_path, [json.dumps(f"record {n}: {n * n}").encode() for n in range(200)], near=0)
    assert [row["records"] for row in result["splits"]] == [180, 10, 10] and result["grouped_by"] == "record"


def test_a_field_that_is_named_is_needed(tmp_path: Path) -> None:
    lines = [Line(f"{n} {n * n}", {"source": "s", "kind": "k", "user": n // 5}, str(n)) for n in range(100)]
    result = run(tmp_path, lines, group="user", near=0)
    users = [{line["metadata"]["user"] for line in part(tmp_path, name)} for name in PARTS]
    assert result["grouped_by"] == "user" and not users[0] & (users[1] | users[2]) and users[1] and users[2]
    with pytest.raises(DataError, match="no 'team'"):
        run(tmp_path, lines, group="team")


def test_the_same_input_gives_the_same_bytes_and_another_seed_another_split(tmp_path: Path) -> None:
    lines = conversations(60)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path, lines, name, seed=seed)
    files = {name: (tmp_path / name / "val.jsonl.xz").read_bytes() for name in "abc"}
    assert files["a"] == files["b"] != files["c"]


def test_personal_data_are_flagged_masked_or_dropped(tmp_path: Path) -> None:
    lines = [
        *conversations(20),
        Line({"mail": "ann@corp.org", "n": 4111111111111112}, {"source": "s", "kind": "k"}, "p"),
    ]
    assert run(tmp_path, lines)["personal_records"] == 1
    assert listed(tmp_path, "pii.jsonl") == [{"id": "p", "email": 1}]
    lines.append(Line({"mail": "ann@corp.org", "card": 4242424242424242}, {"source": "s", "kind": "k"}, "q"))
    assert run(tmp_path, lines, near=0, pii="drop")["left_out"]["personal data"] == 2
    run(tmp_path, lines, near=0, pii="mask")
    found = {line["id"]: line["data"] for line in every(tmp_path)}
    assert found["q"] == {"mail": "xxx@xxxx.xxx", "card": 10**15}
    text = (tmp_path / "out" / "pii.jsonl").read_text()
    assert "ann" not in text and "4242" not in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"val": 0.4, "test": 0.2}, "half"),
        ({"val": -0.1}, "half"),
        ({"near": 1.5}, "between"),
        ({"pii": "eat"}, "one of"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        run(tmp_path, conversations(2), **options)


def test_nothing_to_prepare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no record is left: empty: 1"):
        run(tmp_path, [b'""'])
    with pytest.raises(DataError, match="does not exist"):
        prepare.run([tmp_path / "none.jsonl"], tmp_path / "out", prepare.Options(), quiet)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        prepare.run([tmp_path / "empty"], tmp_path / "out", prepare.Options(), quiet)
    assert not (tmp_path / "out").exists()


def test_its_own_output_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, conversations(30))
    before = (tmp_path / "out" / "train.jsonl.xz").read_bytes()
    with pytest.raises(DataError, match="both read and written"):
        prepare.run([tmp_path / "out"], tmp_path / "out", prepare.Options(), quiet)
    assert (tmp_path / "out" / "train.jsonl.xz").read_bytes() == before


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('"one"\n"two"\n')

    def tick(what: str, done: float, total: float | None = None) -> None:
        if what == "looking for copies":
            source.write_text('"one"\n"three"\n')

    with pytest.raises(DataError, match="written to while"):
        prepare.run([source], tmp_path / "out", prepare.Options(), tick)
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".xz"]


class Outline(HTMLParser):
    """The headings of a page, and every address in it."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.addresses: list[str] = []
        self._in = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in = tag == "h2"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._in:
            self.headings.append(data)
            self._in = False


def test_the_report_says_it_all_and_shows_nobody(tmp_path: Path) -> None:
    secret = Line("<script>write to zoe@corp.org</script>", {"source": "<b>", "kind": "k", "group": "g"}, "<id>")
    result = run(tmp_path, [*conversations(1, 5), secret])
    page.save(result, tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(html)
    assert outline.headings == [
        "Parts", "Left out", "Sizes", "By kind", "By source", "Personal data and secrets, by their form", "Samples",
    ]  # fmt: skip
    assert outline.addresses == [] and "<script>" not in html and "zoe" not in html and "xxx@xxxx.xxx" in html
    text = (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")
    assert "splits" in text and "email" in text
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["kept"] == 6


# -- likeness ----------------------------------------------------------------------------------------------------------


def share(a: bytes, b: bytes) -> float:
    one, other = ({text[i : i + 8] for i in range(max(1, len(text) - 7))} for text in (a, b))
    return len(one & other) / len(one | other)


def test_likeness_is_about_what_counting_gives() -> None:
    rng = random.Random(3)
    off = []
    for _ in range(60):
        words = rng.choices(WORDS, k=60)
        changed = [rng.choice(WORDS) if rng.random() < 0.06 else word for word in words]
        a, b = (" ".join(one).encode() for one in (words, changed))
        minima = near.signatures([a, b])
        off.append(float(np.mean(minima[0] == minima[1])) - share(a, b))
    assert abs(float(np.mean(off))) < 0.03 and max(map(abs, off)) < 0.25


def test_a_signature_is_its_texts_alone() -> None:
    texts = [near.normal(f"record {n} " * (n % 90)) for n in range(400)]
    together = near.signatures(texts)
    assert np.array_equal(together, np.concatenate([near.signatures([text]) for text in texts]))
    assert near.signatures([]).shape == (0, near.MINIMA)


def test_a_record_goes_only_for_one_that_stays() -> None:
    base = [f"{word} is number {n} of the list" for n, word in enumerate(WORDS)]
    chain = [near.normal(" ".join(base[shift : shift + 40])) for shift in range(0, 24, 2)]
    minima = near.signatures(chain)
    twin = near.alike(minima, 0.8)
    for number, other in enumerate(twin.tolist()):
        if other >= 0:
            assert other < number and twin[other] == -1
            assert float(np.mean(minima[number] == minima[other])) >= 0.8
    assert 1 < (twin == -1).sum() < len(chain)
    assert near.alike(near.signatures([b"alone"]), 0.8).tolist() == [-1]
    assert near.alike(near.signatures([]), 0.8).tolist() == []


# -- personal data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("write to ann.b+x@mail.corp.org.", "email", "ann.b+x@mail.corp.org"),
        ("call +49 171 2345678 now", "phone", "+49 171 2345678"),
        ("(415) 555-2671", "phone", "(415) 555-2671"),
        ("or 020 7946 0958", "phone", "020 7946 0958"),
        ("card 4111 1111 1111 1111, thanks", "card", "4111 1111 1111 1111"),
        ("5555555555554444", "card", "5555555555554444"),
        ("DE89 3704 0044 0532 0130 00 IS IT", "iban", "DE89 3704 0044 0532 0130 00"),
        ("GB82WEST12345698765432", "iban", "GB82WEST12345698765432"),
        ("from 93.184.216.34:80", "ip", "93.184.216.34"),
        ("at 2001:db8:0:1::2", "ip", "2001:db8:0:1::2"),
        ("AKIA" + "IOSFODNN7EXAMPLE", "key", "AKIA" + "IOSFODNN7EXAMPLE"),
        ("api_key = 'Ab12cd34Ef56gh78Ij'", "key", "Ab12cd34Ef56gh78Ij"),
        ("sk-" + "a1" * 16, "key", "sk-" + "a1" * 16),
    ],
)
def test_forms_that_are_found(text: str, kind: str, found: str) -> None:
    spans = [(kind, text[first:last]) for kind, first, last in pii.spans(text)]
    assert (kind, found) in spans
    assert found not in pii.mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "2025-11-02T07:14:03Z took 1503ms",
        "2019-07-28 16:00:34,918 retry 2/8",
        "4111 1111 1111 1112",
        "DE88 3704 0044 0532 0130 00",
        "127.0.0.1 and 0.0.0.0 and 1.2.3 and 300.1.1.1",
        "std::vector<int> a::b 12:30:45 aa:bb:cc:dd:ee:ff",
        "user @ home, a@b, id 12345678901234567890123",
        "the token: see below",
        "0000 0000 0000 0000",
    ],
)
def test_forms_that_are_others(text: str) -> None:
    assert pii.spans(text) == []


@given(st.text(alphabet=st.sampled_from("ab@.0123456789+-() :/AX\nDE"), max_size=60))
def test_masking_leaves_nothing_to_find_and_the_rest_alone(text: str) -> None:
    once = pii.mask(text)
    assert len(once) == len(text)
    kept = np.ones(len(text), bool)
    for _, first, last in pii.spans(text):
        kept[first:last] = False
    assert all(once[at] == text[at] for at in np.flatnonzero(kept))
    assert pii.found_in(once) == {} or pii.spans(once) != pii.spans(text)


def test_values_are_masked_in_their_form() -> None:
    value = {"to": ["ann@corp.org"], "ann@corp.org": 1, "n": 4111111111111111, "x": [1.5, None, True, 12]}
    assert pii.mask_value(value) == {
        "to": ["xxx@xxxx.xxx"], "xxx@xxxx.xxx": 1, "n": 10**15, "x": [1.5, None, True, 12],
    }  # fmt: skip
    assert pii.found_in(value) == {"email": 2, "card": 1}
    assert pii.found_in(pii.mask_value(value)) == {}


def test_hostile_texts_take_no_time() -> None:
    for text in (
        "a@" * 30_000,
        "1 " * 30_000,
        "DE00" + "A1 " * 30_000,
        "1:" * 30_000,
        "eyJ" + "a" * 60_000,
        "+1" * 30_000,
    ):
        pii.spans(text)  # a form that tries again and again would not end


# -- dealing out -------------------------------------------------------------------------------------------------------


def test_no_part_is_larger_than_its_share() -> None:
    grouping = split.Grouping(split.AUTO)
    sizes = [1, 2, 3, 50, 7, 9, 4, 4, 30, 6]
    for number, size in enumerate(sizes):
        for _ in range(size):
            grouping.add({"group": str(number)}, "s", "id")
    total = sum(sizes)
    digest = np.arange(total, dtype=np.uint64)
    place, _, _ = split.deal(grouping.done(), digest, np.ones(total, bool), (0.1, 0.1), 1)
    counts = np.bincount(place, minlength=3)
    assert counts[1] <= 0.1 * total and counts[2] <= 0.1 * total and counts.sum() == total


def test_the_samples_of_the_package_survive(tmp_path: Path) -> None:
    values = [sample for sample in samples.generate(300, seed=11) if not isinstance(sample.value, bytes)]
    lines = [Line(one.value, {"source": one.kind, "kind": one.kind}, str(n)) for n, one in enumerate(values)]
    run(tmp_path, lines, near=0)
    found = {line["id"]: line["data"] for line in every(tmp_path)}
    assert len(found) > 200
    assert all(found[line.id] == line.value for line in lines if line.id in found)
