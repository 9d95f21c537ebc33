"""The command line. No logic: a command reads its options, calls the module that does the work, and prints."""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from nbmf.errors import NbmfError

app = typer.Typer(
    name="nbmf",
    help="A memory store for AI agents: records encoded by a trained neural model, small and exact.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

C = TypeVar("C", bound=Callable[..., None])


class ValueType(StrEnum):
    """How `encode` reads its input."""

    auto = "auto"
    text = "text"
    json = "json"
    bytes = "bytes"


class Profile(StrEnum):
    """The model's two profiles."""

    fast = "fast"
    dense = "dense"


Input = Annotated[str, typer.Argument(metavar="FILE", help="A file, or - for standard input.")]
Inputs = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="Records as JSON lines, plain or .xz, or folders of such files."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
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


def fail(message: str) -> NoReturn:
    """One line on standard error, and exit code 1."""
    print("nbmf: " + " ".join(message.split()), file=sys.stderr)
    raise typer.Exit(1)


def hush() -> NoReturn:
    """The reader of our output went away: nothing more to say, nor to flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(1)


def reported(command: C) -> C:
    """`command` with every error as one line and exit code 1. NBMF_TRACEBACK=1 shows where it came from."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
            sys.stdout.flush()
        except typer.Exit:
            raise
        except BrokenPipeError:
            hush()
        except Exception as error:
            if os.environ.get("NBMF_TRACEBACK") == "1":
                traceback.print_exc()
            fail(described(error))

    return run  # type: ignore[return-value]  # wraps() keeps the signature that Typer reads


def described(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, NbmfError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8; --type bytes stores any input"
    if isinstance(error, ImportError):
        return f"this command needs a part that isn't installed: {error}"
    return f"{type(error).__name__}: {error}"


def write(data: bytes, out: Path | None) -> None:
    if out is None:
        sys.stdout.buffer.write(data)
    else:
        out.write_bytes(data)


def print_result(result: dict[str, Any], as_json: bool) -> None:
    from nbmf import report

    if as_json:
        print(report.dump(result))
    else:
        report.show(result, report.console())


def print_figures(result: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """What `eval` and `bench` measured, to the screen and to a file."""
    from nbmf import bench_table, report

    if out is not None:
        out.write_text(report.dump(result) + "\n", encoding="utf-8")
    if as_json:
        print(report.dump(result))
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
    """Encode the sample records that ship with NBMF, beside zlib, zstd and zstd with a dictionary."""
    from nbmf import quickstart as first_minute
    from nbmf import report
    from nbmf.codec.codec import Codec

    with report.progress(not json) as tick:
        result = first_minute.run(Codec(), limit, tick)
    if json:
        print(report.dump(result.as_json()))
    else:
        first_minute.render(result, report.console())


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
@reported
def adapt(
    file: Input,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The pack to write, ending in .nbp.")],
    size: Annotated[int, typer.Option("--size", min=1, max=512, metavar="KB", help="At most this many KB.")] = 512,
    model: ModelName = "base",
    json: Json = False,
) -> None:
    """Learn a domain pack from your own records: JSON lines, each the record's value."""
    from nbmf import report
    from nbmf.codec.adapt import adapt_file

    with report.progress(not json) as tick:
        result = adapt_file(file, out, size=size * 1024, model=model, tick=tick)
    print_result(dict(result), json)


@app.command()
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


@app.command("eval")
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


@app.command()
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
    model: ModelName = "base",
    profile: ProfileName = Profile.fast,
    domain: Domain = None,
    limit: Drawn = None,
    out: Figures = None,
    json: Json = False,
) -> None:
    """Measure the codec beside its peers in one run: ratio, exactness, latency and throughput by record size."""
    from nbmf import bench as measuring
    from nbmf import report

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
