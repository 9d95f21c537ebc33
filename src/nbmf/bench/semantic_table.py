"""Vectors within a bound on the screen. The JSON holds more."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from nbmf.bench.parts_table import margin, shown
from nbmf.bench.table import grid, times

Result = Mapping[str, Any]

HEAD: Final = ["coder", "bound", "bytes", "ratio", "bits a float", "cosine, mean", "least", "exact", "encode/decode µs"]
SEARCH_HEAD: Final = ["search over codes", "held", "bytes", "by code", "by decoded", "re-ranked exactly", "ms"]
SHOWN: Final = (0.99, 0.995, 0.999)  # bounds on the screen


def title_of(about: Result) -> str:
    told = f"{about['vectors']}, {about['dim']} floats: {about['measured']:,} vectors"
    return told + (f", learned from {about['learned_from']:,} others" if about["embedder"] else "")


def cells(about: Result) -> Iterator[list[str]]:
    """A row for each coder and bound."""
    for row in about["rows"]:
        yield [
            row["coder"],
            "–" if row["cosine_bound"] is None else f"{row['cosine_bound']:g}",
            f"{row['bytes']:,.1f}",
            times(row["ratio"]),
            f"{row['bits']:.2f}",
            f"{row['cosine_mean']:.5f}",
            f"{row['cosine_min']:.5f}",
            f"{row['exact']:,}",
            f"{row['encode_us']:,.1f}/{row['decode_us']:,.1f}",
        ]


def searches(result: Result) -> Iterator[list[str]]:
    for row in result["searches"]:
        yield [
            row["vectors"],
            f"{row['held']:,}",
            f"{row['bytes_a_vector']:,.0f}",
            *(f"{row[f'recall_{what}']:.1%}" for what in ("codes", "decoded", "exact")),
            f"{row['search_ms']:.2f}",
        ]


def render(result: Result, out: Console) -> None:
    """Each set of vectors, the search, theory, and what was asked for against what was measured."""
    for about in result["sets"]:
        shown_rows = [row for row in about["rows"] if row["cosine_bound"] in (None, *SHOWN)]
        rows = [[escape(cell) for cell in row] for row in cells({**about, "rows": shown_rows})]
        out.print(grid(escape(title_of(about)), HEAD, rows, best="ratio"))
        out.print()
    bounds = [
        f"{row['gaussian_bits']:.2f} ({row['scalar_bits']:.2f}) at {row['cosine']:g}"
        for row in result["theory"]
        if row["cosine"] in SHOWN
    ]
    out.print(f"[dim]Least bits a float for Gaussians (an entropy-coded scalar): {', '.join(bounds)}[/]")
    out.print()
    if result["searches"]:
        rows = [[escape(cell) for cell in row] for row in searches(result)]
        out.print(grid("Recall of exact search's first ten", SEARCH_HEAD, rows))
        out.print()
    count = sum(row["holds"] for row in result["verdicts"])
    rows = [
        [
            ("[green]✓[/] " if row["holds"] else "[bold red]✗[/] ") + escape(row["claim"]),
            ("≥ " if row["at_least"] else "≤ ") + shown(row["limit"], row["unit"]),
            shown(row["measured"], row["unit"]),
            margin(row),
        ]
        for row in result["verdicts"]
    ]
    title = f"What was asked for: {count} of {len(rows)} hold"
    out.print(grid(title, ["", "limit", "measured", "margin"], rows, best="measured"))
    other = result["other_values"]
    out.print(f"{other['exact']:,} of {other['records']:,} records of other kinds came back exactly under semantic")
    for name, why in result["left_out"].items():
        out.print(f"[yellow]not measured: {escape(name)}: {escape(why)}[/]")
