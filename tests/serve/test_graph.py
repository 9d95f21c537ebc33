"""The knowledge graph against a model of the reference memory server, which keeps its lists in memory."""

from __future__ import annotations

import copy
import json
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from nbmf import Memory
from nbmf.errors import DataError, PolicyError, StoreError
from nbmf.memory.adapters import MemoryDestination, source_of
from nbmf.policy.migrate import migrate_to
from nbmf.policy.sources import open_source
from nbmf.policy.sources.mcp_graph import lines
from nbmf.serve.graph import Graph, Turns

NAMES = st.sampled_from(["Ann", "Bob", "Bob#2", "", "ann", "x" * 2000, "ü/é", 'a"b'])
TYPES = st.sampled_from(["person", "Place", ""])
FACTS = st.lists(st.sampled_from(["likes tea", "Likes Tea", "", "lives in Ulm", "x"]), max_size=4)
ENTITIES = st.lists(
    st.fixed_dictionaries({"name": NAMES, "entityType": TYPES, "observations": FACTS}), min_size=1, max_size=4
)
RELATIONS = st.lists(
    st.fixed_dictionaries({"from": NAMES, "to": NAMES, "relationType": st.sampled_from(["knows", "is in", ""])}),
    max_size=4,
)
CHANGES = st.lists(st.tuples(NAMES, FACTS), max_size=3)


class Model:
    """What the reference server does, by its documented behaviour."""

    def __init__(self) -> None:
        self.entities: list[dict[str, Any]] = []
        self.relations: list[dict[str, Any]] = []

    def first(self, name: str) -> dict[str, Any] | None:
        return next((one for one in self.entities if one["name"] == name), None)

    def create_entities(self, entities: list[dict[str, Any]]) -> list[dict[str, Any]]:
        fresh: list[dict[str, Any]] = []
        for one in entities:
            if self.first(one["name"]) is None:
                self.entities.append(copy.deepcopy(one))
                fresh.append(one)
        return fresh

    def create_relations(self, relations: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        if any(self.first(one[end]) is None for one in relations for end in ("from", "to")):
            return None
        fresh = [one for i, one in enumerate(relations) if one not in self.relations and one not in relations[:i]]
        self.relations += fresh
        return fresh

    def add(self, changes: list[tuple[str, list[str]]]) -> list[dict[str, Any]] | None:
        if any(self.first(name) is None for name, _ in changes):
            return None
        results = []
        for name, facts in changes:
            entity = self.first(name)
            assert entity is not None
            added = [fact for fact in facts if fact not in entity["observations"]]
            entity["observations"] += added
            results.append({"entityName": name, "addedObservations": added})
        return results

    def delete_entities(self, names: list[str]) -> tuple[list[str], list[str]]:
        present = {one["name"] for one in self.entities}
        self.entities = [one for one in self.entities if one["name"] not in names]
        self.relations = [one for one in self.relations if one["from"] not in names and one["to"] not in names]
        return [name for name in names if name in present], [name for name in names if name not in present]

    def delete_observations(self, changes: list[tuple[str, list[str]]]) -> tuple[int, list[str]]:
        count, missing = 0, []
        for name, facts in changes:
            entity = self.first(name)
            if entity is None:
                missing.append(name)
                continue
            kept = [fact for fact in entity["observations"] if fact not in facts]
            count += len(entity["observations"]) - len(kept)
            entity["observations"] = kept
        return count, missing

    def delete_relations(self, relations: list[dict[str, Any]]) -> int:
        before = len(self.relations)
        self.relations = [one for one in self.relations if one not in relations]
        return before - len(self.relations)

    def chosen(self, entities: list[dict[str, Any]]) -> dict[str, Any]:
        names = {one["name"] for one in entities}
        relations = [one for one in self.relations if one["from"] in names or one["to"] in names]
        return {"entities": entities, "relations": relations}

    def search(self, query: str) -> dict[str, Any]:
        texts = lambda one: [one["name"], one["entityType"], *one["observations"]]  # noqa: E731
        return self.chosen([one for one in self.entities if any(query.lower() in text.lower() for text in texts(one))])


class Differential(RuleBasedStateMachine):
    memory: Memory

    def __init__(self) -> None:
        super().__init__()
        self.memory.forget(())
        self.graph = Graph(self.memory, ("agents", "a"), Turns(self.memory))
        self.model = Model()

    @rule(entities=ENTITIES)
    def create_entities(self, entities: list[dict[str, Any]]) -> None:
        assert self.graph.create_entities(entities) == self.model.create_entities(entities)

    @rule(relations=RELATIONS)
    def create_relations(self, relations: list[dict[str, Any]]) -> None:
        wanted = self.model.create_relations(relations)
        if wanted is None:
            with pytest.raises(PolicyError, match="not found"):
                self.graph.create_relations(relations)
        else:
            assert self.graph.create_relations(relations) == wanted

    @rule(changes=CHANGES)
    def add_observations(self, changes: list[tuple[str, list[str]]]) -> None:
        asked = [{"entityName": name, "contents": facts} for name, facts in changes]
        wanted = self.model.add(changes)
        if wanted is None:
            with pytest.raises(PolicyError, match="not found"):
                self.graph.add_observations(asked)
        else:
            assert self.graph.add_observations(asked) == wanted

    @rule(names=st.lists(NAMES, max_size=3))
    def delete_entities(self, names: list[str]) -> None:
        assert self.graph.delete_entities(names) == self.model.delete_entities(names)

    @rule(changes=CHANGES)
    def delete_observations(self, changes: list[tuple[str, list[str]]]) -> None:
        asked = [{"entityName": name, "observations": facts} for name, facts in changes]
        assert self.graph.delete_observations(asked) == self.model.delete_observations(changes)

    @rule(relations=RELATIONS)
    def delete_relations(self, relations: list[dict[str, Any]]) -> None:
        assert self.graph.delete_relations(relations) == self.model.delete_relations(relations)

    @rule(query=st.sampled_from(["tea", "TEA", "an", "", "nothing", "place"]))
    def search(self, query: str) -> None:
        assert self.graph.search_nodes(query) == self.model.search(query)

    @rule(names=st.lists(NAMES, max_size=3))
    def open(self, names: list[str]) -> None:
        wanted = self.model.chosen([one for one in self.model.entities if one["name"] in names])
        assert self.graph.open_nodes(names) == wanted

    @invariant()
    def same(self) -> None:
        assert self.graph.read_graph() == {"entities": self.model.entities, "relations": self.model.relations}


@pytest.fixture
def graph(memory: Memory) -> Iterator[Graph]:
    turns = Turns(memory)
    yield Graph(memory, (), turns)
    turns.close()


def test_it_does_what_the_reference_server_does(memory: Memory) -> None:
    machine = type("Machine", (Differential,), {"memory": memory})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def file_lines() -> list[dict[str, Any]]:
    """What a memory.jsonl may hold: two entities of one name, an empty one, a long one, extra fields."""
    return [
        {"type": "entity", "name": "Ann", "entityType": "person", "observations": ["likes tea"]},
        {"type": "entity", "name": "Bob", "entityType": "person", "observations": []},
        {"type": "relation", "from": "Ann", "to": "Bob", "relationType": "knows"},
        {"type": "entity", "name": "Ann", "entityType": "cat", "observations": ["is a cat"]},
        {"type": "entity", "name": "", "entityType": "", "observations": []},
        {"type": "entity", "name": "x" * 3000, "entityType": "long", "observations": ["ü 😀"], "since": 2024},
    ]


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in found))
    return path


def plain(found: list[dict[str, Any]], kind: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{name: line[name] for name in names} for line in found if line["type"] == kind]


def test_a_file_is_taken_in_once(graph: Graph, memory: Memory, tmp_path: Path) -> None:
    path = write(tmp_path / "memory.jsonl", file_lines())
    assert graph.take_in(path) == 6
    wanted = {
        "entities": plain(file_lines(), "entity", ("name", "entityType", "observations")),
        "relations": plain(file_lines(), "relation", ("from", "to", "relationType")),
    }
    assert graph.read_graph() == wanted
    graph.delete_entities(["Bob"])
    assert graph.take_in(path) is None  # or what was deleted would come back
    assert [one["name"] for one in graph.read_graph()["entities"]] == ["Ann", "Ann", "", "x" * 3000]
    assert graph.read_graph()["relations"] == []
    assert graph.add_observations([{"entityName": "Ann", "contents": ["new"]}])[0]["addedObservations"] == ["new"]
    assert graph.open_nodes(["Ann"])["entities"][0]["observations"] == ["likes tea", "new"]
    assert graph.add_observations([{"entityName": "x" * 3000, "contents": ["new"]}])
    kept = next(item.value for item in memory.search(("entities",)) if item.value["name"] == "x" * 3000)
    assert kept["since"] == 2024  # what the tools do not know stays


def test_what_migrate_made_is_the_graph_and_goes_back_to_a_file(graph: Graph, memory: Memory, tmp_path: Path) -> None:
    path = write(tmp_path / "memory.jsonl", file_lines())
    migrate_to(str(path), MemoryDestination(memory), folder=tmp_path / "journal", kind="mcp")
    assert [one["name"] for one in graph.read_graph()["entities"]] == ["Ann", "Bob", "Ann", "", "x" * 3000]
    graph.create_entities([{"name": name, "entityType": "late", "observations": []} for name in ("C", "D", "E")])
    graph.create_relations([{"from": "C", "to": "D", "relationType": "before"}])
    with source_of(memory) as source:
        back = [json.loads(line) for line in lines(item for item in source.items())]  # type: ignore[arg-type]
    assert back[:6] == file_lines() and len(back) == 10
    other = write(tmp_path / "other.jsonl", back)
    with open_source(other, "mcp") as again:
        assert sum(1 for _ in again.items()) == 10


def test_lines_that_are_none_are_refused_whole(graph: Graph, tmp_path: Path) -> None:
    path = write(tmp_path / "memory.jsonl", file_lines())
    path.write_text(path.read_text() + '{"type":"entity","name":1}\n')
    with pytest.raises(DataError, match=r"line 7.*nothing was taken in"):
        graph.take_in(path)
    with pytest.raises(StoreError, match="no file"):
        graph.take_in(tmp_path / "nowhere")
    assert graph.read_graph() == {"entities": [], "relations": []}


def test_other_records_are_left_alone(graph: Graph, memory: Memory) -> None:
    memory.put(("entities",), "note", "a text")
    memory.put(("entities", "below"), "Ann", {"type": "entity", "name": "Ann", "entityType": "", "observations": []})
    assert graph.read_graph()["entities"] == []
    graph.create_entities([{"name": "note", "entityType": "", "observations": []}])
    assert memory.get(("entities",), "note") is not None
    graph.delete_entities(["note", "Ann"])
    assert memory.get(("entities", "below"), "Ann") is not None


def test_graphs_of_two_roots_are_two(memory: Memory) -> None:
    turns = Turns(memory)
    one, other = Graph(memory, ("a",), turns), Graph(memory, ("b",), turns)
    one.create_entities([{"name": "Ann", "entityType": "", "observations": []}])
    assert other.read_graph()["entities"] == [] and len(one.read_graph()["entities"]) == 1


def test_a_graph_may_go_cold(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[default]\ncold_after = "1ms"\n')
    with Memory.open(tmp_path / "s", key=b"", embedder=None, policy=tmp_path / "p.toml") as memory:
        graph = Graph(memory, (), Turns(memory))
        graph.create_entities([{"name": name, "entityType": "t", "observations": ["x"]} for name in "abc"])
        threading.Event().wait(0.01)
        memory.compact()
        assert memory.stats()["cold"]["count"] == 3
        graph.add_observations([{"entityName": "b", "contents": ["y"]}])
        assert [one["name"] for one in graph.read_graph()["entities"]] == ["a", "b", "c"]
        assert graph.open_nodes(["b"])["entities"][0]["observations"] == ["x", "y"]
        assert graph.delete_entities(["a", "b"]) == (["a", "b"], [])
        assert [one["name"] for one in graph.read_graph()["entities"]] == ["c"]


def work(address: str, cold: str | None, worker: int) -> None:
    """A process that adds what is its own to entities that all share."""
    with Memory.open(address, key=b"", embedder=None, cold=cold) as memory:
        turns = Turns(memory)
        graph = Graph(memory, ("g",), turns)
        for i in range(8):
            graph.create_entities([{"name": f"e{i}", "entityType": f"{worker}", "observations": [f"first {worker}"]}])
            graph.add_observations([{"entityName": f"e{i}", "contents": [f"of {worker}"]}])
            graph.create_relations([{"from": "e0", "to": f"e{i}", "relationType": f"r{worker}"}])
        turns.close()


def all_is_there(address: str, cold: str | None) -> None:
    with Memory.open(address, key=b"", embedder=None, cold=cold) as memory:
        turns = Turns(memory)
        found = Graph(memory, ("g",), turns).read_graph()
        turns.close()
    assert [one["name"] for one in found["entities"]] == [f"e{i}" for i in range(8)]
    for one in found["entities"]:
        assert set(one["observations"]) == {f"first {one['entityType']}", *(f"of {worker}" for worker in range(3))}
    assert len(found["relations"]) == 24


def together(address: str, cold: str | None) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(address, cold, worker)) for worker in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    all_is_there(address, cold)


def test_processes_that_change_one_graph_lose_nothing(tmp_path: Path) -> None:
    together(str(tmp_path / "s"), None)


def test_threads_that_change_one_graph_lose_nothing(tmp_path: Path) -> None:
    threads = [threading.Thread(target=work, args=(str(tmp_path / "s"), None, worker)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_is_there(str(tmp_path / "s"), None)


def test_processes_on_a_postgresql_store_lose_nothing(tmp_path: Path) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "store"))
    from postgres_server import running_server

    with running_server() as url:
        together(url, str(tmp_path / "cold"))
