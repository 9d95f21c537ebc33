"""Strings that have the form of personal data or of secrets. The form is all that is looked at: a match is no proof.

| kind  | form                                                                                                     |
|-------|----------------------------------------------------------------------------------------------------------|
| email | name@host.tld                                                                                            |
| phone | + and 8 to 15 digits; (nnn) nnn-nnnn; nnn-nnn-nnnn; or 0 and groups of digits                            |
| card  | 13 to 19 digits, in groups or not, from 2 to 6 on, whose Luhn sum is right                               |
| iban  | country, check digits that are right, and as many characters as that country's have                     |
| key   | the known prefixes of API keys, JSON web tokens, private keys, and `token = ...` of 16 characters or more |
| ip    | an IPv4 or IPv6 address, but this machine's own and those of no machine                                  |
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

KINDS: Final = ("key", "email", "iban", "card", "ip", "phone")  # an earlier one is found first, and keeps its place
IBAN_SIZES: Final = {
    "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20, "ES": 24, "FI": 18,
    "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "SA": 24, "SE": 24,
    "SI": 19, "SK": 24, "TR": 26, "AE": 23,
}  # fmt: skip
PREFIXES: Final = (
    "sk-", "pk_", "sk_", "rk_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "AKIA", "ASIA",
    "xoxb-", "xoxp-", "xoxa-", "xoxr-", "xoxs-", "AIza", "hf_", "npm_", "pypi-", "eyJ",
)  # fmt: skip
# Whether a text may hold the kind at all: cheap, and true of few.
_DIGITS: Final = re.compile(r"\d[\d .()/-]{5,}\d")
_ASSIGNED: Final = re.compile(r"(?i)key|token|secret|passw")

_EMAIL: Final = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_CARD: Final = re.compile(r"(?<![\w.+-])[2-6](?:[ -]?\d){12,18}(?![\w-]|\.\d)")
_PHONE: Final = re.compile(
    r"(?<![\w.+-])(?:\+[1-9](?:[ .()/-]{0,2}\d){7,14}|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}([ .-])\d{3}\1\d{4}"
    r"|(?<!\d[ -])0\d{1,4}[ /-]\d{3,4}[ -]?\d{3,5})(?![\w-]|\.\d)"
)
_IBAN: Final = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
_IPV4: Final = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)")
_IPV6: Final = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){3,7}(?![\w:])")
_KEY: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:sk-[\w-]{20,200}|[prs]k_(?:live|test)_\w{16,200}|gh[opusr]_[A-Za-z0-9]{36,255}"
    r"|github_pat_\w{22,255}|glpat-[\w-]{20,64}|A[KS]IA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,200}|AIza[\w-]{35}"
    r"|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{32,255}|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,1000})"
)
_PRIVATE: Final = re.compile(r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[A-Za-z0-9+/=\s:,-]{0,8000}")
_GIVEN: Final = re.compile(
    r"(?i)(?:api[_-]?key|secret|token|passw(?:or)?d)[\"']?\s{0,4}[:=]\s{0,4}[\"']?([\w+/=.~-]{16,200})"
)

Span = tuple[str, int, int]  # kind, first character, one past the last


def spans(text: str) -> list[Span]:
    """What a text has of these forms, in order; none overlaps another. What `masked` has been over is none."""
    found: list[Span] = []
    for kind in KINDS:
        for first, last in _FINDERS[kind](text):
            if any(first < end and begin < last for _, begin, end in found):
                continue
            if masked(text[first:last]) != text[first:last]:
                found.append((kind, first, last))
    return sorted(found, key=lambda span: span[1])


def masked(text: str) -> str:
    """Letters as x and X, digits as 0, all else as it is: the form stays, for a model to learn."""
    return "".join("0" if c.isdigit() else ("X" if c.isupper() else "x") if c.isalpha() else c for c in text)


def mask(text: str) -> str:
    """The text with all of these forms masked."""
    for _, first, last in spans(text):
        text = text[:first] + masked(text[first:last]) + text[last:]
    return text


def found_in(value: Any) -> dict[str, int]:
    """How many of each kind a value has, in its texts, keys and whole numbers."""
    text = value if type(value) is str else "\n".join(_texts(value))
    counts: dict[str, int] = {}
    for kind, _, _ in spans(text):
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def mask_value(value: Any) -> Any:
    """The value with all of these forms masked; of keys that become the same the last stays."""
    kind = type(value)
    if kind is str:
        return mask(value)
    if kind is int and spans(str(value)):
        return 10 ** (len(str(value)) - 1)
    if kind is list:
        return [mask_value(item) for item in value]
    if kind is dict:
        return {mask(key): mask_value(item) for key, item in value.items()}
    return value


def _texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        kind = type(one)
        if kind is str:
            yield one
        elif kind is int:
            yield str(one) if abs(one) < 10**20 else ""
        elif kind is list:
            waiting += reversed(one)
        elif kind is dict:
            for key, item in reversed(one.items()):
                waiting += (item, key)


# -- the kinds ---------------------------------------------------------------------------------------------------------


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))


def _cards(text: str) -> Iterator[tuple[int, int]]:
    if _DIGITS.search(text):
        for match in _CARD.finditer(text):
            digits = [int(c) for c in match.group() if c.isdigit()]
            if luhn(digits) and len(set(digits)) > 1:
                yield match.span()


def luhn(digits: list[int]) -> bool:
    """Whether the check digit of a card's number, its last, is right."""
    total = sum(digits[-1::-2])
    return (total + sum(digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2])) % 10 == 0


def _phones(text: str) -> Iterator[tuple[int, int]]:
    if _DIGITS.search(text):
        yield from (match.span() for match in _PHONE.finditer(text))


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        size = IBAN_SIZES.get(match.group()[:2])
        if size is None:
            continue
        code, last = "", match.start()
        for last in range(match.start(), match.end()):
            code += text[last].strip()
            if len(code) == size:
                break
        if len(code) == size and int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1:
            yield match.start(), last + 1


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    for form, needed in ((_IPV4, "."), (_IPV6, ":")):
        if text.count(needed) < 3:
            continue
        for match in form.finditer(text):
            try:
                address = ipaddress.ip_address(match.group())
            except ValueError:
                continue
            if not (address.is_loopback or address.is_unspecified or address.is_multicast or address.is_reserved):
                yield match.span()


def _keys(text: str) -> Iterator[tuple[int, int]]:
    if any(prefix in text for prefix in PREFIXES):
        yield from (match.span() for match in _KEY.finditer(text))
    if "-----BEGIN" in text:
        yield from (match.span() for match in _PRIVATE.finditer(text))
    if _ASSIGNED.search(text):
        for match in _GIVEN.finditer(text):
            secret = match.group(1)
            if any(c.isdigit() for c in secret) and any(c.isalpha() for c in secret):
                yield match.span(1)


_FINDERS: Final[dict[str, Callable[[str], Iterator[tuple[int, int]]]]] = {
    "key": _keys,
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "ip": _addresses,
    "phone": _phones,
}
