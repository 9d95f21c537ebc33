"""What a blob says of itself, and what each byte of its value costs under the model."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nbmf.codec import format, kernel
from nbmf.codec.codec import Codec
from nbmf.codec.model import Model, Pack, load_model, load_pack, lookup
from nbmf.codec.values import BYTES, VALUE_TYPES, VECTOR, to_raw

SHOWN: Final = 2000  # bytes of the heat line; less than a segment, whose costs are found in one call
COST_UNIT: Final = 256  # costs are in 1/256 bit
# From a byte the model was sure of to one it did not see coming: upper bound in bits, colour, mark without colours.
HEAT: Final = (
    (0.25, "grey50", " "),
    (1.0, "bright_blue", "."),
    (2.0, "green", ":"),
    (4.0, "yellow", "+"),
    (6.0, "dark_orange", "*"),
    (float("inf"), "bold red", "#"),
)
VISIBLE: Final = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class Inspection:
    """A blob taken apart. `bits[i]` is the cost of byte i of `raw`, for the first SHOWN bytes."""

    size: int
    method: str
    value_type: str
    profile: str | None
    self_describing: bool
    segmented: bool
    check: str
    id: str | None
    model: str
    pack: str | None
    framing_bytes: int
    payload_bytes: int
    raw_bytes: int
    ratio: float
    bits_per_byte: float
    end_bits: float | None  # cost of the end symbol; None when not all of the value was costed
    bits: list[float]
    raw: bytes
    is_text: bool

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self)
        for absent in ("raw", "is_text"):
            del fields[absent]
        return fields


def sources(blob: format.Blob, model: str, domain: str | None) -> tuple[Model, Pack | None]:
    """The model and pack that the blob was made with: those it names, else the ones given."""
    if blob.id:
        given = load_pack(domain) if domain else None
        own = given.id if given else load_model(model).id
        if own[: format.ID_SIZE] != blob.id:
            return lookup(blob.id)
    if blob.method == format.PLAIN:
        return load_model(model), None
    pack = load_pack(domain) if domain else None
    return load_model(model), pack


def costs(model: Model, pack: Pack | None, raw: bytes, value_type: int, profile: int) -> list[float]:
    """Bits of each byte of `raw` (at most a segment), then of the end symbol."""
    coder = kernel.load(memoryview(model.buffer), memoryview(pack.buffer) if pack else None)
    return costs_by(coder, raw, value_type, profile)


def costs_by(coder: kernel.Coder, raw: bytes, value_type: int, profile: int) -> list[float]:
    """As `costs`, by a model and pack that are loaded."""
    units = np.frombuffer(coder.costs(raw, value_type, profile), dtype="<u2")
    return [float(unit) / COST_UNIT for unit in units]


def examine(data: bytes, bare: bool = False, model: str = "base", domain: str | None = None) -> Inspection:
    """Decode a blob and cost its value."""
    blob = format.parse(data, bare=bare)
    raw = to_raw(Codec(model=model, domain=domain).decode(data, bare=bare), allow_nan=True)[1]
    found, pack = sources(blob, model, domain)
    head = raw[:SHOWN]
    bits = costs(found, pack, head, blob.value_type, blob.profile)
    whole = len(head) == len(raw)
    neural = blob.method >= format.NEURAL
    return Inspection(
        size=len(data),
        method=format.METHODS[blob.method],
        value_type=VALUE_TYPES[blob.value_type],
        profile=format.PROFILES[blob.profile] if neural else None,
        self_describing=blob.self_describing,
        segmented=blob.segmented,
        check=f"{blob.check:0{8 if blob.self_describing else 4}x}",
        id=blob.id.hex() or None,
        model=found.id.hex()[: 2 * format.ID_SIZE],
        pack=pack.id.hex()[: 2 * format.ID_SIZE] if pack else None,
        framing_bytes=len(data) - len(blob.payload),
        payload_bytes=len(blob.payload),
        raw_bytes=len(raw),
        ratio=len(raw) / len(data),
        bits_per_byte=8 * len(data) / len(raw) if raw else 0.0,
        end_bits=bits[-1] if whole else None,
        bits=bits[:-1],
        raw=head,
        is_text=blob.value_type not in (BYTES, VECTOR),
    )


def pieces(found: Inspection) -> Iterator[tuple[str, float, bool]]:
    """What to show for each character (of bytes and vectors: each byte), its bits a byte, and whether a line ends."""
    return pieces_of(found.raw, found.bits, found.is_text)


def pieces_of(raw: bytes, bits: Sequence[float], is_text: bool) -> Iterator[tuple[str, float, bool]]:
    """As `pieces`, of raw bytes and what each costs."""
    if not is_text:
        for place, byte in enumerate(raw):
            yield f"{byte:02x} ", bits[place], place % 32 == 31
        return
    place = 0
    for character in raw.decode("utf-8", "surrogateescape"):
        # An escaped character is one byte: of a lone surrogate, or of what SHOWN cut apart.
        length = 1 if "\udc80" <= character <= "\udcff" else len(character.encode())
        own = bits[place : place + length]
        place += length
        shown = VISIBLE.get(character, character if character.isprintable() else "·")
        yield shown, sum(own) / max(1, len(own)), character == "\n"


def level(bits: float) -> tuple[str, str]:
    """The colour and the mark of a cost."""
    return next((colour, mark) for bound, colour, mark in HEAT if bits < bound)


def heat(found: Inspection) -> Text:
    """The value, each character in the colour of its cost."""
    line = Text()
    for shown, bits, ends in pieces(found):
        line.append(shown, style=level(bits)[0])
        if ends:
            line.append("\n")
    return line


def marked(found: Inspection, width: int) -> list[str]:
    """The value in lines of `width` cells, each followed by a line of marks: for where there are no colours."""
    lines: list[str] = []
    shown_line = mark_line = ""
    for shown, bits, ends in pieces(found):
        cells = cell_len(shown)
        if cell_len(shown_line) + cells > width:
            lines += [shown_line, mark_line.rstrip()]
            shown_line = mark_line = ""
        shown_line += shown
        mark_line += level(bits)[1] * cells
        if ends:
            lines += [shown_line, mark_line.rstrip()]
            shown_line = mark_line = ""
    return [*lines, shown_line, mark_line.rstrip()] if shown_line else lines


def scale(colours: bool) -> Text:
    """The legend of the heat line."""
    legend = Text("bits a byte: ")
    low = 0.0
    for bound, colour, mark in HEAT:
        span = f"{low:g}–{bound:g}" if bound != float("inf") else f"{low:g} and more"
        legend.append(span if colours else f"{mark!r} {span}", style=colour)
        legend.append("  ")
        low = bound
    return legend


def rows(found: Inspection) -> Sequence[tuple[str, str]]:
    """What the blob says, as a person reads it."""
    framing = "self-describing" if found.self_describing else "bare"
    method = f"{found.method}, {found.profile} profile" if found.profile else found.method
    names = f"model {found.model}" + (f" with pack {found.pack}" if found.pack else "")
    facts = [
        ("stored", f"{found.size:,} bytes: {found.framing_bytes} of framing and {found.payload_bytes:,} of payload"),
        ("raw", f"{found.raw_bytes:,} bytes of {found.value_type}"),
        ("ratio", f"{found.ratio:.2f}× ({found.bits_per_byte:.3f} bits a byte)"),
        ("method", method + (", in segments" if found.segmented else "")),
        ("framing", f"{framing}, check {found.check}" + (f", id {found.id}" if found.id else "")),
        ("costs by", names),
    ]
    if found.end_bits is not None:
        facts.append(("end", f"{found.end_bits:.2f} bits"))
    return facts


def render(found: Inspection, out: Console) -> None:
    """The facts, then the heat line."""
    grid = Table(show_header=False, box=None)
    for name, fact in rows(found):
        grid.add_row(Text(name, style="dim"), fact)
    out.print(grid)
    out.print()
    colours = out.color_system is not None
    if colours:
        out.print(heat(found))
    else:
        for line in marked(found, out.width):
            out.print(Text(line), soft_wrap=True)
    if found.raw_bytes > len(found.raw):
        out.print(Text(f"… and {found.raw_bytes - len(found.raw):,} bytes more", style="dim"))
    out.print()
    if found.method not in format.METHODS[format.NEURAL :]:
        out.print(Text(f"The value is {found.method}: this is what the model would have spent.", style="dim"))
    out.print(scale(colours))
