"""Writes docs/benchmarks.md, the plots in docs/images and the claims in docs/encoder-upgrade.md from bench/results.

With --check, tells if they are in step.

No figure on that page is typed: each is read from a result that is committed, and stands beside the result's name.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nbmf.bench import page, plots, semantic_table, svg
from nbmf.bench.parts_table import WHAT, margin, pays, shown
from nbmf.bench.table import QUIET, milliseconds, size, times

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
UPGRADE = ROOT / "docs" / "encoder-upgrade.md"
CLAIMED = "test.json"  # whose claims stand there, between these:
BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
IMAGES = ROOT / "docs" / "images"
HEAD = """# Benchmarks

<!-- Written by scripts/benchmark_docs.py from the files in bench/results; a test fails when it is out of step. -->

Every figure here is read from a result under `bench/results`, which names the machine, the versions, the commit and
the model it was measured with. What the figures mean, and how to measure your own:
[bench/README.md](../bench/README.md). `nbmf bench all --html report.html` makes a report of the same kind on your
machine, on your records with `--data`.
"""

Result = Mapping[str, Any]


def results() -> dict[str, Result]:
    """What is committed, by file name."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def parts(found: Mapping[str, Result], part: str) -> Iterator[tuple[str, Result]]:
    """The results that hold a part, by file name; those of the codec from before it had a name too."""
    for name, result in found.items():
        old = part == "codec" and result["measured"] == "bench"
        held = page.parts_of(result).get("bench" if old else part)
        if held is not None:
            yield name, held


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def conditions(name: str, result: Result) -> str:
    machine = result["machine"]
    kernel = machine["kernel"] + (f"/{machine['simd']}" if machine["simd"] else "")
    busy = result.get("cpu_share", 1.0)
    told = (
        f"`{name}`: {', '.join(result['data']['files'])}, {machine['cpu']}, {machine['cores']} cores, kernel {kernel}, "
    )
    told += f"{result['date'][:10]}, commit {(result['commit'] or 'unknown')[:10]}, model {result['model']['id'][:8]}."
    return told + (f" The machine was busy ({busy:.0%} of a core): times are off." if busy < QUIET else "")


# -- the codec ---------------------------------------------------------------------------------------------------------


def codec(found: Mapping[str, Result]) -> Iterator[str]:
    rows = []
    for name, result in parts(found, "codec"):
        total, exact = result["total"], result["exact"]
        every = min(count for what, count in exact.items() if what != "records")
        rows.append(
            [
                f"`{name}`",
                f"{total['records']:,}",
                times(total["ratio"]),
                "{:.2f}–{:.2f}".format(*total["interval_95"]),
                times(total["median"]),
                times(total["p95_ratio"]),
                f"{total['share_at_2x']:.1%}",
                f"{total['bits_per_byte']:.3f}",
                f"{every:,}/{exact['records']:,}",
            ]
        )
    if not rows:
        return
    yield "## The codec"
    yield table(["result", "records", "ratio", "95 %", "median", "p95", "reach 2×", "bits a byte", "exact"], rows)
    for name, result in parts(found, "codec"):
        yield f"### {name}"
        yield conditions(name, result)
        if "peers" in result:
            yield peers(result)
        if "encode_ms" in result["total"]:
            total, many = result["total"], result["many"]
            yield (
                f"One record at a time on one core, p50/p95/p99: encode {milliseconds(total['encode_ms'])} ms "
                f"({total['encode_mb_s']:.2f} MB/s), decode {milliseconds(total['decode_ms'])} ms "
                f"({total['decode_mb_s']:.2f} MB/s). Many at once on all cores: {many['encode_many_mb_s']:.2f} and "
                f"{many['decode_many_mb_s']:.2f} MB/s. The model has {size(result['model']['bytes'])}."
            )
        means = result["geometric_means"]
        for language, row in means.items():
            if row["sources"] > 1:
                yield (
                    f"Geometric mean of {row['sources']} {'English' if language == 'english' else language} sources: "
                    f"{times(row['ratio'])}, the lowest {times(row['lowest'])}."
                )
        if packs := result.get("packs", {}).get("geometric_means"):
            yield table(
                [
                    "packs of one half of a source, on the other",
                    "sources",
                    "no pack",
                    "pack",
                    "zstd + dictionary",
                    "pack over zstd, least",
                ],
                [
                    [
                        language,
                        f"{row['sources']}",
                        *(times(row[what]) for what in ("base", "pack", "zstd_dictionary", "quotient_min")),
                    ]
                    for language, row in packs.items()
                ],
            )
        if "claims" in result:
            yield from claims(result)


def peers(result: Result) -> str:
    speeds = "decode_mb_s" in result["peers"][0]
    head = ["peer", "records", "ratio", "NBMF there", "smaller by", *(["decode MB/s"] if speeds else []), "setting"]
    return table(
        head,
        [
            [
                row["peer"],
                f"{row['records']:,}",
                times(row["ratio"]),
                times(row["nbmf"]),
                times(row["nbmf_over_peer"]),
                *([f"{row['decode_mb_s']:.2f}"] if speeds else []),
                row["setting"],
            ]
            for row in result["peers"]
        ],
    )


def claims(result: Result) -> Iterator[str]:
    for part in result["claims"]["sets"]:
        of = WHAT.get(part["records_of"], part["records_of"])
        count = sum(row["holds"] for row in part["verdicts"])
        title = f"Claims, `{part['encoder']}` on {of}: **{count} of {len(part['verdicts'])} hold**"
        wanted = part["verdicts"] if part["records_of"] not in WHAT else [r for r in part["verdicts"] if not r["holds"]]
        if (share := part["latency"]["cpu_share"]) < QUIET:
            title += f" (a busy machine: reads had a core for {share:.0%} of the time, and latencies are off)"
        yield title + (":" if wanted else ".")
        if wanted:
            yield table(
                ["claim", "limit", "measured", "margin", ""],
                [
                    [
                        row["claim"],
                        ("≥ " if row["at_least"] else "≤ ") + shown(row["limit"], row["unit"]),
                        shown(row["measured"], row["unit"]),
                        margin(row),
                        "holds" if row["holds"] else "**fails**",
                    ]
                    for row in wanted
                ],
            )
    yield "The old encoder, measured anew; in brackets the ratio of its code alone, without the hex and JSON around it:"
    yield table(
        ["encoder, records", "mean ratio", "exact", "accuracy", "least", "mean L2 ms"],
        [
            [
                f"{name}, {WHAT.get(part['records_of'], part['records_of'])}",
                times(row["mean_of_records"]) + (f" ({times(row['ratio_of_code'])})" if "ratio_of_code" in row else ""),
                f"{row['exact_rate']:.1%}",
                f"{row['accuracy_mean']:.2%}",
                f"{row['accuracy_min']:.2%}",
                f"{row['l2_mean_ms']:.2f}",
            ]
            for part in result["claims"]["sets"]
            if part["encoder"] == result["encoder"]
            for name, row in part["old"].items()
        ],
    )


# -- the other parts ---------------------------------------------------------------------------------------------------


def store(found: Mapping[str, Result]) -> Iterator[str]:
    held = list(parts(found, "store"))
    if held:
        yield "## The store"
    for name, result in held:
        about = result["store"]
        yield f"### {name}, the store"
        yield conditions(name, result) + f" {about['records']:,} records, {size(about['value_bytes'])} of values."
        yield table(
            ["store", "bytes on disk a record", "ratio", "exact", "put ms", "get ms", "again ms", "records/s in"],
            [
                [
                    row["store"],
                    f"{row['bytes_a_record']:,.1f}",
                    times(row["ratio"]),
                    f"{row['exact']:,}/{row['records']:,}",
                    *(
                        milliseconds(row["latency"][what]) if "latency" in row else "–"
                        for what in ("put_ms", "get_ms", "get_again_ms")
                    ),
                    f"{row['ingest_records_s']:,.0f}",
                ]
                for row in result["stores"]
            ],
        )
        for row in result["stores"]:
            if "search_ms" in row.get("latency", {}):
                yield (
                    f"Search by meaning, p50/p95/p99: {milliseconds(row['latency']['search_ms'])} ms over everything, "
                    f"{milliseconds(row['latency']['search_tenant_ms'])} ms within a tenant."
                )
        yield frozen("All records in archives", result["cold"])
        if alone := result.get("one_source_tenants"):
            yield sorted_by_source(alone)
        if other := result.get("unseen"):
            yield f"{other['records']:,} records that the model was not trained on ({', '.join(other['files'])}):"
            yield table(
                ["store", "bytes on disk a record", "ratio", "exact"],
                [
                    [
                        row["store"],
                        f"{row['bytes_a_record']:,.1f}",
                        times(row["ratio"]),
                        f"{row['exact']:,}/{row['records']:,}",
                    ]
                    for row in other["stores"]
                ],
            )
            yield frozen("All of these in archives", other["cold"])
            if alone := other.get("one_source_tenants"):
                yield sorted_by_source(alone)
        if result.get("growth"):
            yield table(
                ["records", "bytes each", "open ms", "put ms", "get ms", "records/s in"],
                [
                    [
                        f"{row['records']:,}",
                        f"{row['bytes_a_record']:,.1f}",
                        f"{row['open_ms']:,.0f}",
                        milliseconds(row["put_ms"]),
                        milliseconds(row["get_ms"]),
                        f"{row['ingest_records_s']:,.0f}",
                    ]
                    for row in result["growth"]
                ],
            )


def frozen(what: str, cold: Result) -> str:
    return (
        f"{what}: ratio {times(cold['ratio'])}, {times(cold['warm_over_cold_disk'])} smaller than warm, everything "
        f"counted; a read whose block is not cached takes {milliseconds(cold['get_ms'])} ms."
    )


def sorted_by_source(row: Result) -> str:
    kept = ", ".join(
        f"{name} {times(row[what]['ratio'])}"
        for what, name in (("warm", "warm"), ("packed", "with packs of their own"), ("cold", "in archives"))
        if what in row
    )
    return f"{row['records']:,} records of {row['tenants']} tenants, a source each, everything counted: {kept}."


def training(found: Mapping[str, Result]) -> Iterator[str]:
    held = list(parts(found, "training"))
    if held:
        yield "## More records"
    for name, result in held:
        tested = result["tested"]
        yield f"### {name}, training"
        yield conditions(name, result) + f" Size {result['size']}; measured on {tested['records']:,} other records."
        if result["models"]:
            yield table(
                ["records trained on", "model", "seconds", "memory", "zstd + dictionary of them", "ratio", "95 %"],
                [
                    [
                        f"{row['records']:,}",
                        size(row["model_bytes"]),
                        f"{row['seconds']:,.1f}",
                        size(row["memory_peak_bytes"]),
                        times(row["zstd_dictionary"]),
                        times(row["ratio"]),
                        "{:.2f}–{:.2f}".format(*row["interval_95"]),
                    ]
                    for row in result["models"]
                ],
            )
            yield sentence(result["fits"]["bits_per_byte"])
        if result["packs"]:
            yield table(
                [
                    "records that a pack is learned from",
                    "pack",
                    "seconds",
                    "zstd + dictionary of them",
                    "no pack",
                    "pack",
                ],
                [
                    [
                        f"{row['records']:,}",
                        size(row["pack_bytes"]),
                        f"{row['seconds']:,.1f}",
                        *(times(row[what]) for what in ("zstd_dictionary", "without", "ratio")),
                    ]
                    for row in result["packs"]
                ],
            )
            yield sentence(result["fits"]["pack_bits_per_byte"])


def sentence(fit: Result | None) -> str:
    told = pays(fit).replace("[dim]", "").replace("[/]", "")
    return told[:1].upper() + told[1:] + "."


def recall(found: Mapping[str, Result]) -> Iterator[str]:
    held = list(parts(found, "recall"))
    if held:
        yield "## Recall"
    for name, result in held:
        top = result["top"]
        yield f"### {name}, recall"
        yield conditions(name, result) + f" {result['queries']:,} queries over {result['records']:,} records."
        yield table(
            ["search", "first", f"in {top}", "95 %", "MRR", "p50/p95/p99 ms", "bytes a record"],
            [
                [
                    row["search"],
                    f"{row['hit_at_1']:.1%}",
                    f"{row[f'hit_at_{top}']:.1%}",
                    "{:.1%}–{:.1%}".format(*row["interval_95"]),
                    f"{row['mean_reciprocal_rank']:.3f}",
                    milliseconds(row["search_ms"]),
                    f"{row['bytes_a_record']:,.0f}",
                ]
                for row in result["searches"]
            ],
        )


def semantic(found: Mapping[str, Result]) -> Iterator[str]:
    held = list(parts(found, "semantic"))
    if held:
        yield "## Vectors within a bound"
    for name, result in held:
        yield conditions(name, result) + f" {result['texts']:,} texts."
        yield table(
            ["asked for", "limit", "measured", ""],
            [
                [
                    row["claim"],
                    ("≥ " if row["at_least"] else "≤ ") + shown(row["limit"], row["unit"]),
                    shown(row["measured"], row["unit"]),
                    "holds" if row["holds"] else "fails",
                ]
                for row in result["verdicts"]
            ],
        )
        for about in result["sets"]:
            yield f"### {semantic_table.title_of(about)}"
            yield table(semantic_table.HEAD, list(semantic_table.cells(about)))
        if result["searches"]:
            yield table(semantic_table.SEARCH_HEAD, list(semantic_table.searches(result)))


def load(found: Mapping[str, Result]) -> Iterator[str]:
    held = [(name, result) for name, result in found.items() if result["measured"] == "load http"]
    if held:
        yield "## Served over HTTP"
    for name, result in held:
        asked = result["asked"]
        mix = ", ".join(f"{share} % {kind}" for kind, share in asked["mix"].items())
        yield conditions(name, result) + (
            f" {asked['connections']} connections, {mix}, {result['requests']:,} requests in {result['seconds']:.0f} s "
            f"({result['rate']:,.0f} a second), each answer checked, {sum(result['errors'].values())} errors. Server "
            f"and load share the machine: {result['server_cores']:.2f} and {result['load_cores']:.2f} cores. A latency "
            "counts from when its request was due."
        )
        yield table(
            ["request", "requests", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms"],
            [
                [kind, f"{row['requests']:,}", *(f"{row[share]:,.1f}" for share in ("p50", "p95", "p99", "p99.9"))]
                for kind, row in [
                    *result["by_kind"].items(),
                    ("all", {"requests": result["requests"], **result["latency_ms"]}),
                ]
            ],
        )


# -- all of it ---------------------------------------------------------------------------------------------------------


def images(found: Mapping[str, Result]) -> dict[str, str]:
    """The plots by file name: each of the result with the most records that has it."""
    best: dict[str, tuple[int, str]] = {}
    for result in found.values():
        for part, held in page.parts_of(result).items():
            if part not in ("codec", "store", "training", "semantic"):
                continue
            for name, plot in plots.every({part: held}).items():
                count = held["data"]["limit"] or held["data"]["records"]
                if name not in best or count > best[name][0]:
                    best[name] = count, svg.standalone(plot.svg())
    return {f"{name}.svg": text for name, (_, text) in best.items()}


def files() -> dict[Path, str]:
    """Everything that is written, by path."""
    found = results()
    pictures = images(found)
    lines = [HEAD]
    for name, text in pictures.items():
        title = text.split("<title>")[1].split("</title>")[0]
        lines.append(f"![{title}](images/{name})")
    for part in (codec, store, training, recall, semantic, load):
        lines += part(found)
    out = {PAGE: "\n\n".join(line.strip() for line in lines) + "\n"}
    return out | {IMAGES / name: text for name, text in pictures.items()}


def upgrade(found: Mapping[str, Result]) -> str:
    """The page of the upgrade, with the claims as they were measured."""
    before, rest = UPGRADE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    told = [line for name, result in parts(found, "codec") if name == CLAIMED for line in claims(result)]
    return before + "\n\n".join([BEGIN, *told, END]) + after


def main() -> int:
    wanted = {**files(), UPGRADE: upgrade(results())}
    there = {PAGE, UPGRADE, *IMAGES.glob("*.svg")}
    if "--check" not in sys.argv[1:]:
        IMAGES.mkdir(parents=True, exist_ok=True)
        for path in there - wanted.keys():
            path.unlink(missing_ok=True)
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    stale += [path for path in there - wanted.keys() if path.exists()]
    for path in sorted(stale):
        print(
            f"{path.relative_to(ROOT)} is out of step with bench/results: run scripts/benchmark_docs.py",
            file=sys.stderr,
        )
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
