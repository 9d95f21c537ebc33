"""What every command shares: the application, common options, one-line errors, and printing a result."""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer

from nbmf.errors import NbmfError

CODEC: Final = "The codec: values and blobs"
STORE: Final = "The store: records"
MODELS: Final = "Models and figures"

app = typer.Typer(
    name="nbmf",
    help="A memory store for AI agents: records encoded by a trained neural model, small and exact.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

C = TypeVar("C", bound=Callable[..., None])


class ValueType(StrEnum):
    """How a value is read."""

    auto = "auto"
    text = "text"
    json = "json"
    bytes = "bytes"


class Profile(StrEnum):
    """The model's two profiles."""

    fast = "fast"
    dense = "dense"


ModelName = Annotated[str, typer.Option("--model", metavar="NAME", help="Model: a name, or a path ending in .nbm.")]
Domain = Annotated[
    str | None, typer.Option("--domain", metavar="NAME", help="Domain pack: a name, or a path ending in .nbp.")
]
ProfileName = Annotated[Profile, typer.Option("--profile", help="Model profile.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file", metavar="FILE", help="The store's key: 32 bytes, or hex or base64. Without it, NBMF_KEY."
    ),
]
PassphraseEnv = Annotated[
    str | None,
    typer.Option("--passphrase-env", metavar="NAME", help="The environment variable with the store's passphrase."),
]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="The policy. Without it, policy.toml in the store.")
]
Cold = Annotated[
    str | None,
    typer.Option(
        "--cold", metavar="PLACE", help="Where archives lie, if not in the store: a folder or s3://bucket/prefix."
    ),
]


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
        except (typer.Exit, typer.Abort):
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
