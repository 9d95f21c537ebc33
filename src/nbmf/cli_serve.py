"""The servers' commands. No logic: a command reads its options, calls the module that does the work, and prints."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from nbmf.cli_base import Cold, KeyFile, PassphraseEnv, PolicyFile, reported
from nbmf.cli_store import Store, StoreCommand

SERVERS: Final = "Servers"


class LogFormat(StrEnum):
    """How logs are written."""

    json = "json"
    text = "text"


class LogLevel(StrEnum):
    """The least that is logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


Host = Annotated[
    str, typer.Option("--host", metavar="NAME", help="Where to listen. Without tokens, on this machine alone.")
]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="The port; 0 takes a free one.")]
TokensFile = Annotated[
    Path | None,
    typer.Option(
        "--tokens", metavar="FILE", help="The tokens that are accepted. Without it, NBMF_TOKENS or NBMF_TOKEN."
    ),
]
Certificate = Annotated[
    Path | None, typer.Option("--tls-cert", metavar="FILE", help="Serve HTTPS with this certificate, PEM.")
]
CertificateKey = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="The certificate's key, PEM.")]
LogAs = Annotated[LogFormat, typer.Option("--log-format", help="How logs are written, on standard error.")]
LogFrom = Annotated[LogLevel, typer.Option("--log-level", help="The least that is logged.")]
Body = Annotated[int, typer.Option("--max-body", min=1, metavar="MIB", help="The largest body that is accepted.")]
Seconds = Annotated[
    int, typer.Option("--timeout", min=1, metavar="SECONDS", help="How long a request may take before it is given up.")
]


@reported
def serve(
    store: Store,
    host: Host = "127.0.0.1",
    port: Port = 8750,
    tokens: TokensFile = None,
    max_body: Body = 16,
    timeout: Seconds = 60,
    search_processes: Annotated[
        int,
        typer.Option(
            "--search-processes", min=0, max=64, metavar="N", help="Search in so many processes, not in threads."
        ),
    ] = 0,
    tls_cert: Certificate = None,
    tls_key: CertificateKey = None,
    log_format: LogAs = LogFormat.json,
    log_level: LogFrom = LogLevel.info,
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
) -> None:
    """Serve a store over HTTP until a signal ends it. Makes the store if there is none."""
    from nbmf import store_access
    from nbmf.serve import commands

    commands.serve_http(
        store,
        store_access.Access(policy, key_file, passphrase_env, cold),
        commands.Listening(host, port, tokens, tls_cert, tls_key, max_body << 20, timeout, search_processes),
        log_format.value,
        log_level.value,
    )


@reported
def mcp(
    store: Store,
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace", metavar="PREFIX", help="Everything is kept and found below this namespace; / is all of it."
        ),
    ] = "/",
    graph: Annotated[
        Path | None,
        typer.Option(
            "--import", metavar="FILE", help="First take in the reference memory server's memory.jsonl, once."
        ),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Offer no tool that changes anything.")] = False,
    http: Annotated[
        bool, typer.Option("--http", help="Serve streamable HTTP at /mcp instead of standard input and output.")
    ] = False,
    host: Host = "127.0.0.1",
    port: Port = 8751,
    tokens: TokensFile = None,
    tls_cert: Certificate = None,
    tls_key: CertificateKey = None,
    log_format: LogAs = LogFormat.json,
    log_level: LogFrom = LogLevel.info,
    policy: PolicyFile = None,
    key_file: KeyFile = None,
    passphrase_env: PassphraseEnv = None,
    cold: Cold = None,
) -> None:
    """Serve a store to agents by the Model Context Protocol. Makes the store if there is none."""
    from nbmf import store_access
    from nbmf.serve import commands

    commands.serve_mcp(
        store,
        store_access.Access(policy, key_file, passphrase_env, cold),
        commands.Offer(store_access.prefix_of(namespace), graph, read_only),
        commands.Listening(host, port, tokens, tls_cert, tls_key) if http else None,
        log_format.value,
        log_level.value,
    )


@reported
def token(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The tokens file, made if need be.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What logs call the token.")],
    namespace: Annotated[
        list[str],
        typer.Option(
            "--namespace", metavar="PREFIX", help="A namespace it reaches, with all below; / is all. May be repeated."
        ),
    ],
    read_only: Annotated[bool, typer.Option("--read-only", help="It may only read.")] = False,
    metrics: Annotated[bool, typer.Option("--metrics", help="It may read the metrics of the whole store.")] = False,
) -> None:
    """Make a bearer token, print it once, and add its hash to a tokens file."""
    from nbmf.serve import auth

    made = auth.new_token()
    entry = auth.entry_text(made, name, namespace, "read" if read_only else "write", metrics)
    auth.add_entry(file, entry)
    print(made)


def register(app: typer.Typer) -> None:
    """Adds the servers' commands."""
    for command in (serve, mcp):
        app.command(cls=StoreCommand, rich_help_panel=SERVERS)(command)
    app.command(rich_help_panel=SERVERS)(token)
