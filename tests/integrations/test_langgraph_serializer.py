"""NBMFSerializer: checkpoints made small, whatever checkpointer keeps them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import aiosqlite
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.conformance import validate
from langgraph.checkpoint.conformance.initializer import checkpointer_test
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.base import CipherProtocol, SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

import nbmf
from nbmf.errors import CorruptRecord, FormatError, NbmfError, OutputLimit, UnknownModel
from nbmf.integrations.langgraph import NBMFSerializer

TALK = [
    "The invoice for March was sent twice, could you cancel the second one?",
    "I have cancelled invoice 2024-0317-B. You will get a confirmation by e-mail within the hour.",
    "Thanks! And please change the billing address to 12 Harbour Street, Leith.",
    "Done: the billing address is now 12 Harbour Street, Leith. Is there anything else?",
]
STATE = {"channel_values": {"messages": [HumanMessage(TALK[0], id="1"), AIMessage(TALK[1], id="2")], "n": {1: [2, 3]}}}


def test_what_goes_in_comes_out_and_is_smaller() -> None:
    serializer, plain = NBMFSerializer(), JsonPlusSerializer()
    assert isinstance(serializer, SerializerProtocol)
    kind, data = serializer.dumps_typed(STATE)
    usual = plain.dumps_typed(STATE)
    assert kind == "nbmf:msgpack" and len(data) < len(usual[1]) / 2
    assert serializer.loads_typed((kind, data)) == plain.loads_typed(usual)
    assert serializer.loads_typed(usual) == plain.loads_typed(usual)  # written before NBMF was there


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=20,
)


@settings(max_examples=30, deadline=None)
@given(st.one_of(JSON, st.binary(), st.binary().map(bytearray), st.text("ab ", max_size=400)))
def test_every_object_comes_back_as_without_nbmf(value: Any) -> None:
    serializer, plain = NBMFSerializer(), JsonPlusSerializer()
    out = serializer.loads_typed(serializer.dumps_typed(value))
    usual = plain.loads_typed(plain.dumps_typed(value))
    assert type(out) is type(usual) and repr(out) == repr(usual)
    assert len(serializer.dumps_typed(value)[1]) <= len(plain.dumps_typed(value)[1])


def test_what_does_not_get_smaller_stays_as_it_is() -> None:
    serializer = NBMFSerializer()
    assert serializer.dumps_typed(None) == ("null", b"")
    noise = os.urandom(500)
    assert serializer.dumps_typed(noise) == ("bytes", noise)


@pytest.mark.parametrize(
    "kind", ["nbmf", "nbmf:", "nbmf:nbmf:msgpack", "msgpack+nbmf", "nbmf:zip", "zstd", "", None, 7]
)
def test_an_unknown_type_is_refused(kind: Any) -> None:
    serializer = NBMFSerializer()
    _, data = serializer.dumps_typed(STATE)
    with pytest.raises(FormatError, match="no type of a checkpoint"):
        serializer.loads_typed((kind, data))


def test_bytes_that_are_no_blob_are_refused() -> None:
    serializer = NBMFSerializer()
    kind, data = serializer.dumps_typed(STATE)
    for at in range(len(data)):
        with pytest.raises((FormatError, CorruptRecord, UnknownModel, OutputLimit)):
            serializer.loads_typed((kind, data[:at]))
    refused = 0
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x55
        try:
            assert serializer.loads_typed((kind, bytes(changed))) == serializer.loads_typed((kind, data))
        except NbmfError:
            refused += 1
    assert refused > len(data) - 5
    with pytest.raises(FormatError, match="not bytes"):
        serializer.loads_typed((kind, nbmf.encode({"a": 1})))


def test_the_decoded_size_is_bounded() -> None:
    small = NBMFSerializer(max_out=10_000)
    with pytest.raises(OutputLimit):
        small.dumps_typed("a" * 10_001)
    for neural_max in (1 << 20, 0):
        bomb = NBMFSerializer(neural_max=neural_max).dumps_typed("a" * 100_000)
        assert len(bomb[1]) < 2_000
        with pytest.raises(OutputLimit):
            small.loads_typed(bomb)


def test_large_checkpoints_are_left_to_zstd() -> None:
    from nbmf.codec import format

    value = " ".join(TALK * 10)
    for neural_max, method in ((1 << 20, format.NEURAL), (1000, format.ZSTD)):
        kind, data = NBMFSerializer(neural_max=neural_max).dumps_typed(value)
        assert kind == "nbmf:msgpack" and format.parse(data, bare=False).method == method
        assert NBMFSerializer().loads_typed((kind, data)) == value


def test_a_domain_pack(tmp_path: Path) -> None:
    pack = tmp_path / "talk.nbp"
    plain = JsonPlusSerializer()
    nbmf.adapt([plain.dumps_typed(f"{text} {i}")[1] for i in range(40) for text in TALK], out=pack)
    serializer = NBMFSerializer(codec=nbmf.Codec(domain=str(pack)))
    kind, data = serializer.dumps_typed(TALK[1])
    assert len(data) < len(NBMFSerializer().dumps_typed(TALK[1])[1])
    assert serializer.loads_typed((kind, data)) == TALK[1]
    with pytest.raises(UnknownModel):
        NBMFSerializer().loads_typed((kind, data))


class Sealed(CipherProtocol):
    """AES-GCM by `cryptography`."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._key = AESGCM(bytes(32))

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        nonce = os.urandom(12)
        return "aesgcm", nonce + self._key.encrypt(nonce, plaintext, b"")

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        assert ciphername == "aesgcm"
        return self._key.decrypt(ciphertext[:12], ciphertext[12:], b"")


def test_encryption_goes_around_it() -> None:
    both = EncryptedSerializer(Sealed(), NBMFSerializer())
    kind, data = both.dumps_typed(STATE)
    assert kind == "nbmf:msgpack+aesgcm" and both.loads_typed((kind, data)) == STATE
    assert len(data) < len(EncryptedSerializer(Sealed()).dumps_typed(STATE)[1]) / 2
    inside = NBMFSerializer(EncryptedSerializer(Sealed()))  # the wrong way round, which gains nothing and loses nothing
    assert inside.loads_typed(inside.dumps_typed(STATE)) == STATE


class Mine:
    """A type that no list of LangGraph's allows."""

    def __init__(self, n: int) -> None:
        self.n = n

    def model_dump(self) -> dict[str, Any]:
        return {"n": self.n}


def test_the_list_of_allowed_types_is_kept() -> None:
    strict = NBMFSerializer(JsonPlusSerializer(allowed_msgpack_modules=None))
    allowing = strict.with_msgpack_allowlist([Mine])
    assert type(allowing) is NBMFSerializer and allowing is not strict
    stored = strict.dumps_typed({"mine": Mine(7), "text": TALK[0]})
    assert stored[0] == "nbmf:msgpack"
    assert not isinstance(strict.loads_typed(stored)["mine"], Mine)
    assert isinstance(allowing.loads_typed(stored)["mine"], Mine)
    open_to_all = NBMFSerializer()
    assert open_to_all.with_msgpack_allowlist([Mine]) is open_to_all
    saver = InMemorySaver(serde=strict).with_allowlist([(Mine.__module__, Mine.__qualname__)])
    assert isinstance(saver.serde, NBMFSerializer) and isinstance(saver.serde.loads_typed(stored)["mine"], Mine)


# -- checkpointers -----------------------------------------------------------------------------------------------------


def test_langgraphs_conformance_suite_in_full() -> None:
    """On its own asynchronous SQLite checkpointer, every capability that this one has."""

    @checkpointer_test(name="AsyncSqliteSaver with NBMFSerializer")
    async def saver() -> AsyncIterator[AsyncSqliteSaver]:
        async with aiosqlite.connect(":memory:") as connection:
            yield AsyncSqliteSaver(connection, serde=NBMFSerializer())

    report = asyncio.run(validate(saver))
    assert report.conformance_level() == "FULL"
    assert sum(result.tests_passed for result in report.results.values()) >= 58
    assert all(not result.failures for result in report.results.values())


class State(TypedDict):
    messages: Annotated[list[Any], add_messages]


def _graph(saver: Any) -> Any:
    def reply(state: State) -> dict[str, Any]:
        return {"messages": [AIMessage(TALK[len(state["messages"]) % len(TALK)])]}

    builder = StateGraph(State)
    builder.add_node("reply", reply)
    builder.add_edge(START, "reply")
    builder.add_edge("reply", END)
    return builder.compile(checkpointer=saver)


def _talked(serde: SerializerProtocol | None, path: Path) -> tuple[list[list[str]], int]:
    """What a graph says in ten turns, step by step, and the bytes of its checkpoints."""
    thread: Any = {"configurable": {"thread_id": "ann"}}
    with sqlite3.connect(path, check_same_thread=False) as connection:
        for turn in range(10):  # a fresh process each time, as far as the checkpointer can tell
            graph = _graph(SqliteSaver(connection, serde=serde))
            graph.invoke({"messages": [HumanMessage(TALK[2 * turn % len(TALK)])]}, thread)
        history = [[m.content for m in step.values.get("messages", [])] for step in graph.get_state_history(thread)]
        size = connection.execute("SELECT sum(length(checkpoint)) FROM checkpoints").fetchone()[0]
    connection.close()
    return history, int(size)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_a_graph_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    usual, usual_bytes = _talked(None, tmp_path / "usual.db")
    found, found_bytes = _talked(NBMFSerializer(), tmp_path / "small.db")
    assert found == usual and len(found[0]) == 20
    assert found_bytes < usual_bytes / 3
    # A database that was begun without NBMF is read on with it.
    with sqlite3.connect(tmp_path / "usual.db", check_same_thread=False) as connection:
        graph = _graph(SqliteSaver(connection, serde=NBMFSerializer()))
        state = graph.invoke({"messages": [HumanMessage("Goodbye.")]}, {"configurable": {"thread_id": "ann"}})
        assert len(state["messages"]) == 22
    connection.close()
