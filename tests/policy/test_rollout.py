"""Shadow mode over the real encoders, some of them damaged on purpose: nothing wrong is ever stored."""

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf.codec import kernel, stub
from nbmf.codec.codec import Codec
from nbmf.codec.values import to_raw
from nbmf.errors import CorruptRecord, OutputLimit, PolicyError, UnsupportedValue
from nbmf.policy.policy import Policy
from nbmf.policy.rollout import FIGURES, Coder, Metrics, Shadow
from nbmf.policy.router import BASELINE, NEURAL, route

CODEC = Codec()
LONG = 10**5000  # more digits than Python writes unasked
VALUE: Any = {"role": "user", "content": "The gate code changed again, please tell everyone before Friday.", "n": 1.0}
NEURAL_CODER = Coder(NEURAL, lambda value: CODEC.encode(value, bare=True), lambda blob: CODEC.decode(blob, bare=True))
STUB_CODER = Coder(
    BASELINE,
    lambda value: json.dumps(stub.encode(value, "lossless")).encode(),
    lambda blob: stub.decode(stub.parse_text(blob)),
)


def fail(error: Exception) -> Callable[[Any], Any]:
    def failing(_: Any) -> Any:
        raise error

    return failing


def cut(coder: Coder) -> Coder:
    """Whose blobs lose their last byte."""
    return Coder(coder.name, lambda value: coder.encode(value)[:-1], coder.decode)


def other_value(coder: Coder, value: Any) -> Coder:
    """Whose decoding gives another value, silently."""
    return Coder(coder.name, coder.encode, lambda _: value)


def figures(shadow: Shadow, *names: str) -> list[dict[str, float]]:
    return [shadow.metrics.snapshot()[f"nbmf_{name}"] for name in names]


# -- writes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("encoder", [NEURAL, BASELINE])
def test_two_good_encoders(encoder: str, protected: bool) -> None:
    shadow = Shadow(NEURAL_CODER, STUB_CODER)
    written = shadow.write(VALUE, encoder, protected)
    coder = NEURAL_CODER if encoder == NEURAL else STUB_CODER
    assert (written.blob, written.encoder) == (coder.encode(VALUE), encoder)
    found = shadow.metrics.snapshot()
    raw = len(to_raw(VALUE)[1])
    assert found["nbmf_writes_total"] == {encoder: 1}
    assert found["nbmf_write_raw_bytes"] == {encoder: raw}
    assert found["nbmf_write_stored_bytes"] == {encoder: len(written.blob)}
    assert found["nbmf_encodes_total"] == {NEURAL: 1, BASELINE: 1}
    assert found["nbmf_encode_raw_bytes"] == {NEURAL: raw, BASELINE: raw}
    blobs = {NEURAL: len(NEURAL_CODER.encode(VALUE)), BASELINE: len(STUB_CODER.encode(VALUE))}
    assert found["nbmf_encode_blob_bytes"] == blobs
    for name in ("nbmf_encode_seconds", "nbmf_decode_seconds"):
        assert found[name].keys() == {NEURAL, BASELINE} and all(0 < seconds < 60 for seconds in found[name].values())
    for name in ("nbmf_divergences_total", "nbmf_fallbacks_total", "nbmf_refusals_total", "nbmf_compares_total"):
        assert found[name] == {}


BROKEN = {
    "raises": Coder(NEURAL, fail(RuntimeError("a bug")), NEURAL_CODER.decode),
    "does not verify": Coder(NEURAL, fail(CorruptRecord("no")), NEURAL_CODER.decode),
    "runs out of memory": Coder(NEURAL, fail(MemoryError()), NEURAL_CODER.decode),
    "writes a damaged blob": cut(NEURAL_CODER),
    "writes no bytes": Coder(NEURAL, lambda _: None, NEURAL_CODER.decode),  # type: ignore[arg-type,return-value]
    "cannot decode": Coder(NEURAL, NEURAL_CODER.encode, fail(ZeroDivisionError())),
    "decodes too much": Coder(NEURAL, NEURAL_CODER.encode, fail(OutputLimit("too large"))),
    "decodes to another type": other_value(NEURAL_CODER, {**VALUE, "n": 1}),
    "decodes to another order": other_value(NEURAL_CODER, dict(reversed(VALUE.items()))),
    "decodes to no value": other_value(NEURAL_CODER, object()),
}


@pytest.mark.parametrize("encoder", [NEURAL, BASELINE])
@pytest.mark.parametrize("how", BROKEN)
def test_a_neural_encoder_that_diverges(how: str, encoder: str) -> None:
    shadow = Shadow(BROKEN[how], STUB_CODER)
    written = shadow.write(VALUE, encoder)
    assert (written.blob, written.encoder) == (STUB_CODER.encode(VALUE), BASELINE)
    assert figures(shadow, "divergences_total", "fallbacks_total", "writes_total", "refusals_total") == [
        {NEURAL: 1},
        {NEURAL: 1} if encoder == NEURAL else {},
        {BASELINE: 1},
        {},
    ]
    with pytest.raises(PolicyError) as caught:
        shadow.write(VALUE, encoder, protected=True)
    assert str(caught.value) == (
        "write refused: the class is protected, and the neural encoder's blob did not decode to its value"
    )
    assert figures(shadow, "divergences_total", "writes_total", "refusals_total") == [
        {NEURAL: 2},
        {BASELINE: 1},
        {NEURAL: 1},
    ]


@pytest.mark.parametrize("encoder", [NEURAL, BASELINE])
def test_a_baseline_that_diverges(encoder: str) -> None:
    shadow = Shadow(NEURAL_CODER, cut(STUB_CODER))
    for protected in (False, True):
        written = shadow.write(VALUE, encoder, protected)
        assert (written.blob, written.encoder) == (NEURAL_CODER.encode(VALUE), NEURAL)
    assert figures(shadow, "divergences_total", "fallbacks_total", "writes_total") == [
        {BASELINE: 2},
        {BASELINE: 2} if encoder == BASELINE else {},
        {NEURAL: 2},
    ]


def test_two_encoders_that_diverge() -> None:
    shadow = Shadow(cut(NEURAL_CODER), cut(STUB_CODER))
    for encoder in (NEURAL, BASELINE):
        with pytest.raises(PolicyError) as caught:
            shadow.write(VALUE, encoder)
        message = "write refused: neither the neural nor the stub encoder's blob decodes to its value"
        assert str(caught.value) == message
    assert figures(shadow, "writes_total", "refusals_total") == [{}, {NEURAL: 1, BASELINE: 1}]


@pytest.mark.parametrize("encoder", [NEURAL, BASELINE])
@pytest.mark.parametrize(
    "value",
    [
        b"\x00\xff",
        "lone \ud800",
        np.array([1.5, np.nan], np.float32),
        pytest.param(LONG, marks=pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference")),
    ],
    ids=["bytes", "surrogate", "vector", "digits"],
)
def test_values_that_the_old_encoder_cannot_hold(value: Any, encoder: str) -> None:
    shadow = Shadow(NEURAL_CODER, STUB_CODER)
    written = shadow.write(value, encoder, protected=True)
    assert (written.blob, written.encoder) == (NEURAL_CODER.encode(value), NEURAL)
    assert figures(shadow, "divergences_total", "fallbacks_total") == [{}, {BASELINE: 1} if encoder == BASELINE else {}]
    with pytest.raises(PolicyError):
        Shadow(cut(NEURAL_CODER), STUB_CODER).write(value, encoder)


def test_values_that_are_refused_as_ever() -> None:
    """They are the user's mistake and no divergence, though the old encoder would have taken some."""
    shadow = Shadow(NEURAL_CODER, STUB_CODER)
    for value in ((1, 2), {1: 2}, float("nan"), {"a": float("inf")}, object()):
        with pytest.raises(UnsupportedValue):
            shadow.write(value, NEURAL)
    small = Codec(max_out=8)
    limited = Shadow(Coder(NEURAL, small.encode, small.decode), STUB_CODER)
    with pytest.raises(OutputLimit):
        limited.write("too long a text", BASELINE)
    for one in (shadow, limited):
        assert all(not sums for sums in one.metrics.snapshot().values())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(json_values | st.binary(max_size=20), st.sampled_from([NEURAL, BASELINE]), st.booleans(), st.booleans())
def test_what_is_stored_is_the_value(value: Any, encoder: str, neural_fails: bool, baseline_fails: bool) -> None:
    shadow = Shadow(
        cut(NEURAL_CODER) if neural_fails else NEURAL_CODER, cut(STUB_CODER) if baseline_fails else STUB_CODER
    )
    try:
        written = shadow.write(value, encoder)
    except PolicyError:
        assert neural_fails and (baseline_fails or isinstance(value, bytes))
        return
    coder = NEURAL_CODER if written.encoder == NEURAL else STUB_CODER
    assert to_raw(coder.decode(written.blob)) == to_raw(value)


def test_a_policy_in_shadow() -> None:
    """From the policy to the blob: the rollout chooses, and a protected class is refused by a broken encoder."""
    policy = Policy.parse("[rollout]\npercent = 50\nshadow = true\n[class.legal]\nprotected = true")
    good, bad = Shadow(NEURAL_CODER, STUB_CODER), Shadow(cut(NEURAL_CODER), STUB_CODER)
    stored = []
    for i in range(40):
        way = route(policy, ("ann",), "legal", f"k{i}", 100, 0)
        assert way.shadow
        stored.append(good.write("short", way.encoder, way.protected).encoder)
        assert stored[-1] == way.encoder
        with pytest.raises(PolicyError):
            bad.write("short", way.encoder, way.protected)
    assert {NEURAL, BASELINE} == set(stored)


# -- reads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percent", "reads", "expected"), [(0, 300, 0), (1, 300, 3), (12.5, 80, 10), (50, 7, 3), (100, 20, 20)]
)
def test_the_sample_of_reads(percent: float, reads: int, expected: int) -> None:
    shadow = Shadow(NEURAL_CODER, STUB_CODER, compare_percent=percent)
    found = [shadow.compare("short") for _ in range(reads)]
    assert (found.count(True), found.count(None)) == (expected, reads - expected)
    counts = {NEURAL: expected, BASELINE: expected} if expected else {}
    assert figures(shadow, "compares_total", "divergences_total", "writes_total") == [counts, {}, {}]


@pytest.mark.parametrize("how", BROKEN)
def test_a_comparison_counts_and_never_raises(how: str) -> None:
    shadow = Shadow(BROKEN[how], STUB_CODER, compare_percent=100)
    assert shadow.compare(VALUE) is False
    assert figures(shadow, "compares_total", "divergences_total", "refusals_total") == [
        {NEURAL: 1, BASELINE: 1},
        {NEURAL: 1},
        {},
    ]
    broken_baseline = Shadow(NEURAL_CODER, cut(STUB_CODER), compare_percent=100)
    assert broken_baseline.compare(VALUE) is False
    assert figures(broken_baseline, "divergences_total") == [{BASELINE: 1}]


def test_comparing_what_one_encoder_cannot_hold() -> None:
    shadow = Shadow(NEURAL_CODER, STUB_CODER, compare_percent=100)
    assert shadow.compare(b"bytes") is True
    assert shadow.compare((1, 2)) is None
    assert figures(shadow, "compares_total", "divergences_total") == [{NEURAL: 1}, {}]


# -- figures -----------------------------------------------------------------------------------------------------------


def test_metrics() -> None:
    metrics = Metrics()
    assert metrics.snapshot() == {name: {} for name in FIGURES}
    metrics.wrote("zstd", 10, 4)
    metrics.wrote("zstd", 1, 2)
    metrics.encoded("zstd", 10, 4, 0.5)
    metrics.add("neural", fallbacks_total=1)
    found = metrics.snapshot()
    expected: dict[str, dict[str, float]] = {
        "nbmf_writes_total": {"zstd": 2},
        "nbmf_write_raw_bytes": {"zstd": 11},
        "nbmf_write_stored_bytes": {"zstd": 6},
        "nbmf_encodes_total": {"zstd": 1},
        "nbmf_encode_raw_bytes": {"zstd": 10},
        "nbmf_encode_blob_bytes": {"zstd": 4},
        "nbmf_encode_seconds": {"zstd": 0.5},
        "nbmf_fallbacks_total": {"neural": 1},
    }
    assert {name: sums for name, sums in found.items() if sums} == expected
    found["nbmf_writes_total"]["zstd"] = 99
    metrics.wrote("zstd", 0, 0)
    assert metrics.snapshot()["nbmf_writes_total"] == {"zstd": 3}
    with pytest.raises(KeyError):
        metrics.add("neural", no_such_figure=1)


def test_names_of_figures() -> None:
    for name in FIGURES:
        assert name.startswith("nbmf_") and name.endswith(("_total", "_bytes", "_seconds"))


def test_seconds_are_the_clocks() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1
        return now

    shadow = Shadow(NEURAL_CODER, STUB_CODER, clock=clock)
    shadow.write(VALUE, NEURAL)
    shadow.write(VALUE, NEURAL)
    assert figures(shadow, "encode_seconds", "decode_seconds") == [{NEURAL: 2, BASELINE: 2}] * 2


def test_eight_threads() -> None:
    """No count is lost, and the sample stays exact."""
    metrics = Metrics()
    shadow = Shadow(NEURAL_CODER, cut(STUB_CODER), metrics, compare_percent=25)
    start = threading.Barrier(8)
    compared: list[bool | None] = []

    def work() -> None:
        start.wait()
        for _ in range(50):
            shadow.write("short", NEURAL)
            compared.append(shadow.compare("short"))
            metrics.snapshot()
            for _ in range(100):
                metrics.add("x", writes_total=1, write_raw_bytes=2)

    threads = [threading.Thread(target=work) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: a sum without its lock then loses counts
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    found = metrics.snapshot()
    assert found["nbmf_writes_total"] == {NEURAL: 400, "x": 40_000}
    assert found["nbmf_write_raw_bytes"] == {NEURAL: 2000, "x": 80_000}
    assert found["nbmf_encodes_total"] == {NEURAL: 500, BASELINE: 500}
    assert found["nbmf_divergences_total"] == {BASELINE: 500}
    assert compared.count(False) == 100 and compared.count(None) == 300
