"""Sample records of the project's own making: a fixed set that ships, and any number of generated ones.

More than half of the shipped set was written by hand, so that figures measured on it are not
a template's artefact.
"""

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any, NamedTuple

from nbmf.samples import generator

KINDS: tuple[str, ...] = tuple(generator.KINDS)


class Sample(NamedTuple):
    """A record's value, and the kind of record it stands for."""

    kind: str
    value: Any


def load() -> list[Sample]:
    """The shipped samples, in file order."""
    text = resources.files(__name__).joinpath("samples.jsonl").read_text(encoding="utf-8")
    lines = (json.loads(line) for line in text.splitlines())
    return [Sample(line["kind"], line["value"]) for line in lines]


def stream(seed: int = 0) -> Iterator[Sample]:
    """Generated samples without end; each kind comes round in turn."""
    source = generator.Source(seed)
    while True:
        for kind, draw in generator.KINDS.items():
            yield Sample(kind, draw(source))


def generate(n: int, seed: int = 0) -> list[Sample]:
    """The first `n` samples of `stream(seed)`: the same for the same seed, on every machine."""
    samples = stream(seed)
    return [next(samples) for _ in range(n)]
