"""A LangGraph agent whose memories and checkpoints NBMF keeps. It needs no model and no key: its replies follow rules.

    pip install 'nbmf[langgraph]' langgraph langgraph-checkpoint-sqlite
    python langgraph_agent.py [FOLDER]

What it is told in one conversation it knows in the next, and after a restart: run it twice with one folder.
"""

from __future__ import annotations

import operator
import re
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Annotated, TypedDict

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.store.base import BaseStore

from nbmf.integrations.langgraph import NBMFSerializer, NBMFStore

TALKS = (
    ("monday", ("Hello! I like green tea.", "My dog is called Rex.", "What do I like?")),
    ("tuesday", ("Good morning.", "What is my dog called?", "What do I like?")),
)
FACTS = (
    (re.compile(r"\bI like (?P<what>[^.!?]+)", re.IGNORECASE), "likes"),
    (re.compile(r"\bmy (?P<of>\w+) is called (?P<what>[^.!?]+)", re.IGNORECASE), "called"),
)


class Talk(TypedDict):
    """The state of one conversation; `messages` grows, the rest is of the last turn."""

    user: str
    messages: Annotated[list[dict[str, str]], operator.add]
    known: dict[str, str]


def recall(state: Talk, store: BaseStore) -> dict[str, dict[str, str]]:
    """What is known of this user, from every conversation."""
    return {"known": {item.key: item.value["text"] for item in store.search(("facts", state["user"]), limit=50)}}


def remember(state: Talk, store: BaseStore) -> dict[str, dict[str, str]]:
    """Keeps what the last message tells."""
    text = state["messages"][-1]["content"]
    known = dict(state["known"])
    for pattern, kind in FACTS:
        if (found := pattern.search(text)) and not text.endswith("?"):
            key = " ".join([*filter(None, [found.groupdict().get("of")]), kind])
            known[key] = found["what"]
            store.put(("facts", state["user"]), key, {"text": found["what"], "said": text})
    return {"known": known}


def reply(state: Talk) -> dict[str, list[dict[str, str]]]:
    """An answer to the last message, by what is known."""
    text = state["messages"][-1]["content"]
    known = state["known"]
    if match := re.search(r"What is my (\w+) called", text):
        answer = f"Your {match[1]} is called {known.get(f'{match[1]} called', 'I do not know what')}."
    elif "What do I like" in text:
        answer = f"You like {known['likes']}." if "likes" in known else "I do not know yet."
    else:
        answer = "I will remember that." if any(pattern.search(text) for pattern, _ in FACTS) else "Hello."
    return {"messages": [{"role": "assistant", "content": answer}]}


def run(folder: Path) -> None:
    builder = StateGraph(Talk)
    for name, node in (("recall", recall), ("remember", remember), ("reply", reply)):
        builder.add_node(name, node)
    for before, after in ((START, "recall"), ("recall", "remember"), ("remember", "reply"), ("reply", END)):
        builder.add_edge(before, after)

    connection = sqlite3.connect(folder / "checkpoints.db", check_same_thread=False)
    saver = SqliteSaver(connection, serde=NBMFSerializer())
    with NBMFStore.from_conn_string(str(folder / "agent.nbmf"), embedder=None) as store:
        graph = builder.compile(checkpointer=saver, store=store)
        for thread, messages in TALKS:
            print(f"-- {thread}")
            for message in messages:
                state = graph.invoke(
                    {"user": "ann", "messages": [{"role": "user", "content": message}], "known": {}},
                    {"configurable": {"thread_id": thread}},
                )
                print(f"   ann: {message}\n agent: {state['messages'][-1]['content']}")

        state = graph.get_state({"configurable": {"thread_id": TALKS[-1][0]}}).values
        plain = JsonPlusSerializer().dumps_typed(state)[1]
        small = NBMFSerializer().dumps_typed(state)[1]
        print(f"a state of {len(state['messages'])} messages: {len(plain)} bytes by LangGraph, {len(small)} by NBMF")
    connection.close()


def main() -> None:
    if len(sys.argv) > 1:
        run(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory(prefix="nbmf-example-") as folder:
        run(Path(folder))


if __name__ == "__main__":
    main()
