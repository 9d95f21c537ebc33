"""The store's commands. No logic: a command reads its options, calls the module that does the work, and prints."""

import os
import sys
from collections.abc import Callable
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from nbmf.cli_base import (
    STORE,
    Cold,
    Json,
    KeyFile,
    PassphraseEnv,
    PolicyFile,
    ValueType,
    fail,
    reported,
    write,
)

VARIABLE: Final = "NBMF_STORE"


class StoreCommand(TyperCommand):
    """A command whose first argument, STORE, may be left out where NBMF_STORE has it.

    Its arguments are as many as it needs, never more: so one too few can only mean that STORE is left out.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        store = os.environ.get(VARIABLE)
        try:
            return super().parse_args(ctx, list(args))
        except typer.BadParameter:
            if not store:
                raise
            ctx.params.clear()
            return super().parse_args(ctx, [store, *args])


class Kind(StrEnum):
    """What `migrate` can read."""

    nbmf = "nbmf"
    stub = "stub"
    jsonl = "jsonl"
    jsonl_values = "jsonl-values"
    langgraph = "langgraph"
    mcp = "mcp"


class OnConflict(Enum):
    """What `migrate` does where DEST has another record at an address."""

    fail = "fail"
    keep = "keep"
    replace = "replace"


def value_needed(ctx: typer.Context, value: str | None) -> str | None:
    """VALUE and KEY may be missing only where a file has them."""
    if value is None and not ctx.params.get("jsonl") and not ctx.resilient_parsing:
        raise typer.BadParameter("missing: put takes NAMESPACE KEY VALUE, or NAMESPACE --jsonl FILE")
    return value


Store = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="The store: a folder or a postgresql:// address. May be left out if NBMF_STORE has it."
    ),
]
NamespaceText = Annotated[
    str,
    typer.Argument(metavar="NAMESPACE", help="Such as users/ann; \\/ is a slash in a segment, \\\\ a backslash."),
]
Prefix = Annotated[
    str,
    typer.Argument(metavar="PREFIX", help="A namespace, and all those below it; / is everything."),
]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The record's key.")]
JsonRecord = Annotated[bool, typer.Option("--json", help="Print whole records as JSON.")]


@reported
def put(
    store: Store,
    namespace: NamespaceText,
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="The record's key.", callback=value_needed, show_default=False)
    ] = None,
    value: Annotated[
        str | None,
        typer.Argument(
            metavar="VALUE",
            help="The value, @FILE for a file's, or - for standard input's.",
            callback=value_needed,
            show_default=False,
        ),
    ] = None,
    jsonl: Annotated[
        str | None,
        typer.Option(
            "--jsonl",
            metavar="FILE",
            is_eager=True,
            help="Put each line of a file (- for standard input) instead: records as `migrate` reads them, or values.",
        ),
    ] = None,
    type: Annotated[
        ValueType,
        typer.Option(
            "--type", help="How to read VALUE. auto: JSON if it is an object or array, else text if UTF-8, else bytes."
        ),
    ] = ValueType.auto,
    cls: Annotated[str, typer.Option("--class", metavar="NAME", help="The record's class.")] = "",
    ttl: Annotated[
        float | None, typer.Option("--ttl", metavar="MINUTES", help="Time to live; every read renews it.")
    ] = None,
    meta: Annotated[str | None, typer.Option("--meta", metavar="JSON", help="Metadata, a JSON object.")] = None,
    no_index: Annotated[bool, typer.Option("--no-index", help="Leave the record out of search by meaning.")] = False,
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
    json: Json = False,
) -> None:
    """Store a record, or every line of a file. Makes the store if there is none."""
    from nbmf import report, store_access, store_report

    at = store_access.namespace_of(namespace)
    about = store_access.object_of(meta, "--meta")
    access = store_access.Access(policy, key_file, passphrase_env, cold)
    if jsonl is None:
        assert key is not None and value is not None
        read = store_access.value_of(value, type.value)
        with access.open(store, create=True) as memory:
            memory.put(at, key, read, cls=cls, ttl=ttl, meta=about, index=False if no_index else None)
            done = store_access.put_figures(memory, at, key)
        line = store_report.put_line(done)
    else:
        if key is not None or no_index or type is not ValueType.auto:
            fail("--jsonl goes without KEY, VALUE, --type and --no-index")
        with access.open(store, create=True) as memory, report.progress(not json) as tick:
            done = store_access.put_lines(memory, jsonl, at, cls=cls, ttl=ttl, meta=about, tick=tick)
        line = store_report.lines_line(done)
    print(store_report.dump(done) if json else line)


@reported
def get(
    store: Store,
    namespace: NamespaceText,
    key: Key,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the value goes; else standard output.")
    ] = None,
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
    json: Annotated[bool, typer.Option("--json", help="Print the whole record as JSON.")] = False,
) -> None:
    """Print a record's value: text as UTF-8, JSON compact, bytes as they are."""
    from nbmf import store_access, store_report, transcode

    with store_access.Access(policy, key_file, passphrase_env, cold).open(store) as memory:
        item = memory.item(store_access.namespace_of(namespace), key)
    if item is None:
        fail(f"no record {namespace} {key}")
    if json:
        print(store_report.dump(store_report.record(item)))
        return
    write(transcode.raw_bytes(item.value), out)
    if out is None and sys.stdout.isatty():
        print()


@reported
def delete(
    store: Store,
    namespace: NamespaceText,
    key: Key,
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
) -> None:
    """Delete a record. Exit code 1 if there is none."""
    from nbmf import store_access

    with store_access.Access(policy, key_file, passphrase_env, cold).open(store) as memory:
        if not memory.delete(store_access.namespace_of(namespace), key):
            fail(f"no record {namespace} {key}")


@reported
def search(
    store: Store,
    prefix: Prefix,
    query: Annotated[
        str | None, typer.Option("--query", metavar="TEXT", help="Find by meaning and keywords; needs nbmf[search].")
    ] = None,
    filter: Annotated[
        str | None,
        typer.Option("--filter", metavar="JSON", help='Conditions on fields, such as {"a": {"$gt": 1}}: see store.md.'),
    ] = None,
    cls: Annotated[str | None, typer.Option("--class", metavar="NAME", help="Records of this class only.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most N records.")] = 10,
    offset: Annotated[int, typer.Option("--offset", min=0, metavar="N", help="Leave out the first N.")] = 0,
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
    json: JsonRecord = False,
) -> None:
    """Find records: the best for a query first; without one, those updated last."""
    from nbmf import report, store_access, store_report

    conditions = store_access.object_of(filter, "--filter")
    with store_access.Access(policy, key_file, passphrase_env, cold).open(store) as memory:
        found = memory.search(
            store_access.prefix_of(prefix), query, filter=conditions, limit=limit, offset=offset, cls=cls
        )
    if json:
        print(store_report.dump({"items": [store_report.record(item) for item in found]}))
    else:
        store_report.show_items(found, report.console())


@reported
def namespaces(
    store: Store,
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="PREFIX", help="Those in and below it; * is any one segment.")
    ] = "/",
    suffix: Annotated[
        str | None, typer.Option("--suffix", metavar="SUFFIX", help="Those that end in it; * is any one segment.")
    ] = None,
    max_depth: Annotated[
        int | None, typer.Option("--max-depth", min=1, metavar="N", help="Cut them to N segments.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="At most N.")] = None,
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
    json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List the namespaces that hold records."""
    from nbmf import store_access, store_report

    with store_access.Access(policy, key_file, passphrase_env, cold).open(store) as memory:
        found = memory.list_namespaces(
            store_access.prefix_of(prefix),
            () if suffix is None else store_access.namespace_of(suffix),
            max_depth=max_depth,
            limit=store_access.NO_LIMIT if limit is None else limit,
        )
    if json:
        print(store_report.dump({"namespaces": [list(namespace) for namespace in found]}))
        return
    for namespace in found:
        print(store_report.shown(store_access.namespace_text(namespace)))


@reported
def forget(
    store: Store,
    prefix: Prefix,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
    json: Json = False,
) -> None:
    """Remove every trace of the records in and below a namespace, for good."""
    from nbmf import store_access, store_report

    wanted = store_access.prefix_of(prefix)
    if not yes and not sys.stdin.isatty():
        fail("forget asks first, and standard input is no terminal: say --yes")
    with store_access.Access(policy, key_file, passphrase_env, cold).open(store) as memory:
        if not yes:
            count = store_access.count_of(memory, wanted)
            if not typer.confirm(
                f"Forget {store_report.counted(count)} in and below {prefix} of {store}, for good?", err=True
            ):
                fail("nothing was forgotten")
        gone = memory.forget(wanted)
    print(store_report.dump({"forgotten": gone}) if json else f"{store_report.counted(gone)} forgotten")


@reported
def stats(
    store: Store,
    measure: Annotated[
        bool, typer.Option("--measure", help="Decode every record: raw bytes and ratios, by class.")
    ] = False,
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
    json: Json = False,
) -> None:
    """Count records, and bytes line by line."""
    from nbmf import report, store_access, store_report

    with store_access.Access(policy, key_file, passphrase_env, cold).open(store) as memory:
        found = memory.stats(measure)
    if json:
        print(store_report.dump(found))
    else:
        store_report.show_stats(store_access.public_address(store), found, report.console())


@reported
def check(
    store: Store,
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
    json: Json = False,
) -> None:
    """Verify every checksum and decode every record. A line for each fault, and exit code 1 if there is any."""
    from nbmf import report, store_access, store_report

    with (
        store_access.Access(policy, key_file, passphrase_env, cold).open(store) as memory,
        report.progress(not json) as tick,
    ):
        found = store_access.check(memory, tick)
    print(store_report.dump(found) if json else "\n".join(store_report.check_lines(found)))
    if not found["sound"]:
        raise typer.Exit(1)


@reported
def compact(
    store: Store,
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
    json: Json = False,
) -> None:
    """Age what is due (expire, demote, promote, encode anew) and give back space."""
    from nbmf import report, store_access, store_report

    with report.progress(not json) as tick:
        done = store_access.compact(store_access.Access(policy, key_file, passphrase_env, cold), store, tick)
    print(store_report.dump(done) if json else store_report.compact_line(done))


@reported
def migrate(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="What to read: an old store, JSON lines, a database, an NBMF store.")
    ],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="The store to write, made if there is none.")],
    kind: Annotated[
        Kind | None, typer.Option("--from", help="The kind of SOURCE, where its content does not show it.")
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", metavar="A/B", help="Where records go that have no namespace of their own."),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", help="SOURCE's key. The old store's: or NBMF_STUB_KEY.")
    ] = None,
    passphrase_env: Annotated[
        str | None,
        typer.Option("--passphrase-env", metavar="NAME", help="The environment variable with SOURCE's passphrase."),
    ] = None,
    source_cold: Annotated[
        str | None, typer.Option("--source-cold", metavar="PLACE", help="Where SOURCE's archives lie, if not in it.")
    ] = None,
    dest_key_file: Annotated[
        Path | None, typer.Option("--dest-key-file", metavar="FILE", help="DEST's key. Without it, NBMF_KEY.")
    ] = None,
    dest_passphrase_env: Annotated[
        str | None,
        typer.Option("--dest-passphrase-env", metavar="NAME", help="The environment variable with DEST's passphrase."),
    ] = None,
    policy: Annotated[Path | None, typer.Option("--policy", metavar="FILE", help="DEST's policy.")] = None,
    cold: Annotated[
        str | None, typer.Option("--cold", metavar="PLACE", help="Where DEST's archives lie, if not in it.")
    ] = None,
    on_conflict: Annotated[
        OnConflict, typer.Option("--on-conflict", help="What to do where DEST has a different record already.")
    ] = OnConflict.fail,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would happen, and write nothing.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Undo this migration.")] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Records to a transaction.")] = 256,
    json: Json = False,
) -> None:
    """Copy another store's records here, read every one back, and compare. Goes on where it was killed."""
    from nbmf import report, store_access, store_report

    if dry_run and rollback:
        fail("--dry-run and --rollback are two different things")
    with report.progress(not json) as tick:
        done = store_access.migrate(
            source,
            dest,
            kind=kind.value if kind is not None else None,
            namespace=namespace,
            reading=store_access.Access(None, key_file, passphrase_env, source_cold),
            writing=store_access.Access(policy, dest_key_file, dest_passphrase_env, cold),
            on_conflict=on_conflict.value,
            dry_run=dry_run,
            undo=rollback,
            batch=batch,
            tick=tick,
        )
    print(store_report.dump(done.to_dict()) if json else done.text(), end="\n" if json else "")
    if not done.ok:
        raise typer.Exit(1)


COMMANDS: Final[tuple[Callable[..., None], ...]] = (
    put,
    get,
    search,
    delete,
    forget,
    namespaces,
    stats,
    check,
    compact,
)


def register(app: typer.Typer) -> None:
    """Adds the store's commands."""
    for command in COMMANDS:
        app.command(cls=StoreCommand, rich_help_panel=STORE)(command)
    app.command(rich_help_panel=STORE)(migrate)
