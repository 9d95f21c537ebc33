"""What the policy rules: the rollout over the old encoder, and quotas."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from nbmf import samples
from nbmf.errors import PolicyError
from nbmf.memory import Memory, PutOp, quotas
from nbmf.policy.policy import Policy
from nbmf.policy.rollout import BASELINE, NEURAL, Coder
from nbmf.policy.router import prefer

NS = ("t", "s")
TEXTS = {f"k{i}": {"text": f"note number {i} of the old encoder"} for i in range(60)}
COLD = '[default]\ncold_after = "0s"\npromote_heat = "never"\n'


@pytest.fixture(params=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The arguments that open one store."""
    key = bytes(range(32)) if request.param == "encrypted" else b""
    return {"address": tmp_path / "s", "key": key, "embedder": None}


def opened(store: dict[str, Any], policy: str = "") -> Memory:
    return Memory.open(**store, policy=Policy.parse(policy))


def encoders(memory: Memory, namespace: tuple[str, ...] = NS) -> dict[str, str]:
    """Who made each warm record's blob."""
    return {r.key: BASELINE if r.blob[:1] == b"{" else NEURAL for r, _ in memory.live(namespace, None)}


def profiles(memory: Memory) -> dict[str, int]:
    """The profile of each warm record's neural blob."""
    return {r.key: r.blob[0] >> 4 & 1 for r, _ in memory.live(NS, None) if r.blob[0] & 3 == 2}


# -- the profile -------------------------------------------------------------------------------------------------------


def test_a_class_may_have_the_dense_profile(store: dict[str, Any]) -> None:
    text = "The quarterly report was sent to the finance team on Tuesday, and Ana asked for two corrections."
    with opened(store, '[class.rare]\nprofile = "dense"\n') as memory:
        memory.put(NS, "a", text, cls="rare")
        memory.put_many([PutOp(NS, "b", text + " Done.", cls="rare"), PutOp(NS, "c", text + " Sent.", cls="chat")])
        assert profiles(memory) == {"a": 1, "b": 1, "c": 0}
    with opened(store) as memory:  # a blob says which profile it is of, whatever the policy
        assert [memory.get(NS, key) for key in "abc"] == [text, text + " Done.", text + " Sent."]
        assert list(memory.check()) == []
    with opened(store, '[default]\ncold_after = "0s"\nprofile = "dense"\n') as memory:
        memory.compact()
        assert [memory.get(NS, key) for key in "abc"] == [text, text + " Done.", text + " Sent."]


# -- the rollout -------------------------------------------------------------------------------------------------------


def test_a_rollout_only_grows_and_is_taken_back_at_once(store: dict[str, Any]) -> None:
    before: set[str] = set()
    for percent in (0, 10, 50, 100):
        text = f'[rollout]\npercent = {percent}\ntenants = ["pilot"]\nsalt = "x"\n'
        with opened(store, text) as memory:
            rollout = memory.policy.rollout
            for namespace in (NS, ("pilot",)):
                memory.put_many(PutOp(namespace, key, value) for key, value in TEXTS.items())
            found = encoders(memory)
            assert found == {key: prefer(rollout, NS, key) for key in TEXTS}
            neural = {key for key, name in found.items() if name == NEURAL}
            assert before <= neural and abs(len(neural) / 0.6 - percent) < 25
            before = neural
            assert set(encoders(memory, ("pilot",)).values()) == {NEURAL}
            assert all(memory.get(NS, key) == value for key, value in TEXTS.items())
            assert memory.compact() == {}
            sums = memory.stats()["encoders"]["nbmf_writes_total"]
            assert sums == {name: n for name, n in (("neural", 60 + len(neural)), ("stub", 60 - len(neural))) if n}
    with opened(store, "[rollout]\npercent = 0\n") as memory:
        memory.put(NS, "new", {"a": 1})
        memory.put(NS, "bytes", b"\0\xff" * 50)  # which the old encoder cannot hold
        memory.put(NS, "text", "\ud83d")
        found = encoders(memory)
        assert found.pop("new") == BASELINE and set(found.values()) == {NEURAL}
        assert memory.get(NS, "bytes") == b"\0\xff" * 50 and memory.get(NS, "text") == "\ud83d"
        assert all(memory.get(NS, key) == value for key, value in TEXTS.items())
        assert memory.compact() == {} and encoders(memory)["k0"] == NEURAL
    with opened(store) as memory:
        assert memory.compact() == {"reencode": 3} and memory.compact() == {}
        assert set(encoders(memory).values()) == {NEURAL}
        assert memory.get(NS, "bytes") == b"\0\xff" * 50 and memory.get(NS, "new") == {"a": 1}


def fault(memory: Memory, wrong: Any) -> None:
    """Makes the neural encoder of the shadow give back another value."""
    shadow = memory.codecs._shadow("")
    right = shadow._neural
    shadow._neural = Coder(NEURAL, right.encode, lambda blob: wrong)


@pytest.mark.parametrize("wrong", [{"a": 1.0}, {"a": True}, {}, "a", None])
def test_a_divergence(store: dict[str, Any], wrong: Any) -> None:
    policy = "[rollout]\nshadow = true\ncompare_percent = 100\n\n[class.legal]\nprotected = true\n"
    with opened(store, policy) as memory:
        memory.put(NS, "before", {"a": 1}, cls="legal")
        assert encoders(memory) == {"before": NEURAL}
        fault(memory, wrong)
        memory.put(NS, "note", {"a": 1})
        with pytest.raises(PolicyError, match="protected"):
            memory.put_many([PutOp(NS, "good", 1), PutOp(NS, "legal", {"a": 1}, cls="legal")])
        with pytest.raises(PolicyError, match="neither"):
            memory.put(NS, "bytes", b"\0\xff")
        with pytest.raises(PolicyError, match="protected"):
            memory.put(NS, "before", {"a": 2}, cls="legal")
        assert encoders(memory) == {"before": NEURAL, "note": BASELINE}
        assert memory.get(NS, "before") == memory.get(NS, "note") == {"a": 1}
        sums = memory.stats()["encoders"]
        assert sums["nbmf_divergences_total"] == {NEURAL: 7} and sums["nbmf_refusals_total"] == {NEURAL: 3}
        assert sums["nbmf_fallbacks_total"] == {NEURAL: 2} and sums["nbmf_compares_total"] == {NEURAL: 2, BASELINE: 2}
        assert memory.compact() == {}, "what diverges again stays as it is"
        assert encoders(memory) == {"before": NEURAL, "note": BASELINE}
    with opened(store, policy) as memory:  # mended
        assert memory.compact() == {"reencode": 1}
        assert encoders(memory) == {"before": NEURAL, "note": NEURAL}
        assert memory.get(NS, "note") == {"a": 1}


def test_shadow_writes_what_the_rollout_chose(store: dict[str, Any]) -> None:
    with opened(store, "[rollout]\npercent = 50\nshadow = true\n") as memory:
        memory.put_many(PutOp(NS, key, value) for key, value in TEXTS.items())
        assert encoders(memory) == {key: prefer(memory.policy.rollout, NS, key) for key in TEXTS}
        assert all(memory.get(NS, key) == value for key, value in TEXTS.items())
        sums = memory.stats()["encoders"]
        assert sums["nbmf_encodes_total"] == {NEURAL: 60, BASELINE: 60} and not sums["nbmf_divergences_total"]


# -- quotas ------------------------------------------------------------------------------------------------------------


def test_a_quota_of_records(store: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "FRESH", 0.0)  # what the other handle does counts at once
    monkeypatch.setattr(quotas, "SHARE", 1e9)
    text = "[tenant.t]\nquota_records = 5\n"
    with opened(store, COLD + text) as memory, opened(store, text) as other:
        memory.put_many(PutOp(NS, f"k{i % 5}", i) for i in range(9))  # five addresses
        for _ in ("warm", "cold"):
            for handle in (memory, other):
                with pytest.raises(PolicyError, match="5 records, not 6"):
                    handle.put(("t", "elsewhere"), "more", 1)
                handle.put(NS, "k0", "again")
                handle.put_many([PutOp(NS, "k1", 1), PutOp(NS, "k1", 2)])
            assert len(memory.search((), limit=99)) == 5
            memory.put(("other",), "k", 1)
            memory.forget(("other",))
            memory.compact()
        assert other.delete(NS, "k4") and not other.delete(NS, "k4")
        memory.put(NS, "k5", 1)
        with pytest.raises(PolicyError):
            other.put(NS, "k6", 1)
        memory.forget(("t",))
        other.put_many(PutOp(NS, f"k{i}", i) for i in range(5))
        with pytest.raises(PolicyError):
            memory.put_many([PutOp(("free",), "k", 1), PutOp(NS, "more", 1)])
        assert memory.get(("free",), "k") is None


def test_a_quota_of_bytes(store: dict[str, Any]) -> None:
    text = '[default]\nencoder = "stored"\nquota_bytes = "10KiB"\n'
    with opened(store, text) as memory:
        for i in range(9):
            memory.put(NS, f"k{i}", "x" * 1100)
        for _ in range(3):
            with pytest.raises(PolicyError, match="10240 bytes"):
                memory.put(NS, "more", "x" * 1100)
            with pytest.raises(PolicyError):
                memory.put(NS, "k0", "x" * 2000)
            memory.put(NS, "k0", "y" * 1100)
        memory.delete(NS, "k1")
        memory.put(NS, "more", "x" * 1100)
        memory.put(("other",), "k", "x" * 10_000)


def test_a_quota_among_threads(tmp_path: Path) -> None:
    """However many put at once: never one more than there may be, and none too few."""
    with Memory.open(tmp_path / "s", embedder=None, policy=Policy.parse("[tenant.t]\nquota_records = 30\n")) as memory:
        refused: list[PolicyError] = []
        faults: list[BaseException] = []

        def work(name: str) -> None:
            for i in range(12):
                try:
                    memory.put(NS, f"{name}{i}", i)
                except PolicyError as error:
                    refused.append(error)
                except BaseException as error:
                    faults.append(error)

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        stored = len(memory.search((), limit=99))
        assert stored == 48 - len(refused) and 27 <= stored <= 30


def test_a_put_that_fails_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [sample.value for sample in samples.generate(3, seed=1)]
    with Memory.open(tmp_path / "s", embedder=None, policy=Policy.parse("[tenant.t]\nquota_records = 3\n")) as memory:
        memory.put(NS, "k", values[0])
        batch = memory.warm.batch
        monkeypatch.setattr(memory.warm, "batch", lambda ops: (_ for _ in ()).throw(PolicyError("no")))
        for _ in range(5):
            with pytest.raises(PolicyError):
                memory.put(NS, "k2", values[1])
        monkeypatch.setattr(memory.warm, "batch", batch)
        memory.put_many([PutOp(NS, "k2", values[1]), PutOp(NS, "k3", values[2])])
        with pytest.raises(PolicyError, match="3 records"):
            memory.put(NS, "k4", 1)
