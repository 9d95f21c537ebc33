"""Adds to tests/golden/arrays.jsonl the blobs of arrays and of toleranced numbers that it does not hold yet.

Made with the small lasting model and a pack of transforms for it, neither of which is ever replaced. Lines that are
there are checked, never changed: one that would come out otherwise is an error.
"""

import json
import lzma
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

import nbmf
from nbmf.codec.codec import Codec

GOLDEN: Final = Path(__file__).resolve().parent.parent / "tests" / "golden"
FILE: Final = GOLDEN / "arrays.jsonl"
PACK: Final = GOLDEN / "arrays.nbp"
DIM: Final = 16  # of the pack's transforms
SIDES: Final = 4  # of what stands beside a vector, for the other one

Line = dict[str, Any]


def drawn(seed: int, *shape: int) -> Any:
    """float32, whatever the version of NumPy."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def learned_from() -> tuple[Any, Any]:
    """Vectors of few directions, and what is known beside them: float32[n, 16], int16[n, 4]."""
    hidden = drawn(5, 900, SIDES)
    rows = hidden @ drawn(6, SIDES, DIM) + 0.2 * drawn(7, 900, DIM)
    return rows.astype(np.float32), np.round(hidden * 1000).astype(np.int16)


def arrays() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, array and options of `Codec.encode` as JSON has them. New ones go to the end."""
    semantic: dict[str, Any] = {"fidelity": "semantic"}
    yield "gaussian", drawn(1, 64), {}
    yield "gaussian in halves", drawn(1, 64).astype(np.float16), {}
    yield "matrix", drawn(2, 5, 12), {}
    yield "ramp", np.arange(200, dtype=np.float32) / 8, {}
    yield "none at all", np.zeros((0, 3), np.float32), {}
    yield "gaussian, 0.995", drawn(1, 64), semantic
    yield "gaussian, 0.9999", drawn(1, 64), {**semantic, "cosine": 0.9999}
    yield "halves, 0.99", drawn(3, 96).astype(np.float16), {**semantic, "cosine": 0.99}
    yield "matrix, 0.995", drawn(2, 5, 48), semantic
    yield "greatest error", drawn(4, 40), {**semantic, "cosine": None, "max_error": 0.01}
    yield "cosine and greatest error", drawn(4, 40), {**semantic, "max_error": 0.05}
    yield "of norm 1", drawn(8, 128) / np.float32(np.linalg.norm(drawn(8, 128))), semantic
    odd = drawn(9, 4, 24)
    odd[1], odd[2, 3], odd[3] = 0, np.nan, np.float32(1e-41)
    yield "rows of zeros, not a number, denormal", odd, semantic
    rows, beside = learned_from()
    yield "transformed", rows[10], {**semantic, "pack": True}
    yield "transformed, 0.999", rows[11], {**semantic, "pack": True, "cosine": 0.999}
    yield "transformed rows", rows[20:24], {**semantic, "pack": True}
    yield "predicted", rows[12], {**semantic, "pack": True, "beside": beside[12].tolist()}
    yield "predicted rows", rows[30:33], {**semantic, "pack": True, "beside": beside[30:33].tolist()}


def values() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, JSON value, and tolerances by path: relative, absolute, cosine."""
    trip = {"stop": "Gent-Sint-Pieters", "lat": 51.035903, "lon": 3.710675, "at": 1764064799123, "fare": 7.4}
    yield "places and times", trip, {"lat": [None, 1e-4, None], "lon": [None, 1e-4, None], "at": [None, 1000, None]}
    yield "prices", [{"p": 19.98999, "n": 3}, {"p": -0.00012345, "n": 1}], {"**.p": [0.01, None, None]}
    yield "a list as a vector", {"v": [round(float(x), 6) for x in drawn(3, 24)]}, {"v": [None, None, 0.999]}


def options_of(line: Line) -> dict[str, Any]:
    """The options of `Codec.encode`."""
    given = line["options"]
    out: dict[str, Any] = {"fidelity": given.get("fidelity", "lossless")}
    if "tolerance" in line:
        out["fidelity"] = "semantic"
        out["tolerance"] = {
            path: nbmf.Tolerance(relative=r, absolute=a, cosine=c) for path, (r, a, c) in line["tolerance"].items()
        }
    if "cosine" in given or "max_error" in given:
        out["bound"] = nbmf.Bound(given.get("cosine", 0.995), given.get("max_error"))
    if "beside" in given:
        out["beside"] = np.array(given["beside"], np.int16)
    return out


def lines(plain: Codec, packed: Codec) -> Iterator[Line]:
    for name, array, options in arrays():
        line: Line = {"name": name, "type": array.dtype.str, "shape": list(array.shape), "raw": array.tobytes().hex()}
        line["options"] = options
        codec, given = packed if "pack" in options else plain, options_of(line)
        blob = codec.encode(array, bare=True, verify=True, **given)
        back = codec.decode(blob, bare=True, beside=given.get("beside"))
        yield {**line, "bare": blob.hex(), "back": back.tobytes().hex()}
    for name, value, tolerance in values():
        line = {"name": name, "value": value, "options": {}, "tolerance": tolerance}
        blob = plain.encode(value, bare=True, verify=True, **options_of(line))
        yield {**line, "bare": blob.hex(), "back": plain.decode(blob, bare=True)}


def codecs(folder: Path) -> tuple[Codec, Codec]:
    """The lasting model's codec, without and with the pack."""
    model = folder / "lasting.nbm"
    model.write_bytes(lzma.decompress((GOLDEN / "lasting.nbm.xz").read_bytes()))
    return Codec(str(model)), Codec(str(model), domain=str(PACK))


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        if not PACK.exists():
            model = Path(name) / "lasting.nbm"
            model.write_bytes(lzma.decompress((GOLDEN / "lasting.nbm.xz").read_bytes()))
            rows, beside = learned_from()
            values, sides = [*rows, *rows], [*beside, *([None] * len(rows))]
            nbmf.adapt(values, PACK, model=str(model), beside=sides)
        held = {}
        if FILE.exists():
            held = {json.loads(text)["name"]: text for text in FILE.read_text(encoding="ascii").splitlines()}
        made = {line["name"]: json.dumps(line) for line in lines(*codecs(Path(name)))}
    changed = [name for name, text in held.items() if made.get(name) != text]
    if changed:
        print(f"would change: {', '.join(changed)}", file=sys.stderr)
        return 1
    new = [text for name, text in made.items() if name not in held]
    with FILE.open("a", encoding="ascii", newline="\n") as file:
        file.writelines(text + "\n" for text in new)
    print(f"{FILE.name}: {len(held)} lines held, {len(new)} new")
    return 0


if __name__ == "__main__":
    sys.exit(main())
