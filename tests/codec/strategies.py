"""Values for property tests, and the equality that they are held to."""

import struct
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from nbmf.codec import kernel


def by_kernel(c: int, numpy: int) -> int:
    """A number of examples or a size, by the kernel in use."""
    return c if kernel.backend == "c" else numpy


# Every code point, lone surrogates among them; hypothesis' default leaves those out.
characters = st.characters(categories=("L", "M", "N", "P", "S", "Z", "Cc", "Cf", "Co", "Cn", "Cs"))
texts = st.text(characters) | st.text()
integers = (
    st.integers()
    | st.integers(-(2**70), 2**70)
    | st.builds(lambda digits, sign: sign * 10**digits + sign, st.integers(1, 6000), st.sampled_from([1, -1]))
)
floats = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, 5e-324, 1e16, 1e22])
leaves = st.none() | st.booleans() | integers | floats | texts
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(texts, inner, max_size=6), max_leaves=25
)
# Any 32 bits: NaNs of every payload and sign among them.
vectors = st.lists(st.integers(0, 2**32 - 1), max_size=40).map(lambda bits: np.array(bits, np.uint32).view(np.float32))
all_values = texts | json_values | st.binary() | vectors

# For the neural method under both kernels.
short_texts = st.text(characters, max_size=by_kernel(200, 30))
short_values = (
    short_texts
    | st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | floats | short_texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short_texts, inner, max_size=3),
        max_leaves=by_kernel(12, 3),
    )
    | st.binary(max_size=by_kernel(300, 40))
    | vectors.map(lambda vector: vector[: by_kernel(40, 6)])
)


def same_vector(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def same(one: Any, other: Any) -> bool:
    """Equality with types, order of keys and the bits of floats, at any depth. NaNs are equal, in vectors by bits."""
    pending = [(one, other)]
    while pending:
        a, b = pending.pop()
        if type(a) is not type(b):
            return False
        if isinstance(a, np.ndarray):
            if not same_vector(a, b):
                return False
        elif type(a) is dict:
            if list(a) != list(b):
                return False
            pending.extend(zip(a.values(), b.values(), strict=True))
        elif type(a) is list:
            if len(a) != len(b):
                return False
            pending.extend(zip(a, b, strict=True))
        elif type(a) is float:
            if struct.pack("<d", a) != struct.pack("<d", b) and not (a != a and b != b):
                return False
        elif a != b:
            return False
    return True


def nested(depth: int, leaf: Any = None) -> Any:
    """Lists and dicts in turn, `depth` levels of them."""
    value = leaf
    for level in range(depth):
        value = {"k": value} if level % 2 else [value]
    return value
