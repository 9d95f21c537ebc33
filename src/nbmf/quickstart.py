"""The first minute with NBMF: the shipped samples beside the usual compressors, vectors, then a store of them all."""

import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

import zstandard
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nbmf import quickstart_store, quickstart_vectors, samples
from nbmf.codec import kernel
from nbmf.codec.codec import Codec
from nbmf.codec.values import to_raw
from nbmf.report import Tick

PEER_LEVEL: Final = 19
DICTIONARY_SIZES: Final = (2048, 4096, 8192, 16384)  # tried in turn; the best is kept
ROUNDS: Final = {"c": 3, "numpy": 1}  # times each record is encoded and decoded for the latencies, by kernel
REFERENCE_LIMIT: Final = 1  # records a kind when only the NumPy reference is there
WIDE: Final = 104  # columns below which the latencies get a table of their own
BAR: Final = 10  # cells of the longest bar

SLOW: Final = (
    "The C kernel isn't built here, so the NumPy reference did the work, on a few short records: the bytes are the "
    "same, the times are not. With a C compiler, install again."
)
DICTIONARY: Final = "each half of the samples with the best of several dictionaries learned from the other half"

NEXT: Final = (
    ("a record into a store of your own", """nbmf put agent.nbmf users/ann drink '{"text": "Prefers green tea"}'"""),
    ("find it by what it means", "nbmf search agent.nbmf users --query 'what to drink?'"),
    ("bring what you have, every record verified", "nbmf migrate records.jsonl agent.nbmf"),
    ("learn from your own records: smaller still", "nbmf adapt --store agent.nbmf --tenant users"),
    ("the codec alone; then nbmf inspect tea.nb", "echo 'Prefers green tea' | nbmf encode - --out tea.nb"),
)

T = TypeVar("T")

LABELS: Final = {
    "chat": "chat turns",
    "fact": "user facts",
    "tool_call": "tool calls",
    "tool_result": "tool results",
    "note": "notes",
    "log": "log lines",
    "conversation": "conversations",
    "code": "code",
    "language": "other languages",
    "short": "1–32 byte values",
}


@dataclass(frozen=True)
class Row:
    """The figures of one kind of record, or of all of them."""

    kind: str
    records: int
    raw_bytes: int
    mean_bytes: float
    zlib: float  # ratios: raw bytes / stored bytes
    zstd: float
    zstd_dictionary: float
    nbmf: float
    nbmf_self_describing: float
    exact: int
    encode_ms_p50: float
    encode_ms_p95: float
    decode_ms_p50: float
    decode_ms_p95: float


@dataclass(frozen=True)
class Result:
    """What the quickstart measured. A ratio is raw bytes / stored bytes, framing included."""

    rows: list[Row]
    total: Row
    ratio_p95: float  # 95 % of the records reach or pass it
    example_kind: str
    example_raw: str
    example_blob: str  # hex
    backend: str
    codec_id: str
    dictionary: str
    vectors: quickstart_vectors.Result
    store: quickstart_store.Result

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """One record: its sizes under each codec, whether it came back, and its times in ms."""

    kind: str
    raw: bytes
    bare: bytes
    self_describing: int
    zlib: int
    zstd: int
    dictionary: int
    exact: bool
    encode_ms: list[float]
    decode_ms: list[float]


def zstd_compressor(size: int, dictionary: zstandard.ZstdCompressionDict | None = None) -> zstandard.ZstdCompressor:
    """It makes magicless frames without size, checksum or dictionary id, zstd's smallest, for `size` raw bytes."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        PEER_LEVEL,
        source_size=size,
        dict_size=len(dictionary) if dictionary else 0,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary)


def zstd_size(raw: bytes, dictionary: zstandard.ZstdCompressionDict | None = None) -> int:
    """Bytes of a frame of `zstd_compressor`."""
    return len(zstd_compressor(len(raw), dictionary).compress(raw))


def dictionary_candidates(raws: Sequence[bytes]) -> list[zstandard.ZstdCompressionDict]:
    """Dictionaries trained on `raws` at each size, and the records themselves as one."""
    whole = b"".join(raws)
    found = [zstandard.ZstdCompressionDict(whole, dict_type=zstandard.DICT_TYPE_RAWCONTENT)] if whole else []
    for size in DICTIONARY_SIZES:
        try:
            found.append(zstandard.train_dictionary(size, list(raws)))
        except zstandard.ZstdError:
            continue  # too few records for this size
    return found


def dictionary_sizes(raws: Sequence[bytes]) -> list[int]:
    """Each record's zstd size with a dictionary learned from the half that the record is not in."""
    sizes = [0] * len(raws)
    for half in (0, 1):
        learned = [raw for place, raw in enumerate(raws) if place % 2 != half]
        tested = range(half, len(raws), 2)
        best = [zstd_size(raws[place]) for place in tested]
        best_total = sum(best) if not learned else None
        for dictionary in dictionary_candidates(learned):
            tried = [zstd_size(raws[place], dictionary) for place in tested]
            if best_total is None or sum(tried) < best_total:
                best, best_total = tried, sum(tried)
        for place, size in zip(tested, best, strict=True):
            sizes[place] = size
    return sizes


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """The result of `call` and its time in ms."""
    start = time.perf_counter_ns()
    result = call()
    return result, (time.perf_counter_ns() - start) / 1e6


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not pass (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def measure(codec: Codec, sample: samples.Sample, raw: bytes, dictionary_size: int) -> Measured:
    value = sample.value
    bare = codec.encode(value, bare=True)
    encode_ms, decode_ms, exact = [], [], True
    for _ in range(ROUNDS[kernel.backend]):
        blob, spent = timed(lambda: codec.encode(value, bare=True))
        encode_ms.append(spent)
        back, spent = timed(lambda: codec.decode(bare, bare=True))
        decode_ms.append(spent)
        # Raw bytes tell 1 from 1.0 from true, and one key order from another.
        exact = exact and blob == bare and type(back) is type(value) and to_raw(back)[1] == raw
    return Measured(
        kind=sample.kind,
        raw=raw,
        bare=bare,
        self_describing=len(codec.encode(value)),
        zlib=len(zlib.compress(raw, 9)),
        zstd=zstd_size(raw),
        dictionary=dictionary_size,
        exact=exact,
        encode_ms=encode_ms,
        decode_ms=decode_ms,
    )


def summary(kind: str, records: Sequence[Measured]) -> Row:
    raw_bytes = sum(len(record.raw) for record in records)
    encode_ms = [spent for record in records for spent in record.encode_ms]
    decode_ms = [spent for record in records for spent in record.decode_ms]
    return Row(
        kind=kind,
        records=len(records),
        raw_bytes=raw_bytes,
        mean_bytes=raw_bytes / len(records),
        zlib=raw_bytes / sum(record.zlib for record in records),
        zstd=raw_bytes / sum(record.zstd for record in records),
        zstd_dictionary=raw_bytes / sum(record.dictionary for record in records),
        nbmf=raw_bytes / sum(len(record.bare) for record in records),
        nbmf_self_describing=raw_bytes / sum(record.self_describing for record in records),
        exact=sum(record.exact for record in records),
        encode_ms_p50=percentile(encode_ms, 0.50),
        encode_ms_p95=percentile(encode_ms, 0.95),
        decode_ms_p50=percentile(decode_ms, 0.50),
        decode_ms_p95=percentile(decode_ms, 0.95),
    )


def chosen(limit: int | None) -> list[samples.Sample]:
    """The shipped samples, at most `limit` of each kind; the shortest ones when the reference has to do the work."""
    shipped = samples.load()
    if limit is None and kernel.backend == "c":
        return shipped
    kept: list[samples.Sample] = []
    for kind in samples.KINDS:
        of_kind = [sample for sample in shipped if sample.kind == kind]
        if limit is None:
            of_kind = sorted(of_kind, key=lambda sample: len(to_raw(sample.value)[1]))[:REFERENCE_LIMIT]
        kept += of_kind[:limit]
    return kept


def run(codec: Codec, limit: int | None = None, tick: Tick | None = None) -> Result:
    """Measure the shipped samples, at most `limit` of each kind, and keep them in a store."""
    records = chosen(limit)
    raws = [to_raw(sample.value)[1] for sample in records]
    codec.decode(codec.encode("warm"))
    dictionary = dictionary_sizes(raws)
    measured: list[Measured] = []
    for place, sample in enumerate(records):
        measured.append(measure(codec, sample, raws[place], dictionary[place]))
        if tick:
            tick("encoding samples", place + 1, len(records))
    by_kind = [(kind, [record for record in measured if record.kind == kind]) for kind in samples.KINDS]
    facts = [record for record in measured if record.kind == "fact"] or measured
    example = max(facts, key=lambda record: len(record.raw) / len(record.bare))
    return Result(
        rows=[summary(kind, of_kind) for kind, of_kind in by_kind if of_kind],
        total=summary("all", measured),
        ratio_p95=-percentile([-len(record.raw) / len(record.bare) for record in measured if record.raw], 0.95),
        example_kind=example.kind,
        example_raw=example.raw.decode("utf-8", "replace"),
        example_blob=example.bare.hex(),
        backend=kernel.backend,
        codec_id=codec.id,
        dictionary=DICTIONARY,
        vectors=quickstart_vectors.run(limit, tick),
        store=quickstart_store.run(limit, tick),
    )


def times(ratio: float) -> str:
    return f"{ratio:.2f}×"


def milliseconds(p50: float, p95: float) -> str:
    return f"{p50:.2f}/{p95:.2f}"


def render(result: Result, out: Console) -> None:
    """The table, one record as an example, and what it all means."""
    wide = out.width >= WIDE
    longest = max(row.nbmf for row in result.rows)
    grid = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    total = result.total
    grid.add_column("record", footer="all", no_wrap=True)
    grid.add_column("n", footer=f"{total.records}", justify="right")
    grid.add_column("bytes", footer=f"{total.mean_bytes:.0f}", justify="right")
    grid.add_column("zlib", footer=times(total.zlib), justify="right", style="dim")
    grid.add_column("zstd", footer=times(total.zstd), justify="right", style="dim")
    grid.add_column("zstd+dict", footer=times(total.zstd_dictionary), justify="right", style="dim")
    grid.add_column("nbmf", footer=times(total.nbmf), justify="right", style="bold green", footer_style="bold green")
    grid.add_column("exact", footer=f"{total.exact}/{total.records}", justify="right")
    if wide:
        encode_ms = milliseconds(total.encode_ms_p50, total.encode_ms_p95)
        decode_ms = milliseconds(total.decode_ms_p50, total.decode_ms_p95)
        grid.add_column("", style="green", no_wrap=True)
        grid.add_column("encode ms", footer=encode_ms, justify="right", no_wrap=True)
        grid.add_column("decode ms", footer=decode_ms, justify="right", no_wrap=True)
    for row in result.rows:
        cells = [
            LABELS.get(row.kind, row.kind),
            f"{row.records}",
            f"{row.mean_bytes:.0f}",
            times(row.zlib),
            times(row.zstd),
            times(row.zstd_dictionary),
            times(row.nbmf),
            f"{row.exact}/{row.records}",
        ]
        if wide:
            cells += [
                "█" * max(1, round(BAR * row.nbmf / longest)),
                milliseconds(row.encode_ms_p50, row.encode_ms_p95),
                milliseconds(row.decode_ms_p50, row.decode_ms_p95),
            ]
        grid.add_row(*cells)
    out.print(grid)
    if not wide:
        out.print(
            f"A record takes {milliseconds(total.encode_ms_p50, total.encode_ms_p95)} ms to encode "
            f"and {milliseconds(total.decode_ms_p50, total.decode_ms_p95)} ms to decode (p50 / p95)."
        )
    blob = result.example_blob
    spent = len(blob) // 2
    example = Text.assemble(
        (result.example_raw, "cyan"),
        f"\n{len(result.example_raw.encode())} bytes, stored as {spent}:\n",
        (" ".join(blob[place : place + 2] for place in range(0, len(blob), 2)), "green"),
    )
    out.print(Panel(example, title="one of them", title_align="left", border_style="dim", width=min(out.width, 100)))
    out.print(explanation(result))
    out.print()
    quickstart_vectors.render(result.vectors, out)
    out.print()
    quickstart_store.render(result.store, out)
    out.print("\n[bold]Next[/bold]")
    longest = max(len(command) for _, command in NEXT)
    for what, command in NEXT:
        if out.width >= WIDE + BAR:
            out.print(Text.assemble("  " + command.ljust(longest + 2), (what, "dim")))
        else:
            out.print(Text.assemble((f"  # {what}\n", "dim"), "  " + command))


def explanation(result: Result) -> str:
    """What was shown, and what to do next, in the console's markup."""
    total = result.total
    exact = "Every record" if total.exact == total.records else f"{total.exact} of {total.records} records"
    parts = [
        "[bold]What you saw.[/bold] Each record was stored on its own, as an agent's memory keeps it, and read back. "
        "A ratio is raw bytes over stored bytes, framing included; times are p50 / p95, one record at a time.",
        f"  · {exact} came back exactly: same types, same key order, same bytes.\n"
        f"  · 95 % of the records reach {times(result.ratio_p95)} or better. Self-describing, with the model's id and "
        f"a stronger check in each record, all of them together reach {times(total.nbmf_self_describing)}.\n"
        f"  · zlib is at level 9, zstd at level {PEER_LEVEL} without its magic number. zstd+dict is "
        f"{DICTIONARY}: it has seen their like. The model (id {escape(result.codec_id)}) has seen none of them.",
        "[bold]Why it is smaller.[/bold] A compressor starts each record knowing nothing. NBMF ships a model that has "
        "read much text of this sort: it predicts every bit, and only the surprise is stored. All of it is integer "
        "arithmetic, so the same record gives the same bytes on every machine.",
    ]
    if result.backend != "c":
        parts.insert(0, f"[yellow]{SLOW}[/yellow]")
    return "\n\n".join(parts)
