"""Writes what tests/stress/golden_vectors.c reads: the tables of vectors, the golden pack's transforms, and streams.

    vector_streams.py > streams.txt

Arrays are hex of little-endian numbers, `width:hex`, whatever the machine. docs/spec/vector.md.
"""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from nbmf.codec import vector_reference as reference
from nbmf.codec.model import section
from nbmf.codec.vector_reference import DIRECTION, LATTICE, Bounds
from nbmf.codec.vector_tables import tables
from nbmf.codec.vector_transform import SECTION, Prepared, read_section

GOLDEN: Final = Path(__file__).resolve().parent.parent / "tests" / "golden"
PACK: Final = GOLDEN / "arrays.nbp"
KNOWN: Final = {"cosine": 0.995, "max_error": None}


def array(*parts: tuple[Any, int]) -> str:
    """Arrays of numbers of so many bytes each, end to end."""
    return " ".join(
        f"{width}:{np.ascontiguousarray(part, part.dtype.newbyteorder('<')).tobytes().hex()}" for part, width in parts
    )


def transform(prepared: Prepared) -> Iterator[str]:
    """A transform as the C kernel takes it, in pieces of one width: int32, int8; its dual: int32, int16."""
    t = prepared.value
    dim, m = (size + 31 & ~31 for size in (t.dim, t.m))
    whole, dual = prepared.whole, prepared.dual
    numbers = 64 + 4 * (dim + 4 * m)
    yield "whole " + array((np.frombuffer(whole[:numbers], np.int32), 4), (np.frombuffer(whole[numbers:], np.int8), 1))
    yield "dual " + array((np.frombuffer(dual[: 4 * m], np.int32), 4), (np.frombuffer(dual[4 * m :], np.int16), 2))


def cases(known: list[Prepared]) -> Iterator[str]:
    """`case`, number of the transform or -, mode, half, n, d, three doubles, sides, rows, the stream, what it gives."""
    for text in (GOLDEN / "arrays.jsonl").read_text(encoding="ascii").splitlines():
        line = json.loads(text)
        about = line["options"]
        if about.get("fidelity") != "semantic":
            continue
        rows = np.atleast_2d(np.frombuffer(bytes.fromhex(line["raw"]), line["type"]).reshape(line["shape"]))
        cosine, most = about.get("cosine", KNOWN["cosine"]), about.get("max_error")
        mode = DIRECTION if most is None else LATTICE
        bounds = Bounds(-1.0 if cosine is None else cosine, 1e-6, most or 0.0)
        beside = np.atleast_2d(np.array(about["beside"], np.int16)) if "beside" in about else None
        number, t = next(
            (
                (str(at), one.value)
                for at, one in enumerate(known)
                if "pack" in about and one.value.sides == (0 if beside is None else beside.shape[1])
            ),
            ("-", None),
        )
        with np.errstate(all="ignore"):
            stream, made, _, _ = reference.encode(rows, mode, bounds, t, beside)
        half = rows.dtype.itemsize == 2
        width = 2 if half else 4
        kind = f"u{width}"
        yield " ".join(
            [
                "case",
                number,
                *(str(one) for one in (mode, int(half), *rows.shape)),
                *(struct.pack("<d", one).hex() for one in bounds),
                "-" if beside is None else array((beside, 2)),
                array((rows.view(kind), width)),
                stream.hex(),
                array((np.frombuffer(made, kind), width)),
            ]
        )


def main() -> int:
    t = tables()
    parts = [(t.cum, 2), (t.start, 1), (t.float_cum, 2), (t.shrink, 8), (t.weight, 8), (t.edge, 8)]
    print("tables " + array(*parts))
    known = [Prepared(one) for one in read_section(section(PACK.read_bytes(), SECTION))]
    for prepared in known:
        for line in transform(prepared):
            print(line)
    for line in cases(known):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
