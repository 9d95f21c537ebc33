"""The claims, training and recall on the screen. The JSON holds more."""

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from nbmf.bench.table import QUIET, grid, milliseconds, size, times

WHAT: Final = {"text": "samples: text", "JSON": "samples: JSON", "mixed": "samples: mixed"}


def shown(value: float | None, unit: str) -> str:
    """A figure of a claim."""
    if value is None:
        return "–"
    if unit == "x":
        return times(value)
    if unit == "share":
        return f"{value:.2%}"
    if unit == "us":
        return f"{value:.1f} µs"
    return f"{value:.2f} ms"


def margin(row: Mapping[str, Any]) -> str:
    """How far a figure is on the right side of its limit, as a share of it."""
    return (
        "–"
        if row["margin"] is None
        else f"{row['margin']:+.0%}"
        if abs(row["margin"]) >= 0.1
        else f"{row['margin']:+.2%}"
    )


def claims(result: Mapping[str, Any], out: Console) -> None:
    """A table of verdicts for each encoder on the records, a line for each other set, and what was left out."""
    for part in result["claims"]["sets"]:
        name = WHAT.get(part["records_of"], part["records_of"])
        count = sum(row["holds"] for row in part["verdicts"])
        state = "[green]✓[/]" if part["all_hold"] else "[bold red]✗[/]"
        title = f"{state} Claims, {escape(part['encoder'])} on {escape(name)}: {count} of {len(part['verdicts'])} hold"
        if part["latency"]["cpu_share"] < QUIET:
            title += f" [yellow](busy machine: reads had a core for {part['latency']['cpu_share']:.0%} of the time)[/]"
        if part["records_of"] in WHAT:
            failed = ", ".join(row["claim"] for row in part["verdicts"] if not row["holds"])
            out.print(title + (f" [dim](not: {escape(failed)})[/]" if failed else ""))
            continue
        cells = [
            [
                ("[green]✓[/] " if row["holds"] else "[bold red]✗[/] ") + escape(row["claim"]),
                shown(row["limit"], row["unit"]),
                shown(row["measured"], row["unit"]),
                margin(row),
            ]
            for row in part["verdicts"]
        ]
        out.print()
        out.print(grid(title, ["", "limit", "measured", "margin"], cells, best="measured"))
        out.print()
    for name, why in result["left_out"].items():
        out.print(f"[yellow]not measured: {escape(name)}: {escape(why)}[/]")


def training(result: Mapping[str, Any], out: Console) -> None:
    tested = result["tested"]
    out.print(
        f"[dim]{escape(', '.join(result['data']['files']))} · measured on {tested['records']:,} other records, "
        f"{size(tested['raw_bytes'])}; size {escape(result['size'])}[/]"
    )
    cells = [
        [
            f"{row['records']:,}",
            f"{row['share']:.0%}",
            size(row["model_bytes"]),
            f"{row['seconds']:,.1f}",
            size(row["memory_peak_bytes"]),
            times(row["zstd_dictionary"]),
            times(row["ratio"]),
        ]
        for row in result["models"]
    ]
    columns = ["records", "share", "model", "seconds", "memory", "zstd+dict", "nbmf"]
    out.print(grid("Models of a share of the records", columns, cells, best="nbmf"))
    out.print(pays(result["fits"]["bits_per_byte"]))
    cells = [
        [
            f"{row['records']:,}",
            size(row["pack_bytes"]),
            f"{row['seconds']:,.1f}",
            times(row["zstd_dictionary"]),
            times(row["without"]),
            times(row["ratio"]),
        ]
        for row in result["packs"]
    ]
    columns = ["records", "pack", "seconds", "zstd+dict", "no pack", "with pack"]
    out.print(grid("Packs of the base model", columns, cells, best="with pack"))
    out.print(pays(result["fits"]["pack_bits_per_byte"]))


def pays(fit: Mapping[str, Any] | None) -> str:
    """Where more records stop paying, in words."""
    if fit is None:
        return "[dim]too few points for a curve[/]"
    if fit["pays_until"] is None:
        return "[dim]twice the records still lower the bits by 1 % or more, as far as the curve tells[/]"
    return f"[dim]from {fit['pays_until']:,} records on, twice as many lower the bits by less than 1 %[/]"


def recall(result: Mapping[str, Any], out: Console) -> None:
    top = result["top"]
    cells = [
        [
            escape(row["search"]),
            f"{row['hit_at_1']:.1%}",
            f"{row[f'hit_at_{top}']:.1%}",
            f"{row['mean_reciprocal_rank']:.3f}",
            f"{row['of_exact_top']:.1%}",
            milliseconds(row["search_ms"]),
            f"{row['bytes_a_record']:,.0f}",
        ]
        for row in result["searches"]
    ]
    title = f"{result['queries']} queries of a few words each, over {result['records']:,} records"
    columns = ["", "first", f"in {top}", "MRR", "of exact's", "p50/p95/p99 ms", "bytes a record"]
    out.print(grid(title, columns, cells, best=f"in {top}"))
