"""The plots of the report: what of a result goes where. Drawing is svg.py's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from nbmf.bench import curves
from nbmf.bench.svg import Plot, log_range, plot

Result = Mapping[str, Any]

LINES: Final = (("nbmf", "us"), ("zstd-19+dict", "s1"), ("brotli-11", "s2"), ("zstd-19", "s3"))
L1_LIMIT: Final = 25.0  # ms
L2_LIMIT: Final = 120.0
TEXTS: Final = ("unishox2", "smaz")  # peers that are measured on texts alone
STEPS: Final = 40  # of a curve


# -- the codec ---------------------------------------------------------------------------------------------------------


def points(codec: Result) -> list[tuple[str, float, float, bool]]:
    """Name, decode speed in MB/s, ratio, and whether it is ours, of every profile and peer that gives all back."""
    peers = [
        (row["peer"] + (" (texts)" if row["peer"] in TEXTS else ""), row["decode_mb_s"], row["ratio"], False)
        for row in codec.get("peers", ())
        if row["exact"] == row["records"]
    ]
    ours = [
        ("NBMF " + row["encoder"], row["decode_mb_s"], row["ratio"], True)
        for row in codec["encoders"]
        if row["encoder"] in ("fast", "dense")
    ]
    old = [
        ("old stub", row["decode_mb_s"], row["ratio"], False) for row in codec["encoders"] if row["encoder"] == "stub"
    ]
    return [*ours, *peers, *old]


def front(found: Sequence[tuple[str, float, float, bool]]) -> list[tuple[str, float, float, bool]]:
    """Those that no other passes in both, the slowest first."""
    kept = [one for one in found if not any(b[1] >= one[1] and b[2] >= one[2] and b != one for b in found)]
    return sorted(kept, key=lambda one: one[1])


def beaten(codec: Result) -> list[str]:
    """Profiles of ours that a peer passes in both ratio and speed of decoding, with the peer's name."""
    found = points(codec)
    return [
        f"{one[0]} by {peer[0]}"
        for one in found
        if one[3]
        for peer in found
        if not peer[3] and peer[1] > one[1] and peer[2] > one[2]
    ]


def scatter(codec: Result) -> Plot:
    """Ratio against decode speed, with the Pareto front."""
    found = points(codec)
    top = 1.12 * max(one[2] for one in found)
    drawn = plot(
        "Ratio against decode speed: up and right is better", log_range([one[1] for one in found]), (0, top), log_x=True
    )
    drawn.axes("decoding, raw MB a second, one core", "ratio")
    best = front(found)
    stairs: list[tuple[float, float]] = [(drawn.x.low, best[0][2])]
    for at, one in enumerate(best):
        stairs.append((one[1], one[2]))
        stairs.append((one[1], best[at + 1][2] if at + 1 < len(best) else 0))
    drawn.path(stairs, "s0 dash")
    drawn.avoid(stairs)
    for _, speed, ratio, ours in found:
        drawn.dot(speed, ratio, "us" if ours else "s2", 6 if ours else 4.5)
    for name, speed, ratio, ours in found:
        drawn.label(speed, ratio, name, "us" if ours else "name")
    return drawn


def distribution(codec: Result) -> Plot:
    """The share of records at each ratio: ours as an area, peers as lines."""
    edges, counts = codec["distribution"]["edges"], codec["distribution"]["counts"]
    lines = [(name, cls) for name, cls in LINES if name in counts and sum(counts[name])]
    shares = {name: [count / sum(counts[name]) for count in counts[name]] for name, _ in lines}
    last = max(at for name, _ in lines for at, share in enumerate(shares[name]) if share) + 1
    step = edges[1] - edges[0]
    high = 1.1 * max(max(one) for one in shares.values())
    drawn = plot("How many records reach which ratio", (edges[0], edges[0] + step * last), (0, 100 * high))
    drawn.axes("ratio of a record", "% of records")
    for name, cls in reversed(lines):
        stairs = [(edges[0], 0.0)]
        for at, share in enumerate(shares[name][:last]):
            stairs += [(edges[0] + step * at, 100 * share), (edges[0] + step * (at + 1), 100 * share)]
        stairs.append((edges[0] + step * last, 0.0))
        if cls == "us":
            drawn.path(stairs, "area")
        drawn.path(stairs, cls)
    drawn.legend(lines)
    return drawn


def by_size(codec: Result) -> Plot:
    """The ratio in each bucket of record sizes, ours with its 95 % interval."""
    rows = codec["by_size"]
    lines = [
        (name, cls) for name, cls in LINES if name == "nbmf" or any(row.get("peers", {}).get(name) for row in rows)
    ]
    high = 1.15 * max(row["interval_95"][1] for row in rows)
    drawn = plot("Ratio by record size", (-0.5, len(rows) - 0.5), (0, high))
    drawn.axes("raw bytes of a record", "ratio", x_ticks=False)
    for at, row in enumerate(rows):
        drawn.text(drawn.x(at), drawn.y.start + 15, row["bytes"], anchor="middle")
    for name, cls in reversed(lines):
        found = [
            (float(at), row["ratio"] if name == "nbmf" else row["peers"][name])
            for at, row in enumerate(rows)
            if name == "nbmf" or row.get("peers", {}).get(name)
        ]
        drawn.path(found, cls)
        for x, y in found:
            drawn.dot(x, y, cls, 3.5)
    for at, row in enumerate(rows):
        drawn.path([(at, row["interval_95"][0]), (at, row["interval_95"][1])], "us")
    drawn.legend(lines, right=False)
    return drawn


def latency(codec: Result) -> Plot:
    """p50, p95 and p99 of every kind of call, in ms, with the limits that were claimed."""
    rows: list[tuple[str, Result, float | None]] = [
        (f"{what} ({one['encoder']})", one[f"{what}_ms"], None)
        for one in codec["encoders"]
        if one["encoder"] == codec["encoder"]
        for what in ("encode", "decode")
    ]
    tiers = next((one["latency"] for one in codec["claims"]["sets"] if one["encoder"] == codec["encoder"]), None)
    if tiers is not None:
        for name, key, limit in (
            ("L1 read, memory", "l1_read_ms", L1_LIMIT),
            ("L2 read, database", "l2_read_ms", L2_LIMIT),
            ("L2 write, durable", "l2_write_ms", L2_LIMIT),
            ("L3 read, archive", "l3_read_ms", None),
        ):
            rows.append((name, tiers[key], limit))
    low, high = log_range([spent[name] for _, spent, _ in rows for name in ("p50", "p99")] + [L2_LIMIT])
    drawn = plot(
        "Latency of single calls: p50, p95, p99", (low, high), (len(rows) - 0.4, -0.8), log_x=True, height=250, left=130
    )
    drawn.axes("milliseconds", "", y_ticks=False)
    for at, (name, spent, limit) in enumerate(rows):
        drawn.text(4, drawn.y(at) + 4, name, "name")
        drawn.path([(spent["p50"], at), (spent["p99"], at)], "us")
        for which, radius, hollow in (("p99", 3.5, True), ("p95", 4.5, True), ("p50", 4.5, False)):
            drawn.dot(spent[which], at, "us hollow" if hollow else "us", radius)
        if limit is not None:
            drawn.path([(limit, at - 0.35), (limit, at + 0.35)], "bad")
    drawn.text(drawn.x.end, drawn.y.end + 4, "red: the limit that was claimed", "bad", "end")
    return drawn


# -- growth ------------------------------------------------------------------------------------------------------------


def growth(
    title: str,
    y_name: str,
    x_name: str,
    series: Sequence[tuple[str, str, Sequence[tuple[float, float]], Result | None]],
    *,
    turned: Callable[[float], float] = lambda value: value,
    log_y: bool = False,
) -> Plot:
    """Figures against numbers of records, with their curves. `turned` makes of a curve's figure what is shown."""
    xs = [x for _, _, found, _ in series for x, _ in found]
    ys = [y for _, _, found, _ in series for _, y in found]
    reach = log_range(ys) if log_y else (0.0, 1.15 * max(ys))
    drawn = plot(title, log_range(xs), reach, log_x=True, log_y=log_y)
    drawn.axes(x_name, y_name)
    for _, cls, found, fit in reversed(series):
        if fit is not None:
            low, high = found[0][0], found[-1][0]
            steps = [low * (high / low) ** (step / STEPS) for step in range(STEPS + 1)]
            drawn.path([(x, turned(curves.at(dict(fit), x))) for x in steps], f"{cls} dash")
        else:
            drawn.path(found, cls)
        for x, y in found:
            drawn.dot(x, y, cls, 4)
    drawn.legend([(name, cls) for name, cls, _, _ in series], right=y_name == "ratio" and False)
    return drawn


def ratio_of_bits(bits: float) -> float:
    return 8 / bits if bits > 0 else 0.0


def of_training(training: Result) -> list[Plot]:
    """What more records to train on, and to learn a pack from, are worth."""
    fits, models, packs = training["fits"], training["models"], training["packs"]

    def pairs(rows: Sequence[Result], name: str) -> list[tuple[float, float]]:
        return [(row["records"], row[name]) for row in rows]

    drawn = []
    if models:
        drawn.append(
            growth(
                "Ratio against training records",
                "ratio",
                "records trained on",
                [
                    (f"model, size {training['size']}", "us", pairs(models, "ratio"), fits["bits_per_byte"]),
                    ("zstd-19 + dictionary", "s1", pairs(models, "zstd_dictionary"), None),
                ],
                turned=ratio_of_bits,
            )
        )
        drawn.append(
            growth(
                "Training time",
                "seconds",
                "records trained on",
                [("nbmf train", "us", pairs(models, "seconds"), fits["seconds"])],
            )
        )
    if packs:
        drawn.append(
            growth(
                "Ratio against records that a pack is learned from",
                "ratio",
                "records learned from",
                [
                    ("with the pack", "us", pairs(packs, "ratio"), fits["pack_bits_per_byte"]),
                    ("zstd-19 + dictionary", "s1", pairs(packs, "zstd_dictionary"), None),
                    ("no pack", "s3", pairs(packs, "without"), None),
                ],
                turned=ratio_of_bits,
            )
        )
    return drawn


def of_store(store: Result) -> list[Plot]:
    """Bytes and latencies as a store grows."""
    rows, fits = store.get("growth") or [], store.get("fits") or {}
    if len(rows) < 2:
        return []
    counts = [row["records"] for row in rows]
    return [
        growth(
            "Bytes on disk a record, as a store grows",
            "bytes",
            "records in the store",
            [
                (
                    "everything on disk",
                    "us",
                    list(zip(counts, (row["bytes_a_record"] for row in rows), strict=True)),
                    fits.get("bytes_a_record"),
                )
            ],
        ),
        growth(
            "Latency as a store grows",
            "ms",
            "records in the store",
            [
                (
                    f"{what}, p50" + (", durable" if what == "put" else ""),
                    cls,
                    list(zip(counts, (row[f"{what}_ms"]["p50"] for row in rows), strict=True)),
                    fits.get(f"{what}_ms"),
                )
                for what, cls in (("put", "s1"), ("get", "us"))
            ],
            log_y=True,
        ),
    ]


def disk(store: Result) -> Plot:
    """Bytes on disk a record, of every store."""
    rows = store["stores"]
    high = 1.25 * max(row["bytes_a_record"] for row in rows)
    drawn = plot(
        "Bytes on disk a record, everything counted",
        (0, high),
        (len(rows) - 0.4, -0.6),
        height=60 + 30 * len(rows),
        left=160,
    )
    drawn.axes("bytes a record", "", y_ticks=False)
    for at, row in enumerate(rows):
        ours = row["store"].startswith("nbmf")
        drawn.text(4, drawn.y(at) + 4, row["store"], "us" if ours else "name")
        wide = drawn.x(row["bytes_a_record"]) - drawn.x.start
        top = drawn.y(at) - 8
        cls = "us" if ours else "s2"
        drawn.add(f'<rect class="{cls}" x="{drawn.x.start}" y="{top:.1f}" width="{wide:.1f}" height="16" rx="2"/>')
        drawn.text(drawn.x(row["bytes_a_record"]) + 5, drawn.y(at) + 4, f"{row['bytes_a_record']:,.0f}", "name")
    return drawn


# -- vectors -----------------------------------------------------------------------------------------------------------


def rate(semantic: Result) -> Plot:
    """Bits a float against how near the farthest vector is, of the first set of embeddings, and of random vectors."""
    about = next((one for one in semantic["sets"] if one["embedder"] is not None), semantic["sets"][0])
    by_coder: dict[str, list[tuple[float, float]]] = {}
    dots: list[tuple[str, float, float]] = []
    for row in about["rows"]:
        place = 1 - row["cosine_min"], row["bits"]
        if row["cosine_bound"] is not None:
            by_coder.setdefault(row["coder"], []).append(place)
        elif place[0] > 0:
            dots.append((row["coder"], *place))
    theory = [1 - row["cosine"] for row in semantic["theory"]]
    far = [at for points in [*by_coder.values(), [dot[1:] for dot in dots]] for at, _ in points]
    high = 1.1 * max(bits for points in by_coder.values() for _, bits in points)
    dots = [dot for dot in dots if dot[2] <= high]
    drawn = plot(
        f"Bits a float against nearness: {about['vectors']}", log_range([*theory, *far]), (0, high), log_x=True
    )
    drawn.axes("1 − cosine of the farthest vector", "bits a float")
    lines = list(zip(by_coder, ("s2", "us", "s1"), strict=False))
    for name, cls in lines:
        drawn.path(by_coder[name], cls)
        for x, y in by_coder[name]:
            drawn.dot(x, y, cls, 3)
    bound = [(1 - row["cosine"], row["gaussian_bits"]) for row in semantic["theory"]]
    drawn.path(bound, "s0 dash")
    drawn.avoid(bound)
    for _, x, y in dots:
        drawn.dot(x, y, "s3", 4)
    drawn.legend([*lines, ("dashed: least for Gaussians", "name"), ("dots: FAISS", "s3")])
    for name, x, y in dots:
        drawn.label(x, y, name.removeprefix("FAISS "), "s3")
    return drawn


def every(parts: Mapping[str, Result]) -> dict[str, Plot]:
    """The plots of a result's parts, by name."""
    found: dict[str, Plot] = {}
    if codec := parts.get("codec"):
        found |= {
            "scatter": scatter(codec),
            "distribution": distribution(codec),
            "by-size": by_size(codec),
            "latency": latency(codec),
        }
    if store := parts.get("store"):
        found["disk"] = disk(store)
        found |= dict(zip(("store-bytes", "store-latency"), of_store(store), strict=False))
    if training := parts.get("training"):
        names = (["training-ratio", "training-time"] if training["models"] else []) + ["pack-ratio"]
        found |= dict(zip(names, of_training(training), strict=False))
    if semantic := parts.get("semantic"):
        found["rate"] = rate(semantic)
    return found
