"""From records to a registered model: data collect, data prepare, train, model. No logic, as in cli.py."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nbmf.cli_base import (
    MODELS,
    Cold,
    Json,
    KeyFile,
    PassphraseEnv,
    PolicyFile,
    Profile,
    fail,
    print_result,
    reported,
)

data = typer.Typer(help="Collect records for training, and prepare them.", no_args_is_help=True)
model = typer.Typer(help="Register models and packs under names, and prove them.", no_args_is_help=True)


class Form(StrEnum):
    """What `data collect` can read."""

    nbmf = "nbmf"
    jsonl = "jsonl"
    jsonl_values = "jsonl-values"
    json = "json"
    text = "text"
    lines = "lines"
    langgraph = "langgraph"
    mcp = "mcp"
    stub = "stub"


# -- data --------------------------------------------------------------------------------------------------------------


@data.command()
@reported
def collect(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A store, a file or a folder of JSON lines, JSON, text, Markdown or logs, - for standard input, "
            "or sqlite:///FILE or postgresql://… with --query.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write: .jsonl or .jsonl.xz.")],
    form: Annotated[
        Form | None, typer.Option("--from", help="What SOURCE is, where its name and content do not show it.")
    ] = None,
    query: Annotated[
        str | None,
        typer.Option("--query", metavar="SQL", help="A SELECT: one column is the value, several are an object."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="COLUMN", help="The query's column that says what belongs together."),
    ] = None,
    source_name: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help="What all records are said to be from.")
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", metavar="NAME", help="What all records are said to be.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="The first N records.")] = None,
    piece: Annotated[
        int, typer.Option("--piece", min=100, metavar="BYTES", help="Paragraphs of a text are joined up to so many.")
    ] = 2000,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Count lines that are no records, instead of ending at the first.")
    ] = False,
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
    json: Json = False,
) -> None:
    """Collect records from stores, files, folders, standard input or a query into one file that trains."""
    from nbmf import report, store_access
    from nbmf.data import collect as collecting

    options = collecting.Options(
        form=form.value if form is not None else None,
        query=query,
        group=group,
        source=source_name,
        kind=kind,
        limit=limit,
        skip_bad=skip_bad,
        piece=piece,
        access=store_access.Access(policy, key_file, passphrase_env, cold),
    )
    with report.progress(not json) as tick:
        result = collecting.run(source, out, options, tick)
    print_result(result, json)


@data.command()
@reported
def prepare(
    file: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="JSON lines, plain, .xz or .gz, or folders of such files."),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Where train, val and test.jsonl.xz and the report go."),
    ],
    group: Annotated[
        str,
        typer.Option(
            "--group",
            metavar="FIELD",
            help="What stays in one part: source, record, a field of the metadata, or auto: the conversation or "
            "document where a record names one, else its source.",
        ),
    ] = "auto",
    val: Annotated[float, typer.Option("--val", metavar="SHARE", help="The share to follow training by.")] = 0.05,
    test: Annotated[float, typer.Option("--test", metavar="SHARE", help="The share to judge the model.")] = 0.05,
    near: Annotated[
        float,
        typer.Option("--near", metavar="SHARE", help="Records this much alike are near copies; 0 keeps all of them."),
    ] = 0.8,
    most_bytes: Annotated[
        int, typer.Option("--max-bytes", min=1, metavar="N", help="Records of more raw bytes are left out.")
    ] = 65536,
    drop_pii: Annotated[
        bool, typer.Option("--drop-pii", help="Leave out records with strings of personal or secret form.")
    ] = False,
    mask_pii: Annotated[
        bool, typer.Option("--mask-pii", help="Mask these strings: letters as x, digits as 0.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="The split's seed.")] = 1,
    json: Json = False,
) -> None:
    """Prepare records for training: validate, clean, leave out copies, flag personal data, split; with a report."""
    from nbmf import report
    from nbmf.data import page
    from nbmf.data import prepare as preparing

    if drop_pii and mask_pii:
        fail("--drop-pii and --mask-pii are two different things")
    options = preparing.Options(
        group=group,
        val=val,
        test=test,
        near=near,
        pii="drop" if drop_pii else "mask" if mask_pii else "flag",
        most_bytes=most_bytes,
        seed=seed,
    )
    with report.progress(not json) as tick:
        result = preparing.run(file, out, options, tick)
    page.save(result, out)
    print_result(result if json else page.summary(result), json)


# -- train -------------------------------------------------------------------------------------------------------------


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
    profile: Annotated[
        Profile, typer.Option("--profile", help="fast, or dense: both, with the networks that dense adds (PyTorch).")
    ] = Profile.fast,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="Where networks train: cpu, cuda, or auto: a GPU if any.")
    ] = "auto",
    val: Annotated[
        list[str] | None,
        typer.Option(
            "--val", metavar="FILE", help="Records to follow the networks' training by; it ends when they gain no more."
        ),
    ] = None,
    patience: Annotated[
        int,
        typer.Option("--patience", min=1, metavar="N", help="With --val: reports without a new best."),
    ] = 5,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on from the last finished step, or start anew.")
    ] = True,
    json: Json = False,
) -> None:
    """Train a model: count, prune, quantize, fit the mixer and the networks, write the model, its card and course."""
    from nbmf import report
    from nbmf.bench import losses
    from nbmf.train.train import run

    with report.progress(not json) as tick:
        result = run(
            data,
            out,
            size=size,
            seed=seed,
            dense=profile is Profile.dense,
            device=device,
            resume=resume,
            val=val or (),
            patience=patience,
            tick=tick,
        )
    work = out.with_suffix(out.suffix + ".work")
    losses.draw(work / "log.csv", work / "loss.svg")
    print_result(dict(result), json)


# -- models ------------------------------------------------------------------------------------------------------------

Named = Annotated[str, typer.Argument(metavar="NAME", help="A registered model or pack, or a path to one.")]


@model.command("register")
@reported
def register_model(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model (.nbm) or a pack (.nbp).")],
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Its name; else the file's.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of another of that name.")] = False,
    json: Json = False,
) -> None:
    """Prove a model or pack, and copy it to where it is found by name: the first of NBMF_MODELS, or the user's data."""
    from nbmf.codec import registry

    print_result(registry.register(file, name, replace=replace), json)


@model.command("list")
@reported
def list_models(json: Json = False) -> None:
    """List the models and packs that are found by name, in the order in which they are looked for."""
    from nbmf.codec import registry

    print_result({"models": registry.listed()}, json)


@model.command()
@reported
def card(name: Named, json: Json = False) -> None:
    """Show what a model or pack says of its making: data, sizes, figures."""
    from nbmf.codec import registry

    print_result(registry.card(name), json)


@model.command()
@reported
def verify(name: Named, json: Json = False) -> None:
    """Prove a model or pack: its id is its content's, values come back, golden blobs are what they were."""
    from nbmf.codec import registry

    print_result(registry.verify(registry.place(name)), json)


@model.command()
@reported
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registered model or pack.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; what it encoded can't be read without it.")] = False,
    json: Json = False,
) -> None:
    """Take away a registered model or pack."""
    from nbmf.codec import registry

    if not yes:
        fail(f"what was encoded with {name} can't be read without it: add --yes to remove it all the same")
    print_result(registry.remove(name), json)


def register(app: typer.Typer) -> None:
    """Adds these commands."""
    app.add_typer(data, name="data", rich_help_panel=MODELS)
    app.command(rich_help_panel=MODELS)(train)
    app.add_typer(model, name="model", rich_help_panel=MODELS)
