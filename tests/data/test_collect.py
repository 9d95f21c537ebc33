"""Collecting: every kind of source gives the records it holds, and what is none is named."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import json
import lzma
import sqlite3
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

import nbmf
from nbmf.data import collect, query, texts
from nbmf.data.lines import Fault, Line, parsed, read
from nbmf.errors import DataError


def quiet(*_: object) -> None:
    """A Tick for nobody."""


def collected(tmp_path: Path, *sources: str | Path, **options: Any) -> list[dict[str, Any]]:
    """The lines that collecting writes, as JSON."""
    out = tmp_path / "out.jsonl.xz"
    found = collect.run([str(one) for one in sources], out, collect.Options(**options), quiet)
    with lzma.open(out, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    assert found["records"] == len(lines)
    return lines


def values(tmp_path: Path, *sources: str | Path, **options: Any) -> list[Any]:
    return [line["data"] for line in collected(tmp_path, *sources, **options)]


def test_a_store_gives_its_live_records(tmp_path: Path) -> None:
    with nbmf.Memory.open(tmp_path / "agent.nbmf") as memory:
        memory.put(("users", "ann"), "a", {"text": "likes tea"}, cls="fact")
        memory.put(("users", "bob"), "b", "hello", cls="chat")
        memory.put(("users", "bob"), "c", b"\x00\x01")
        memory.delete(("users", "bob"), "gone")
    found = collected(tmp_path, tmp_path / "agent.nbmf")
    assert sorted(
        (line["metadata"]["group"], line["metadata"]["kind"], json.dumps(line["data"])) for line in found
    ) == [
        ("users/ann", "fact", '{"text": "likes tea"}'),
        ("users/bob", "chat", '"hello"'),
    ]
    assert {line["metadata"]["source"] for line in found} == {"users"}


def test_json_lines_of_every_form_and_packing(tmp_path: Path) -> None:
    lines = [
        {"data": "one", "metadata": {"source": "s", "kind": "turn", "conversation": "7"}},
        {"namespace": "a/b", "key": "k", "value": [1, 1.0, None]},
        {"plain": True},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(text))
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.xz"):
        first, second, third = collected(tmp_path, tmp_path / name)
        assert first["data"] == "one" and first["metadata"] == {"source": "s", "kind": "turn", "conversation": "7"}
        assert second["data"] == [1, 1.0, None] and second["metadata"]["group"] == "a/b"
        assert third == {
            "data": {"plain": True},
            "metadata": {"source": name, "kind": "json"},
            "id": f"{name}:3",
        }


def test_a_folder_is_read_in_order_and_names_what_it_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.jsonl").write_text('"no"\n')
    (folder / "b.jsonl").write_text('"second"\n')
    (folder / "a.json").write_text('["first"]')
    (folder / "sub" / "notes.md").write_text("# One\n\ntext\n\n# Two\n")
    (folder / "sub" / "app.log").write_text("up\n\ndown\n")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    assert values(tmp_path, folder) == ["first", "second", "up", "down", "# One\n\ntext", "# Two"]
    result = collect.run([str(folder)], tmp_path / "o.jsonl", collect.Options(), quiet)
    assert result["left_out"]["files of other forms"] == 1
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert lines[0]["metadata"] == {"source": "a.json", "kind": "text"}
    assert lines[-1]["metadata"] == {"source": "export", "kind": "text", "group": "sub/notes.md"}
    assert lines[-1]["id"] == "sub/notes.md:5"


def test_paragraphs_are_joined_to_pieces_and_code_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("one\n\ntwo\n\n```\nx\n\ny\n```\n\n" + "z" * 300 + "\n\nlast\n", encoding="utf-8")
    found = list(texts.pieces(path, "a.md", 100))
    assert found == [(1, "one\n\ntwo\n\n```\nx\n\ny\n```"), (11, "z" * 300), (13, "last")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", []),
        (' [1, 2.5 , "a",null, {"b": [3]}] \n', [1, 2.5, "a", None, {"b": [3]}]),
        ('{"a": 1}', [{"a": 1}]),
        ("17", [17]),
        ("[" + ",".join(["123456789"] * 30_000) + "]", [123456789] * 30_000),
        (json.dumps(["x" * 200_000, "y"]), ["x" * 200_000, "y"]),
    ],
    ids=["empty", "all", "object", "number", "longer than a read", "an item longer than a read"],
)
def test_arrays_are_read_item_by_item(tmp_path: Path, text: str, expected: list[Any]) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    assert [value for _, value in texts.items(path, "a.json")] == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2", "after item 2"),
        ("[1 2]", "after item 1"),
        ("[1,]", "item 2: not JSON"),
        ("[1] 2", "more after"),
        ("nonsense", "a.json"),
        ("", "a.json"),
    ],
)
def test_what_is_no_array_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=words):
        values(tmp_path, tmp_path / "a.json")


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    given(b'{"a":1}\n\n"b"\n')
    assert values(tmp_path, "-") == [{"a": 1}, "b"]
    given(b"plain\ntext\n")
    assert values(tmp_path, "-", form="lines") == ["plain", "text"]
    given(b'{"a":1}\nnot json\n')
    with pytest.raises(DataError, match="stdin, line 2"):
        values(tmp_path, "-")
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.xz"]  # of the runs before, and no part of this one


def test_bad_lines_are_named_or_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'"good"\n{"a":\n\xff\n"good too"\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: "):
        values(tmp_path, tmp_path / "a.jsonl")
    out = tmp_path / "o.jsonl"
    found = collect.run([str(tmp_path / "a.jsonl")], out, collect.Options(skip_bad=True), quiet)
    assert found["records"] == 2 and found["left_out"]["bad lines"] == 2
    (tmp_path / "b.txt").write_bytes(b"fine\n\nno\xfft\n")
    with pytest.raises(DataError, match=r"b\.txt, line 3: not UTF-8"):
        values(tmp_path, tmp_path / "b.txt")


def test_nothing_is_written_where_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    for sources, words in (([tmp_path / "a.jsonl"], "no records"), ([tmp_path / "none"], "does not exist")):
        with pytest.raises(DataError, match=words):
            values(tmp_path, *sources)
    with pytest.raises(DataError, match=r"ends in \.jsonl"):
        collect.run([str(tmp_path / "a.jsonl")], tmp_path / "out.csv", collect.Options(), quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_names_given_are_every_records_and_the_limit_holds(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"data": {n}, "metadata": {{"source": "x"}}}}\n' for n in range(9)))
    found = collected(tmp_path, tmp_path / "a.jsonl", source="mine", kind="number", limit=4)
    assert [line["data"] for line in found] == [0, 1, 2, 3]
    assert all(line["metadata"] == {"source": "mine", "kind": "number"} for line in found)


def database(tmp_path: Path) -> str:
    path = tmp_path / "chat.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE turns (id INTEGER, thread TEXT, body TEXT, picture BLOB)")
        rows = [(n, f"t{n // 2}", f"turn {n}", b"\x01" if n == 3 else None) for n in range(4)]
        connection.executemany("INSERT INTO turns VALUES (?, ?, ?, ?)", rows)
    connection.close()
    return f"sqlite:///{path}"


def test_a_query_of_sqlite(tmp_path: Path) -> None:
    address = database(tmp_path)
    found = collected(tmp_path, address, query="SELECT body, thread FROM turns ORDER BY id", group="thread")
    assert [(line["data"], line["metadata"]["group"]) for line in found] == [
        (f"turn {n}", f"t{n // 2}") for n in range(4)
    ]
    assert found[0]["metadata"]["source"] == "chat.db"
    assert values(tmp_path, address, query="SELECT id, body FROM turns WHERE id = 2") == [{"id": 2, "body": "turn 2"}]
    left = collect.run([address], tmp_path / "o.jsonl", collect.Options(query="SELECT id, picture FROM turns"), quiet)
    assert (left["records"], left["left_out"]["bytes and vectors"]) == (3, 1)


@pytest.mark.parametrize(
    ("sql", "group", "words"),
    [
        ("SELECT missing FROM turns", None, "no such column"),
        ("DELETE FROM turns", None, "readonly|gives no rows"),
        ("SELECT id FROM turns", "thread", "no column 'thread'"),
        ("SELECT thread FROM turns", "thread", "besides the group"),
        ("SELECT id, body AS id FROM turns", None, "two columns of one name"),
    ],
)
def test_a_query_that_fails_is_one_error(tmp_path: Path, sql: str, group: str | None, words: str) -> None:
    address = database(tmp_path)
    with pytest.raises(DataError, match=words):
        values(tmp_path, address, query=sql, group=group)
    assert len(values(tmp_path, address, query="SELECT id FROM turns")) == 4


def test_a_query_needs_a_database(tmp_path: Path) -> None:
    for address, words in (("sqlite:////none.db", "does not exist"), ("x.jsonl", "is no database")):
        with pytest.raises(DataError, match=words):
            values(tmp_path, address, query="SELECT 1")
    with pytest.raises(DataError, match="needs a --query"):
        values(tmp_path, database(tmp_path))
    with pytest.raises(DataError, match="one database"):
        values(tmp_path, "a", "b", query="SELECT 1")


def test_a_query_of_postgres(tmp_path: Path) -> None:
    psycopg = pytest.importorskip("psycopg")
    from postgres_server import running_server

    with running_server() as address:
        with psycopg.connect(address) as connection:
            connection.execute("CREATE TABLE turns (id int, thread text, body jsonb, at timestamptz, price numeric)")
            connection.execute("""INSERT INTO turns SELECT n, 't' || n / 2, '{"a": [1, null]}', '2025-03-01Z', 1.50
                                  FROM generate_series(0, 2500) n""")
        sql = "SELECT thread, id, body, price FROM turns WHERE id % 1 = 0 ORDER BY id"
        found = collected(tmp_path, address, query=sql, group="thread")
        assert len(found) == 2501 and found[5]["metadata"]["group"] == "t2"
        assert found[5]["data"] == {"id": 5, "body": {"a": [1, None]}, "price": "1.50"}
        for wrong, words in (("SELECT nope FROM turns", "nope"), ("DELETE FROM turns", "read-only|SELECT|syntax")):
            with pytest.raises(DataError, match=words):
                values(tmp_path, address, query=wrong)
        with pytest.raises(DataError) as caught:
            values(tmp_path, "postgresql://user:hidden@127.0.0.1:1/none", query="SELECT 1")
        assert "hidden" not in str(caught.value)


def test_columns_become_values_of_json() -> None:
    when = datetime.datetime(2025, 3, 1, 7, 30, tzinfo=datetime.UTC)
    name = uuid.UUID(int=7)
    given = {"n": decimal.Decimal("1.50"), "at": when, "id": name, "list": [when.date()], "raw": memoryview(b"x")}
    assert query.plain(given) == {
        "n": "1.50", "at": "2025-03-01T07:30:00+00:00", "id": str(name), "list": ["2025-03-01"], "raw": b"x",
    }  # fmt: skip
    with pytest.raises(TypeError, match="complex"):
        query.plain(1j)


def test_a_line_comes_back_as_it_was(tmp_path: Path) -> None:
    for value in ("text", "a \ud800 lone surrogate", {"n": [1, 1.0, -0.0, None, True]}, 10**40, "\u2028"):
        line = Line(value, {"source": "s", "kind": "k"}, "id")
        assert parsed(line.bytes(), "f", 1) == line
        assert line.bytes().count(b"\n") == 1
    (tmp_path / "a.jsonl").write_bytes(b'{"data": 1, "metadata": 3}\n\xef\xbb\xbf"bom"\nNaN\n')
    fault, bom, nan = read(tmp_path / "a.jsonl")
    assert isinstance(fault, Fault) and "metadata" in fault.reason
    assert isinstance(bom, Line) and bom.value == "bom" and bom.about == {"source": "a.jsonl", "kind": "text"}
    assert isinstance(nan, Line) and nan.value != nan.value
