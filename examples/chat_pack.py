"""Learns a domain pack from a chat export, and plots what it saves on messages that it was not learned from.

    pip install nbmf
    python chat_pack.py [FOLDER]

Writes into the folder (the present one unless told otherwise): chat_export.jsonl, an export made up for this example;
chat.nbp, the pack; saved.svg, the plot. Put your own export in place of the first and run it again.
"""

# %% The export: a message a line, as messengers give it out. Yours may have other fields.
from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import nbmf
from nbmf import samples
from nbmf.bench import svg

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
EXPORT, PACK, PLOT = (FOLDER / name for name in ("chat_export.jsonl", "chat.nbp", "saved.svg"))
MESSAGES = 1200
PEOPLE = ("Ann Byrne", "Farid Osman", "Mei Tanaka")


def said(value: Any) -> str:
    """The words of a sample, which may be a text, a message, or several."""
    if isinstance(value, list):
        value = value[-1]
    return value if isinstance(value, str) else str(value.get("content", value.get("text", value)))


def export() -> None:
    """Writes an export of made-up messages."""
    kinds = ("chat", "note", "language")
    texts = (said(one.value) for one in samples.stream(seed=8) if one.kind in kinds)
    time = datetime(2026, 3, 2, 9, 0)
    lines = []
    for number in range(MESSAGES):
        time += timedelta(seconds=37 + number * 7919 % 600)
        message: dict[str, Any] = {
            "id": f"msg-{100_000 + number}",
            "channel": ("general", "support", "random")[number % 7 % 3],
            "from": PEOPLE[number * 5 % 3],
            "sent_at": time.isoformat(timespec="seconds"),
            "text": next(texts),
            "reactions": [],
        }
        lines.append(json.dumps(message, ensure_ascii=False) + "\n")
    EXPORT.write_text("".join(lines), encoding="utf-8")


if not EXPORT.exists():
    export()
messages = [json.loads(line) for line in EXPORT.read_text(encoding="utf-8").splitlines()]
print(f"{EXPORT.name}: {len(messages)} messages")

# %% The pack: learned from the first two thirds.
cut = 2 * len(messages) // 3
card = nbmf.adapt(messages[:cut], out=str(PACK), size=128 << 10)
print(f"{PACK.name}: {card['bytes']:,} bytes, learned from {card['records']} messages")

# %% What it saves on the last third, record by record.
rest = messages[cut:]
model, adapted = nbmf.Codec(), nbmf.Codec(domain=str(PACK))
raws = [len(json.dumps(one, ensure_ascii=False, separators=(",", ":")).encode()) for one in rest]
plain = [len(blob) for blob in model.encode_many(rest, bare=True)]
packed = adapted.encode_many(rest, bare=True)
assert adapted.decode_many(packed, bare=True) == rest  # exactly
sizes = {"raw": raws, "model alone": plain, "model and pack": [len(blob) for blob in packed]}
for name, found in sizes.items():
    print(f"{name:>15}: {sum(found):>8,} bytes, ratio {sum(raws) / sum(found):.2f}")

# %% The plot: bytes stored, message by message, all together.
drawn = svg.plot("Bytes stored, as messages come in", (0, len(rest)), (0, 1.05 * sum(raws) / 1000), left=52)
drawn.axes("messages", "kB")
for found, cls in zip(sizes.values(), ("s0", "s2", "us"), strict=True):
    sums = [0]
    for size in found:
        sums.append(sums[-1] + size)
    drawn.path([(at, total / 1000) for at, total in enumerate(sums)], cls)
drawn.legend([(name, cls) for name, cls in zip(sizes, ("name", "s2", "us"), strict=True)], right=False)
PLOT.write_text(svg.standalone(drawn.svg()), encoding="utf-8")
print(f"{PLOT.name}: written")
