"""The commands that measure and examine: eval, bench, doctor. No logic, as in cli.py."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nbmf.cli_base import (
    MODELS,
    STORE,
    Cold,
    Domain,
    Json,
    KeyFile,
    ModelName,
    PassphraseEnv,
    PolicyFile,
    Profile,
    ProfileName,
    fail,
    reported,
)
from nbmf.cli_store import VARIABLE

Inputs = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="Records as JSON lines, plain or .xz, or folders of such files."),
]
Drawn = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="N records drawn at random, the same ones every time.")
]
Figures = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the figures here, as JSON.")]


def print_figures(result: dict[str, Any], out: Path | None, html: Path | None, as_json: bool) -> None:
    """What was measured, to the screen and to files."""
    from nbmf import report
    from nbmf.bench import page, screen

    if out is not None:
        out.write_text(report.dump(result) + "\n", encoding="utf-8")
    if html is not None:
        html.write_text(page.page(result), encoding="utf-8")
    if as_json:
        print(report.dump(result))
    else:
        screen.render(result, report.console())


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
    from nbmf import report
    from nbmf.bench import codec

    with report.progress(not json) as tick:
        result = codec.evaluate(files, model=model, profile=profile.value, domain=domain, limit=limit, tick=tick)
    print_figures(result, out, None, json)


@reported
def bench(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PART] [FILE...]",
            help="codec (as without a PART), store, training, recall, semantic or all; then records, as with --data.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Records: JSON lines, plain or .xz, a folder of them, or a store; may be repeated. "
            "Without any, the samples that ship or are generated.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            "--limit",
            "--records",
            min=1,
            metavar="N",
            help="At most N of the records, drawn at random, the same ones every time.",
        ),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option("--encoder", metavar="NAME", help="codec: fast, dense, zstd, stored, stub or stub-semantic."),
    ] = "fast",
    no_peers: Annotated[
        bool, typer.Option("--no-peers", help="Leave out the other compressors and stores, which need nbmf[bench].")
    ] = False,
    packs: Annotated[
        bool,
        typer.Option(
            "--packs", help="codec: also learn a pack from one half of each source and measure the other half."
        ),
    ] = False,
    train_dict: Annotated[
        Path | None,
        typer.Option(
            "--train-dict", metavar="FILE", help="codec: also give zstd a dictionary of these, the training records."
        ),
    ] = None,
    store: Annotated[bool, typer.Option("--store", help="As the PART store.")] = False,
    scale: Annotated[
        int | None,
        typer.Option("--scale", min=0, metavar="N", help="store: generated records of the largest store; 0: none."),
    ] = None,
    unseen: Annotated[
        list[str] | None,
        typer.Option(
            "--unseen",
            metavar="FILE",
            help="store: records that the model was not trained on, measured too. training: those to measure on.",
        ),
    ] = None,
    size: Annotated[
        str, typer.Option("--size", metavar="NAME", help="training: the size dial: toy, small or base.")
    ] = "toy",
    model: ModelName = "base",
    domain: Domain = None,
    out: Figures = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a report: one page that needs no network.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure codec, store, training, recall or semantic beside their peers in one run, and the claims item by item."""
    from nbmf import report
    from nbmf.bench import whole

    words = list(what or [])
    part = words.pop(0) if words and words[0] in whole.PARTS else whole.STORE if store else whole.CODEC
    if store and part != whole.STORE:
        fail(f"--store is the PART store, not {part}")
    options = whole.Options(
        data=[*words, *(data or [])],
        samples=samples,
        encoder=encoder,
        model=model,
        domain=domain,
        peers=not no_peers,
        packs=packs,
        train_dict=train_dict,
        scale=scale,
        unseen=unseen or [],
        size=size,
    )
    with report.progress(not json) as tick:
        result = whole.run(part, options, tick)
    print_figures(result, out, html, json)


@reported
def doctor(
    store: Annotated[
        str | None,
        typer.Argument(
            metavar="[STORE]", envvar=VARIABLE, help="A store to examine too: a folder or a postgresql:// address."
        ),
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also verify every checksum and decode every record.")] = False,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics", metavar="FILE", help="A server's metrics (- for standard input): divergences it has counted."
        ),
    ] = None,
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
    json: Json = False,
) -> None:
    """Examine the installation and a store, with a fix for each finding. Exit code 1 if anything failed."""
    from nbmf import doctor as examination
    from nbmf import report, store_access, transcode

    text = None if metrics is None else transcode.read(metrics).decode("utf-8", "replace")
    access = store_access.Access(policy, key_file, passphrase_env, cold)
    with report.progress(not json) as tick:
        found = examination.examine(store, access, deep=deep, metrics=text, tick=tick)
    print(report.dump(examination.as_json(found)) if json else "\n".join(examination.lines(found)))
    if not examination.is_sound(found):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Adds these commands."""
    app.command("eval", rich_help_panel=MODELS)(evaluate)
    app.command(rich_help_panel=MODELS)(bench)
    app.command(rich_help_panel=STORE)(doctor)
