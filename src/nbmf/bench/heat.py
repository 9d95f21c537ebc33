"""Where the bits go: a few of the shipped samples, each character with its cost. No record of the user's is shown."""

from __future__ import annotations

import itertools
from typing import Any, Final

from nbmf import inspect, samples
from nbmf.codec.codec import Codec
from nbmf.codec.values import to_raw

SHOWN: Final = ("chat", "fact", "tool_call", "tool_result", "note", "log")  # kinds, one sample of each
LENGTH: Final = (60, 420)  # raw bytes that suit the eye


def samples_shown(codec: Codec) -> list[dict[str, Any]]:
    """Kind, ratio, and runs of characters that cost about the same: [text, bits a byte]."""
    found = []
    shipped = samples.load()
    for kind in SHOWN:
        sized = []
        for sample in shipped:
            raw = len(to_raw(sample.value)[1])
            if sample.kind == kind and LENGTH[0] <= raw <= LENGTH[1]:
                blob = codec.encode(sample.value, bare=True)
                sized.append((raw / len(blob), blob))
        if not sized:
            continue
        _, chosen = sorted(sized)[len(sized) // 2]
        middle = inspect.examine(chosen, bare=True, model=str(codec.model.path))
        runs = [
            ["".join(text for text, _ in run), round(bits, 1)]
            for bits, run in (
                (bits, list(run))
                for bits, run in itertools.groupby(
                    ((text, bits) for text, bits, _ in inspect.pieces(middle)), key=lambda one: round(one[1] * 2) / 2
                )
            )
        ]
        found.append(
            {
                "kind": kind,
                "raw_bytes": middle.raw_bytes,
                "stored_bytes": middle.size,
                "ratio": middle.ratio,
                "runs": runs,
            }
        )
    return found
