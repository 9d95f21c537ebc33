"""Readers of foreign stores, over stores written the way their own programs write them."""

import base64
import gzip
import hashlib
import json
import lzma
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf.codec import dropin, stub
from nbmf.errors import CorruptRecord, NbmfError, PolicyError, StoreError
from nbmf.policy.sources import Incoming, Item, StoreSource, Unreadable, detect, open_source, parse_namespace
from nbmf.policy.sources.base import milliseconds, minutes, parse_text
from nbmf.policy.sources.mcp_graph import lines as graph_lines
from nbmf.policy.sources.stub_store import split_name

KEY = b"correct horse"
T0 = 1_700_000_000_000


def read(path: Path, kind: str | None = None, **options: Any) -> list[Item]:
    """All items, read twice and the same both times; the source's files unchanged and nothing new beside them."""
    before = state(path)
    with open_source(path, kind, **options) as source:
        first = list(source.items())
        assert list(source.items()) == first
        assert source.count() in (None, len(first))
    assert state(path) == before
    return first


def state(path: Path) -> dict[str, Any]:
    """Every file in the source's folder: its bytes and time of change."""
    root = path if path.is_dir() else path.parent
    return {
        str(file): (file.read_bytes(), file.stat().st_mtime_ns) if file.is_file() else None
        for file in sorted(root.rglob("*"))
    }


def records(items: list[Item]) -> list[Incoming]:
    assert all(isinstance(item, Incoming) for item in items), items
    return [item for item in items if isinstance(item, Incoming)]


# -- the old store -----------------------------------------------------------------------------------------------------


def old_put(root: Path, key: str, cls: str, payload: Any, meta: Any = None, sealed: bytes | None = None) -> Path:
    """Writes a record as the old store did."""
    folder = root / "records"
    folder.mkdir(exist_ok=True)
    record: Any = {"payload": payload, "meta": meta if meta is not None else {}, "cls": cls}
    if sealed is not None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(12)
        box = AESGCM(hashlib.sha256(sealed).digest()).encrypt(nonce, json.dumps(record).encode(), b"")
        record = {
            "__encrypted__": {
                "alg": "AESGCM",
                "nonce": base64.urlsafe_b64encode(nonce).decode(),
                "ciphertext": base64.urlsafe_b64encode(box).decode(),
            }
        }
    file = folder / f"{key}__{cls}.json".replace("/", "_")
    file.write_text(json.dumps(record))
    os.utime(file, ns=(T0 * 1_000_000, T0 * 1_000_000))
    return file


def test_old_store(tmp_path: Path) -> None:
    value = {"text": "likes tea", "n": [1, 1.0, True, None, -0.0]}
    old_put(tmp_path, "users/ann", "fact", stub.encode(value, "lossless"), {"source": "chat"})
    old_put(tmp_path, "users/bob", "chat", dropin.encode("drop-in blob"))
    old_put(tmp_path, "plain", "note", ["never", "encoded"])
    ann, bob, plain = sorted(records(read(tmp_path)), key=lambda item: ["fact", "chat", "note"].index(item.cls))
    assert ann.key == "users_ann" and ann.namespace == ("records",) and ann.meta == {"source": "chat"}
    assert json.dumps(ann.value) == json.dumps(value) and ann.fidelity == "lossless" and ann.note == ""
    assert ann.created == ann.updated == T0 and ann.origin == "users_ann__fact.json"
    assert bob.value == "drop-in blob" and bob.meta is None
    assert plain.value == ["never", "encoded"]
    assert detect(tmp_path) == detect(tmp_path / "records") == "stub"
    assert read(tmp_path / "records") == read(tmp_path)
    assert records(read(tmp_path, namespace=("old", "one")))[0].namespace == ("old", "one")


def test_semantic_records_are_what_they_are(tmp_path: Path) -> None:
    long = "All work and no play. " * 200
    old_put(tmp_path, "cut", "doc", stub.encode(long, "semantic"))
    old_put(tmp_path, "cut_json", "doc", stub.encode({"b": long, "a": 1}, "semantic"), {"own": 1})
    old_put(tmp_path, "short", "doc", stub.encode("  two\nspaces ", "semantic"))
    cut, cut_json, short = records(read(tmp_path))
    assert cut.value == long[: stub.PREVIEW_CHARS] and cut.fidelity == "semantic" and cut.note == "truncated preview"
    assert cut.meta == {"nbmf.preview": {"truncated": True, "type": "str"}}
    assert cut_json.value.startswith('{"a": 1, "b": "All work') and len(cut_json.value) == stub.PREVIEW_CHARS
    assert cut_json.meta == {"own": 1, "nbmf.preview": {"truncated": True, "type": "dict"}}
    assert short.value == "two spaces" and short.fidelity == "semantic" and short.note == "semantic text"
    assert short.meta == {"nbmf.preview": {"truncated": False, "type": "str"}}


def test_sealed_records(tmp_path: Path) -> None:
    old_put(tmp_path, "open", "fact", stub.encode("in the open", "lossless"))
    old_put(tmp_path, "sealed", "fact", stub.encode("behind a seal ✓", "lossless"), {"m": 1}, sealed=KEY)
    opened, sealed = records(read(tmp_path, key=KEY))
    assert (opened.value, sealed.value, sealed.meta) == ("in the open", "behind a seal ✓", {"m": 1})
    assert detect(tmp_path) == "stub"
    with pytest.raises(PolicyError, match=r"sealed__fact\.json is sealed: the old store's key is wanted"):
        open_source(tmp_path)
    with pytest.raises(PolicyError, match="the key opens none of the 1 sealed records"):
        open_source(tmp_path, key=b"wrong")


def test_one_bad_sealed_record_does_not_stop_the_others(tmp_path: Path) -> None:
    first = old_put(tmp_path, "a", "fact", stub.encode("lost", "lossless"), sealed=KEY)
    old_put(tmp_path, "b", "fact", stub.encode("kept", "lossless"), sealed=KEY)
    envelope = json.loads(first.read_text())
    box = bytearray(base64.urlsafe_b64decode(envelope["__encrypted__"]["ciphertext"]))
    box[3] ^= 1
    envelope["__encrypted__"]["ciphertext"] = base64.urlsafe_b64encode(box).decode().rstrip("=")
    first.write_text(json.dumps(envelope))
    bad, good = read(tmp_path, key=KEY)
    assert isinstance(bad, Unreadable) and bad.reason == "the key does not open it, or it was changed"
    assert bad.raw == first.read_bytes()
    assert isinstance(good, Incoming) and good.value == "kept"


def test_what_is_unreadable_in_an_old_store(tmp_path: Path) -> None:
    blob = stub.encode({"a": 1}, "lossless")
    old_put(tmp_path, "good", "fact", blob)
    cases = {
        "sig__fact.json": (
            json.dumps({"payload": {**blob, "sig": "0" * 64}, "meta": {}, "cls": "fact"}),
            "sig does not",
        ),
        "zlib__fact.json": (json.dumps({"payload": {**blob, "code": "00"}, "meta": {}, "cls": "fact"}), "length_bytes"),
        "torn__fact.json": ('{"payload": {"me', "not JSON"),
        "empty__fact.json": ("", "empty"),
        "none__fact.json": ('{"meta": {}}', "payload is wanted"),
        "list__fact.json": ("[1]", "payload is wanted"),
        "twice__fact.json": ('{"payload": 1, "payload": 2}', 'the key "payload" twice'),
        "alg__fact.json": ('{"__encrypted__": {"alg": "ROT13"}}', "not AESGCM"),
        "left.tmp": ("half a rec", "its name is not"),
        "sub/x__fact.json": (json.dumps({"payload": 1, "meta": {}, "cls": "fact"}), "its name is not"),
        "k" * 240 + "__" + "c" * 8 + ".json": ("\xff", "not JSON"),
    }
    (tmp_path / "records" / "sub").mkdir()
    for name, (text, _) in cases.items():
        (tmp_path / "records" / name).write_text(text)
    (tmp_path / "records" / "latin__fact.json").write_bytes(b'"\xff"')
    sealed = old_put(tmp_path, "sealed", "fact", 1, sealed=KEY)
    items = read(tmp_path, key=KEY)
    found = {item.origin: item for item in items if isinstance(item, Unreadable)}
    assert found.keys() == {*cases, "latin__fact.json"}
    for name, (text, reason) in cases.items():
        assert reason in found[name].reason, name
        assert found[name].raw == text.encode()
    assert "not UTF-8" in found["latin__fact.json"].reason
    assert {item.origin for item in items if isinstance(item, Incoming)} == {"good__fact.json", sealed.name}


def test_names_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    old_put(tmp_path, "good", "fact", 1)
    path = os.fsencode(tmp_path / "records") + b"/\xff__fact.json"
    try:
        with open(path, "w") as file:
            json.dump({"payload": "odd", "meta": {}, "cls": "fact"}, file)
    except OSError:
        pytest.skip("the file system has no such names")
    _, odd = read(tmp_path)
    assert isinstance(odd, Unreadable) and odd.origin == "\\xff__fact.json" and "lone surrogate" in odd.reason


@pytest.mark.parametrize(
    ("stem", "cls", "wanted"),
    [
        ("ann__fact", "fact", ("ann", "fact", True)),
        ("a__b__fact", "fact", ("a__b", "fact", True)),
        ("ann__tool__call", "tool__call", ("ann", "tool__call", True)),
        ("ann__a_b", "a/b", ("ann", "a/b", True)),
        ("ann__", "", ("ann", "", True)),
        ("ann__fact", None, ("ann", "fact", True)),
        ("a__b__fact", None, ("a__b", "fact", True)),
        ("ann__fact", "other", ("ann", "other", False)),
        ("ann", "fact", ("ann", "fact", False)),
        ("__fact", "fact", ("__fact", "fact", False)),
        ("ann", None, ("ann", "", True)),
    ],
)
def test_split_of_names(stem: str, cls: Any, wanted: tuple[str, str, bool]) -> None:
    assert split_name(stem, cls) == wanted


@given(st.text("ab_/", min_size=1), st.text("cd_/"))
def test_split_gives_back_what_was_joined(key: str, cls: str) -> None:
    stem = f"{key}__{cls}".replace("/", "_")
    assert split_name(stem, cls) == (key.replace("/", "_"), cls, True)


# -- JSON lines --------------------------------------------------------------------------------------------------------


def lines_file(path: Path, lines: list[Any]) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    packed = {".xz": lzma.compress, ".gz": gzip.compress}.get(path.suffix, bytes)
    path.write_bytes(packed(text.encode()))
    return path


@pytest.mark.parametrize("name", ["notes.jsonl", "notes.jsonl.xz", "notes.jsonl.gz"])
def test_three_forms_of_lines(tmp_path: Path, name: str) -> None:
    path = lines_file(
        tmp_path / name,
        [
            {
                "namespace": ["users", "ann"],
                "key": "pref-1",
                "value": {"text": "likes tea"},
                "class": "fact",
                "created": T0,
                "updated": "2024-01-02T03:04:05+02:00",
                "expires": 4_102_444_800,
                "ttl": 90,
                "meta": {"source": "chat"},
            },
            {"namespace": "users/bob", "key": 7, "value": None},
            "",
            {
                "id": "e1",
                "domain": "legal",
                "type": "text",
                "data": "a text",
                "metadata": {"source": "s", "kind": "k"},
            },
            {"anything": "else", "value": 1},
            "   17.50",
            {"key": "only a key", "value": [1]},
        ],
    )
    ann, bob, data, bare, number, keyed = records(read(path))
    assert ann == Incoming(
        ("users", "ann"),
        "pref-1",
        {"text": "likes tea"},
        cls="fact",
        created=T0,
        updated=1_704_157_445_000,
        expires=4_102_444_800_000,
        ttl=5_400_000,
        meta={"source": "chat"},
        origin=f"{name}:1",
    )
    assert (bob.namespace, bob.key, bob.value) == (("users", "bob"), "7", None)
    assert (data.namespace, data.key, data.value, data.cls) == (("records",), "e1", "a text", "k")
    assert data.meta == {"source": "s", "kind": "k", "domain": "legal"}
    assert (bare.key, bare.value) == ("notes:5", {"anything": "else", "value": 1})
    assert (number.key, number.value) == ("notes:6", 17.5)
    assert keyed.namespace == ("records",) and keyed.key == "only a key"
    assert detect(path) == "jsonl"
    assert records(read(path, "jsonl-values"))[0].value["key"] == "pref-1"


def test_a_folder_of_lines(tmp_path: Path) -> None:
    lines_file(tmp_path / "b.jsonl.xz", [2])
    lines_file(tmp_path / "a.jsonl", [0, 1])
    lines_file(tmp_path / "not-one.txt", [3])
    found = records(read(tmp_path, namespace=("x",)))
    assert [(item.key, item.value, item.namespace) for item in found] == [
        ("a:1", 0, ("x",)),
        ("a:2", 1, ("x",)),
        ("b:1", 2, ("x",)),
    ]


def test_unreadable_lines_are_kept(tmp_path: Path) -> None:
    lines = {
        '{"torn": ': "not JSON",
        '{"key": "k", "value": 1, "clas": "x"}': "unknown field 'clas'",
        '{"key": "", "value": 1}': "a key is a non-empty text",
        '{"key": true, "value": 1}': "key is not a text",
        '{"namespace": [], "value": 1}': "a namespace is",
        '{"namespace": "a//b", "value": 1}': "segment",
        '{"key": "nul\\u0000", "value": 1}': "U+0000",
        '{"key": "k", "value": 1, "created": "yesterday"}': "created is no time",
        '{"key": "k", "value": 1, "created": true}': "created is no time",
        '{"key": "k", "value": 1, "created": -5}': "between the years",
        '{"key": "k", "value": 1, "ttl": 0}': "number of minutes",
        '{"key": "k", "value": 1, "meta": []}': "meta is not an object",
        '{"key": "k", "value": 1, "fidelity": "vague"}': "fidelity is 'vague'",
        '{"a": {"b": 1, "b": 2}}': 'the key "b" twice',
        "[1] [2]": "not JSON",
    }
    path = lines_file(tmp_path / "x.jsonl", ["1", *lines])
    first, *rest = read(path)
    assert isinstance(first, Incoming)
    for (line, reason), item in zip(lines.items(), rest, strict=True):
        assert isinstance(item, Unreadable), line
        assert reason in item.reason and item.raw == line.encode() + b"\n"


def test_values_of_lines_are_exact(tmp_path: Path) -> None:
    deep = "[" * 20_000 + "]" * 20_000
    long = "9" * 6000
    path = tmp_path / "x.jsonl"
    path.write_text(f'\ufeff1.0\n-0.0\n{long}\n{deep}\n{{"b": 1, "a": 2}}\nNaN\n"\\ud800"', encoding="utf-8")
    one, zero, big, nest, order, nan, lone = records(read_once(path))
    assert type(one.value) is float and str(zero.value) == "-0.0" and big.value == 10**6000 - 1
    assert type(nest.value) is list and list(order.value) == ["b", "a"]
    assert nan.value != nan.value and lone.value == "\ud800"


def read_once(path: Path) -> list[Item]:
    with open_source(path) as source:
        return list(source.items())


@pytest.mark.parametrize("suffix", ["xz", "gz"])
def test_a_damaged_packed_file_gives_its_good_lines_and_itself(tmp_path: Path, suffix: str) -> None:
    path = lines_file(tmp_path / f"x.jsonl.{suffix}", [{"v": os.urandom(20).hex()} for _ in range(5000)])
    path.write_bytes(path.read_bytes()[:-1000])
    *good, last = read(path)
    assert len(good) > 3000 and isinstance(last, Unreadable)
    assert last.raw == path.read_bytes() and "damaged" in last.reason


# -- LangGraph ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def langgraph() -> Any:
    return pytest.importorskip("langgraph.store.sqlite")


def test_langgraph_store(tmp_path: Path, langgraph: Any) -> None:
    path = tmp_path / "store.db"
    value = {"text": "likes tea ☕", "n": [1, 1.5, True, None], "nested": {"b": 1, "a": 2}}
    with langgraph.SqliteStore.from_conn_string(str(path)) as store:
        store.setup()
        store.put(("users", "ann"), "pref-1", value)
        store.put(("users", "ann"), "pref/2.x", {"text": "x"}, ttl=90.5)
        store.put(("users",), "top", {})
        # The store makes this table itself where the interpreter can load sqlite-vec.
        store.conn.executescript(langgraph.SqliteStore.VECTOR_MIGRATIONS[0])
        store.conn.execute(
            "INSERT INTO store_vectors (prefix, key, field_name, embedding) VALUES ('users.ann', 'pref-1', 'text', 'v')"
        )
        kept = {(item.namespace, item.key): item for item in store.search((), limit=10)}
    top, one, two = records(read(path))
    assert detect(path) == "langgraph"
    assert {(item.namespace, item.key) for item in (top, one, two)} == kept.keys()
    for item in (top, one, two):
        theirs = kept[item.namespace, item.key]
        assert item.value == theirs.value and item.fidelity == "lossless" and item.cls == "" and item.meta is None
        for mine, stamp in ((item.created, theirs.created_at), (item.updated, theirs.updated_at)):
            assert mine == milliseconds(str(stamp), "t")
    assert list(one.value["nested"]) == ["b", "a"] and one.origin == "users.ann/pref-1"
    assert two.ttl == 5_430_000 and two.updated is not None and two.expires is not None
    assert 0 <= two.expires - (two.updated + two.ttl) < 1000
    assert one.ttl is one.expires is None
    assert records(read(path, namespace=("from", "langgraph")))[0].namespace == ("from", "langgraph", "users")
    with open_source(path) as source:
        assert source.left_behind() == {"store_vectors": 1}


def test_langgraph_renewed_expiry(tmp_path: Path, langgraph: Any) -> None:
    path = tmp_path / "store.db"
    with langgraph.SqliteStore.from_conn_string(str(path), ttl={"refresh_on_read": True}) as store:
        store.setup()
        store.put(("a",), "k", {"v": 1}, ttl=10)
        store.get(("a",), "k", refresh_ttl=True)
    expires = sqlite_one(path, "SELECT expires_at FROM store")
    assert len(expires) == len("2026-01-01 00:00:00"), "a renewal writes another form of time than a put"
    (item,) = records(read(path))
    assert item.expires == milliseconds(expires + "+00:00", "t") and item.ttl == 600_000


def sqlite_one(path: Path, sql: str) -> Any:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchone()[0]
    finally:
        connection.close()


def test_langgraph_store_with_an_unfinished_log(tmp_path: Path, langgraph: Any) -> None:
    """A write-ahead log that no one has checkpointed holds records, and reading must neither miss nor merge them."""
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    store = langgraph.SqliteStore(connection)
    store.setup()
    store.put(("a",), "in-the-log", {"v": 1})
    assert Path(f"{path}-wal").stat().st_size > 0
    copy = tmp_path / "crashed"
    copy.mkdir()
    for suffix in ("", "-wal"):
        (copy / f"store.db{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    connection.close()
    (item,) = records(read(copy / "store.db"))
    assert item.key == "in-the-log"
    (item,) = records(read(path))  # closed in order: in WAL mode without a log
    assert item.key == "in-the-log" and not Path(f"{path}-wal").exists()


def test_langgraph_writer_at_work_is_noticed(tmp_path: Path, langgraph: Any) -> None:
    path = tmp_path / "store.db"
    with langgraph.SqliteStore.from_conn_string(str(path)) as store:
        store.setup()
        store.put(("a",), "k", {"v": 1})
        with open_source(path) as source:
            store.put(("a",), "k2", {"v": 2})
            with pytest.raises(StoreError, match="stop its writer"):
                list(source.items())


def test_old_langgraph_databases_and_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE store (prefix text NOT NULL, key text NOT NULL, value text NOT NULL,"
        " created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
    )
    connection.executemany(
        "INSERT INTO store (prefix, key, value, created_at) VALUES (?, ?, ?, ?)",
        [
            ("a.b", "k1", '{"v": 1}', "2024-01-01 00:00:00"),
            ("a.b", "k2", "{torn", "2024-01-01 00:00:00"),
            ("a..b", "k3", "{}", "2024-01-01 00:00:00"),
            ("a", "k4", "{}", "soon"),
            (b"\xff", "k5", b"\xfe", "2024-01-01 00:00:00"),
            ("b", "k6", 5, "2024-01-01 00:00:00"),
        ],
    )
    connection.commit()
    connection.close()
    items = read(path)
    good = [item for item in items if isinstance(item, Incoming)]
    bad = {json.loads(item.raw)["key"]: item for item in items if isinstance(item, Unreadable)}
    assert [(item.namespace, item.key, item.expires, item.ttl) for item in good] == [
        (("a", "b"), "k1", None, None),
        (("b",), "k6", None, None),
    ]
    assert good[1].value == 5
    assert bad.keys() == {"k2", "k3", "k4", "k5"}
    row = json.loads(bad["k5"].raw)
    assert base64.b64decode(row["value"]["base64"]) == b"\xfe" and row["created_at"] == "2024-01-01 00:00:00"
    assert "created_at is no time: 'soon'" in bad["k4"].reason


def test_other_databases_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE things (a)")
    connection.commit()
    connection.close()
    with pytest.raises(PolicyError, match="has no table store of LangGraph"):
        open_source(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(NbmfError):
        open_source(path)


# -- the MCP memory server ---------------------------------------------------------------------------------------------

GRAPH = [
    {"type": "entity", "name": "Ann", "entityType": "person", "observations": ["likes tea ☕", 'says "hi"\n']},
    {"type": "entity", "name": "Tea", "entityType": "drink", "observations": []},
    {"type": "entity", "name": "", "entityType": "nothing", "observations": []},
    {"type": "entity", "name": "n" * 2000, "entityType": "long", "observations": ["\u2028\u007f\u0001"]},
    {"type": "relation", "from": "Ann", "to": "Tea", "relationType": "likes"},
    {"type": "entity", "name": "Ann", "entityType": "person", "observations": ["written twice"]},
    {"type": "entity", "name": "Ann#2", "entityType": "person", "observations": ["named like a repeat"]},
    {"type": "relation", "from": "Ann", "to": "Tea", "relationType": "likes"},
]


def graph_text(lines: list[Any]) -> str:
    """What JSON.stringify of each line and a join give, as the server writes its file."""
    return "\n".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) for line in lines)


def test_mcp_graph(tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    path.write_text(graph_text(GRAPH), encoding="utf-8")
    assert detect(path) == "mcp"
    found = records(read(path))
    assert len({(item.namespace, item.key) for item in found}) == len(GRAPH)
    assert [(item.namespace, item.key, item.cls) for item in (found[0], found[4], found[5], found[6], found[7])] == [
        (("entities",), "Ann", "entity"),
        (("relations",), '["Ann","likes","Tea"]', "relation"),
        (("entities",), "Ann#2", "entity"),
        (("entities",), "Ann#2#2", "entity"),
        (("relations",), '["Ann","likes","Tea"]#2', "relation"),
    ]
    assert found[2].key.startswith("sha256:") and found[3].key.startswith("sha256:")
    assert "\n".join(graph_lines(reversed(found))) == graph_text(GRAPH)
    assert records(read(path, namespace=("mcp",)))[0].namespace == ("mcp", "entities")


def test_mcp_lines_that_are_neither(tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    bad = ['{"type": "entity", "name": "x"}', '{"type": "folder"}', "{torn", '{"type": "relation", "from": 1}']
    path.write_text(graph_text(GRAPH[:1]) + "\n" + "\n".join(bad))
    good, *rest = read(path)
    assert isinstance(good, Incoming)
    assert [item.raw.decode().strip() for item in rest if isinstance(item, Unreadable)] == bad


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
graphs = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("entity"), "name": names, "entityType": names, "observations": st.lists(names, max_size=3)}
    )
    | st.fixed_dictionaries({"type": st.just("relation"), "from": names, "to": names, "relationType": names}),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40)
@given(graph=graphs)
def test_mcp_export_is_exact(tmp_path_factory: pytest.TempPathFactory, graph: list[Any]) -> None:
    path = tmp_path_factory.mktemp("mcp") / "memory.jsonl"
    path.write_bytes(graph_text(graph).encode())
    found = records(read_once(path))
    assert len({(item.namespace, item.key) for item in found}) == len(graph)
    assert "\n".join(graph_lines(found)) == graph_text(graph)


# -- detection, and what all share -------------------------------------------------------------------------------------


def test_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        open_source(tmp_path / "missing")
    with pytest.raises(PolicyError, match="is a folder with neither"):
        open_source(tmp_path)
    for name, content, said in (
        ("empty", b"", "is empty"),
        ("pretty.json", b'{\n "a": 1\n}', "neither JSON lines nor"),
        ("binary", bytes(range(256)), "neither JSON lines nor"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PolicyError, match=said):
            open_source(tmp_path / name)
    with pytest.raises(PolicyError, match="source kind 'csv' is none of stub, jsonl"):
        open_source(tmp_path / "binary", "csv")
    with pytest.raises(StoreError, match="cannot be read"):
        open_source(tmp_path / "missing", "langgraph")
    with pytest.raises(PolicyError, match="has no file that ends in"):
        open_source(tmp_path, "jsonl")


def test_a_bad_first_line_does_not_hide_the_kind(tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    path.write_text("{torn\n" + graph_text(GRAPH))
    assert detect(path) == "mcp"


def test_another_store_is_a_callable(tmp_path: Path) -> None:
    def items() -> Iterator[Item]:
        yield Incoming(("a",), "k", b"bytes")

    with StoreSource("agent.nbmf", items, count=lambda: 1, size=lambda: 5) as source:
        assert list(source.items()) == list(source.items()) == [Incoming(("a",), "k", b"bytes")]
        assert (source.count(), source.size(), source.kind) == (1, 5, "nbmf")


@pytest.mark.parametrize(
    ("time", "wanted"),
    [
        (None, None),
        (0, 0),
        (1_700_000_000, T0),
        (1_700_000_000.5, T0 + 500),
        (T0, T0),
        ("2023-11-14 22:13:20", T0),
        ("2023-11-14T22:13:20Z", T0),
        ("2023-11-14 22:13:20.123456+00:00", T0 + 123),
        ("2023-11-15T00:13:20+02:00", T0),
    ],
)
def test_times(time: Any, wanted: int | None) -> None:
    assert milliseconds(time, "t") == wanted


@pytest.mark.parametrize("time", [True, "x", -1, 10**18, float("nan"), float("inf"), [], "0001-01-01T00:00:00+14:00"])
def test_what_is_no_time(time: Any) -> None:
    with pytest.raises(CorruptRecord, match=r"^t is"):
        milliseconds(time, "t")


@pytest.mark.parametrize("span", [True, "5", 0, -1, float("nan"), float("inf"), 10**30])
def test_what_is_no_span(span: Any) -> None:
    with pytest.raises(CorruptRecord, match="minutes"):
        minutes(span, "ttl")


def test_namespaces_as_text() -> None:
    assert parse_namespace("a/b") == parse_namespace(["a", "b"]) == ("a", "b")
    for bad in ("", "a/", [], None, ["a", 1], ("a",)):
        with pytest.raises(PolicyError):
            parse_namespace(bad)


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
def test_parse_text_reads_what_json_writes(value: Any) -> None:
    assert parse_text(b" \r\n" + json.dumps(value).encode() + b"\n") == value
