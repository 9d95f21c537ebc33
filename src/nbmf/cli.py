"""The command line. No logic: a command reads its options, calls the module that does the work, and prints."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from nbmf import cli_bench, cli_serve, cli_store, cli_train
from nbmf.cli_base import (
    CODEC,
    MODELS,
    Cold,
    Domain,
    Json,
    KeyFile,
    ModelName,
    PassphraseEnv,
    PolicyFile,
    Profile,
    ProfileName,
    ValueType,
    app,
    fail,
    print_result,
    reported,
    write,
)

__all__ = ["app", "main"]


Input = Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for standard input.")]
Bare = Annotated[bool, typer.Option("--bare", help="A bare blob: it names no model, so decode with the same one.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="At most N records of each kind.")]


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
cli_serve.register(app)


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
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            min=4,
            max=512,
            metavar="KB",
            help="At most this many KB. Without it 512, and of a tenant as many as pay for what it holds.",
        ),
    ] = None,
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
            result = dict(adapt_file(file, out, size=(size or 512) * 1024, model=model, tick=tick))
    else:
        if file is not None or out is not None or model != "base":
            fail("--tenant goes without FILE, --out and --model: the pack stays in the store")
        if store is None:
            fail("--tenant needs --store")
        access = store_access.Access(policy, key_file, passphrase_env, cold)
        with access.open(store) as memory, report.progress(not json) as tick:
            result = memory.adapt(tenant, size * 1024 if size else None, tick)
    print_result(result, json)


cli_train.register(app)
cli_bench.register(app)


def main() -> None:
    """The `nbmf` command."""
    app()


if __name__ == "__main__":
    main()
