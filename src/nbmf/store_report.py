"""What the store's commands print: records, stores and migrations, as JSON and for a person."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nbmf import transcode
from nbmf.codec.values import VALUE_TYPES, to_raw
from nbmf.memory import Item
from nbmf.report import figure
from nbmf.store_access import namespace_text

PREVIEW_MOST: Final = 400  # characters of a value that a list shows, where the line has room
PARTS: Final = {  # of the warm and cold tiers' sizes, what a person calls them
    "records": "records",
    "codes": "semantic index",
    "namespaces": "names of namespaces, classes and models",
    "expiry": "index of ends of life",
    "seals": "checksums",
    "shared": "values kept once",
    "journal": "journal of changes",
    "log": "write-ahead log",
    "ledger": "audit ledger",
    "blocks": "archives",
    "indexes": "indexes of archives",
    "manifest": "list of archives",
    "orphans": "to be deleted",
    "other": "other",
}


def dump(result: Mapping[str, Any]) -> str:
    """A result as JSON text: in UTF-8, or in ASCII if it holds what UTF-8 cannot."""
    text = json.dumps(result, ensure_ascii=False, indent=2)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        text = json.dumps(result, indent=2)
    return text


def shown(text: str) -> str:
    """A text on one line: what a terminal would obey, or not show, becomes a space or its code."""
    cut = text[:PREVIEW_MOST]
    parts = (c if c.isprintable() else " " if c.isspace() else f"\\x{ord(c):02x}" for c in cut)
    return "".join(parts) + ("…" if len(text) > PREVIEW_MOST else "")


def counted(records: int) -> str:
    """So many records, in words."""
    return f"{records:,} record" + ("" if records == 1 else "s")


# -- records -----------------------------------------------------------------------------------------------------------


def record(item: Item) -> dict[str, Any]:
    """A record as JSON. A value of bytes is base64, a vector a list of numbers; `type` tells."""
    value: Any = item.value
    if isinstance(value, bytes):
        value = base64.b64encode(value).decode("ascii")
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    return {
        "namespace": list(item.namespace),
        "key": item.key,
        "value": value,
        "type": VALUE_TYPES[to_raw(item.value, allow_nan=True)[0]],
        "class": item.cls,
        "fidelity": item.fidelity,
        "created": item.created_at.isoformat(),
        "updated": item.updated_at.isoformat(),
        "expires": None if item.expires_at is None else item.expires_at.isoformat(),
        "meta": item.meta,
        "tier": item.tier,
        "codec": item.codec,
        "stored_bytes": item.stored_bytes,
        **({} if item.score is None else {"score": round(item.score, 4)}),
    }


def preview(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, np.ndarray):
        return shown(str(value.tolist()))
    if isinstance(value, bytes):
        return shown(value[:PREVIEW_MOST].hex(" "))
    return shown(value if isinstance(value, str) else transcode.raw_bytes(value).decode("utf-8", "backslashreplace"))


def show_items(items: Sequence[Item], out: Console) -> None:
    """Records as a table, each on one line; those of a query with their scores."""
    if not items:
        out.print("nothing found")
        return
    scored = any(item.score is not None for item in items)
    grid = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
    if scored:
        grid.add_column("score", justify="right", style="green")
    for name in ("namespace", "key"):
        grid.add_column(name, style="cyan", no_wrap=True, overflow="ellipsis", max_width=36)
    grid.add_column("value", no_wrap=True, overflow="ellipsis", ratio=1)
    for item in items:
        cells = [Text(f"{item.score:.2f}" if item.score is not None else "")] if scored else []
        cells += [Text(shown(namespace_text(item.namespace))), Text(shown(item.key)), Text(preview(item.value))]
        grid.add_row(*cells)
    out.print(grid)


def put_line(figures: Mapping[str, Any]) -> str:
    """What was put, in one line."""
    at = shown(f"{namespace_text(figures['namespace'])} {figures['key']}")
    if figures["stored_bytes"] is None:
        return f"{at}: {figures['raw_bytes']:,} bytes"
    return f"{at}: {figures['raw_bytes']:,} bytes, stored as {figures['stored_bytes']:,}"


def lines_line(figures: Mapping[str, Any]) -> str:
    """What was put from a file, in one line."""
    ratio = "" if figures["ratio"] is None else f" ({figures['ratio']:.2f}×)"
    return (
        f"{counted(figures['records'])} in {figures['seconds']:.1f} s: {figures['raw_bytes']:,} bytes, stored as "
        f"{figures['stored_bytes']:,}{ratio}"
    )


# -- stores ------------------------------------------------------------------------------------------------------------


def show_stats(address: str, stats: Mapping[str, Any], out: Console) -> None:
    """What a store holds, and where its bytes are."""
    out.print(Text.assemble((address, "bold"), f"  {counted(stats['records'])}"))
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=stats["disk_bytes"] is not None)
    grid.add_column("part", footer="all files, as they are now")
    grid.add_column("bytes", justify="right", footer=figure(stats["disk_bytes"]))
    for tier in ("warm", "cold"):
        sizes = stats[tier]
        if sizes.get("count"):
            grid.add_row(Text(f"{tier}: {counted(sizes['count'])}", style="bold"), "")
        for part, size in sizes.items():
            if part != "count" and size:
                grid.add_row(f"  {PARTS.get(part, part)}", f"{size:,}")
    if stats["packs"]:
        grid.add_row(Text("domain packs", style="bold"), f"{stats['packs']:,}")
    out.print(grid)
    if "raw_bytes" in stats:
        _show_measured(stats, out)


def _show_measured(stats: Mapping[str, Any], out: Console) -> None:
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    grid.add_column("class", footer="all")
    grid.add_column("records", justify="right", footer=figure(stats["records"]))
    grid.add_column("raw bytes", justify="right", footer=figure(stats["raw_bytes"]))
    grid.add_column("ratio", justify="right", footer=times(stats["ratio_payload"]), style="green")
    for name, sums in stats["classes"].items():
        grid.add_row(
            Text(shown(name) or "(none)"), figure(sums["records"]), figure(sums["raw_bytes"]), times(sums["ratio"])
        )
    out.print(grid)
    out.print(
        f"raw bytes / bytes of warm blobs: {times(stats['ratio_payload'])}; raw bytes and keys / all bytes on disk: "
        f"{times(stats['ratio_disk'])}"
    )


def times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"


def compact_line(figures: Mapping[str, Any]) -> str:
    """What aging did, in one line."""
    names = ("expired", "demoted", "promoted", "encoded_anew")
    done = [f"{figures[name]:,} {name.replace('_', ' ')}" for name in names if figures[name]] or ["nothing was due"]
    size = ""
    if figures["bytes_after"] is not None:
        size = f"; {figures['bytes_before']:,} bytes before, {figures['bytes_after']:,} after"
    return ", ".join(done) + size


def check_lines(found: Mapping[str, Any]) -> list[str]:
    """A line for each fault, or one that says there are none."""
    if found["sound"]:
        return [f"sound: {counted(found['records'])} decoded, every checksum right"]
    return [shown(f"{fault['where']}: {fault['what']}") for fault in found["faults"]]
