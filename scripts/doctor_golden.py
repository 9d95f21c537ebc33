"""Writes src/nbmf/models/golden.json, the blobs that `nbmf doctor` decodes, anew for the base model.

Lines of other models stay as they are; a line of this one that would change is an error: bytes are for ever.
"""

import json
import sys
from pathlib import Path

from nbmf.bench import encoders
from nbmf.codec.codec import Codec

PAGE = Path(__file__).resolve().parent.parent / "src" / "nbmf" / "models" / "golden.json"
VALUES = (
    "",
    "a",
    "Could you move my dentist appointment to next Thursday, after 3?",
    "Señor Núñez, ¿mañana? Grüße aus Köln",
    "明天下午三点开会,请把报告带来。",
    "2025-11-02T07:14:03Z ERROR worker-3 job=81723 took 1503ms: connection reset by peer",
    {"text": "likes green tea", "confidence": 0.9, "tags": ["drink", "preference"]},
    {"name": "get_weather", "arguments": {"city": "Lisbon", "unit": "celsius"}},
    [1, 1.0, True, None, -0.0, 1e300, "x"],
    {"id": "7f1b0c9e-2a44-4c39-9f0e-7a8b35d1c2aa", "status": "ok", "items": [{"n": 1}, {"n": 2}]},
    "the same again, " * 20,
    7,
)


def main() -> int:
    codec = Codec()
    kept = [*json.loads(PAGE.read_text(encoding="utf-8"))] if PAGE.exists() else []
    lines = [line for line in kept if line["model"] != codec.id[:8]]
    for profile in encoders.profiles("base"):
        with_it = Codec(profile=profile)
        lines += [
            {"model": codec.id[:8], "profile": profile, "blob": with_it.encode(value).hex(), "value": value}
            for value in VALUES
        ]
    if any(line["model"] == codec.id[:8] and line not in lines for line in kept):
        print("a golden blob would change", file=sys.stderr)
        return 1
    text = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    PAGE.write_text(f"[\n{text}\n]\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
