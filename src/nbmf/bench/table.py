"""The figures of `nbmf bench` and `nbmf eval` on one screen. The JSON holds more."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from nbmf.quickstart import LABELS

SHOWN: Final = 8  # kinds, sources or packs in a table; where there are more, the sources with the lowest ratios
WIDE: Final = 110  # columns from which two tables stand side by side
QUIET: Final = 0.97  # share of a core below which the times are not to be trusted
BAR: Final = 28  # cells of the longest bar
GOOD: Final = "bold green"


def times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"


def size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000 or unit == "MB":
            return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def spoken(language: str) -> str:
    return "English" if language == "english" else language


def milliseconds(found: Mapping[str, float]) -> str:
    return "/".join(f"{found[name]:.2f}" for name in ("p50", "p95", "p99"))


def grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], best: str | None = None) -> Table:
    """The first column to the left, the others to the right, `best` in colour."""
    table = Table(
        title=title, box=box.SIMPLE_HEAD, show_edge=False, title_justify="left", title_style="bold", pad_edge=False
    )
    for place, column in enumerate(columns):
        style = GOOD if column == best else "" if place == 0 else None
        table.add_column(column, justify="right" if place else "left", style=style, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def headline(result: Mapping[str, Any]) -> Panel:
    total, exact = result["total"], result["exact"]
    low, high = total["interval_95"]
    every = min(count for name, count in exact.items() if name != "records")
    came_back = "every record came back exactly" if every == exact["records"] else f"only {every} records were exact"
    lines = [
        f"[{GOOD}]{times(total['ratio'])}[/]  [dim]{low:.2f}–{high:.2f}[/]   bare; self-describing "
        f"{times(total['self_describing'])}   {total['bits_per_byte'] or 0:.2f} bits a byte",
        f"a record: median {times(total['median'])}, mean {times(total['mean_of_records'])}; 95 % reach "
        f"{times(total['p95_ratio'])}; {100 * (total['share_at_2x'] or 0):.1f} % reach 2×",
        ("[green]✓[/] " if every == exact["records"] else "[bold red]✗[/] ")
        + f"{came_back} ({total['records']:,} records, {size(total['raw_bytes'])})",
    ]
    if "encode_ms" in total:
        many = result["many"]
        lines.append(
            f"encode {milliseconds(total['encode_ms'])} ms, {total['encode_mb_s']:.2f} MB/s; "
            f"decode {milliseconds(total['decode_ms'])} ms, {total['decode_mb_s']:.2f} MB/s "
            "[dim](p50/p95/p99, one core)[/]"
        )
        lines.append(
            f"many at once, {result['machine']['cores']} cores: encode {many['encode_many_mb_s']:.2f}, "
            f"decode {many['decode_many_mb_s']:.2f} MB/s"
        )
        if result["cpu_share"] < QUIET:
            lines.append(
                f"[yellow]busy machine: it had a core for {result['cpu_share']:.0%} of the time; times are off[/]"
            )
    model = result["model"]
    name = f"{escape(str(model['name']))} {model['id'][:8]}, {size(model['bytes'])}"
    if "pack_id" in model:
        name += f", pack {model['pack_id'][:8]}, {size(model['pack_bytes'])}"
    return Panel("\n".join(lines), title=name, title_align="left", border_style="dim", expand=False)


def peers(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title="Beside", title_justify="left", title_style="bold"
    )
    table.add_column("", no_wrap=True)
    for column in ("records", "ratio"):
        table.add_column(column, justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("nbmf there", justify="right", style=GOOD)
    table.add_column("smaller by", justify="right")
    longest = max(max(row["ratio"], row["nbmf"]) for row in rows)
    for row in rows:
        theirs, ours = (max(1, round(BAR * row[name] / longest)) for name in ("ratio", "nbmf"))
        bar = f"[dim]{'█' * theirs}[/][green]{'━' * (ours - theirs)}[/]"
        cells = (f"{row['records']:,}", times(row["ratio"]), bar, times(row["nbmf"]), times(row["nbmf_over_peer"]))
        table.add_row(row["peer"], *cells)
    return table


def groups(title: str, label: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Ratios of a group, with zstd's and brotli's where they were measured."""
    beside = [name for name in ("zstd-19", "brotli-11") if any(name in row.get("peers", {}) for row in rows)]
    cells = [
        [
            escape(LABELS.get(row[label], row[label])),
            f"{row['records']:,}",
            *(times(row["peers"][name]) for name in beside),
            times(row["ratio"]),
        ]
        for row in rows
    ]
    return grid(title, ["", "n", *beside, "nbmf"], cells, best="nbmf")


def by_size(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = ["bytes", "n", "nbmf", "self-desc."]
    timed = all("encode_ms" in row for row in rows)
    if timed:
        columns += ["encode ms", "MB/s", "decode ms", "MB/s"]
    cells = []
    for row in rows:
        line = [row["bytes"], f"{row['records']:,}", times(row["ratio"]), times(row["self_describing"])]
        if timed:
            for what in ("encode", "decode"):
                line += [milliseconds(row[f"{what}_ms"]), f"{row[f'{what}_mb_s']:.2f}"]
        cells.append(line)
    return grid("By record size" + (" [dim](p50/p95/p99)[/]" if timed else ""), columns, cells, best="nbmf")


def means(found: Mapping[str, Any]) -> str:
    """The geometric means over sources, a line each."""
    lines = []
    for language, row in found.items():
        low, high = row["interval_95"]
        beside = ", ".join(f"{name} {ratio:.2f}×" for name, ratio in row.get("peers", {}).items())
        lines.append(
            f"geometric mean of {row['sources']} {spoken(language)} sources: "
            f"[{GOOD}]{times(row['ratio'])}[/] [dim]{low:.2f}–{high:.2f}[/]"
            + (f"  [dim]({beside})[/]" if beside else "")
        )
    return "\n".join(lines)


def packs(found: Mapping[str, Any], out: Console) -> None:
    rows = sorted(found["by_source"], key=lambda row: float(row["quotient"]))
    if not rows:
        out.print("[dim]No source has enough records to learn a pack from.[/]")
        return
    cells = [
        [
            escape(row["source"]),
            f"{row['records']:,}",
            size(row["pack_bytes"]),
            *(times(row[name]) for name in ("base", "zstd_dictionary", "pack", "quotient")),
        ]
        for row in rows[:SHOWN]
    ]
    columns = ["", "n", "pack", "no pack", "zstd+dict", "with pack", "over zstd"]
    title = "A pack of one half of a source, on the other half"
    out.print(grid(title + lowest(len(rows)), columns, cells, best="with pack"))
    for language, row in found["geometric_means"].items():
        out.print(
            f"{row['sources']} {spoken(language)} sources: "
            f"[{GOOD}]{times(row['pack'])}[/], without a pack {times(row['base'])}, zstd with a dictionary "
            f"{times(row['zstd_dictionary'])}; over zstd {times(row['quotient_mean'])} on average, "
            f"{times(row['quotient_min'])} at least"
        )


def lowest(count: int) -> str:
    return f" [dim]({SHOWN} lowest of {count})[/]" if count > SHOWN else ""


def render(result: Mapping[str, Any], out: Console) -> None:
    """Everything that a person asks first, on one screen."""
    machine = result["machine"]
    kernel = machine["kernel"] + (f"/{machine['simd']}" if machine["simd"] else "")
    files = ", ".join(result["data"]["files"])
    out.print(f"[dim]{escape(files)} · {escape(machine['cpu'])}, {machine['cores']} cores · kernel {kernel}[/]")
    out.print(headline(result))
    tables = [by_size(result["by_size"])]
    if "peers" in result:
        tables.insert(0, peers(result["peers"]))
    for table in tables:
        out.print(table)
        out.print()
    kinds, sources = result["by_kind"], sorted(result["by_source"], key=lambda row: float(row["ratio"]))
    pair = [groups("By kind", "kind", kinds[:SHOWN])] if len(kinds) > 1 else []
    if len(sources) > 1:
        pair.append(groups("By source" + lowest(len(sources)), "source", sources[:SHOWN]))
    if pair and out.width >= WIDE:
        out.print(Columns(pair, padding=(0, 4)))
    else:
        for table in pair:
            out.print(table)
            out.print()
    if len(sources) > 1:
        out.print(means(result["geometric_means"]))
    if "packs" in result:
        out.print()
        packs(result["packs"], out)
