"""What others build on a LangGraph store, over NBMFStore: langmem's tools, a graph's long-term memory."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.store.base import BaseStore
from letters import DIMS, Letters
from typing_extensions import TypedDict

from nbmf.integrations.langgraph import AsyncNBMFStore, NBMFStore
from nbmf.memory import Memory

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::UserWarning"
)
CONFIG: Any = {"configurable": {"langgraph_user_id": "ann"}}
NAMESPACE = ("memories", "{langgraph_user_id}")


@pytest.fixture(params=["own embedder", "index"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "index":
        with Memory.open(tmp_path / "s", embedder=None) as memory:
            yield NBMFStore(memory, index={"dims": DIMS, "embed": Letters()})
    else:
        with Memory.open(tmp_path / "s") as memory:
            yield NBMFStore(memory)


def test_langmem_without_a_language_model(store: NBMFStore) -> None:
    from langmem import create_manage_memory_tool, create_search_memory_tool

    manage = create_manage_memory_tool(NAMESPACE, store=store)
    search = create_search_memory_tool(NAMESPACE, store=store)
    made = [manage.invoke({"content": text}, CONFIG) for text in ("She likes green tea.", "Her dog is called Rex.")]
    ids = [uuid.UUID(text.rpartition(" ")[2]) for text in made]
    assert store.list_namespaces() == [("memories", "ann")]
    found = json.loads(search.invoke({"query": "green tea", "limit": 1}, CONFIG))
    assert [one["key"] for one in found] == [str(ids[0])] and found[0]["value"] == {"content": "She likes green tea."}
    manage.invoke({"action": "update", "id": ids[1], "content": "Her cat is called Tom."}, CONFIG)
    manage.invoke({"action": "delete", "id": ids[0]}, CONFIG)
    assert [item.value["content"] for item in store.search(("memories",))] == ["Her cat is called Tom."]


def test_langmem_in_an_event_loop(tmp_path: Path) -> None:
    from langmem import create_manage_memory_tool, create_search_memory_tool

    async def talk() -> None:
        async with AsyncNBMFStore.from_conn_string(str(tmp_path / "s")) as store:
            manage = create_manage_memory_tool(NAMESPACE, store=store)
            search = create_search_memory_tool(NAMESPACE, store=store)
            texts = [f"She likes {drink}." for drink in ("tea", "milk", "water")]
            await asyncio.gather(*(manage.ainvoke({"content": text}, CONFIG) for text in texts))
            found = json.loads(await search.ainvoke({"query": "milk"}, CONFIG))
            assert found[0]["value"] == {"content": "She likes milk."} and len(found) == 3

    asyncio.run(talk())


class Turn(TypedDict):
    said: str
    known: list[str]


def test_a_graph_remembers_across_threads(store: NBMFStore) -> None:
    def remember(state: Turn, *, store: BaseStore) -> dict[str, Any]:
        known = [item.value["said"] for item in store.search(("notes", "ann"), query=state["said"])]
        store.put(("notes", "ann"), str(uuid.uuid4()), {"said": state["said"]})
        return {"known": known}

    builder = StateGraph(Turn)
    builder.add_node("remember", remember)
    builder.add_edge(START, "remember")
    builder.add_edge("remember", END)
    graph = builder.compile(store=store)
    assert graph.invoke({"said": "I like green tea", "known": []})["known"] == []
    assert graph.invoke({"said": "What tea do I like?", "known": []})["known"] == ["I like green tea"]
