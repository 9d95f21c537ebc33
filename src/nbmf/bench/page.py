"""The report: one HTML page that needs no network and no script. What it shows is in the result's JSON too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

from nbmf.bench import plots
from nbmf.bench.parts_table import WHAT, margin, pays, shown
from nbmf.bench.semantic_table import HEAD, SEARCH_HEAD, cells, searches, title_of
from nbmf.bench.svg import DARK, LIGHT, STYLE, Plot, variables
from nbmf.bench.table import QUIET, milliseconds, size, times

Result = Mapping[str, Any]

LEVELS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)  # bits a byte at which the heat map's colour changes
HEAT_LIGHT: Final = ("#dff3ea", "#c4e8d7", "#fff3c4", "#ffd9a0", "#f8b08a", "#ec8f86")
HEAT_DARK: Final = ("#12382b", "#1b4d3b", "#4d4415", "#6b4a14", "#7c3f22", "#86332f")
CSS: Final = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:20px 16px 48px}
h1{font-size:1.6rem;margin:.2em 0}h2{font-size:1.2rem;margin:2em 0 .5em}h3{font-size:1rem;margin:1.2em 0 .4em}
p{margin:.4em 0}.dim{color:var(--dim);font-size:.875rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:16px 0}
.card,figure{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px;margin:0}
.card b{display:block;font-size:1.5rem;color:var(--us);line-height:1.2}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:14px}
figure{padding:10px 10px 6px}figcaption{font-weight:600;margin:0 4px 4px;font-size:.95rem}
figure p{margin:2px 4px 6px}
svg{width:100%;height:auto;display:block}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px;margin:10px 0}
table{border-collapse:collapse;width:100%;font-size:.875rem}
th,td{padding:6px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:14em}
table.facts td{text-align:left;white-space:normal}table.facts td:first-child{min-width:8em;color:var(--dim)}
tr:last-child td{border-bottom:0}th{color:var(--dim);font-weight:500}
td.best{color:var(--us);font-weight:600}
.yes{color:var(--us);font-weight:600}.no{color:var(--bad);font-weight:700}
.heat{font:14px/1.7 ui-monospace,"DejaVu Sans Mono",monospace;white-space:pre-wrap;overflow-wrap:anywhere;
margin:4px 0 10px}
.heat span,.scale span{border-radius:2px}
.scale span{color:var(--ink);padding:1px 7px;margin-right:4px;white-space:nowrap}
@media (max-width:600px){th:first-child,td:first-child{min-width:9em}th,td{padding:5px 7px}}
"""


def page(result: Result) -> str:
    """The report of any result of `nbmf bench`."""
    parts = parts_of(result)
    heat = [
        "".join(f".h{level}{{background:{colour}}}" for level, colour in enumerate(colours))
        for colours in (HEAT_LIGHT, HEAT_DARK)
    ]
    style = (
        f":root{{color-scheme:light dark;{variables(LIGHT)}}}{heat[0]}"
        f"@media (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}{heat[1]}}}{CSS}{STYLE}"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        "<title>NBMF: benchmark report</title>\n"
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n" + "\n".join(_body(result, parts)) + "\n</main>\n</body>\n"
        "</html>\n"
    )


def parts_of(result: Result) -> dict[str, Result]:
    """The parts of a result by name, whether it holds one or all."""
    what = result["measured"].removeprefix("bench ")
    return dict(result["parts"]) if what == "all" else {what: result}


def _body(result: Result, parts: Mapping[str, Result]) -> Iterator[str]:
    yield "<h1>NBMF: benchmark report</h1>"
    yield f'<p class="dim">{escape(machine_line(result))}</p>'
    drawn = plots.every(parts)
    if codec := parts.get("codec"):
        yield from _codec(codec, drawn)
    if store := parts.get("store"):
        yield from _store(store, drawn)
    if training := parts.get("training"):
        yield from _training(training, drawn)
    if recall := parts.get("recall"):
        yield from _recall(recall)
    if semantic := parts.get("semantic"):
        yield from _semantic(semantic, drawn)
    left_out = dict(result.get("left_out", {}))
    for part in parts.values():
        left_out |= part.get("left_out", {})
    if left_out:
        yield "<h2>Not measured</h2><ul>"
        yield "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in left_out.items()) + "</ul>"
    yield "<h2>Conditions</h2>"
    yield _table(["", ""], [[name, escape(text)] for name, text in facts(result, parts)]).replace(
        "<table", "<table class=facts", 1
    )


def machine_line(result: Result) -> str:
    machine = result["machine"]
    kernel = machine["kernel"] + (f"/{machine['simd']}" if machine["simd"] else "")
    return (
        f"{', '.join(result['data']['files'])} · {machine['cpu']}, {machine['cores']} cores · kernel {kernel} · "
        f"{result['date'][:10]} · commit {(result['commit'] or 'unknown')[:10]}"
    )


def facts(result: Result, parts: Mapping[str, Result]) -> Iterator[tuple[str, str]]:
    """Under what the result was measured, by name."""
    machine, model = result["machine"], result["model"]
    yield "processor", f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}"
    yield "kernel", machine["kernel"] + (f", {machine['simd']}" if machine["simd"] else "")
    yield "versions", ", ".join(f"{name} {machine[name]}" for name in ("nbmf", "python", "numpy", "zstd"))
    yield "commit", result["commit"] or "unknown"
    yield "date", result["date"]
    yield (
        "model",
        f"{model['name']} {model['id'][:16]}, {size(model['bytes'])}"
        + (
            f"; in memory {size(model['resident_bytes'])}, loaded in {model['load_ms']:.0f} ms"
            if "load_ms" in model
            else ""
        ),
    )
    if "pack_id" in model:
        yield "pack", f"{model['pack_id'][:16]}, {size(model['pack_bytes'])}"
    for name, part in parts.items():
        data = part["data"]
        yield (
            f"records, {name}",
            f"{', '.join(data['files'])}: {data['records']:,}"
            + (f", {data['limit']:,} at most" if data["limit"] else ""),
        )
        if (share := part.get("cpu_share")) is not None:
            yield (
                f"share of a core, {name}",
                f"{share:.0%}" + (" — a busy machine; times are off" if share < 0.97 else ""),
            )
    if "seconds" in result:
        yield "took", f"{result['seconds']:,.0f} seconds"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], best: int | None = None) -> str:
    """Cells are HTML."""
    top = "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>" if any(head) else ""
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=best' if at == best else ''}>{cell}</td>" for at, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>{top}{body}</table></div>'


def _figure(drawn: Mapping[str, Plot], name: str, note: str = "") -> str:
    if name not in drawn:
        return ""
    plot = drawn[name]
    below = f'<p class="dim">{escape(note)}</p>' if note else ""
    return f'<figure id="{name}"><figcaption>{escape(plot.title)}</figcaption>{plot.svg()}{below}</figure>'


# -- the codec ---------------------------------------------------------------------------------------------------------


def _codec(codec: Result, drawn: Mapping[str, Plot]) -> Iterator[str]:
    total, exact = codec["total"], codec["exact"]
    low, high = total["interval_95"]
    every = min(count for name, count in exact.items() if name != "records")
    cards = [
        (times(total["ratio"]), f"all records together, {low:.2f}–{high:.2f}"),
        (times(total["mean_of_records"]), "mean of the records' own ratios"),
        (times(total["p95_ratio"]), "or more for 95 % of records"),
        (f"{total['share_at_2x'] or 0:.1%}", "of records reach 2×"),
        (f"{every:,}", f"of {exact['records']:,} records came back exactly"),
        (f"{total['decode_ms']['p50']:.2f} ms", f"to decode; p99 {total['decode_ms']['p99']:.2f}"),
    ]
    yield '<div class="cards">'
    yield "".join(f'<div class="card"><b>{big}</b>{escape(small)}</div>' for big, small in cards) + "</div>"
    yield from _claims(codec)
    yield "<h2>The codec beside its peers</h2>"
    worse = plots.beaten(codec)
    note = (
        "passed in both: " + "; ".join(worse)
        if worse
        else "No peer lies both above and to the right of a profile of NBMF. The dashed line is the Pareto front."
    )
    yield '<div class="plots">' + _figure(drawn, "scatter", note) + _figure(drawn, "distribution")
    yield _figure(drawn, "by-size", "The bar on each point is the 95 % interval.") + _figure(
        drawn, "latency", "Filled: p50. Rings: p95 and p99."
    )
    yield "</div>"
    yield _table(
        [
            "encoder",
            "ratio",
            "95 %",
            "mean",
            "p95",
            "least",
            "exact",
            "alike, mean/p95/least",
            "decode MB/s",
            "encode MB/s",
        ],
        [_encoder_row(row) for row in codec["encoders"]],
        1,
    )
    if "peers" in codec:
        yield _table(
            [
                "peer",
                "records",
                "ratio",
                "NBMF there",
                "smaller by",
                "p95",
                "exact",
                "decode MB/s",
                "encode MB/s",
            ],
            [
                [
                    f"{escape(row['peer'])}<br><span class=dim>{escape(row['setting'])}</span>",
                    f"{row['records']:,}",
                    times(row["ratio"]),
                    times(row["nbmf"]),
                    times(row["nbmf_over_peer"]),
                    times(row["p95_ratio"]),
                    f"{row['exact']:,}",
                    f"{row['decode_mb_s']:.2f}",
                    f"{row['encode_mb_s']:.2f}",
                ]
                for row in codec["peers"]
            ],
            3,
        )
    for label in ("kind", "domain"):
        rows = codec.get(f"by_{label}", ())
        if len(rows) > 1:
            yield f"<h3>By {label}</h3>" + _groups(rows, label)
    yield from _heat(codec)


def _marked(holds: bool, text: str) -> str:
    return f'<span class="{"yes" if holds else "no"}">{text}</span>'


def _encoder_row(row: Result) -> list[str]:
    alike = row["similarity"]
    low, high = row["interval_95"]
    return [
        f"{escape(row['encoder'])}<br><span class=dim>{escape(row['setting'])}</span>",
        times(row["ratio"]),
        f"{low:.2f}–{high:.2f}",
        times(row["mean_of_records"]),
        times(row["p95_ratio"]),
        times(row["min_ratio"]),
        f"{row['exact_rate']:.2%}",
        "1" if alike is None else "/".join(f"{alike[name]:.3f}" for name in ("mean", "p95", "min")),
        f"{row['decode_mb_s']:.2f}",
        f"{row['encode_mb_s']:.2f}",
    ]


def _groups(rows: Sequence[Result], label: str) -> str:
    beside = [
        name for name in ("zstd-19", "zstd-19+dict", "brotli-11") if any(name in row.get("peers", {}) for row in rows)
    ]
    cells = [
        [
            escape(row[label]),
            f"{row['records']:,}",
            *(times(row["peers"][name]) for name in beside),
            times(row["ratio"]),
            "{:.2f}–{:.2f}".format(*row["interval_95"]),
            times(row["p95_ratio"]),
            milliseconds(row["decode_ms"]),
        ]
        for row in rows
    ]
    head = ["", "records", *beside, "NBMF", "95 %", "p95", "decode p50/p95/p99 ms"]
    return _table(head, cells, 2 + len(beside))


def _claims(codec: Result) -> Iterator[str]:
    found = codec["claims"]
    yield "<h2>The claims, item by item</h2>"
    yield (
        f'<p class="dim">Ratios over records of {found["least_bytes"]} bytes and more; accuracy over all. '
        "The margin is the share of the limit by which the figure is on the right side of it.</p>"
    )
    for part in found["sets"]:
        name = WHAT.get(part["records_of"], part["records_of"])
        count = sum(row["holds"] for row in part["verdicts"])
        state = '<span class="yes">✓</span>' if part["all_hold"] else '<span class="no">✗</span>'
        yield (
            f"<h3>{state} {escape(part['encoder'])}, {escape(name)}: {count} of {len(part['verdicts'])} hold "
            f'<span class="dim">({part["figures"]["records"]:,} records)</span></h3>'
        )
        rows = part["verdicts"] if part["records_of"] not in WHAT else []
        rows = rows or [row for row in part["verdicts"] if not row["holds"]]
        if rows:
            yield _verdicts(rows)
        if part["latency"]["cpu_share"] < QUIET:
            yield (
                f"<p class=dim>A busy machine: reads had a core for {part['latency']['cpu_share']:.0%} of the "
                "time; latencies are off.</p>"
            )
    yield "<h3>The old encoder, measured anew</h3>"
    old = found["old_figures"]
    yield (
        f'<p class="dim">Once measured on samples of its own: {old["ratio"]:.2f}×, {old["accuracy"]:.2%}, '
        f"{old['l2_ms']:.2f} ms an L2 access. Its file is not waited for to reach the disk; NBMF’s commit is.</p>"
    )
    cells = []
    for part in found["sets"]:
        if part["encoder"] != codec["encoder"]:
            continue
        for name, row in {**part["old"], part["encoder"]: part["figures"]}.items():
            code = f" <span class=dim>({times(row['ratio_of_code'])} its code)</span>" if "ratio_of_code" in row else ""
            cells.append(
                [
                    f"{escape(name)}, {escape(WHAT.get(part['records_of'], part['records_of']))}",
                    times(row["mean_of_records"]) + code,
                    times(row["p95_ratio"]),
                    f"{row['exact_rate']:.2%}",
                    f"{row['accuracy_mean']:.2%}",
                    f"{row['accuracy_min']:.2%}",
                    f"{row['l2_mean_ms']:.2f}",
                ]
            )
    head = ["encoder, records", "mean ratio", "p95", "exact", "accuracy", "least", "mean L2 ms"]
    yield _table(head, cells)


def _verdicts(rows: Sequence[Result]) -> str:
    return _table(
        ["claim", "", "limit", "measured", "margin"],
        [
            [
                escape(row["claim"]),
                _marked(row["holds"], "✓ holds" if row["holds"] else "✗ fails"),
                ("≥ " if row["at_least"] else "≤ ") + shown(row["limit"], row["unit"]),
                _marked(row["holds"], shown(row["measured"], row["unit"])),
                margin(row),
            ]
            for row in rows
        ],
    )


def level(bits: float) -> int:
    """The heat map's colour of a cost."""
    return sum(bits >= bound for bound in LEVELS)


def _heat(codec: Result) -> Iterator[str]:
    yield '<h2 id="heat">Where the bits go</h2>'
    bounds = ["0", *(f"{bound:g}" for bound in LEVELS)]
    scale = "".join(
        f'<span class="h{at}">{low}{f"–{bounds[at + 1]}" if at + 1 < len(bounds) else " and more"}</span>'
        for at, low in enumerate(bounds)
    )
    yield f'<p class="dim scale">bits a byte: {scale}</p>'
    yield '<p class="dim">Samples that ship with NBMF, none of which the model was trained on.</p>'
    for sample in codec["heat"]:
        yield (
            f'<p class="dim">{escape(sample["kind"].replace("_", " "))}: {sample["raw_bytes"]} bytes as '
            f"{sample['stored_bytes']}, {times(sample['ratio'])}</p>"
        )
        runs = "".join(f'<span class="h{level(bits)}">{escape(text)}</span>' for text, bits in sample["runs"])
        yield f'<div class="heat">{runs}</div>'


# -- the other parts ---------------------------------------------------------------------------------------------------


def _store(store: Result, drawn: Mapping[str, Plot]) -> Iterator[str]:
    about = store["store"]
    yield "<h2>The store beside its peers</h2>"
    yield (
        f'<p class="dim">{about["records"]:,} records, {size(about["value_bytes"])} of values and '
        f"{size(about['key_bytes'])} of keys, {about['tenants']:,} tenants; "
        f"{escape(about['filesystem'] or 'unknown filesystem')}. "
        "Every file counts. A put is durable; NBMF’s was decoded again before it returned.</p>"
    )
    yield '<div class="plots">' + "".join(_figure(drawn, name) for name in ("disk", "store-bytes", "store-latency"))
    yield "</div>"
    yield _table(
        ["store", "bytes", "ratio", "with namespaces", "exact", "put ms", "get ms", "again ms", "records/s in"],
        [
            [
                f"{escape(row['store'])}<br><span class=dim>{escape(row['setting'])}</span>",
                f"{row['disk_bytes']:,}",
                times(row["ratio"]),
                times(row["ratio_with_namespaces"]),
                f"{row['exact']:,}",
                *(milliseconds(row["latency"][what]) for what in ("put_ms", "get_ms", "get_again_ms")),
                f"{row['ingest_records_s']:,.0f}",
            ]
            for row in store["stores"]
            if "latency" in row
        ],
        2,
    )
    if memory := store.get("in_memory"):
        yield (
            f'<p class="dim">{escape(memory["store"])}, which keeps nothing on disk: '
            f"{memory['memory_bytes_a_record']:,.0f} bytes of memory a record; put {milliseconds(memory['put_ms'])}, "
            f"get {milliseconds(memory['get_ms'])} ms.</p>"
        )
    cold = store["cold"]
    yield (
        f"<p>All records in archives: ratio {times(cold['ratio'])}, {size(cold['disk_bytes'])} where it was "
        f"{size(cold['warm_disk_bytes'])}; a read that no cached block answers takes {milliseconds(cold['get_ms'])} ms "
        "(p50/p95/p99).</p>"
    )


def _training(training: Result, drawn: Mapping[str, Plot]) -> Iterator[str]:
    tested = training["tested"]
    yield "<h2>More records: where does it stop paying?</h2>"
    yield (
        f'<p class="dim">Measured on {tested["records"]:,} records that neither model nor pack has seen. '
        "Dashed: fitted, bits a byte = floor + scale · records<sup>−exponent</sup>; seconds: a straight line.</p>"
    )
    notes = {"training-ratio": "bits_per_byte", "pack-ratio": "pack_bits_per_byte"}
    yield '<div class="plots">' + "".join(
        _figure(
            drawn,
            name,
            pays(training["fits"][notes[name]]).replace("[dim]", "").replace("[/]", "") if name in notes else "",
        )
        for name in ("training-ratio", "pack-ratio", "training-time")
    )
    yield "</div>"


def _recall(recall: Result) -> Iterator[str]:
    top = recall["top"]
    yield "<h2>Recall</h2>"
    yield (
        f'<p class="dim">{recall["queries"]:,} queries, each a few words in a row out of one of {recall["records"]:,} '
        f"records; a hit is that record among the first {top}.</p>"
    )
    yield _table(
        ["search", "first", f"in {top}", "95 %", "MRR", "of exact search’s", "p50/p95/p99 ms", "bytes a record"],
        [
            [
                escape(row["search"]),
                f"{row['hit_at_1']:.1%}",
                f"{row[f'hit_at_{top}']:.1%}",
                "{:.1%}–{:.1%}".format(*row["interval_95"]),
                f"{row['mean_reciprocal_rank']:.3f}",
                f"{row['of_exact_top']:.1%}",
                milliseconds(row["search_ms"]),
                f"{row['bytes_a_record']:,.0f}",
            ]
            for row in recall["searches"]
        ],
        2,
    )


def _semantic(semantic: Result, drawn: Mapping[str, Plot]) -> Iterator[str]:
    yield "<h2>Vectors within a bound</h2>"
    yield '<div class="plots">' + _figure(
        drawn, "rate", f"Vectors of {semantic['texts']:,} texts, measured on others than were learned from."
    )
    yield "</div>"
    yield _verdicts(semantic["verdicts"])
    for about in semantic["sets"]:
        yield f"<h3>{escape(title_of(about))}</h3>"
        yield _table(HEAD, [[escape(cell) for cell in row] for row in cells(about)])
    yield _table(SEARCH_HEAD, [[escape(cell) for cell in row] for row in searches(semantic)])
