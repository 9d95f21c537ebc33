"""The policy: how records are coded, kept and aged, from one TOML file. docs/policy.md is its reference.

Nothing here is asked when a record is read: a blob says itself how it is decoded, so no policy makes one unreadable.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from nbmf.codec import bounds, numbers
from nbmf.codec.bounds import Bound
from nbmf.codec.numbers import Tolerance
from nbmf.errors import PolicyError
from nbmf.store.base import check_address

FIDELITIES: Final = ("lossless", "semantic")
PROFILES: Final = ("fast", "dense")  # from the quickest to the smallest
ENCODERS: Final = ("neural", "zstd", "stored", "stub")
# What this version can do; a policy that asks for more is refused before anything is written.
FIDELITIES_AVAILABLE: tuple[str, ...] = FIDELITIES
PROFILES_AVAILABLE: tuple[str, ...] = PROFILES

AUTO: Final = "auto"  # the profile: "fast" in every tier
NEVER: Final = "never"
UNLIMITED: Final = "unlimited"
PACK_SUFFIX: Final = ".nbp"

DURATION_UNITS: Final = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
SIZE_UNITS: Final = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
DURATION_MOST: Final = 36_500 * DURATION_UNITS["d"]
SIZE_MOST: Final = 1 << 60  # bytes
COUNT_MOST: Final = 1 << 60
BLOCK_LEAST: Final = 1 << 10  # bytes
BLOCK_MOST: Final = 1 << 26  # bytes; what a decoder gives out at once, unless told otherwise
HEAT_MOST: Final = 1_000_000

_SHOWN: Final = 60  # characters of a bad value in a message
_DURATION: Final = re.compile(r"([0-9]{1,15})(ms|w|d|h|m|s)")
_SIZE: Final = re.compile(r"([0-9]{1,18})(B|KiB|MiB|GiB|TiB)")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for the records of one tenant and class. Durations are milliseconds, sizes bytes; None is no limit.

    `index`: () indexes the whole value, names only those fields, and None nothing. `bound` (of vectors) and `tolerance`
    (of numbers in JSON, by path) are of fidelity "semantic".
    """

    fidelity: str = "lossless"
    bound: Bound = bounds.DEFAULT
    tolerance: tuple[tuple[str, Tolerance], ...] = ()
    domain: str = ""
    encoder: str = "neural"
    profile: str = AUTO
    neural_max: int = 1 << 20
    protected: bool = False
    index: tuple[str, ...] | None = ()
    hot: bool = True
    cold_after: int | None = 30 * DURATION_UNITS["d"]
    expire_after: int | None = None
    promote_heat: float | None = 2.0
    heat_half_life: int = DURATION_UNITS["d"]
    reencode: bool = True
    learn: bool = False
    quota_records: int | None = None
    quota_bytes: int | None = None

    def profile_in(self, tier: str) -> str:
        """ "fast" or "dense": the profile of what is coded for a tier, "warm" or "cold".

        A reader of an archive decodes whole blocks for one record, so these are always fast.
        """
        return PROFILES[0] if self.profile == AUTO or tier == "cold" else self.profile


@dataclass(frozen=True, slots=True)
class Rollout:
    """The neural encoder's canary. `percent` is of keys, `compare_percent` of reads while in shadow; both 0 to 100."""

    percent: float = 100
    tenants: frozenset[str] = frozenset()
    shadow: bool = False
    compare_percent: float = 1
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Cache:
    """The hot tier. `bytes` is what decoded values may take of memory; 0 is no cache."""

    bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Archive:
    """The cold tier. `block_bytes`: raw bytes coded together; `primer_bytes`: those of an archive's first block.

    The others are coded after the first one, unless `primer_bytes` is 0. A read of one record decodes both at most, or
    the first and a record that is larger than a block.
    `dead_percent`: an archive is written anew when at least so many of 100 records in it are deleted or superseded.
    """

    block_bytes: int = 20 << 10
    primer_bytes: int = 12 << 10
    dead_percent: float = 30


@dataclass(frozen=True, slots=True)
class Section:
    """One section's own settings, in the order of `Rules`. "" for `tenant` or `cls` is any; for both, [default]."""

    tenant: str
    cls: str
    settings: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Policy:
    """A policy as read and checked. Immutable, comparable, picklable. Made by `load`, `parse`, `of` and `default`."""

    sections: tuple[Section, ...] = ()  # by (tenant, cls), each pair once
    rollout: Rollout = Rollout()
    cache: Cache = Cache()
    archive: Archive = Archive()

    @classmethod
    def default(cls) -> Policy:
        """The policy of a store that was given none."""
        return cls()

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """The policy in a file. Relative paths of packs in it start at the file's folder. Raises PolicyError."""
        path = Path(path)
        try:
            text = path.read_bytes().decode("utf-8")
        except OSError as error:
            raise PolicyError(f"{path}: the policy cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise PolicyError(f"{path}: not UTF-8 at byte {error.start}") from None
        return cls.parse(text, str(path), path.absolute().parent)

    @classmethod
    def parse(cls, text: str, source: str = "policy", folder: Path | None = None) -> Policy:
        """The policy in a TOML text; `source` names it in messages. Raises PolicyError."""
        try:
            settings = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: TOML's own, and of an integer far too long
            raise PolicyError(f"{source}: not TOML: {' '.join(str(error).split())}") from None
        return cls.of(settings, source, folder)

    @classmethod
    def of(cls, settings: Mapping[str, Any], source: str = "policy", folder: Path | None = None) -> Policy:
        """The policy in a mapping of the form that TOML gives. Raises PolicyError."""
        return _Reading(source, folder).policy(settings)

    def rules(self, tenant: str, cls: str) -> Rules:
        """What holds for a tenant's records of a class ("" is none), from the sections that name them, if any do."""
        own = self._by_pair
        if not own:
            return _DEFAULT_RULES
        # A tenant or class that no section names is as good as none, which bounds `_merged`.
        pair = (tenant if tenant in self._tenants else "", cls if cls in self._classes else "")
        merged = self._merged.get(pair)
        if merged is None:
            settings: dict[str, Any] = {}
            for place in (("", ""), ("", pair[1]), (pair[0], ""), pair):
                settings.update(own.get(place, ()))
            merged = self._merged[pair] = Rules(**settings)
        return merged

    def check_quota(self, tenant: str, records: int, size: int) -> None:
        """Raises PolicyError if a tenant may not hold that many records, or that many bytes of blobs."""
        rules = self.rules(tenant, "")
        if rules.quota_records is not None and records > rules.quota_records:
            raise PolicyError(f"tenant {show(tenant)} may hold {rules.quota_records} records, not {records}")
        if rules.quota_bytes is not None and size > rules.quota_bytes:
            raise PolicyError(f"tenant {show(tenant)} may hold {rules.quota_bytes} bytes, not {size}")

    def to_toml(self) -> str:
        """TOML that `parse` makes this policy of again. Sections hold what was set; the other tables, everything."""
        parts = [_table(_header(one), one.settings, SETTINGS) for one in self.sections]
        parts += [_table(name, tuple(_items(getattr(self, name))), kinds) for name, kinds in TABLES.items()]
        return "\n".join(parts)

    @cached_property
    def _by_pair(self) -> dict[tuple[str, str], tuple[tuple[str, Any], ...]]:
        return {(one.tenant, one.cls): one.settings for one in self.sections}

    @cached_property
    def _tenants(self) -> frozenset[str]:
        return frozenset(one.tenant for one in self.sections)

    @cached_property
    def _classes(self) -> frozenset[str]:
        return frozenset(one.cls for one in self.sections)

    @cached_property
    def _merged(self) -> dict[tuple[str, str], Rules]:
        return {}


_DEFAULT_RULES: Final = Rules()


# -- text --------------------------------------------------------------------------------------------------------------


def show(value: Any) -> str:
    """A value for a message: as TOML would write it or nearly so, on one line, cut."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
        if not text.isprintable():
            text = json.dumps(value, default=str, skipkeys=True)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or a value without end
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _with_unit(amount: int, units: Mapping[str, int]) -> str:
    """With the largest unit, of those from large to small, that divides it: 0 has the smallest."""
    name, unit = next(
        ((name, unit) for name, unit in units.items() if amount and amount % unit == 0), list(units.items())[-1]
    )
    return f"{amount // unit}{name}"


def _either(names: Collection[str]) -> str:
    shown = [f'"{name}"' for name in names]
    return f"{', '.join(shown[:-1])} or {shown[-1]}" if len(shown) > 1 else shown[0]


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it: no lone surrogate."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _key_toml(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else show(key)


def _header(section: Section) -> str:
    path = [*(("tenant", section.tenant) if section.tenant else ()), *(("class", section.cls) if section.cls else ())]
    return ".".join(key if _BARE_KEY.fullmatch(key) else _text_toml(key) for key in path or ["default"])


def _items(table: Any) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(table, field.name)) for field in fields(table))


def _table(header: str, settings: tuple[tuple[str, Any], ...], kinds: Mapping[str, Kind]) -> str:
    return f"[{header}]\n" + "".join(f"{name} = {kinds[name].write(value)}\n" for name, value in settings)


# -- settings: what each may be ----------------------------------------------------------------------------------------


class _Refused(Exception):
    """A value is not `allowed`, which completes the sentence "<the key> is …"."""

    def __init__(self, allowed: str) -> None:
        super().__init__(allowed)
        self.allowed = allowed


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of setting: from a value of TOML to ours (raises _Refused), and from ours to the text of TOML."""

    read: Callable[[Any], Any]
    write: Callable[[Any], str]


def _choice(names: tuple[str, ...], available: Callable[[], Collection[str]] | None = None) -> Kind:
    def read(value: Any) -> str:
        usable = [name for name in names if available is None or name in available()]
        if type(value) is str and value in usable:
            return value
        missing = f" ({show(value)} is not available in this version)" if value in names else ""
        raise _Refused(_either(usable) + missing)

    return Kind(read, _text_toml)


def _read_switch(value: Any) -> bool:
    if type(value) is not bool:
        raise _Refused("true or false")
    return value


def _quantity(
    pattern: re.Pattern[str], units: Mapping[str, int], least: int, most: int, example: str, none: str | None
) -> Kind:
    """A number with a unit; `none`, if any, is the word for None."""
    allowed = f"{example}, from {_with_unit(least, units)} to {_with_unit(most, units)}"
    allowed += f', or "{none}"' if none else ""

    def read(value: Any) -> int | None:
        if none is not None and value == none:
            return None
        found = pattern.fullmatch(value) if type(value) is str else None
        amount = int(found[1]) * units[found[2]] if found else -1
        if not least <= amount <= most:
            raise _Refused(allowed)
        return amount

    return Kind(read, lambda amount: f'"{none}"' if amount is None else f'"{_with_unit(amount, units)}"')


def _duration(least: int = 0, none: str | None = None) -> Kind:
    return _quantity(_DURATION, DURATION_UNITS, least, DURATION_MOST, 'a duration such as "30d", "12h" or "90s"', none)


def _size(least: int = 0, most: int = SIZE_MOST, none: str | None = None) -> Kind:
    return _quantity(_SIZE, SIZE_UNITS, least, most, 'a size such as "64MiB" or "512KiB"', none)


def _number(least: float, most: float, whole: bool = False, none: str | None = None) -> Kind:
    allowed = f"a {'whole ' if whole else ''}number from {least} to {most}" + (f', or "{none}"' if none else "")

    def read(value: Any) -> float | None:
        if none is not None and value == none:
            return None
        # type, not isinstance: true is no number. The comparison is false for NaN.
        if type(value) not in ((int,) if whole else (int, float)) or not least <= value <= most:
            raise _Refused(allowed)
        return value  # type: ignore[no-any-return]

    return Kind(read, lambda number: f'"{none}"' if number is None else repr(number))


def _read_text(value: Any) -> str:
    if type(value) is not str or not _is_unicode(value):
        raise _Refused("a text")
    return value


def _read_texts(what: str) -> Callable[[Any], list[str]]:
    def read(value: Any) -> list[str]:
        if type(value) not in (list, tuple) or not all(type(one) is str and one and _is_unicode(one) for one in value):
            raise _Refused(what)
        return list(value)

    return read


def _read_domain(value: Any) -> str:
    allowed = f'the name of a domain pack, a path that ends in {PACK_SUFFIX}, or "" for none'
    if type(value) is not str or not _is_unicode(value) or "\0" in value or value != value.strip():
        raise _Refused(allowed)
    if not value.endswith(PACK_SUFFIX) and ("/" in value or "\\" in value):
        raise _Refused(allowed)
    return value


def _read_index(value: Any) -> tuple[str, ...] | None:
    if type(value) is bool:
        return () if value else None
    allowed = 'true, false, or a list of fields such as ["text", "notes.title"]'
    paths = _read_texts(allowed)(value)
    if not paths or not all(all(path.split(".")) for path in paths):
        raise _Refused(allowed)
    return tuple(dict.fromkeys(paths))


def _read_bound(value: Any) -> Bound:
    allowed = "a table of cosine, max_error or both, such as { cosine = 0.999 }"
    if not isinstance(value, Mapping) or not value or set(value) - {"cosine", "max_error"}:
        raise _Refused(allowed)
    if any(type(one) not in (int, float) for one in value.values()):
        raise _Refused(allowed)
    try:
        return Bound(value.get("cosine"), value.get("max_error"))
    except PolicyError as error:
        raise _Refused(f"{allowed} ({error})") from None


def _bound_toml(bound: Bound) -> str:
    parts = [("cosine", bound.cosine), ("max_error", bound.max_error)]
    return f"{{ {', '.join(f'{name} = {value!r}' for name, value in parts if value is not None)} }}"


def _read_tolerance(value: Any) -> tuple[tuple[str, Tolerance], ...]:
    allowed = 'a table of paths, such as { "**.lat" = { absolute = 0.0001 } }'
    try:
        read = numbers.read(value)
    except PolicyError as error:
        raise _Refused(f"{allowed} ({error})") from None
    if not all(map(_is_unicode, read)):
        raise _Refused(allowed)
    return tuple(read.items())


def _tolerance_toml(tolerance: tuple[tuple[str, Tolerance], ...]) -> str:
    parts = []
    for path, one in tolerance:
        named = ((name, getattr(one, name)) for name in ("relative", "absolute", "cosine"))
        inner = ", ".join(f"{name} = {value!r}" for name, value in named if value is not None)
        parts.append(f"{_text_toml(path)} = {{ {inner} }}")
    return f"{{ {', '.join(parts)} }}" if parts else "{}"


def _text_toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # which JSON leaves as it is


def _list_toml(texts: Collection[str]) -> str:
    return f"[{', '.join(map(_text_toml, texts))}]"


_SWITCH: Final = Kind(_read_switch, lambda on: "true" if on else "false")
_PERCENT: Final = _number(0, 100)

# By the names of `Rules`; every section may set any of them, save those of tenants.
SETTINGS: Final[dict[str, Kind]] = {
    "fidelity": _choice(FIDELITIES, lambda: FIDELITIES_AVAILABLE),
    "bound": Kind(_read_bound, _bound_toml),
    "tolerance": Kind(_read_tolerance, _tolerance_toml),
    "domain": Kind(_read_domain, _text_toml),
    "encoder": _choice(ENCODERS),
    "profile": _choice((AUTO, *PROFILES), lambda: (AUTO, *PROFILES_AVAILABLE)),
    "neural_max": _size(),
    "protected": _SWITCH,
    "index": Kind(_read_index, lambda paths: _list_toml(paths) if paths else "true" if paths == () else "false"),
    "hot": _SWITCH,
    "cold_after": _duration(none=NEVER),
    "expire_after": _duration(least=1, none=NEVER),
    "promote_heat": _number(0.01, HEAT_MOST, none=NEVER),
    "heat_half_life": _duration(least=1000),
    "reencode": _SWITCH,
    "learn": _SWITCH,
    "quota_records": _number(0, COUNT_MOST, whole=True, none=UNLIMITED),
    "quota_bytes": _size(none=UNLIMITED),
}
OF_TENANTS: Final = ("learn", "quota_records", "quota_bytes")  # of a tenant as a whole: no section of a class has them

TABLES: Final[dict[str, dict[str, Kind]]] = {
    "rollout": {
        "percent": _PERCENT,
        "tenants": Kind(
            lambda value: frozenset(_read_texts('a list of tenants such as ["acme", "ann"]')(value)),
            lambda names: _list_toml(sorted(names)),
        ),
        "shadow": _SWITCH,
        "compare_percent": _PERCENT,
        "salt": Kind(_read_text, _text_toml),
    },
    "cache": {"bytes": _size()},
    "archive": {
        "block_bytes": _size(BLOCK_LEAST, BLOCK_MOST),
        "primer_bytes": _size(0, BLOCK_MOST),
        "dead_percent": _PERCENT,
    },
}
_TOP: Final = ("default", "class", "tenant", *TABLES)


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reading:
    """One mapping being read; every message starts with `source`, and the path of the key at fault follows."""

    source: str
    folder: Path | None

    def policy(self, top: Mapping[str, Any]) -> Policy:
        if not isinstance(top, Mapping):
            raise PolicyError(f"{self.source}: a policy is a table, not {show(top)}")
        self.known((), top, _TOP, "section")
        sections = [Section("", "", self.settings(("default",), top.get("default", {}), SETTINGS))]
        sections += self.classes("", ("class",), top.get("class", {}))
        for tenant, table in self.named(("tenant",), top.get("tenant", {})):
            path = ("tenant", tenant)
            own = {key: value for key, value in self.table(path, table).items() if key != "class"}
            sections.append(Section(tenant, "", self.settings(path, own, SETTINGS, ("class",))))
            sections += self.classes(tenant, (*path, "class"), table.get("class", {}))
        made = Policy(
            tuple(sorted((one for one in sections if one.settings), key=lambda one: (one.tenant, one.cls))),
            Rollout(**dict(self.settings(("rollout",), top.get("rollout", {}), TABLES["rollout"]))),
            Cache(**dict(self.settings(("cache",), top.get("cache", {}), TABLES["cache"]))),
            Archive(**dict(self.settings(("archive",), top.get("archive", {}), TABLES["archive"]))),
        )
        self.agree(made)
        return made

    def classes(self, tenant: str, path: tuple[str, ...], table: Any) -> Iterator[Section]:
        kinds = {name: kind for name, kind in SETTINGS.items() if name not in OF_TENANTS}
        for cls, own in self.named(path, table):
            for name in OF_TENANTS:
                if name in self.table((*path, cls), own):
                    raise self.fault((*path, cls, name), "counts a whole tenant: set it in [default] or [tenant.NAME]")
            yield Section(tenant, cls, self.settings((*path, cls), own, kinds))

    def named(self, path: tuple[str, ...], value: Any) -> Iterator[tuple[str, Any]]:
        """The tables by name of [class] or [tenant]."""
        for name, table in self.table(path, value).items():
            try:
                check_address((name,))
            except PolicyError as error:
                raise self.fault(path, f"has a name that no record can have: {error}") from None
            yield name, table

    def table(self, path: tuple[str, ...], value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self.fault(path, f"is a table, not {show(value)}")
        return value

    def settings(
        self, path: tuple[str, ...], value: Any, kinds: Mapping[str, Kind], also: tuple[str, ...] = ()
    ) -> tuple[tuple[str, Any], ...]:
        """The settings of a table, read, in the order of `kinds`."""
        table = self.table(path, value)
        self.known(path, table, (*kinds, *also), "setting")
        return tuple((name, self.setting((*path, name), kinds[name], table[name])) for name in kinds if name in table)

    def setting(self, path: tuple[str, ...], kind: Kind, value: Any) -> Any:
        try:
            read = kind.read(value)
        except _Refused as refused:
            raise self.fault(path, f"is {refused.allowed}, not {show(value)}") from None
        if path[-1] == "domain" and self.folder is not None and read.endswith(PACK_SUFFIX):
            return str(self.folder / read)
        return read

    def known(self, path: tuple[str, ...], table: Mapping[str, Any], names: tuple[str, ...], what: str) -> None:
        for key in table:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
                raise self.fault((*path, str(key)), f"is not a {what}; {hint}")

    def agree(self, policy: Policy) -> None:
        """Settings that are fine alone and not together, wherever each of them was set."""
        if all(value == "lossless" for one in policy.sections for name, value in one.settings if name == "fidelity"):
            return
        tenants = sorted({"", *(one.tenant for one in policy.sections)})
        classes = sorted({"", *(one.cls for one in policy.sections)})
        for tenant in tenants:
            for cls in classes:
                rules = policy.rules(tenant, cls)
                if rules.protected and rules.fidelity != "lossless":
                    path = (("tenant", tenant) if tenant else ()) + (("class", cls) if cls else ())
                    raise self.fault((*(path or ("default",)), "protected"), 'is true, and then fidelity is "lossless"')

    def fault(self, path: tuple[str, ...], what: str) -> PolicyError:
        return PolicyError(f"{self.source}: {'.'.join(map(_key_toml, path))} {what}")


__all__ = ["Archive", "Cache", "Policy", "Rollout", "Rules", "Section"]
