"""The C kernel. `Coder` is `kernel.Coder`; the rest serves training and tests."""

from typing import Any, Final

from nbmf.codec.kernel import Buffer

SEGMENT_SIZE: Final[int]

class Coder:
    def __new__(cls, model: Buffer, pack: Buffer | None = None) -> Coder: ...
    def encode(self, raw: Buffer, value_type: int, profile: int = 0, /) -> bytes: ...
    def decode(self, payload: Buffer, value_type: int, profile: int = 0, max_out: int = ..., /) -> bytes: ...
    def costs(self, raw: Buffer, value_type: int, profile: int = 0, /) -> bytes: ...
    def encode_many(self, raws: list[bytes], value_types: bytes, profile: int, threads: int, /) -> list[bytes]: ...
    def decode_many(
        self, payloads: list[bytes], value_types: bytes, profile: int, threads: int, max_out: int = ..., /
    ) -> list[bytes]: ...
    def encode_sequence(self, raws: list[bytes], value_types: bytes, profile: int, primed: int = 0, /) -> bytes: ...
    def decode_sequence(
        self, payload: Buffer, value_types: bytes, profile: int, max_out: int = ..., primed: list[bytes] = ..., /
    ) -> list[bytes]: ...
    # One pass over the records `first` to `last` of (data, offset, type); what follows depends on the pass.
    def train(
        self, what: str, data: Any, offset: Any, value_type: Any, first: int, last: int, /, *outputs: Any
    ) -> float: ...

load = Coder

def simd(level: str = ..., /) -> str:
    """The SIMD level in use (plain, avx2, avx2-vnni or avx512), after setting it to `level` if given."""

def train_keys(
    data: Any, offset: Any, value_type: Any, first: int, last: int, context: int, cost: Any, key: Any, /
) -> int: ...
def train_orders(
    data: Any, offset: Any, value_type: Any, first: int, last: int, order1: Any, order2: Any, /
) -> None: ...
def train_apply(
    data: Any,
    offset: Any,
    value_type: Any,
    first: int,
    last: int,
    context: int,
    n: int,
    hash: Any,
    start: Any,
    symbol: Any,
    probability: Any,
    share: float,
    cost: Any,
    /,
) -> None: ...

# What vector.py reads through: `tables` of vector_tables.py; `whole` and `dual` of a Prepared transform, or None.
def vector_encode(
    tables: bytes,
    whole: bytes | None,
    dual: bytes | None,
    beside: Any,
    rows: Any,
    mode: int,
    half: bool,
    n: int,
    d: int,
    cosine: float,
    margin: float,
    most: float,
    /,
) -> tuple[bytes, bytes, int, bool]: ...
def vector_decode(
    tables: bytes, whole: bytes | None, beside: Any, stream: bytes, mode: int, half: bool, unit: bool, n: int, d: int, /
) -> bytes: ...
def vector_points(
    tables: bytes, whole: bytes | None, beside: Any, stream: bytes, half: bool, unit: bool, n: int, d: int, /
) -> tuple[bytes, bytes]: ...
def floats_encode(tables: bytes, bits: Any, half: bool, zeros: int, family: int, scale: int, /) -> bytes: ...
def floats_decode(
    tables: bytes, stream: bytes, n: int, half: bool, zeros: int, family: int, scale: int, /
) -> bytes: ...
