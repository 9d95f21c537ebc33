"""What a domain pack adds, source by source, beside zstd with a dictionary learned from the same records."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from nbmf.bench import encoders, peers
from nbmf.bench.coding import code_many
from nbmf.bench.encoders import Encoder
from nbmf.bench.figures import geometric_mean, language
from nbmf.bench.records import Record
from nbmf.codec.adapt import adapt
from nbmf.report import Tick

PACK_RECORDS: Final = 100  # records that a source needs
PACK_BYTES: Final = 512 << 10


def packs(records: Sequence[Record], encoder: Encoder, model: str, tick: Tick) -> dict[str, Any]:
    """For each source: a pack of its first half, on its other half, beside zstd with a dictionary of the same half."""
    where: dict[str, list[Record]] = {}
    for one in records:
        if one.raw:
            where.setdefault(one.source, []).append(one)
    chosen = [source for source in sorted(where) if len(where[source]) >= PACK_RECORDS]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, source in enumerate(chosen):
            tick("learning packs", number, len(chosen))
            found = where[source]
            learned, tested = found[: len(found) // 2], found[len(found) // 2 :]
            path = Path(folder) / f"{number}.nbp"
            start = time.perf_counter()
            adapt([one.value for one in learned], path, model=model, size=PACK_BYTES)
            spent = time.perf_counter() - start
            packed = encoders.encoder(encoder.name, model, str(path))
            blobs, exact, _ = code_many(packed, tested, lambda *_: None)
            plain = encoder.encode_many([one.value for one in tested])
            kb, peer = peers.with_dictionary([one.raw for one in learned], [one.raw for one in tested])
            raw = sum(len(one.raw) for one in tested)
            ratio, zstd = raw / sum(map(len, blobs)), raw / sum(peer)
            rows.append(
                {
                    "source": source,
                    "language": language(source),
                    "learned_records": len(learned),
                    "learned_bytes": sum(len(one.raw) for one in learned),
                    "records": len(tested),
                    "raw_bytes": raw,
                    "exact": exact,
                    "pack_bytes": path.stat().st_size,
                    "learn_seconds": spent,
                    "base": raw / sum(map(len, plain)),
                    "pack": ratio,
                    "zstd_dictionary": zstd,
                    "dictionary_kb": kb,
                    "quotient": ratio / zstd,
                }
            )
    tick("learning packs", len(chosen), len(chosen))
    means = {}
    for wanted in ("english", "multilingual"):
        of = [row for row in rows if row["language"] == wanted]
        if of:
            means[wanted] = {
                "sources": len(of),
                **{name: geometric_mean([row[name] for row in of]) for name in ("base", "pack", "zstd_dictionary")},
                "quotient_mean": sum(row["quotient"] for row in of) / len(of),
                "quotient_min": min(row["quotient"] for row in of),
            }
    return {"by_source": rows, "geometric_means": means}
