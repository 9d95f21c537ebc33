"""An MCP client that starts `nbmf mcp` for itself and talks to it over standard input and output.

    pip install 'nbmf[mcp]'
    python mcp_client.py [STORE]

It uses NBMF's own tools, and the knowledge graph of the reference memory server, on one store.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured answer of a tool. Raises RuntimeError with what the tool says of a failure."""
    answer = await client.call_tool(tool, arguments)
    if answer.is_error:
        raise RuntimeError(f"{tool}: {answer.content}")
    return dict(answer.structured_content or {})


async def talk(store: Path) -> None:
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "nbmf.cli", "mcp", str(store), "--log-level", "error"]
    )
    async with Client(server) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        print(f"{len(tools)} tools: {', '.join(tools)}")

        await call(client, "memory_put", namespace=["users", "ann"], key="drink", value={"text": "likes green tea"})
        item = (await call(client, "memory_get", namespace=["users", "ann"], key="drink"))["item"]
        print(f"got back: {item['value']}")
        found = await call(client, "memory_search", namespace=["users"], filter={"text": "likes green tea"})
        print(f"found: {[one['key'] for one in found['items']]}")

        await call(
            client,
            "create_entities",
            entities=[
                {"name": "Ann", "entityType": "person", "observations": ["likes green tea"]},
                {"name": "Rex", "entityType": "dog", "observations": []},
            ],
        )
        await call(client, "create_relations", relations=[{"from": "Ann", "to": "Rex", "relationType": "walks"}])
        graph = await call(client, "read_graph")
        print(f"graph: {len(graph['entities'])} entities, {len(graph['relations'])} relations")

        gone = await call(client, "memory_forget", namespace=["users", "ann"])
        print(f"forgotten: {gone}")


def main() -> None:
    if len(sys.argv) > 1:
        asyncio.run(talk(Path(sys.argv[1])))
        return
    with tempfile.TemporaryDirectory(prefix="nbmf-example-") as folder:
        asyncio.run(talk(Path(folder) / "agent.nbmf"))


if __name__ == "__main__":
    main()
