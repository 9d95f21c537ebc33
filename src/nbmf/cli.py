"""The command line. No logic: a command reads its options, calls the module that does the work, and prints."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nbmf import cli_store
from nbmf.cli_base import (
    CODEC,
    MODELS,
    Cold,
    Json,
    KeyFile,
    PassphraseEnv,
    PolicyFile,
    ValueType,
    app,
    fail,
    print_result,
    reported,
    write,
)

__all__ = ["app", "main"]


class Profile(StrEnum):
    """The model's two profiles."""

    fast = "fast"
    dense = "dense"


Input = Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for standard input.")]
Inputs = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="Records as JSON lines, plain or .xz, or folders of such files."),
]
Bare = Annotated[bool, typer.Option("--bare", help="A bare blob: it names no model, so decode with the same one.")]
ModelName = Annotated[str, typer.Option("--model", metavar="NAME", help="Model: a name, or a path ending in .nbm.")]
Domain = Annotated[
    str | None, typer.Option("--domain", metavar="NAME", help="Domain pack: a name, or a path ending in .nbp.")
]
ProfileName = Annotated[Profile, typer.Option("--profile", help="Model profile.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="At most N records of each kind.")]
Drawn = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="N records drawn at random, the same ones every time.")
]
Figures = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the figures here, as JSON.")]


def print_figures(result: dict[str, Any], out: Path | None, as_json: bool, store: bool = False) -> None:
    """What `eval` and `bench` measured, to the screen and to a file."""
    from nbmf import bench_store_table, bench_table, report

    if out is not None:
        out.write_text(report.dump(result) + "\n", encoding="utf-8")
    if as_json:
        print(report.dump(result))
    elif store:
        report.console().print(bench_store_table.table(result))
    else:
        bench_table.render(result, report.console())


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and the kernel in use.", is_eager=True)
    ] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        from nbmf.codec import kernel

        print(f"nbmf {installed('nbmf')} (kernel: {kernel.backend})")
        raise typer.Exit


@app.command()
@reported
def quickstart(limit: Limit = None, json: Json = False) -> None:
    """See it work: the shipped samples beside other compressors, then a store that puts, finds and forgets them."""
    from nbmf import quickstart as first_minute
    from nbmf import report
    from nbmf.codec.codec import Codec

    with report.progress(not json) as tick:
        result = first_minute.run(Codec(), limit, tick)
    if json:
        print(report.dump(result.as_json()))
    else:
        first_minute.render(result, report.console())


cli_store.register(app)


@app.command(rich_help_panel=CODEC)
@reported
def encode(
    file: Input,
    type: Annotated[
        ValueType,
        typer.Option(
            "--type",
            help="How to read the input. auto: JSON when it is compact JSON, else text when it is UTF-8, else bytes.",
        ),
    ] = ValueType.auto,
    bare: Bare = False,
    domain: Domain = None,
    model: ModelName = "base",
    profile: ProfileName = Profile.fast,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the blob goes; else standard output.")
    ] = None,
    json: Json = False,
) -> None:
    """Encode one record. With --out, print what it took."""
    from nbmf import transcode

    if json and out is None:
        fail("--json needs --out: without it the blob goes to standard output")
    if out is None and sys.stdout.isatty():
        fail("a blob is binary: give --out FILE, or send the output to a file or a pipe")
    codec = transcode.codec(model, profile.value, domain)
    value = transcode.parse(transcode.read(file), type.value)
    blob = codec.encode(value, bare=bare, verify=True)
    write(blob, out)
    if out is not None:
        print_result(transcode.figures(value, blob, codec, bare), json)


@app.command(rich_help_panel=CODEC)
@reported
def decode(
    file: Input,
    bare: Bare = False,
    domain: Domain = None,
    model: ModelName = "base",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the value goes; else standard output.")
    ] = None,
) -> None:
    """Decode one blob to the bytes it was made from: text as UTF-8, JSON compact, bytes as they are."""
    from nbmf import transcode

    value = transcode.codec(model, "fast", domain).decode(transcode.read(file), bare=bare)
    write(transcode.raw_bytes(value), out)
    if out is None and sys.stdout.isatty():
        print()


@app.command(rich_help_panel=CODEC)
@reported
def inspect(
    file: Input,
    bare: Bare = False,
    domain: Domain = None,
    model: ModelName = "base",
    json: Json = False,
) -> None:
    """Show what a blob says of itself, and the bits that each byte of its value cost."""
    from nbmf import inspect as inspection
    from nbmf import report, transcode

    found = inspection.examine(transcode.read(file), bare, model, domain)
    if json:
        print(report.dump(found.as_json()))
    else:
        inspection.render(found, report.console())


@app.command(rich_help_panel=MODELS)
@reported
def adapt(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="A file of records, or - for standard input.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The pack to write, ending in .nbp.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", metavar="STORE", envvar=cli_store.VARIABLE, help="Learn from a tenant of this store, and use it."
        ),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", metavar="NAME", help="The tenant: a namespace's first segment.")
    ] = None,
    size: Annotated[int, typer.Option("--size", min=1, max=512, metavar="KB", help="At most this many KB.")] = 512,
    model: ModelName = "base",
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
    json: Json = False,
) -> None:
    """Learn a domain pack from your own records: JSON lines, each a value; or from those of a tenant of a store."""
    from nbmf import report, store_access
    from nbmf.codec.adapt import adapt_file

    if tenant is None:
        if file is None or out is None:
            fail("adapt takes FILE and --out FILE, or --store STORE and --tenant NAME")
        with report.progress(not json) as tick:
            result = dict(adapt_file(file, out, size=size * 1024, model=model, tick=tick))
    else:
        if file is not None or out is not None or model != "base":
            fail("--tenant goes without FILE, --out and --model: the pack stays in the store")
        if store is None:
            fail("--tenant needs --store")
        access = store_access.Access(policy, key_file, passphrase_env, cold)
        with access.open(store) as memory, report.progress(not json) as tick:
            result = memory.adapt(tenant, size * 1024, tick)
    print_result(result, json)


@app.command(rich_help_panel=MODELS)
@reported
def train(
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="FILE", help="JSON lines, plain or .xz, or a folder of them; may be repeated."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE", help="The model to write, ending in .nbm; finished steps stay in FILE.work."
        ),
    ],
    size: Annotated[str, typer.Option("--size", metavar="NAME", help="The size dial: toy, small or base.")] = "base",
    seed: Annotated[int, typer.Option("--seed", help="The run's seed.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew; else go on from the last finished step.")] = False,
    json: Json = False,
) -> None:
    """Train a model: count, prune, quantize, fit the mixer, write the model and its card."""
    from nbmf import report
    from nbmf.train.train import run

    with report.progress(not json) as tick:
        result = run(data, out, size=size, seed=seed, resume=not fresh, tick=tick)
    print_result(dict(result), json)


@app.command("eval", rich_help_panel=MODELS)
@reported
def evaluate(
    files: Inputs,
    model: ModelName = "base",
    profile: ProfileName = Profile.fast,
    domain: Domain = None,
    limit: Drawn = None,
    out: Figures = None,
    json: Json = False,
) -> None:
    """Measure a model, or a model with a pack, on files of records: ratio by size, kind and source, and exactness."""
    from nbmf import bench as measuring
    from nbmf import report

    with report.progress(not json) as tick:
        result = measuring.evaluate(files, model=model, profile=profile.value, domain=domain, limit=limit, tick=tick)
    print_figures(result, out, json)


@app.command(rich_help_panel=MODELS)
@reported
def bench(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE...]",
            help="Records as JSON lines, plain or .xz, or folders of such files. Without any, the shipped samples.",
        ),
    ] = None,
    packs: Annotated[
        bool, typer.Option("--packs", help="Also learn a pack from one half of each source and measure the other half.")
    ] = False,
    no_peers: Annotated[
        bool, typer.Option("--no-peers", help="Leave out the other compressors, which need nbmf[bench].")
    ] = False,
    train_dict: Annotated[
        Path | None,
        typer.Option(
            "--train-dict",
            metavar="FILE",
            help="Train zstd's dictionary on these records. Else on the first half, and measure it on the other.",
        ),
    ] = None,
    store: Annotated[
        bool,
        typer.Option("--store", help="Measure the store instead: bytes on disk, latencies, ingest, archives, growth."),
    ] = False,
    records: Annotated[
        int, typer.Option("--records", min=20, metavar="N", help="With --store: at most N records, drawn at random.")
    ] = 200_000,
    scale: Annotated[
        int | None,
        typer.Option(
            "--scale", min=0, metavar="N", help="With --store: generated records of the largest store; 0: none."
        ),
    ] = None,
    unseen: Annotated[
        list[str] | None,
        typer.Option("--unseen", metavar="FILE", help="With --store: records that the model was not trained on."),
    ] = None,
    model: ModelName = "base",
    profile: ProfileName = Profile.fast,
    domain: Domain = None,
    limit: Drawn = None,
    out: Figures = None,
    json: Json = False,
) -> None:
    """Measure the codec, or the store, beside its peers in one run: ratio, exactness, latency and throughput."""
    from nbmf import bench as measuring
    from nbmf import bench_store, report

    if store:
        with report.progress(not json) as tick:
            result = bench_store.run_store(
                files or [], records=records, scale=scale, unseen=unseen or [], peers=not no_peers, tick=tick
            )
        print_figures(result, out, json, store=True)
        return
    with report.progress(not json) as tick:
        result = measuring.run(
            files or [],
            model=model,
            profile=profile.value,
            domain=domain,
            limit=limit,
            tick=tick,
            peers=not no_peers,
            with_packs=packs,
            train_dict=train_dict,
        )
    print_figures(result, out, json)


def main() -> None:
    """The `nbmf` command."""
    app()


if __name__ == "__main__":
    main()
