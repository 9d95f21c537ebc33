"""The figures of `nbmf bench store` on one screen. The JSON holds more."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from nbmf.bench.table import GOOD, QUIET, grid, milliseconds, size, times


def table(result: Mapping[str, Any]) -> Group:
    """Everything that `store.run` measured and a person asks first."""
    return Group(*_parts(result))


def _parts(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    about, machine, rows = result["store"], result["machine"], result["stores"]
    files = ", ".join(result["data"]["files"])
    yield (
        f"[dim]{escape(files)} · {about['records']:,} records, {size(about['value_bytes'])} of values, "
        f"{size(about['key_bytes'])} of keys, namespaces: {about['namespaces']:,}, tenants: {about['tenants']:,}[/]"
    )
    yield (
        f"[dim]{escape(machine['cpu'])}, {machine['cores']} cores, {about['filesystem'] or 'unknown filesystem'}, "
        f"SQLite {about['versions']['sqlite']}, model {result['model']['id'][:8]}[/]"
    )
    yield came_back(result)
    yield ""
    yield on_disk("On disk, after compact and close", rows)
    yield ""
    yield by_part([*rows, {"store": "nbmf, all archived", **result["cold"]}])
    yield ""
    yield latency(rows, result["commit_ms"])
    yield from busy(rows)
    yield from searching(rows)
    yield ""
    yield from aged(result)
    if "unseen" in result:
        unseen = result["unseen"]
        names = escape(", ".join(unseen["files"]))
        yield ""
        yield f"[bold]{unseen['records']:,} records that the model never saw[/] [dim]({names})[/]"
        yield ""
        yield on_disk("On disk, after compact and close", unseen["stores"])
        yield ""
        yield from aged(unseen)
    if result.get("growth"):
        yield ""
        yield growth(result["growth"])
    for what, extra in result["left_out"].items():
        yield f"[yellow]not measured: {what}, which needs {escape(extra)}[/]"


def came_back(result: Mapping[str, Any]) -> str:
    """Whether every record that was read back, from every store, is the one that was put."""
    lost = 0
    for part in (result, result.get("unseen")):
        if part:
            packed = part["one_source_tenants"]
            rows = [*part["stores"], part["cold"], *([{**packed, **packed["packed"]}] if packed else [])]
            lost += sum(row["records"] - row["exact"] for row in rows)
    if lost:
        return f"[bold red]✗[/] {lost:,} of the records read back were not what was put"
    return "[green]✓[/] every record came back exactly, from every store"


def on_disk(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Bytes of every file over raw bytes of values and keys."""
    cells = [
        [
            escape(row["store"]),
            size(row["disk_bytes"]),
            f"{row['bytes_a_record']:,.1f}",
            times(row["ratio"]),
            times(row["ratio_with_namespaces"]),
            f"{row['ingest_records_s']:,.0f}",
        ]
        for row in rows
    ]
    columns = ["", "bytes", "a record", "ratio", "with namespaces", "records/s"]
    return grid(title, columns, cells, best="ratio")


def by_part(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What takes the bytes of our own stores, a record."""
    chosen = [row for row in rows if "parts" in row]
    names = list(dict.fromkeys(name for row in chosen for name in row["parts"]))
    cells = [
        [name, *(f"{row['parts'][name] / row['records']:.2f}" if name in row["parts"] else "" for row in chosen)]
        for name in names
    ]
    cells.append(
        [
            "blobs alone",
            *(f"{row['blob_bytes'] / row['records']:.2f}" if row.get("blob_bytes") else "" for row in chosen),
        ]
    )
    return grid("Bytes a record, by part", ["", *(escape(row["store"]) for row in chosen)], cells)


def latency(rows: Sequence[Mapping[str, Any]], commit: Mapping[str, float]) -> Table:
    timed = [row for row in rows if "latency" in row]
    cells = [
        [
            escape(row["store"]),
            milliseconds(row["latency"]["put_ms"]),
            milliseconds(row["latency"]["get_ms"]),
            milliseconds(row["latency"]["get_again_ms"]),
        ]
        for row in timed
    ]
    cells.append(["[dim]a bare SQLite commit[/]", f"[dim]{milliseconds(commit)}[/]", "", ""])
    title = f"Single calls at {timed[0]['latency']['records']:,} records, one thread [dim](p50/p95/p99 ms)[/]"
    return grid(title, ["", "put, durable", "get", "the same again"], cells)


def busy(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    least = min(row["latency"]["cpu_share"] for row in rows if "latency" in row)
    if least < QUIET:
        yield f"[yellow]busy machine: reads had a core for {least:.0%} of the time; times are off[/]"


def searching(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        found = row.get("latency", {})
        if "search_ms" in found:
            yield (
                f"search by meaning: [{GOOD}]{milliseconds(found['search_ms'])}[/] ms over everything, "
                f"{milliseconds(found['search_tenant_ms'])} within a tenant, {found['first_search_ms']:,.0f} the first"
            )


def aged(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Archives and packs."""
    found = result["cold"]
    yield "[bold]All records in archives[/]"
    yield (
        f"blocks {size(found['archive_blocks_bytes'])}, where warm blobs take {size(found['warm_blob_bytes'])} "
        f"({times(found['blobs_over_blocks'])}); indexes {size(found['archive_indexes_bytes'])}"
    )
    yield (
        f"everything {size(found['disk_bytes'])}, where it was {size(found['warm_disk_bytes'])} "
        f"({times(found['warm_over_cold_disk'])}): ratio [{GOOD}]{times(found['ratio'])}[/]"
    )
    yield f"any record, its block not cached: [{GOOD}]{milliseconds(found['get_ms'])}[/] ms"
    if result["one_source_tenants"]:
        yield ""
        yield packs(result["one_source_tenants"])


def packs(found: Mapping[str, Any]) -> Table:
    names = {"warm": "warm", "packed": "warm, packs of their own", "cold": "archives"}
    cells = [
        [
            title,
            size(found[name]["disk_bytes"]),
            size(found[name].get("blob_bytes", found[name].get("block_bytes", 0))),
            size(found[name].get("pack_bytes", 0)),
            times(found[name]["ratio"]),
        ]
        for name, title in names.items()
    ]
    title = f"A tenant for each source ({found['tenants']}), {found['records']:,} records"
    return grid(title, ["", "bytes", "blobs or blocks", "packs", "ratio"], cells, best="ratio")


def growth(rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = [
        [
            f"{row['records']:,}",
            f"{row['bytes_a_record']:,.1f}",
            f"{row['open_ms']:,.0f}",
            size(row["memory_open_bytes"] or 0),
            size(row["memory_peak_bytes"] or 0),
            milliseconds(row["put_ms"]),
            milliseconds(row["get_ms"]),
            f"{row['ingest_records_s']:,.0f}",
        ]
        for row in rows
    ]
    columns = ["records", "bytes each", "open ms", "memory", "at most", "put ms", "get ms", "records/s"]
    return grid("As it grows, generated records, no two of them equal", columns, cells)


__all__ = ["table"]
