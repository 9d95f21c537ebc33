"""Numbers in JSON values, rounded within a tolerance: fewer digits, the same value type, keys and structure.

The blob is an ordinary one of the rounded value, which any reader decodes. What a tolerance does not name is exact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from nbmf.errors import PolicyError

EVERYWHERE: Final = "**"
MARGIN: Final = 1e-9  # by which a list's cosine is kept over its bound
STEPS: Final = (5, 2, 1)  # of a decimal place, for lists: from the coarsest
PLACES_MOST: Final = 17
NORM_KEPT: Final = 0.001  # relative

_STEP: Final = re.compile(r"\[(?P<index>\*|[0-9]+)\]|(?:^|\.)(?P<name>[^.\[\]]+)")

Path = tuple[str | int, ...]  # names, indices, "*" for any one step and "**" for any steps


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far numbers may be moved: by `absolute`, by `relative` times their size, or by the larger of both.

    With `cosine` alone, lists of floats are vectors: each keeps that cosine, and its norm within 0.1 %.
    Integers stay integers and floats floats; nothing that is not finite, true or false is touched. Raises PolicyError.
    """

    relative: float | None = None
    absolute: float | None = None
    cosine: float | None = None

    def __post_init__(self) -> None:
        for name in ("relative", "absolute", "cosine"):
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and 0 < value < math.inf):
                raise PolicyError(f"a tolerance's {name} is a number over 0, not {value!r}"[:200])
        if self.relative is not None and self.relative >= 1:
            raise PolicyError(f"a relative tolerance is under 1, not {self.relative!r}")
        if self.cosine is not None and (self.cosine > 1 or self.relative is not None or self.absolute is not None):
            raise PolicyError("a tolerance's cosine is at most 1 and stands alone")
        if self.relative is None and self.absolute is None and self.cosine is None:
            raise PolicyError("a tolerance states relative, absolute or cosine")

    def allows(self, number: int | float) -> Fraction:
        """The greatest change of a finite number."""
        most = Fraction(0) if self.absolute is None else Fraction(self.absolute)
        return most if self.relative is None else max(most, Fraction(self.relative) * abs(Fraction(number)))


# For all numbers, or by path: "price", "items[*].price", "stops[0]", "*.lat", "**.lat" (at any depth), "**" (all).
Tolerances = Tolerance | Mapping[str, Tolerance]


def read(table: Any) -> dict[str, Tolerance]:
    """Tolerances of a table such as a policy file holds: {path: {"relative": 0.001}}. Raises PolicyError."""
    if not isinstance(table, Mapping):
        raise PolicyError("tolerances are a table of paths")
    found = {}
    for path, about in table.items():
        if not isinstance(about, Mapping) or set(about) - {"relative", "absolute", "cosine"}:
            raise PolicyError(f"the tolerance of {path!r} is a table of relative, absolute or cosine"[:200])
        try:
            steps(path)
            found[path] = Tolerance(**about)
        except PolicyError as error:
            raise PolicyError(f"the tolerance of {path!r}: {error}"[:300]) from None
    return found


def steps(path: str) -> Path:
    """The steps of a path; () for "" and "$", the whole value. Raises PolicyError."""
    if not isinstance(path, str):
        raise PolicyError(f"a path is a text, not {path!r}"[:200])
    inner = path[1:] if path[:1] == "$" and path[1:2] in ("", ".", "[") else path
    inner = inner[1:] if path[:2] == "$." else inner
    out: list[str | int] = []
    at = 0
    while at < len(inner):
        match = _STEP.match(inner, at)
        if match is None or (match["name"] is None and match["index"] is None):
            raise PolicyError(f"the path {path!r} is malformed at character {at}"[:200])
        if match["name"]:
            out.append(match["name"])
        else:
            out.append("*" if match["index"] == "*" else int(match["index"]))
        at = match.end()
    return tuple(out)


def rounded(value: Any, tolerances: Tolerances) -> Any:
    """A copy of a JSON value with its numbers rounded; where two paths fit, the first named counts.

    Every number is as near as its tolerance says, told by exact fractions. Raises PolicyError for a malformed path.
    """
    named = {EVERYWHERE: tolerances} if isinstance(tolerances, Tolerance) else dict(tolerances)
    rules = []
    for path, tolerance in named.items():
        if not isinstance(tolerance, Tolerance):
            raise PolicyError(f"the tolerance of {path!r} is a Tolerance, not {type(tolerance).__name__}"[:200])
        rules.append((steps(path), tolerance))
    if type(value) not in (dict, list):
        return _leaf(value, (), rules)
    root = value.copy()
    pending: list[tuple[Any, Path]] = []
    if not (type(root) is list and _vector(root, (), rules)):
        pending.append((root, ()))
    open_ids = {id(value)}  # containers met: one that contains itself is left for the encoder to refuse
    while pending:
        node, trail = pending.pop()
        for key, child in node.items() if type(node) is dict else enumerate(node):
            if type(child) in (dict, list):
                if id(child) in open_ids and len(trail) > 1000:
                    return value
                open_ids.add(id(child))
                copy = child.copy()
                node[key] = copy
                if not (type(copy) is list and _vector(copy, (*trail, key), rules)):
                    pending.append((copy, (*trail, key)))
            elif type(child) in (int, float):
                node[key] = _leaf(child, (*trail, key), rules)
    return root


def _fits(rule: Path, trail: Path) -> bool:
    """Whether a path leads to a place."""
    reach = {0}  # steps of the rule that may be done
    for place in trail:
        after = set()
        for at in _over(rule, reach):
            if at < len(rule):
                if rule[at] == EVERYWHERE:
                    after.add(at)
                elif rule[at] == "*" or (type(rule[at]) is type(place) and rule[at] == place):
                    after.add(at + 1)
        reach = after
    return len(rule) in set(_over(rule, reach))


def _over(rule: Path, reach: set[int]) -> Iterator[int]:
    """With every "**" that may stand for nothing passed over."""
    for at in reach:
        yield at
        while at < len(rule) and rule[at] == EVERYWHERE:
            at += 1
            yield at


def _rule(trail: Path, rules: list[tuple[Path, Tolerance]]) -> Tolerance | None:
    return next((tolerance for path, tolerance in rules if _fits(path, trail)), None)


def _leaf(number: Any, trail: Path, rules: list[tuple[Path, Tolerance]]) -> Any:
    if type(number) is not int and (type(number) is not float or not math.isfinite(number)):
        return number
    tolerance = _rule(trail, rules)
    if tolerance is None or tolerance.cosine is not None:
        return number
    near: Any = _whole if type(number) is int else _float
    # Of those near enough the shortest that stays as it is when it is rounded again: what was rounded is not moved.
    return next((one for one in near(number, tolerance) if next(iter(near(one, tolerance))) == one), number)


def _whole(number: int, tolerance: Tolerance) -> list[int]:
    """Itself and the nearest multiples of powers of ten that are near enough, from the greatest power."""
    most = tolerance.allows(number)
    found = [number]
    if most < 1 or number == 0:
        return found
    unit, limit = 10, 10
    while limit <= abs(number):
        limit *= 10  # over which it takes a digit more
    while unit <= 2 * most and unit <= 20 * abs(number):
        sign = 1 if number > 0 else -1
        near = sign * ((abs(number) + unit // 2) // unit * unit)
        if abs(near - number) <= most and abs(near) < limit:
            found.append(near)
        unit *= 10
    return found[::-1]


def _float(number: float, tolerance: Tolerance) -> Iterator[float]:
    """The decimals that are near enough and shorter, from the one of fewest digits; at last the number itself."""
    exact, length, most = Fraction(number), len(repr(number)), tolerance.allows(number)
    zero = math.copysign(0.0, number)
    if abs(exact) <= most and len(repr(zero)) < length:
        yield zero
    for digits in range(PLACES_MOST):
        near = float(f"{number:.{digits}e}")
        if math.isfinite(near) and abs(Fraction(near) - exact) <= most:
            if len(repr(near)) >= length:  # as are those of more digits
                break
            yield near
    yield number


def _vector(numbers: list[Any], trail: Path, rules: list[tuple[Path, Tolerance]]) -> bool:
    """Rounds a list of floats to one decimal step, in place, where its tolerance is a cosine."""
    if len(numbers) < 2 or not all(type(one) is float and math.isfinite(one) for one in numbers):
        return False
    tolerance = _rule(trail, rules)
    if tolerance is None or tolerance.cosine is None or tolerance.cosine == 1:
        return False
    for near in _lists(numbers, tolerance.cosine):
        if next(_lists(near, tolerance.cosine)) == near:
            numbers[:] = near
            break
    return True


def _lists(numbers: list[float], cosine: float) -> Iterator[list[float]]:
    """The lists on a decimal step that are near enough and shorter, from the coarsest; at last the list itself."""
    largest = max(map(abs, numbers))
    length = sum(len(repr(one)) for one in numbers)
    if 1e-100 < largest < 1e100:
        place = math.floor(math.log10(largest))
        for lower in range(PLACES_MOST):
            for step in STEPS:
                near = [_to_step(one, step, place - lower) for one in numbers]
                if not _is_near(numbers, near, cosine):
                    continue
                if sum(len(repr(one)) for one in near) >= length:  # as are those of finer steps
                    yield numbers
                    return
                yield near
    yield numbers


def _to_step(number: float, step: int, place: int) -> float:
    """The nearest multiple of step * 10**place, written with no more digits than that takes."""
    return float(f"{step * round(number / (step * 10.0**place))}e{place}")


def _is_near(one: list[float], other: list[float], bound: float) -> bool:
    a, b = math.fsum(x * x for x in one), math.fsum(x * x for x in other)
    if b <= 0:
        return False
    dot = math.fsum(x * y for x, y in zip(one, other, strict=True))
    return dot >= (bound + MARGIN) * math.sqrt(a) * math.sqrt(b) and abs(math.sqrt(b / a) - 1) <= NORM_KEPT


__all__ = ["Tolerance", "Tolerances", "read", "rounded"]
