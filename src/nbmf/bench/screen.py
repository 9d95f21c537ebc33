"""Any result of `nbmf bench` or `nbmf eval` on the screen."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from nbmf.bench import parts_table, semantic_table, store_table, table


def render(result: Mapping[str, Any], out: Console) -> None:
    """The tables of the part that was measured, or of all parts one after the other."""
    what = result["measured"].removeprefix("bench ")
    if what == "all":
        for part in result["parts"].values():
            render(part, out)
            out.print()
        for name, why in result["left_out"].items():
            out.print(f"[yellow]not measured: {escape(name)}: {escape(why)}[/]")
    elif what == "store":
        out.print(store_table.table(result))
    elif what == "training":
        parts_table.training(result, out)
    elif what == "recall":
        parts_table.recall(result, out)
    elif what == "semantic":
        semantic_table.render(result, out)
    else:
        table.render(result, out)
        if "claims" in result:
            parts_table.claims(result, out)
