"""How the command line speaks: consoles, progress, and any JSON-able result as something a person can read."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final, Protocol

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

PIPE_WIDTH: Final = 120  # columns when the output is no terminal


class Tick(Protocol):
    """Called as work goes on: what is being done, how much of it is done, and of how much (None: not known)."""

    def __call__(self, what: str, done: float, total: float | None = None) -> None: ...


class NotedTick(Tick, Protocol):
    """A Tick that can also say how it goes, in a few words beside the bar; "" leaves the last ones there."""

    def __call__(self, what: str, done: float, total: float | None = None, note: str = "") -> None: ...


def console(stream: IO[str] | None = None) -> Console:
    """A console on `stream` (standard output). Characters that its encoding lacks become '?'."""
    out = stream or sys.stdout
    reconfigure = getattr(out, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    return Console(file=out, width=None if out.isatty() else PIPE_WIDTH, highlight=False)


@contextmanager
def progress(wanted: bool = True) -> Iterator[NotedTick]:
    """A progress bar on standard error when that is a terminal; else a Tick that does nothing."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda what, done, total=None, note="": None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def tick(what: str, done: float, total: float | None = None, note: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, note="")
            bars.update(tasks[what], completed=done, total=total)
            if note:
                bars.update(tasks[what], note=note)

        yield tick


def figure(value: Any) -> str:
    """A value as a cell: thousands apart, floats to three significant places."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if value is None:
        return "–"
    return str(value)


def table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """Mappings with the same keys as a table: one row each, numbers to the right."""
    grid = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        grid.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(figure(row.get(column)) for column in columns))
    return grid


def is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def show(result: Mapping[str, Any], out: Console, title: str | None = None) -> None:
    """A result: single figures as lines, lists of mappings as tables, mappings as parts of their own."""
    lines = {key: value for key, value in result.items() if not isinstance(value, Mapping) and not is_table(value)}
    if lines:
        grid = Table(show_header=False, box=None, title=title, title_justify="left", title_style="bold")
        for key, value in lines.items():
            text = ", ".join(map(figure, value)) if isinstance(value, list | tuple) else figure(value)
            grid.add_row(key.replace("_", " "), text)
        out.print(grid)
    for key, value in result.items():
        heading = key.replace("_", " ")
        if is_table(value):
            out.print(table(value, heading))
        elif isinstance(value, Mapping):
            if value and all(isinstance(item, Mapping) for item in value.values()):
                out.print(table([{heading: name, **item} for name, item in value.items()]))
            else:
                show(value, out, heading)


def dump(result: Mapping[str, Any]) -> str:
    """A result as JSON text."""
    return json.dumps(result, ensure_ascii=False, indent=2)
