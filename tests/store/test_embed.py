"""Texts to vectors, and values to texts."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf import samples
from nbmf.errors import NbmfError, PolicyError
from nbmf.store import embed
from nbmf.store.embed import EMBED_MOST, TEXT_MOST, UserEmbedder, WordLlama, parse_path, text_of, unit

pytest.importorskip("wordllama")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def embedder() -> WordLlama:
    return WordLlama()


# -- vectors -----------------------------------------------------------------------------------------------------------


def test_rows_are_unit_vectors(embedder: WordLlama) -> None:
    texts = ["likes tea", "", " \n\t ", "日本語のテキスト", "🙂", "x" * 10_000, "\ud800", "ein Wort"]
    rows = embedder.embed(texts)
    assert rows.dtype == np.float32 and rows.shape == (len(texts), embedder.dim) == (8, 256)
    assert np.allclose(np.linalg.norm(rows, axis=1), [1, 0, 0, 1, 1, 1, 1, 1], atol=1e-6)
    assert embedder.embed([]).shape == (0, 256)


def test_it_agrees_with_the_package_that_the_weights_come_from(embedder: WordLlama) -> None:
    """The package's own code, in a process of its own: it changes the logging of whoever imports it."""
    texts = [
        "Where can I change my seat?",
        "a  text   with\nruns of\n\n    space",
        "naïve café, 3.14 €",
        "x_y = f(z)[0]",
    ]
    code = (
        "import sys, json, wordllama, pathlib, numpy as np\n"
        "folder = pathlib.Path(wordllama.__file__).parent\n"
        "model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)\n"
        "texts = [' '.join(text.split()) for text in json.loads(sys.argv[1])]\n"
        "print(json.dumps(np.concatenate([model.embed(text, norm=True) for text in texts]).tolist()))"
    )
    import json

    done = subprocess.run([sys.executable, "-c", code, json.dumps(texts)], capture_output=True, text=True, check=True)
    assert np.abs(embedder.embed(texts) - np.array(json.loads(done.stdout))).max() < 1e-5


def test_meaning_is_nearer_than_words(embedder: WordLlama) -> None:
    query, near, far = embedder.embed(
        ["What does she like to drink?", "She enjoys coffee and green tea.", "The router rebooted at noon."]
    )
    assert query @ near > query @ far + 0.1


def test_one_by_one_or_together_or_again(embedder: WordLlama) -> None:
    texts = [text_of(sample.value) for sample in samples.load()]
    together = embedder.embed(texts)
    assert (np.concatenate([embedder.embed([text]) for text in texts]) == together).all()
    assert (WordLlama().embed(texts) == together).all()


def test_words_forgotten_and_met_again_give_the_same(embedder: WordLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text_of(sample.value) for sample in samples.load()[:40]]
    rows, rarities = embedder.embed(texts), [embedder.rarity(text.split()[0]) for text in texts]
    small = WordLlama()
    monkeypatch.setattr(embed, "WORDS_MOST", 16)
    assert (small.embed(texts) == rows).all()
    assert [small.rarity(text.split()[0]) for text in texts] == rarities
    assert len(small._words) <= 16 and len(small._rarities) <= 16


def test_the_end_of_a_long_text_is_left_out(embedder: WordLlama) -> None:
    text = "tea " * (EMBED_MOST // 4)
    rows = embedder.embed([text, text + "rockets to the moon", "rockets " + text])
    assert (rows[0] == rows[1]).all()
    assert (rows[0] != rows[2]).any()


def test_threads(embedder: WordLlama) -> None:
    texts = [text_of(sample.value) for sample in samples.load()]
    want, fresh, wrong = embedder.embed(texts), WordLlama(), []

    def work(step: int) -> None:
        order = np.random.default_rng(step).permutation(len(texts))
        if (fresh.embed([texts[i] for i in order]) != want[order]).any():
            wrong.append(step)

    threads = [threading.Thread(target=work, args=(step,)) for step in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_id_names_the_weights(embedder: WordLlama) -> None:
    """Codes in stores bear it: another id for the same weights makes every one of them unreadable."""
    assert embedder.id == WordLlama().id
    assert embedder.id.startswith("wordllama-256-") and len(embedder.id) == 30


def test_rarity(embedder: WordLlama) -> None:
    common, plain, rare = (
        max(map(embedder.rarity, words)) for words in (["the", "and", "of", "7"], ["order", "place"], ["and"])
    )
    assert common < plain
    assert rare < embedder.rarity("kowalski") < embedder.rarity("kj5623")
    assert embedder.rarity("") == 0


def test_nothing_else_is_loaded(embedder: WordLlama) -> None:
    code = "import sys; from nbmf.store.embed import WordLlama; WordLlama(); print('requests' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_missing_or_damaged_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NbmfError, match=r"nbmf\[search\]"):
        WordLlama()
    monkeypatch.undo()
    monkeypatch.setattr(embed, "_package_folder", lambda name: tmp_path)
    with pytest.raises(NbmfError, match="cannot be read"):
        WordLlama()
    for name, data in ((embed.WORDLLAMA_WEIGHTS, b"\x02" + bytes(7) + b"{}"), (embed.WORDLLAMA_TOKENIZER, b"{}")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(data)
    with pytest.raises(NbmfError, match="cannot be read"):
        WordLlama()


# -- vectors of the user -----------------------------------------------------------------------------------------------


def test_a_users_embedder() -> None:
    mine = UserEmbedder(lambda texts: [[len(text), 0, 1e30] for text in texts], 3, "lengths-v1")
    rows = mine.embed(["a", "bb"])
    assert mine.id == "user-3-lengths-v1"
    assert rows.dtype == np.float32 and np.allclose(rows, [[0, 0, 1], [0, 0, 1]])
    assert mine.embed([]).shape == (0, 3)
    assert mine.id != UserEmbedder(mine.embed, 3, "lengths-v2").id


@pytest.mark.parametrize(
    "answer", [[[1.0, 2.0]], [[1.0, 2.0, float("nan")]] * 2, [[1, 2, 3]], "text", [[1, 2, 3], [1]], None]
)
def test_a_users_embedder_that_answers_wrongly(answer: Any) -> None:
    with pytest.raises(PolicyError):
        UserEmbedder(lambda texts: answer, 3, "wrong").embed(["a", "b"])


def test_unit() -> None:
    assert unit([[3, 4], [0, 0]], 2, 2).tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 0]]
    for dim, id in ((0, "a"), (3, "")):
        with pytest.raises(PolicyError):
            UserEmbedder(lambda texts: texts, dim, id)


# -- texts of values ---------------------------------------------------------------------------------------------------

ORDER = {
    "text": "two cups",
    "metadata": {"title": "Order", "tags": ["a", "b"], "paid": True, "note": None},
    "items": [{"name": "tea", "price": 2.5}, {"name": "cake", "price": 3}, "loose"],
}


def test_everything_in_the_order_of_the_document() -> None:
    assert text_of(ORDER) == (
        "text two cups metadata title Order tags a b paid true note items name tea price 2.5 cake 3 loose"
    )
    for value, text in (("as it is \n", "as it is \n"), (7, "7"), (None, ""), (b"bytes", ""), ([], ""), ({"": 1}, "")):
        assert text_of(value).removesuffix(" 1").strip("\n") == text.strip("\n")
    assert text_of(np.ones(3, np.float32)) == ""


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("text", "two cups"),
        ("metadata.title", "Order"),
        ("metadata.tags", "a b"),
        ("metadata.tags[-1]", "b"),
        ("metadata.tags[5]", ""),
        ("metadata.note", ""),
        ("items[*].name", "tea cake"),
        ("items[1]", "name cake price 3"),
        ("items[1].price", "3"),
        ("*.title", "Order"),
        ("{text,metadata.title}", "two cups Order"),
        ("items[*].{price,name}", "2.5 tea 3 cake"),
        ("$.text", "two cups"),
        ("nowhere.else", ""),
        ("text.deeper", ""),
    ],
)
def test_paths(path: str, text: str) -> None:
    assert text_of(ORDER, [path]) == text


def test_several_paths_in_the_order_given() -> None:
    assert text_of(ORDER, ["metadata.title", "text"]) == "Order two cups"
    assert text_of(ORDER, ["$"]) == text_of(ORDER, [""]) == text_of(ORDER)
    assert text_of(ORDER, []) == ""
    assert text_of("plain", ["text"]) == ""


@pytest.mark.parametrize("path", ["a[", "a[]", "a[x]", "a[1]b", "{}", "{a", "a..b", ".a", 7])
def test_malformed_paths(path: Any) -> None:
    with pytest.raises(PolicyError, match="path"):
        text_of(ORDER, [path])


def test_fields_that_are_one_text() -> None:
    with pytest.raises(PolicyError, match="list of paths"):
        text_of(ORDER, "text")


def test_large_and_deep_values() -> None:
    deep: Any = "bottom"
    for _ in range(20_000):
        deep = {"in": deep} if _ % 2 else [deep]
    assert text_of(deep) == "in bottom"
    assert len(text_of(["word"] * 1_000_000)) == TEXT_MOST


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_any_value_has_a_text(value: Any) -> None:
    text = text_of(value)
    assert text == text_of(value) and len(text) <= TEXT_MOST
    assert text_of(value, ["$"]) == text


@settings(max_examples=200, deadline=None)
@given(st.text("ab.[]{}*$,-1 ", max_size=12), JSON)
def test_any_path_is_read_or_refused(path: str, value: Any) -> None:
    try:
        parse_path(path)
    except PolicyError:
        return
    try:
        text_of(value, [path])
    except PolicyError as error:
        assert "{" in path and "\n" not in str(error)
