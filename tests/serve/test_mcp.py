"""The MCP server through the SDK's own client, over standard input and output and over HTTP."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from live import Process, asgi, asked, tokens_of
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from nbmf import Memory
from nbmf.serve import mcp as serving
from nbmf.serve.bearer import Bearer
from nbmf.serve.watch import Watch

MEMORY_TOOLS = {"memory_put", "memory_get", "memory_search", "memory_forget", "memory_stats"}
GRAPH_TOOLS = {
    *("create_entities", "create_relations", "add_observations", "delete_entities", "delete_observations"),
    *("delete_relations", "read_graph", "search_nodes", "open_nodes"),
}
ANN = {"name": "Ann", "entityType": "person", "observations": ["likes tea"]}
BOB = {"name": "Bob", "entityType": "person", "observations": []}
KNOWS = {"from": "Ann", "to": "Bob", "relationType": "knows"}

Body = Callable[[Client], Awaitable[None]]


def stdio(store: Path, *options: str) -> StdioServerParameters:
    arguments = ["-m", "nbmf.cli", "mcp", str(store), "--log-level", "error", *options]
    return StdioServerParameters(command=sys.executable, args=arguments)


@asynccontextmanager
async def over_http(url: str, token: str | None = None) -> AsyncIterator[Client]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
    ):
        yield client


@pytest.fixture(params=["stdio", "http"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Body], None]:
    """Runs a body with a client of a server of its own process, over each transport."""

    def over(body: Body) -> None:
        async def main() -> None:
            if request.param == "stdio":
                async with Client(stdio(tmp_path / "s")) as client:
                    await body(client)
                return
            with Process(tmp_path / "log", "mcp", str(tmp_path / "s"), "--http") as process:
                async with over_http(process.url) as client:
                    await body(client)
                assert process.stop() == 0

        asyncio.run(main())

    return over


async def call(client: Client, name: str, **arguments: Any) -> Any:
    """The structured content of a tool's answer."""
    result = await client.call_tool(name, arguments)
    assert not result.is_error, result.content
    return result.structured_content


async def refused(client: Client, name: str, **arguments: Any) -> str:
    """What a tool says that refuses."""
    result = await client.call_tool(name, arguments)
    assert result.is_error
    return str(result.content[0].text)  # type: ignore[union-attr]


async def said(client: Client, name: str, **arguments: Any) -> str:
    """The text of a tool's answer."""
    result = await client.call_tool(name, arguments)
    assert not result.is_error and len(result.content) == 1
    return str(result.content[0].text)  # type: ignore[union-attr]


# -- the memory tools --------------------------------------------------------------------------------------------------


def test_the_memory_tools(run: Callable[[Body], None]) -> None:
    async def body(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == MEMORY_TOOLS | GRAPH_TOOLS
        assert all(tool.description and tool.annotations and tool.output_schema for tool in tools.values())
        where = {"namespace": ["users", "ann"], "key": "drink"}
        stored = await call(
            client, "memory_put", **where, value={"text": "she likes green tea"}, cls="fact", meta={"n": 1}
        )
        assert stored == {"stored": True, **where}
        found = await call(client, "memory_get", **where)
        assert found["found"] and found["item"]["value"] == {"text": "she likes green tea"}
        assert (found["item"]["class"], found["item"]["meta"]) == ("fact", {"n": 1})
        await call(client, "memory_put", namespace=["users", "bob"], key="car", value="the car needs new tyres")
        best = await call(client, "memory_search", query="what does she drink?", limit=1)
        assert [item["key"] for item in best["items"]] == ["drink"] and best["items"][0]["score"] > 0
        latest = await call(client, "memory_search", namespace=["users", "bob"])
        assert [item["value"] for item in latest["items"]] == ["the car needs new tyres"]
        filtered = await call(client, "memory_search", filter={"text": {"$ne": "x"}}, cls="fact")
        assert [item["key"] for item in filtered["items"]] == ["drink"]
        assert (await call(client, "memory_stats"))["records"] == 2
        assert await call(client, "memory_forget", **where) == {"forgotten": 1}
        assert await call(client, "memory_get", **where) == {"found": False, "item": None}
        assert await call(client, "memory_forget", namespace=["users"]) == {"forgotten": 1}
        assert (await call(client, "memory_stats"))["records"] == 0

    run(body)


def test_values_come_back_exactly(run: Callable[[Body], None]) -> None:
    values: list[Any] = [
        *("tea", "", '{"a": 1}', "[1]", "null", "12", "ü 😀 \u0000"),
        *({"a": 1.0, "b": [None, True, 10**30, -0.0]}, [], {}, None, True, 12, 1e-7),
    ]

    async def body(client: Client) -> None:
        for i, value in enumerate(values):
            await call(client, "memory_put", namespace=["v"], key=f"k{i}", value=value)
            back = (await call(client, "memory_get", namespace=["v"], key=f"k{i}"))["item"]["value"]
            assert json.dumps(back) == json.dumps(value) and type(back) is type(value)

    run(body)


def test_what_is_refused_says_why(run: Callable[[Body], None]) -> None:
    async def body(client: Client) -> None:
        assert "at least one text" in await refused(client, "memory_put", namespace=[], key="k", value=1)
        assert "non-empty" in await refused(client, "memory_put", namespace=["a"], key="", value=1)
        assert "ttl" in await refused(client, "memory_put", namespace=["a"], key="k", value=1, ttl_minutes=-1)
        assert "$nope" in await refused(client, "memory_search", filter={"x": {"$nope": 1}})
        assert "namespace" in await refused(client, "memory_forget", namespace=[])  # an agent does not empty the store
        assert "key" in await refused(client, "memory_get", namespace=["a"])
        assert "limit" in await refused(client, "memory_search", limit=10_000)
        assert "Ann" in await refused(client, "create_relations", relations=[KNOWS])
        assert "2048" in await refused(client, "search_nodes", query="x" * 2049)
        assert (await call(client, "memory_stats"))["records"] == 0

    run(body)


# -- the reference server's tools --------------------------------------------------------------------------------------


def test_the_graph_tools_answer_as_the_reference_server_does(run: Callable[[Body], None]) -> None:
    async def body(client: Client) -> None:
        assert json.loads(await said(client, "create_entities", entities=[ANN, BOB, ANN])) == [ANN, BOB]
        assert await call(client, "create_entities", entities=[ANN]) == {"entities": []}
        assert await said(client, "create_relations", relations=[KNOWS]) == json.dumps([KNOWS], indent=2)
        assert await call(client, "create_relations", relations=[KNOWS]) == {"relations": []}
        added = await call(
            client, "add_observations", observations=[{"entityName": "Ann", "contents": ["likes tea", "is 7 ü"]}]
        )
        assert added == {"results": [{"entityName": "Ann", "addedObservations": ["is 7 ü"]}]}
        ann = {**ANN, "observations": ["likes tea", "is 7 ü"]}
        graph = {"entities": [ann, BOB], "relations": [KNOWS]}
        assert await call(client, "read_graph") == graph
        assert await said(client, "read_graph") == json.dumps(graph, indent=2, ensure_ascii=False)
        assert await call(client, "search_nodes", query="TEA") == {"entities": [ann], "relations": [KNOWS]}
        assert await call(client, "open_nodes", names=["Bob", "Eve"]) == {"entities": [BOB], "relations": [KNOWS]}
        deletions = [{"entityName": "Ann", "observations": ["is 7 ü"]}]
        assert await said(client, "delete_observations", deletions=deletions) == "Observations deleted successfully"
        deletions = [*deletions, {"entityName": "Eve", "observations": ["x"]}]
        assert await said(client, "delete_observations", deletions=deletions) == (
            "Deleted 0 of 2 observations. Entities not found: Eve"
        )
        assert await call(client, "delete_relations", relations=[KNOWS]) == {
            "success": True,
            "message": "Relations deleted successfully",
        }
        assert await said(client, "delete_relations", relations=[KNOWS]) == (
            "Deleted 0 of 1 relations. The rest matched nothing."
        )
        await call(client, "create_relations", relations=[KNOWS])
        assert await said(client, "delete_entities", entityNames=["Ann", "Eve"]) == (
            "Deleted 1 of 2 entities. Not found: Eve"
        )
        assert await said(client, "delete_entities", entityNames=["Bob"]) == "Entities deleted successfully"
        assert await call(client, "read_graph") == {"entities": [], "relations": []}

    run(body)


def test_the_graph_tools_take_what_the_reference_server_takes(run: Callable[[Body], None]) -> None:
    async def body(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools if tool.name in GRAPH_TOOLS}
        inputs = {name: set(tool.input_schema["properties"]) for name, tool in tools.items()}
        assert inputs == {
            "create_entities": {"entities"},
            "create_relations": {"relations"},
            "add_observations": {"observations"},
            "delete_entities": {"entityNames"},
            "delete_observations": {"deletions"},
            "delete_relations": {"relations"},
            "read_graph": set(),
            "search_nodes": {"query"},
            "open_nodes": {"names"},
        }
        outputs = {name: set((tool.output_schema or {})["properties"]) for name, tool in tools.items()}
        done, graph = {"success", "message"}, {"entities", "relations"}
        assert outputs == {
            "create_entities": {"entities"},
            "create_relations": {"relations"},
            "add_observations": {"results"},
            **dict.fromkeys(("delete_entities", "delete_observations", "delete_relations"), done),
            **dict.fromkeys(("read_graph", "search_nodes", "open_nodes"), graph),
        }
        relation = tools["create_relations"].input_schema["$defs"]["Relation"]
        assert set(relation["properties"]) == set(relation["required"]) == {"from", "to", "relationType"}

    run(body)


def test_its_file_is_taken_in(tmp_path: Path) -> None:
    lines = [{"type": "entity", **ANN}, {"type": "entity", **BOB}, {"type": "relation", **KNOWS}]
    (tmp_path / "memory.jsonl").write_text("\n".join(map(json.dumps, lines)))

    async def body() -> None:
        for _ in range(2):  # the command stays in an agent's configuration
            options = ("--import", str(tmp_path / "memory.jsonl"), "--namespace", "agents/a")
            async with Client(stdio(tmp_path / "s", *options)) as client:
                graph = await call(client, "read_graph")
                assert graph["entities"][-1] == BOB
                await call(client, "delete_entities", entityNames=["Ann"])
        assert graph == {"entities": [BOB], "relations": []}

    asyncio.run(body())
    with Memory.open(tmp_path / "s", create=False) as memory:
        assert memory.get(("agents", "a", "entities"), "Bob") == {"type": "entity", **BOB}


# -- several clients ---------------------------------------------------------------------------------------------------


async def busy(client: Client, worker: int) -> None:
    for i in range(6):
        await call(client, "memory_put", namespace=["w", str(worker)], key=str(i), value={"i": i})
        await call(client, "create_entities", entities=[{**BOB, "name": f"e{i}"}])
        change = [{"entityName": f"e{i}", "contents": [f"{worker} was here"]}]
        await call(client, "add_observations", observations=change)


def intact(store: Path, workers: int) -> None:
    with Memory.open(store, create=False) as memory:
        for worker in range(workers):
            assert [memory.get(("w", str(worker)), str(i)) for i in range(6)] == [{"i": i} for i in range(6)]
        found = {item.value["name"]: item.value["observations"] for item in memory.search(("entities",), limit=100)}
        assert {name: set(facts) for name, facts in found.items()} == {
            f"e{i}": {f"{worker} was here" for worker in range(workers)} for i in range(6)
        }
        assert list(memory.check()) == []


def test_two_processes_on_one_store_lose_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with Client(stdio(tmp_path / "s")) as one, Client(stdio(tmp_path / "s")) as other:
            await asyncio.gather(busy(one, 0), busy(other, 1))

    asyncio.run(main())
    intact(tmp_path / "s", 2)


def test_clients_of_one_server_lose_nothing(tmp_path: Path) -> None:
    with Process(tmp_path / "log", "mcp", str(tmp_path / "s"), "--http") as process:

        async def main() -> None:
            async with over_http(process.url) as one, over_http(process.url) as two, over_http(process.url) as three:
                await asyncio.gather(busy(one, 0), busy(two, 1), busy(three, 2))

        asyncio.run(main())
        assert process.stop() == 0
    intact(tmp_path / "s", 3)


# -- who may do what ---------------------------------------------------------------------------------------------------


def test_tokens_over_http(memory: Memory, tmp_path: Path) -> None:
    """Each caller has a root of its own, and nothing leads out of it."""
    memory.put(("secrets",), "k", "swordfish")
    memory.put(("users", "anna"), "k", "swordfish")
    tokens, made = tokens_of(
        tmp_path,
        ann={"namespaces": ["users/ann"]},
        bob={"namespaces": ["users/bob"]},
        reader={"namespaces": ["users/ann"], "access": "read"},
        keeper={"namespaces": ["/"]},
    )
    tools = serving.Tools(memory, (), False, Watch(memory))
    app = serving.server(tools).streamable_http_app(stateless_http=True, json_response=True, host="")

    async def main(url: str) -> None:
        async with over_http(url, made["ann"]) as ann, over_http(url, made["bob"]) as bob:
            await call(ann, "memory_put", namespace=[], key="k", value="of ann")
            await call(ann, "create_entities", entities=[ANN])
            assert (await call(bob, "read_graph")) == {"entities": [], "relations": []}
            assert (await call(bob, "memory_search"))["items"] == []
            assert (await call(bob, "memory_stats"))["records"] == 0
            for namespace in (["secrets"], ["..", "ann"], ["*"], ["users", "ann"], ["ann"]):
                assert not (await call(bob, "memory_get", namespace=namespace, key="k"))["found"]
                assert (await call(bob, "memory_search", namespace=namespace))["items"] == []
                assert (await call(bob, "memory_forget", namespace=namespace))["forgotten"] == 0
            assert (await call(ann, "memory_get", namespace=[], key="k"))["item"]["namespace"] == []
            everything = json.dumps([await call(ann, "memory_search", limit=100), await call(ann, "memory_stats")])
            assert "swordfish" not in everything
        async with over_http(url, made["reader"]) as reader:
            assert (await call(reader, "read_graph"))["entities"] == [ANN]
            assert "only read" in await refused(reader, "memory_put", namespace=["x"], key="k", value=1)
            assert "only read" in await refused(reader, "memory_forget", namespace=["x"])
            assert "only read" in await refused(reader, "create_entities", entities=[BOB])
            assert "only read" in await refused(reader, "delete_entities", entityNames=["Ann"])
        async with over_http(url, made["keeper"]) as keeper:
            assert (await call(keeper, "memory_get", namespace=["users", "ann"], key="k"))["item"]["value"] == "of ann"

    with asgi(Bearer(app, tokens)) as url:
        asyncio.run(main(url))
        for token in (None, "x", made["ann"] + "x"):
            assert (
                asked(url, "POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, token=token)[0] == 401
            )
    assert memory.get(("secrets",), "k") == "swordfish"


def test_a_server_without_tokens_is_for_this_machine_alone(tmp_path: Path) -> None:
    with Process(tmp_path / "log", "mcp", str(tmp_path / "s"), "--http") as process:
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        accept = {"Accept": "application/json, text/event-stream"}
        status, _ = asked(process.url, "POST", "/mcp", body, headers={**accept, "Host": "evil.example"})
        assert status in (403, 421)
        status, _ = asked(process.url, "POST", "/mcp", body, headers={**accept, "Origin": "http://evil.example"})
        assert status == 403


def test_read_only_servers_offer_no_tool_that_changes(tmp_path: Path) -> None:
    async def main() -> None:
        async with Client(stdio(tmp_path / "s", "--read-only")) as client:
            tools = (await client.list_tools()).tools
            assert {tool.name for tool in tools} == {
                *("memory_get", "memory_search", "memory_stats", "read_graph", "search_nodes", "open_nodes")
            }
            assert all(tool.annotations is not None and tool.annotations.read_only_hint for tool in tools)
            assert (await client.call_tool("memory_put", {"namespace": ["a"], "key": "k", "value": 1})).is_error

    asyncio.run(main())


def test_a_failing_store_is_told_without_its_place(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbmf.errors import StoreError

    def fail(*_: Any) -> Any:
        raise StoreError("/secret/place cannot grow: the disk is full")

    server = serving.server(serving.Tools(memory, (), False, Watch(memory)))
    monkeypatch.setattr(memory, "batch", fail)

    async def main() -> None:
        async with Client(server) as client:
            text = await refused(client, "memory_put", namespace=["a"], key="k", value=1)
            assert "the store failed" in text and "secret" not in text

    asyncio.run(main())
