"""Values to raw bytes and back, exactly.

| type   | Python value                                   | raw bytes                                                  |
|--------|------------------------------------------------|------------------------------------------------------------|
| TEXT   | str                                            | UTF-8; a lone surrogate as its three generalised bytes     |
| JSON   | dict, list, int, float, bool, None             | compact JSON (no spaces, nothing escaped but what must be) |
| BYTES  | bytes; bytearray and memoryview become bytes   | themselves                                                 |
| VECTOR | numpy.ndarray, one-dimensional, float32        | 4 little-endian bytes a float, bits kept                   |
| ARRAY  | numpy.ndarray, (n, d) float32, or float16      | its shape, then the floats likewise: see arrays.py         |

"Exactly" includes the types (1, 1.0, true), the order of keys, -0.0, integers of up to MAX_INT_DIGITS digits whatever
`sys.get_int_max_str_digits()` says, and nesting of any depth. What JSON would change silently is refused: tuples,
subclasses of the types above (IntEnum, NumPy scalars, OrderedDict), keys that are not str, and NaN and infinities
unless they are allowed (they come back, but a NaN's sign and payload do not).
"""

from __future__ import annotations

import decimal
import json
import json.encoder
import re
import sys
from collections.abc import Callable, Iterator
from operator import itemgetter
from types import NoneType
from typing import Any, Final, cast

from nbmf.errors import CorruptRecord, UnsupportedValue

TEXT: Final = 0
JSON: Final = 1
BYTES: Final = 2
VECTOR: Final = 3
ARRAY: Final = 4
VALUE_TYPES: Final = ("text", "json", "bytes", "vector", "array")  # the name of each type, by its number

MAX_INT_DIGITS: Final = 1_000_000  # keeps hostile integers from costing more than about a second for each MB of raw

_LEAVES: Final = frozenset({str, int, float, bool, NoneType})
_KEYS: Final = frozenset({str})
_PATH_STEPS: Final = 8  # steps kept at either end of a long path in a message
_KEY_CHARS: Final = 40  # characters of a key kept in a message
_INT_CHUNK: Final = 512  # digits; at most 640, the lowest limit sys.set_int_max_str_digits() accepts
_FAST_DIGITS: Final = 10_000  # up to here the interpreter's quadratic conversions are fast enough
_DECIMAL_CHUNK: Final = 2048  # bits; below this Decimal(int) is faster than splitting


def to_raw(value: Any, *, allow_nan: bool = False) -> tuple[int, bytes]:
    """The type number and raw bytes of `value`. Raises UnsupportedValue with the JSON path of what cannot be kept."""
    kind = type(value)
    if kind is str:
        return TEXT, value.encode("utf-8", "surrogatepass")
    if kind is dict or kind is list or kind in _LEAVES:
        return JSON, json_text(value, allow_nan=allow_nan).encode("utf-8", "surrogatepass")
    if kind is bytes:
        return BYTES, value
    if kind is bytearray or kind is memoryview:
        return BYTES, bytes(value)
    # An array can only exist where NumPy has been imported; other values never wait for its import.
    if (numpy := sys.modules.get("numpy")) is not None and isinstance(value, numpy.ndarray):
        from nbmf.codec.arrays import raw_of

        return raw_of(value)
    raise UnsupportedValue(f"$: {_refusal(kind)}")


def from_raw(value_type: int, raw: bytes) -> Any:
    """The value of `raw`. Raises CorruptRecord when `raw` is no content of that type."""
    if value_type == BYTES:
        return raw
    if value_type >= VECTOR:
        from nbmf.codec.arrays import array_of

        return array_of(value_type, raw)
    try:
        text = raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise CorruptRecord(f"raw bytes are not UTF-8: {error.reason} at byte {error.start}") from None
    return text if value_type == TEXT else parse_json(text)


# -- JSON text ---------------------------------------------------------------------------------------------------------


def json_text(value: object, *, allow_nan: bool = False) -> str:
    """Compact JSON of a JSON value. Raises UnsupportedValue.

    The C encoder writes first, because it stops at cycles (RecursionError) and the type check does not; it accepts more
    than is kept exactly, so its text counts only when every type is a plain one. All else is decided by `write_json`.
    """
    try:
        text = "".join(_ENCODE_NAN(value, 0) if allow_nan else _ENCODE(value, 0))
    except (TypeError, ValueError, RecursionError):
        return write_json(value, allow_nan=allow_nan)
    if _is_plain(value) and (len(text) <= MAX_INT_DIGITS or _interpreter_caps_integers()):
        return text
    return write_json(value, allow_nan=allow_nan)


def write_json(
    value: object, *, allow_nan: bool = False, sort_keys: bool = False, comma: str = ",", colon: str = ":"
) -> str:
    """JSON of a value of any depth, with integers of any length. Raises UnsupportedValue naming the JSON path."""
    out: list[str] = []
    frames: list[tuple[Iterator[tuple[str | int, Any]], Any]] = []  # open containers: children to come, container
    trail: list[str | int] = []  # the path of `node`: one step an open container
    on_path: set[int] = set()  # ids of the open containers, which `frames` keeps alive
    node: Any = value
    while True:
        kind = type(node)
        first = kind is dict or kind is list  # the next child to be written opens its container
        if first:
            if id(node) in on_path:
                raise UnsupportedValue(f"{_path(trail)}: contains itself")
            frames.append((_children(node, sort_keys, trail), node))
            on_path.add(id(node))
            trail.append("")
            out.append("{" if kind is dict else "[")
        else:
            out.append(_scalar_text(node, allow_nan, trail))
        while frames:
            children, container = frames[-1]
            step = next(children, None)
            if step is not None:
                trail[-1], node = step
                if not first:
                    out.append(comma)
                if type(container) is dict:
                    out.append(json.encoder.encode_basestring(trail[-1]))  # type: ignore[arg-type]
                    out.append(colon)
                break
            out.append("}" if type(container) is dict else "]")
            first = False
            frames.pop()
            trail.pop()
            on_path.remove(id(container))
        else:
            return "".join(out)


def parse_json(text: str) -> Any:
    """The value of a JSON text of any depth, with integers of up to MAX_INT_DIGITS digits. Raises CorruptRecord."""
    try:
        try:
            capped = len(text) <= _FAST_DIGITS or _interpreter_caps_integers(_FAST_DIGITS)
            value, end = (_SCAN if capped else _SCAN_LONG)(text, 0)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer longer than sys.get_int_max_str_digits()
            value, end = _SCAN_LONG(text, 0)
    except RecursionError:
        return _parse_deep(text)
    except StopIteration as stop:
        raise _bad_json(stop.value) from None
    except json.JSONDecodeError as error:
        raise _bad_json(error.pos) from None
    if end != len(text):
        raise _bad_json(end)
    return value


def _refuse(value: object) -> Any:
    raise TypeError


def _c_encoder(allow_nan: bool) -> Callable[[object, int], Any]:
    """`json`'s encoder made once: JSONEncoder.encode makes it anew for each call, which costs as much as a record."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # an interpreter without the C accelerator
        encoder = json.JSONEncoder(
            ensure_ascii=False, check_circular=False, allow_nan=allow_nan, separators=(",", ":"), default=_refuse
        )
        return lambda value, _level: encoder.encode(value)
    encode: Callable[[object, int], Any] = make(
        None, _refuse, json.encoder.encode_basestring, None, ":", ",", False, False, allow_nan
    )
    return encode


def _is_plain(root: object) -> bool:
    """Whether a finite value is made of exactly dict with str keys, list, str, int, float, bool and None."""
    if type(root) in _LEAVES:
        return True
    pending: list[Any] = [root]  # grows while it is walked; every entry is a dict or a list
    for node in pending:
        if type(node) is dict:
            if not _KEYS.issuperset(map(type, node)):
                return False
            children = node.values()
        else:
            children = node
        if _LEAVES.issuperset(map(type, children)):
            continue
        for child in children:
            kind = type(child)
            if kind is dict or kind is list:
                pending.append(child)
            elif kind not in _LEAVES:
                return False
    return True


def _children(node: Any, sort_keys: bool, trail: list[str | int]) -> Iterator[tuple[str | int, Any]]:
    if type(node) is list:
        return iter(enumerate(node))
    for key in node:
        if type(key) is not str:
            raise UnsupportedValue(f"{_path(trail)}: a key is of type {_type_name(type(key))}, and only str is kept")
    return iter(sorted(node.items(), key=itemgetter(0)) if sort_keys else node.items())


def _scalar_text(node: Any, allow_nan: bool, trail: list[str | int]) -> str:
    kind = type(node)
    if kind is str:
        return json.encoder.encode_basestring(node)
    if node is None:
        return "null"
    if kind is bool:
        return "true" if node else "false"
    if kind is int:
        digits = _int_text(node)
        if len(digits) - (node < 0) > MAX_INT_DIGITS:
            raise UnsupportedValue(f"{_path(trail)}: an integer of more than {MAX_INT_DIGITS} digits")
        return digits
    if kind is float:
        if node - node == 0.0:  # neither NaN nor infinite
            return float.__repr__(node)
        name = "NaN" if node != node else "Infinity" if node > 0 else "-Infinity"
        if allow_nan:
            return name
        raise UnsupportedValue(f"{_path(trail)}: {name} is refused unless allow_nan is set")
    raise UnsupportedValue(f"{_path(trail)}: {_refusal(kind)}")


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _refusal(kind: type) -> str:
    if kind in (tuple, set, frozenset):
        return f"{kind.__name__} is not kept as such; make it a list"
    if kind in (bytes, bytearray, memoryview):
        return f"{kind.__name__} cannot stand inside a JSON value"
    for base in (bool, int, float, str, dict, list, bytes):
        if kind is not base and issubclass(kind, base):
            return f"{_type_name(kind)} is a subclass of {base.__name__} and would come back as {base.__name__}"
    return f"type {_type_name(kind)} cannot be stored"


def _path(trail: list[str | int]) -> str:
    """`$.key[0]["other key"]`, cut in the middle when long, printable on any terminal."""
    kept = trail if len(trail) <= 2 * _PATH_STEPS else trail[:_PATH_STEPS] + trail[-_PATH_STEPS:]
    steps = [f"[{step}]" if isinstance(step, int) else _key_step(step) for step in kept]
    if len(trail) > 2 * _PATH_STEPS:
        steps.insert(_PATH_STEPS, f"...{len(trail) - 2 * _PATH_STEPS} more...")
    return "$" + "".join(steps)


def _key_step(key: str) -> str:
    if key.isascii() and key.isidentifier() and len(key) <= _KEY_CHARS:
        return f".{key}"
    return f"[{json.dumps(key[:_KEY_CHARS])}]"


# -- integers beyond sys.get_int_max_str_digits() ----------------------------------------------------------------------


def _interpreter_caps_integers(digits: int = MAX_INT_DIGITS) -> bool:
    """Whether the interpreter itself refuses, in its fast paths, every integer of more than `digits` digits."""
    return 0 < sys.get_int_max_str_digits() <= digits


def _int_text(number: int) -> str:
    """Decimal digits in subquadratic time; of a number far too long, only that it has over MAX_INT_DIGITS of them."""
    if number.bit_length() <= _FAST_DIGITS * 3:  # fewer digits than that
        try:
            return int.__repr__(number)
        except ValueError:  # longer than the interpreter's limit
            pass
    if number.bit_length() > MAX_INT_DIGITS * 3.3220:  # log2(10) = 3.32193: surely more digits than allowed
        return "0" * (MAX_INT_DIGITS + 2)
    with decimal.localcontext() as context:
        context.prec = decimal.MAX_PREC  # every sum and product below is exact
        context.Emax = decimal.MAX_EMAX
        context.Emin = decimal.MIN_EMIN
        digits = str(_int_decimal(abs(number), number.bit_length(), {}))
    return "-" + digits if number < 0 else digits


def _int_decimal(number: int, bits: int, powers: dict[int, decimal.Decimal]) -> decimal.Decimal:
    """`number` < 2**bits as a Decimal. Depth is log2 of the length."""
    if bits <= _DECIMAL_CHUNK:
        return decimal.Decimal(number)
    half = bits >> 1
    if half not in powers:
        powers[half] = decimal.Decimal(2) ** half
    low = _int_decimal(number & ((1 << half) - 1), half, powers)
    return low + _int_decimal(number >> half, bits - half, powers) * powers[half]


def _parse_int(text: str) -> int:
    """The value of `-?[0-9]+`. Raises CorruptRecord over MAX_INT_DIGITS."""
    if len(text) <= _INT_CHUNK:
        return int(text)
    if len(text) > MAX_INT_DIGITS + 1:
        raise CorruptRecord(f"an integer of more than {MAX_INT_DIGITS} digits")
    powers: dict[int, int] = {}

    def value(start: int, end: int) -> int:
        if end - start <= _INT_CHUNK:
            return int(text[start:end])
        low = (end - start) >> 1
        if low not in powers:
            powers[low] = 5**low << low
        return value(start, end - low) * powers[low] + value(end - low, end)

    return -value(1, len(text)) if text[0] == "-" else value(0, len(text))


# -- nesting beyond the recursion limit --------------------------------------------------------------------------------

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_SCALAR: Final = re.compile(
    r"(?P<int>-?(?:0|[1-9][0-9]*))(?P<float>(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<name>null|true|false|NaN|-?Infinity)"
)
_NAMES: Final[dict[str, Any]] = {
    "null": None,
    "true": True,
    "false": False,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
}


def _bad_json(position: int) -> CorruptRecord:
    return CorruptRecord(f"raw bytes are not JSON: invalid at character {position}")


def _parse_deep(text: str) -> Any:
    """The same language as json.loads without outer spaces, in a loop, linear in the text."""
    position = 0
    containers: list[Any] = []  # the open dicts and lists, outermost first
    keys: list[str] = []  # for each open dict, the key whose value is being read

    def skip_space() -> None:
        nonlocal position
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]

    def read_string() -> str:
        nonlocal position
        if text[position : position + 1] != '"':
            raise _bad_json(position)
        try:
            string, position = _SCAN_STRING(text, position + 1, True)
        except json.JSONDecodeError as error:
            raise _bad_json(error.pos) from None
        return string

    def read_key() -> None:
        nonlocal position
        keys.append(read_string())
        skip_space()
        if text[position : position + 1] != ":":
            raise _bad_json(position)
        position += 1

    def read_scalar() -> Any:
        nonlocal position
        if text[position : position + 1] == '"':
            return read_string()
        match = _SCALAR.match(text, position)
        if match is None:
            raise _bad_json(position)
        position = match.end()
        if match["name"]:
            return _NAMES[match["name"]]
        return float(match[0]) if match["float"] else _parse_int(match[0])

    while True:
        if containers:
            skip_space()
        opening = text[position : position + 1]
        value: Any
        if opening == "[" or opening == "{":
            position += 1
            skip_space()
            if text[position : position + 1] == ("]" if opening == "[" else "}"):
                position += 1
                value = [] if opening == "[" else {}
            else:
                containers.append([] if opening == "[" else {})
                if opening == "{":
                    read_key()
                continue
        else:
            value = read_scalar()
        # `value` is complete: it goes into its container, which may complete that one too.
        while containers:
            container = containers[-1]
            in_list = type(container) is list
            if in_list:
                container.append(value)
            else:
                container[keys.pop()] = value
            skip_space()
            mark = text[position : position + 1]
            position += 1
            if mark == ",":
                if not in_list:
                    skip_space()
                    read_key()
                break
            if mark != ("]" if in_list else "}"):
                raise _bad_json(position - 1)
            value = containers.pop()
        else:
            if position != len(text):
                raise _bad_json(position)
            return value


_Scan = Callable[[str, int], tuple[Any, int]]
_ENCODE: Final = _c_encoder(allow_nan=False)
_ENCODE_NAN: Final = _c_encoder(allow_nan=True)
_SCAN: Final = cast(_Scan, vars(json.JSONDecoder())["scan_once"])
_SCAN_LONG: Final = cast(_Scan, vars(json.JSONDecoder(parse_int=_parse_int))["scan_once"])
_SCAN_STRING: Final = cast(Callable[[str, int, bool], tuple[str, int]], vars(json.decoder)["scanstring"])
