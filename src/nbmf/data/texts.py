"""Files without lines of JSON, cut into records one by one: texts, logs, and arrays of JSON.

A reader gives the number of a record's first line (for JSON: its place in the array, from 1) and its value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from nbmf.codec.values import parse_json
from nbmf.errors import DataError, NbmfError

TEXT: Final = "text"
LINES: Final = "lines"
JSON: Final = "json"
PIECE: Final = 2000  # bytes of a piece of text, at most, unless one paragraph is longer
READ: Final = 1 << 16  # characters of a .json file that are read at once, at first
ITEM_MOST: Final = 64 << 20  # characters of one item of a .json file
_SPACE: Final = " \t\r\n"


class Bad(DataError):
    """A file has something that is no record. The message names file and place."""


def lines(path: Path, file: str, piece: int = PIECE) -> Iterator[tuple[int, str]]:
    """Every line that is not blank. Raises Bad: not UTF-8."""
    yield from ((number, text) for number, text in _decoded(path, file) if text.strip())


def pieces(path: Path, file: str, piece: int = PIECE) -> Iterator[tuple[int, str]]:
    """Paragraphs, joined while they have `piece` bytes at most; a heading of Markdown begins one. Raises Bad."""
    held: list[str] = []
    size, begun = 0, 1
    for number, paragraph in _paragraphs(path, file):
        length = len(paragraph.encode())
        if held and (size + length > piece or paragraph.startswith("#")):
            yield begun, "\n\n".join(held)
            held, size = [], 0
        begun = begun if held else number
        held.append(paragraph)
        size += length + 2
    if held:
        yield begun, "\n\n".join(held)


def items(path: Path, file: str, piece: int = PIECE) -> Iterator[tuple[int, Any]]:
    """Each item of an array, read one by one; any other value is one record. Raises Bad."""
    with path.open(encoding="utf-8-sig", newline="") as characters:
        try:
            yield from _items(characters, file)
        except UnicodeDecodeError as error:
            raise Bad(f"{file}: not UTF-8: {error.reason}") from None


def _decoded(path: Path, file: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line, its line end cut off."""
    with path.open("rb") as found:
        for number, line in enumerate(found, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise Bad(f"{file}, line {number}: not UTF-8: {error.reason} at byte {error.start}") from None


def _paragraphs(path: Path, file: str) -> Iterator[tuple[int, str]]:
    """What stands between blank lines; between the fences of Markdown blank lines end nothing."""
    held: list[str] = []
    begun, fenced = 0, False
    for number, text in _decoded(path, file):
        if text.lstrip().startswith("```"):
            fenced = not fenced
        if text.strip() or (fenced and held):
            begun = begun if held else number
            held.append(text)
        elif held:
            yield begun, "\n".join(held)
            held = []
    if held:
        yield begun, "\n".join(held)


def _items(characters: IO[str], file: str) -> Iterator[tuple[int, Any]]:
    scan = json.JSONDecoder().raw_decode
    ahead = _Ahead(characters)
    if ahead.skip() != "[":
        whole = ahead.rest(ITEM_MOST)
        try:
            yield 1, parse_json(whole)
        except NbmfError as error:
            raise Bad(f"{file}: {error}") from None
        return
    ahead.at += 1
    number = 0
    while ahead.skip() != "]" or number:
        number += 1
        wanted = READ
        while True:
            try:
                value, end = scan(ahead.text, ahead.at)
                # A number may go on in what has not been read, so its end must be seen.
                if end < len(ahead.text) or ahead.done:
                    break
            except (ValueError, RecursionError) as error:
                if ahead.done or ahead.held > ITEM_MOST:
                    why = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too long a number"
                    raise Bad(f"{file}, item {number}: not JSON: {why}") from None
            ahead.more(wanted)
            wanted *= 2
        ahead.at = end
        yield number, value
        after = ahead.skip()
        ahead.at += 1
        if after == "]":
            break
        if after != ",":
            raise Bad(f"{file}, after item {number}: neither a comma nor the array's end")
    else:
        ahead.at += 1
    if ahead.skip():
        raise Bad(f"{file}: there is more after the array's end")


class _Ahead:
    """Text from a file, as much of it as is needed."""

    def __init__(self, characters: IO[str]) -> None:
        self._characters = characters
        self.text, self.at, self.done = "", 0, False

    @property
    def held(self) -> int:
        return len(self.text) - self.at

    def more(self, count: int) -> None:
        """Reads on, and drops what was passed."""
        read = self._characters.read(count)
        self.done = not read
        self.text, self.at = self.text[self.at :] + read, 0

    def skip(self) -> str:
        """Passes over white space; the character there, "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text) or self.done:
                return self.text[self.at : self.at + 1]
            self.more(READ)

    def rest(self, most: int) -> str:
        """All that is left, and of more than `most` characters nothing."""
        while not self.done and self.held <= most:
            self.more(READ)
        return self.text[self.at :] if self.held <= most else ""


READERS: Final[dict[str, Callable[[Path, str, int], Iterator[tuple[int, Any]]]]] = {
    TEXT: pieces,
    LINES: lines,
    JSON: items,
}
