"""The rollout's safety net: the neural encoder beside the baseline, every divergence counted, and figures of both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from nbmf.codec.values import to_raw
from nbmf.errors import OutputLimit, PolicyError, UnsupportedValue
from nbmf.policy.router import BASELINE, NEURAL

# Name -> what it sums, per encoder.
FIGURES: Final = {
    "nbmf_writes_total": "Blobs handed over to be stored.",
    "nbmf_write_raw_bytes": "Raw bytes of the values whose blobs were handed over to be stored.",
    "nbmf_write_stored_bytes": "Bytes of the blobs handed over to be stored.",
    "nbmf_semantic_writes_total": "Values of fidelity semantic that were stored within their bound, not exactly.",
    "nbmf_semantic_exact_total": "Values of fidelity semantic that were stored exactly.",
    "nbmf_encodes_total": "Blobs made, stored or not; in shadow mode, by both encoders for each value.",
    "nbmf_encode_raw_bytes": "Raw bytes of the values that blobs were made of.",
    "nbmf_encode_blob_bytes": "Bytes of the blobs made.",
    "nbmf_encode_seconds": "Seconds spent making blobs.",
    "nbmf_decode_seconds": "Seconds spent decoding blobs to verify them.",
    "nbmf_divergences_total": "Blobs that did not decode to their value.",
    "nbmf_fallbacks_total": "Writes for this encoder that took the other one's blob.",
    "nbmf_refusals_total": "Writes refused because this encoder diverged.",
    "nbmf_compares_total": "Reads after which this encoder was tried.",
}


@dataclass(frozen=True, slots=True)
class Coder:
    """An encoder by the two functions it comes to. `decode` must read from the blob alone what `encode` put there."""

    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class Written:
    """What a write stores: the blob, and the name of the encoder that made it."""

    blob: bytes
    encoder: str


class Metrics:
    """Sums per encoder since the process began, by the names in FIGURES. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, dict[str, float]] = {name: {} for name in FIGURES}

    def add(self, encoder: str, **figures: float) -> None:
        """Adds to an encoder's figures, all at once; a figure's name is that in FIGURES without "nbmf_"."""
        with self._lock:
            for name, amount in figures.items():
                sums = self._sums[f"nbmf_{name}"]
                sums[encoder] = sums.get(encoder, 0) + amount

    def wrote(self, encoder: str, raw: int, stored: int) -> None:
        """Counts a blob that is stored: its value's raw bytes and its own."""
        self.add(encoder, writes_total=1, write_raw_bytes=raw, write_stored_bytes=stored)

    def encoded(self, encoder: str, raw: int, blob: int, seconds: float) -> None:
        """Counts a blob that was made."""
        self.add(encoder, encodes_total=1, encode_raw_bytes=raw, encode_blob_bytes=blob, encode_seconds=seconds)

    def snapshot(self) -> dict[str, dict[str, float]]:
        """A copy of all figures at one moment: name -> encoder -> sum."""
        with self._lock:
            return {name: dict(sums) for name, sums in self._sums.items()}


class Shadow:
    """Encodes each value with both encoders, decodes both blobs, and compares them exactly with the value.

    `compare_percent` of calls to `compare` do work. Thread-safe if the coders are.
    """

    def __init__(
        self,
        neural: Coder,
        baseline: Coder,
        metrics: Metrics | None = None,
        compare_percent: float = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.metrics = metrics if metrics is not None else Metrics()
        self._neural = neural
        self._baseline = baseline
        self._compare_percent = compare_percent
        self._clock = clock
        self._lock = threading.Lock()
        self._reads = 0

    def write(self, value: Any, encoder: str, protected: bool = False) -> Written:
        """The blob to store, which surely decodes to `value`: by `encoder` ("neural" or "stub", as the route says),
        else by the other.

        Raises UnsupportedValue or OutputLimit (no value for this store), PolicyError (the neural blob diverged and the
        class is protected, or neither blob is right). Then nothing may be stored, and nothing is lost.
        """
        original = to_raw(value, allow_nan=True)
        neural = self._try(self._neural, value, original)
        baseline: bytes | None
        try:
            baseline = self._try(self._baseline, value, original)
        except (UnsupportedValue, OutputLimit):  # the old encoder holds no bytes and no vectors
            baseline = None
        if neural is None and protected:
            self.metrics.add(self._neural.name, refusals_total=1)
            raise PolicyError(
                f"write refused: the class is protected, and the {self._neural.name} encoder's blob did not decode to "
                "its value"
            )
        wanted, other = (self._neural, self._baseline) if encoder == NEURAL else (self._baseline, self._neural)
        blobs = {self._neural.name: neural, self._baseline.name: baseline}
        for coder in (wanted, other):
            blob = blobs[coder.name]
            if blob is None:
                continue
            if coder is other:
                self.metrics.add(wanted.name, fallbacks_total=1)
            self.metrics.wrote(coder.name, len(original[1]), len(blob))
            return Written(blob, coder.name)
        self.metrics.add(wanted.name, refusals_total=1)
        raise PolicyError(
            f"write refused: neither the {self._neural.name} nor the {self._baseline.name} encoder's blob decodes to "
            "its value"
        )

    def compare(self, value: Any) -> bool | None:
        """After a read: whether both encoders give back the value that was read; None for a read not in the sample.

        The sample is spread evenly over the reads. Divergences are counted and nothing is raised: a read succeeds.
        """
        with self._lock:
            before, self._reads = self._reads, self._reads + 1
            # Reads n with floor(n * share) < floor((n + 1) * share): exactly that share, evenly spread.
            sampled = int(before * self._compare_percent / 100) < int((before + 1) * self._compare_percent / 100)
        if not sampled:
            return None
        try:
            original = to_raw(value, allow_nan=True)
        except UnsupportedValue:  # what no encoder here could have written
            return None
        same = True
        for coder in (self._neural, self._baseline):
            try:
                same &= self._try(coder, value, original) is not None
            except (UnsupportedValue, OutputLimit):
                continue
            self.metrics.add(coder.name, compares_total=1)
        return same

    def _try(self, coder: Coder, value: Any, original: tuple[int, bytes]) -> bytes | None:
        """The coder's blob, or None, counted, when it does not decode to exactly the value.

        Raises UnsupportedValue and OutputLimit of its encoding: it holds no such value, which is no divergence.
        """
        raw = len(original[1])
        try:
            start = self._clock()
            blob = coder.encode(value)
            self.metrics.encoded(coder.name, raw, len(blob), self._clock() - start)
        except (UnsupportedValue, OutputLimit):
            raise
        except Exception:  # whatever goes wrong in the encoder on trial must cost no write
            self.metrics.add(coder.name, divergences_total=1)
            return None
        try:
            start = self._clock()
            back = coder.decode(blob)
            self.metrics.add(coder.name, decode_seconds=self._clock() - start)
            exact = to_raw(back, allow_nan=True) == original
        except Exception:
            exact = False
        if exact:
            return blob
        self.metrics.add(coder.name, divergences_total=1)
        return None


__all__ = ["BASELINE", "FIGURES", "NEURAL", "Coder", "Metrics", "Shadow", "Written"]
