"""What `nbmf data prepare` found, for people: as text, and as one HTML page that needs no network and no script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, Final

from nbmf import report
from nbmf.bench.page import CSS
from nbmf.bench.svg import DARK, LIGHT, STYLE, Plot, plot, variables
from nbmf.data.lines import writing

Result = Mapping[str, Any]

ROWS_MOST: Final = 20  # sources that a table names


def save(result: Result, folder: Path) -> None:
    """Writes report.txt, report.html and report.json into the folder. Raises OSError."""
    for name, content in (("txt", text(result)), ("html", html(result)), ("json", report.dump(result) + "\n")):
        with writing(folder / f"report.{name}") as file:
            file.write(content.encode("utf-8", "backslashreplace"))


def summary(result: Result) -> dict[str, Any]:
    """The figures without the samples, as `report.show` takes them."""
    found = {name: value for name, value in result.items() if name not in ("samples", "options", "by_size")}
    found["left_out"] = {name: count for name, count in result["left_out"].items() if count} or {"nothing": 0}
    found["by_source"] = _first(result["by_source"], "source")
    return {name: value for name, value in found.items() if value != []}


def _first(rows: Sequence[Result], label: str) -> list[dict[str, Any]]:
    """The largest rows, and one for all the others."""
    kept = [dict(row) for row in rows[:ROWS_MOST]]
    if others := rows[ROWS_MOST:]:
        sums = {name: sum(row[name] for row in others) for name in others[0] if name != label}
        kept.append({label: f"{len(others)} others", **sums})
    return kept


def text(result: Result) -> str:
    """The report as plain text."""
    out = StringIO()
    report.show(summary(result), report.console(out), "Prepared records")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def html(result: Result) -> str:
    """The report as a page."""
    style = (
        f":root{{color-scheme:light dark;{variables(LIGHT)}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}{CSS}{STYLE}"
        "pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0}"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        "<title>NBMF: prepared records</title>\n"
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(_body(result))
        + "\n</main>\n</body>\n</html>\n"
    )


def _body(result: Result) -> Iterator[str]:
    yield "<h1>NBMF: prepared records</h1>"
    yield f'<p class="dim">{escape(", ".join(result["files"]))}</p>'
    cards = [
        (f"{result['kept']:,}", f"records kept, of {result['lines']:,}"),
        (report.figure(result["raw_bytes"]), "raw bytes"),
        (f"{result['bytes_of_a_record']['p50']:,}", "bytes of the middle record"),
        (f"{result['groups']:,}", f"groups, by {result['grouped_by']}"),
        (f"{result['personal_records']:,}", "records with strings of personal form"),
    ]
    yield '<div class="cards">'
    yield "".join(f'<div class="card"><b>{escape(big)}</b>{escape(small)}</div>' for big, small in cards) + "</div>"
    yield "<h2>Parts</h2>" + _table(result["splits"])
    yield "<h2>Left out</h2>"
    yield _table([{"reason": name, "records": count} for name, count in result["left_out"].items()])
    drawn = sizes(result)
    yield "<h2>Sizes</h2>"
    yield f'<div class="plots"><figure><figcaption>{escape(drawn.title)}</figcaption>{drawn.svg()}</figure></div>'
    yield "<h2>By kind</h2>" + _table(_first(result["by_kind"], "kind"))
    yield "<h2>By source</h2>" + _table(_first(result["by_source"], "source"))
    yield "<h2>Personal data and secrets, by their form</h2>"
    treated = {"flag": "They stay as they are.", "mask": "They are masked.", "drop": "Such records are left out."}
    yield (
        f'<p class="dim">The form is no proof. {treated[result["options"]["pii"]]} '
        "pii.jsonl lists the records by their ids.</p>"
    )
    yield _table(result["personal"]) if result["personal"] else "<p>None.</p>"
    yield '<h2>Samples</h2><p class="dim">Drawn by a digest of their values; strings of such forms are masked.</p>'
    for sample in result["samples"]:
        head = (
            f"{sample['id']} · {sample['source']} · {sample['kind']} · {sample['in']} · {sample['raw_bytes']:,} bytes"
        )
        yield f'<div class="card"><span class="dim">{escape(head)}</span><pre>{escape(sample["text"])}</pre></div>'


def _table(rows: Sequence[Result]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(report.figure(value))}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def sizes(result: Result) -> Plot:
    """How many records are of which size."""
    rows = result["by_size"]
    high = 1.15 * max(row["records"] for row in rows)
    drawn = plot("Records by their raw bytes", (-0.5, len(rows) - 0.5), (0, high))
    drawn.axes("raw bytes, from", "records", x_ticks=False)
    for at, row in enumerate(rows):
        drawn.text(drawn.x(at), drawn.y.start + 15, row["bytes"].split("–")[0].split(" ")[0], anchor="middle")
        outline = [(at - 0.4, 0.0), (at - 0.4, row["records"]), (at + 0.4, row["records"]), (at + 0.4, 0.0)]
        drawn.path(outline, "area")
        drawn.path(outline, "us")
    return drawn
