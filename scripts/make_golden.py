"""Adds to the golden files under tests/golden/ what they do not hold yet. Existing lines are checked, never changed.

A blob once released must decode for ever, so a line that would come out otherwise is an error: the format, the model or
the kernel has changed. `--fresh` makes everything anew and is refused once CHANGELOG.md names a released version.

lasting.jsonl and lasting-dense.jsonl hold blobs and groups of the two profiles of small models that lie beside them,
compressed, and are never replaced: they stay readable proof of the format when another base model ships.
"""

import argparse
import hashlib
import json
import lzma
import math
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

import nbmf
from nbmf import samples
from nbmf.codec.codec import Codec
from nbmf.codec.format import NEURAL, STORED, build, crc, parse
from nbmf.codec.group import NeuralGroups
from nbmf.codec.values import VALUE_TYPES, to_raw
from nbmf.errors import NbmfError

ROOT: Final = Path(__file__).resolve().parent.parent
GOLDEN: Final = ROOT / "tests" / "golden"
PACK: Final = GOLDEN / "golden.nbp"
PACK_SIZE: Final = 24 << 10  # bytes
PACK_RECORDS: Final = 120
MAX_OUT: Final = 400  # bytes: a damaged stream that goes on and on is stopped early
SEGMENTED_CHARS: Final = 270_000
LASTING: Final = {"lasting": "fast", "lasting-dense": "dense"}  # name of model and lines, and their profile
GROUP_RECORDS: Final = (1, 2, 7)

Line = dict[str, Any]


def values() -> Iterator[tuple[str, Any]]:
    """Name and value of every golden blob. New ones go to the end of a group; names stay."""
    yield from zip(
        ("empty text", "one letter", "two words", "sentence", "spaces", "newlines", "nul and controls"),
        (
            "",
            "a",
            "hello world",
            "Could you move my dentist appointment to next Thursday, after 3?",
            "     ",
            "one\n\ntwo\r\nthree\t",
            "\x00\x01\x1f\x7f",
        ),
        strict=True,
    )
    yield "run of one letter", "a" * 200
    yield "accents", "Señor Núñez, ¿mañana? Grüße aus Köln, à bientôt ñ́"
    yield "chinese", "明天下午三点开会,请把报告带来。"
    yield "japanese", "明日の会議は午後三時に変更になりました。"
    yield "korean", "내일 회의는 오후 세 시로 바뀌었어요."
    yield "russian and greek", "Встреча в четверг. Η συνάντηση είναι την Πέμπτη."
    yield "emoji", "👍🏽 ok 👩‍👩‍👧 🇧🇪"
    yield "lone high surrogate", "cut \ud83d here"
    yield "lone low surrogate", "\udc80"
    yield "markdown", "# Notes\n\n- buy milk\n- call **Ana** at `10:30`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    yield "code", "def area(r: float) -> float:\n    return 3.14159 * r * r\n\n\nprint(area(2.0))\n"
    yield "repeated phrase", "the same words again and " * 6
    yield (
        "log lines",
        "\n".join(f"2025-03-1{i} 09:14:0{i} INFO worker-{i} job {i * 37} done in {i}.{i}s" for i in range(5)),
    )
    yield "csv", "id,name,price\n1,apple,0.50\n2,pear,0.75\n3,plum,1.20\n"
    yield "address", "https://example.com/docs?id=42&lang=en#top imogen@example.com"
    yield from (
        ("null", None),
        ("true", True),
        ("false", False),
        ("zero", 0),
        ("one", 1),
        ("one as a float", 1.0),
        ("minus zero", -0.0),
        ("negative", -273),
        ("64 bits", 2**63),
        ("long integer", 3**500),
        ("float", 0.1),
        ("least float", 5e-324),
        ("greatest float", 1.7976931348623157e308),
    )
    yield "empty list", []
    yield "empty dict", {}
    yield "types apart", [1, 1.0, True, "1", None, 0, -0.0, False, ""]
    yield "order of keys", {"z": 1, "a": 2, "": 3, "é": {"y": [], "b": {}}}
    yield "surrogate key", {"\ud800": "\udfff"}
    yield "escapes", {'"\\': "\b\f\n\r\t\x00/\u2028"}
    yield "nested", [[[[{"a": [{"b": [[{"c": None}]]}]}]]]]
    yield "two hundred levels", deep(200)
    yield "message", {"role": "user", "content": "what was the name of that ramen place we liked in Osaka?"}
    yield (
        "tool call",
        {
            "id": "call_8f2a",
            "type": "function",
            "function": {"name": "search_flights", "arguments": '{"from": "BRU", "to": "LIS", "max": 3}'},
        },
    )
    yield "memory", {"text": "prefers tea", "confidence": 0.92, "tags": ["food", "home"], "ts": "2025-03-11T09:14:22Z"}
    yield "table", [{"id": i, "name": f"item {i}", "price": i * 1.25, "ok": i % 2 == 0} for i in range(6)]
    yield "numbers", [round(math.sin(i), 4) for i in range(20)]
    yield "nan and infinities", [float("nan"), float("inf"), -float("inf")]
    yield "empty bytes", b""
    yield "zero bytes", bytes(100)
    yield "every byte", bytes(range(256))
    yield "png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02"
    yield "text as bytes", b"GET /index.html HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\n\r\n"
    yield "empty vector", np.zeros(0, np.float32)
    yield "vector", np.array([math.sin(i) / 8 for i in range(16)], np.float32)
    yield (
        "vector of odd floats",
        np.array([0, 1 << 31, 0x7F800000, 0xFF800001, 0x7FC12345, 1], np.uint32).view(np.float32),
    )
    yield "constant vector", np.full(40, 0.25, np.float32)
    for i, sample in enumerate(samples.generate(8, seed=2)):
        yield f"generated {i} {sample.kind}", sample.value


def deep(levels: int) -> Any:
    value: Any = []
    for level in range(levels):
        value = {"k": value} if level % 2 else [value]
    return value


def segmented_text() -> str:
    """A text of more than one segment, that the neural method wins."""
    records = (json.dumps(sample.value) for sample in samples.stream(seed=4))
    out: list[str] = []
    while sum(map(len, out)) < SEGMENTED_CHARS:
        out.append(next(records))
    return "\n".join(out)[:SEGMENTED_CHARS]


def digest() -> str:
    return hashlib.sha256(segmented_text().encode()).hexdigest()


def written(value: Any) -> Any:
    """The value as a golden line holds it: JSON as itself, bytes and vectors in hex, as are texts that JSON changes."""
    if isinstance(value, bytes | np.ndarray):
        return to_raw(value)[1].hex()
    if isinstance(value, str) and json.loads(json.dumps(value)) != value:  # surrogates that would pair
        return {"utf8": to_raw(value)[1].hex()}
    return value


def blob_lines(codec: Codec, packed: Codec) -> Iterator[Line]:
    for name, value in values():
        value_type, _ = to_raw(value, allow_nan=True)
        yield {
            "name": name,
            "type": VALUE_TYPES[value_type],
            "value": written(value),
            "bare": codec.encode(value, bare=True, verify=True, allow_nan=True).hex(),
            "self": codec.encode(value, verify=True, allow_nan=True).hex(),
            "packed": packed.encode(value, verify=True, allow_nan=True).hex(),
        }


def error_lines(writer: Codec, packed: Codec) -> Iterator[Line]:
    codec = Codec(max_out=MAX_OUT)
    for name, blob, bare in broken(writer, packed):
        try:
            codec.decode(blob, bare=bare)
        except NbmfError as error:
            yield {
                "name": name,
                "blob": blob.hex(),
                "bare": bare,
                "max_out": codec.max_out,
                "error": type(error).__name__,
                "message": str(error),
            }
        else:
            raise SystemExit(f"errors: {name!r} decodes")


def broken(codec: Codec, packed: Codec) -> Iterator[tuple[str, bytes, bool]]:
    """Name, bytes and whether bare, of blobs that must be refused. No message here comes from the zstd library."""
    text = "Could you move my dentist appointment to next Thursday?"
    good, bare = codec.encode(text), codec.encode(text, bare=True)
    stored, run = codec.encode(b"\x01\x02\xfe\xff"), codec.encode(bytes(300))
    assert [parse(blob, bare=False).method for blob in (good, stored, run)] == [2, 0, 1]
    yield "empty", b"", False
    yield "empty, bare", b"", True
    yield "JSON text", b'{"meta": {}, "code": "", "sig": ""}', False
    yield "later version", bytes([good[0] | 0x80]) + good[1:], False
    yield "method 3", bytes([good[0] | 3]) + good[1:], False
    yield "stored with a profile", bytes([stored[0] | 0x10]) + stored[1:], False
    yield "zstd with segments", bytes([run[0] | 0x40]) + run[1:], False
    yield "bare read as self-describing", bare, False
    yield "self-describing read as bare", good, True
    for size in (1, 4, 8):
        yield f"cut to {size} bytes", good[:size], False
    yield "bare cut to 2 bytes", bare[:2], True
    yield "no payload", good[:9], False
    yield "half the payload", good[: 9 + (len(good) - 9) // 2], False
    yield "last byte cut", good[:-1], False
    yield "last byte cut, bare", bare[:-1], True
    yield "bytes after the end", good + bytes(8), False
    yield "bytes after the end, bare", bare + b"\xff" * 8, True
    yield "wrong check", good[:1] + bytes([good[1] ^ 1]) + good[2:], False
    yield "wrong check, bare", bare[:1] + bytes([bare[1] ^ 1]) + bare[2:], True
    yield "wrong check, stored", stored[:-1] + b"\0", False
    yield "wrong check, zstd", run[:1] + bytes([run[1] ^ 1]) + run[2:], False
    yield "wrong type", bytes([good[0] ^ 0x04]) + good[1:], False
    yield "wrong type, stored", bytes([stored[0] ^ 0x08]) + stored[1:], False
    for at in (9, 12, len(good) - 3):
        yield f"a flipped bit in byte {at}", good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :], False
    yield "payload of zeros", good[:9] + bytes(30), False
    yield "payload of ones", good[:9] + b"\xff" * 30, False
    yield "unknown model", good[:5] + bytes.fromhex("0badf00d") + good[9:], False
    yield "a pack that is not there", packed.encode(text), False
    yield "bare, made with a pack", packed.encode(text, bare=True), True
    yield "dense profile", bytes([good[0] | 0x10]) + good[1:], False
    yield "over the limit, neural", codec.encode(samples.load()[0].value * 4), False
    yield "over the limit, zstd", codec.encode(bytes(MAX_OUT + 1)), False
    yield "over the limit, stored", codec.encode(np.random.RandomState(1).bytes(MAX_OUT + 1)), False
    yield "one segment", bytes([good[0] | 0x40]) + good[1:9] + b"\x01a", False
    yield "segment lengths that overrun", bytes([good[0] | 0x40]) + good[1:9] + b"\x7fab", False
    yield "zstd with a foreign header", run[:5] + b"\x20" + run[6:], False
    yield "zstd frame cut", run[:-1], False
    yield "bytes after the zstd frame", run + b"\0", False
    yield "text that is not UTF-8", stored_blob(0, b"ab\xff"), False
    yield "JSON that is none", stored_blob(1, b"[1,]"), False
    yield "JSON with a space before it", stored_blob(1, b" 1"), False
    yield "vector of 5 bytes", stored_blob(3, b"abcde"), False


def stored_blob(value_type: int, raw: bytes) -> bytes:
    return build(STORED, value_type, crc(value_type, raw), raw, bare=False)


def stream_lines(codec: Codec, packed: Codec) -> Iterator[str]:
    """`type raw payload pack`, hex or - when empty: what the kernel alone must give, whatever the race chose.

    pack is 0 without and 1 with one in the fast profile, 2 and 3 in the dense.
    """
    for profile in (0, 1):
        for _, value in values():
            value_type, raw = to_raw(value, allow_nan=True)
            for pack, which in enumerate((codec, packed)):
                payload = which.coder.encode(raw, value_type, profile)
                yield f"{value_type} {raw.hex() or '-'} {payload.hex() or '-'} {pack + 2 * profile}"


def lasting_codec(name: str, folder: Path) -> Codec:
    """The codec of a lasting model, which is unpacked into `folder`."""
    path = folder / f"{name}.nbm"
    path.write_bytes(lzma.decompress((GOLDEN / f"{name}.nbm.xz").read_bytes()))
    return Codec(str(path), profile=LASTING[name])


def lasting_lines(codec: Codec) -> Iterator[Line]:
    """Bare blobs of every golden value, then groups of the shipped samples."""
    for name, value in values():
        yield {"name": name, "bare": codec.encode(value, bare=True, allow_nan=True).hex()}
    groups = NeuralGroups(codec, lambda _: codec)
    shipped = [(codec.id, codec.encode(sample.value, bare=True)) for sample in samples.load()]
    for number, count in enumerate(GROUP_RECORDS):
        part = shipped[10 * number : 10 * number + count]
        yield {"name": f"group of {count}", "group": groups.encode(part).hex(), "first": 10 * number, "count": count}
    following = groups.encode(shipped[5:9], shipped[:5])
    yield {"name": "group that follows 5", "group": following.hex(), "first": 5, "count": 4, "after": 5}


def dump(line: Line) -> str:
    return json.dumps(line, ensure_ascii=True)


def add(path: Path, made: list[str], keys: list[str]) -> list[str]:
    """Appends the lines of `made` whose key the file lacks. Returns the keys whose line would be another."""
    old = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    held = dict(zip((key_of(path, line) for line in old), old, strict=True))
    changed = [key for key, line in zip(keys, made, strict=True) if held.get(key, line) != line]
    new = [line for key, line in zip(keys, made, strict=True) if key not in held]
    if new and not changed:
        with path.open("a", encoding="ascii", newline="\n") as file:
            file.writelines(line + "\n" for line in new)
    print(f"{path.name}: {len(old)} lines held, {len(changed)} of them would change, {len(new)} new")
    return changed


def key_of(path: Path, line: str) -> str:
    if path.suffix == ".jsonl":
        return str(json.loads(line)["name"])
    value_type, raw, _, pack = line.split(" ")
    return f"{value_type} {raw} {pack}"


def released() -> bool:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return re.search(r"^## \[?v?[0-9]", text, re.MULTILINE) is not None


def make_pack() -> None:
    """Learns the golden pack from generated records."""
    records = [sample.value for sample in samples.generate(PACK_RECORDS, seed=9)]
    with tempfile.TemporaryDirectory(dir=GOLDEN) as folder:
        out = Path(folder) / "golden.nbp"
        nbmf.adapt(records, out, size=PACK_SIZE)
        out.replace(PACK)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="make everything anew; only before the first release")
    fresh = parser.parse_args().fresh
    if fresh and released():
        print("CHANGELOG.md names a released version: golden files are never made anew", file=sys.stderr)
        return 1
    GOLDEN.mkdir(parents=True, exist_ok=True)
    names = ("blobs.jsonl", "errors.jsonl", "streams.txt", "segmented.nbmf", "ids.json", PACK.name)
    held = [name for name in names if (GOLDEN / name).exists()]
    if not fresh and held and len(held) < len(names):
        missing = ", ".join(sorted(set(names) - set(held)))
        print(f"missing: {missing}; golden files come back from version control, not from here", file=sys.stderr)
        return 1
    codec = Codec()
    if fresh or not held:
        for name in held:
            (GOLDEN / name).unlink()
        make_pack()
        ids = {"model": codec.id, "pack": Codec(domain=str(PACK)).id, "segmented": digest()}
        (GOLDEN / "ids.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="ascii")
    pinned = json.loads((GOLDEN / "ids.json").read_text(encoding="ascii"))
    if pinned["model"] != codec.id:
        print(
            f"the golden files were made with model {pinned['model'][:8]}, and base is {codec.id[:8]}", file=sys.stderr
        )
        return 1
    writer, packed = codec, Codec(domain=str(PACK))
    changed = []
    for name, lines in (
        ("blobs.jsonl", [dump(line) for line in blob_lines(writer, packed)]),
        ("errors.jsonl", [dump(line) for line in error_lines(writer, packed)]),
        ("streams.txt", list(stream_lines(writer, packed))),
    ):
        path = GOLDEN / name
        changed += [f"{name}: {key[:60]}" for key in add(path, lines, [key_of(path, line) for line in lines])]
    for name in LASTING:
        with tempfile.TemporaryDirectory() as folder:
            lines = [dump(line) for line in lasting_lines(lasting_codec(name, Path(folder)))]
        path = GOLDEN / f"{name}.jsonl"
        changed += [f"{path.name}: {key[:60]}" for key in add(path, lines, [key_of(path, line) for line in lines])]
    segmented = writer.encode(segmented_text(), verify=True)
    parsed = parse(segmented, bare=False)
    assert parsed.method == NEURAL and parsed.segmented
    path = GOLDEN / "segmented.nbmf"
    if not path.exists():
        path.write_bytes(segmented)
    elif path.read_bytes() != segmented:
        changed.append("segmented.nbmf")
    for key in changed:
        print(f"would change: {key}", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
