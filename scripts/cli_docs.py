"""Writes docs/cli.md from the command line's own help, or with --check tells whether it is in step."""

import sys
from collections.abc import Iterator
from enum import Enum
from inspect import Parameter, cleandoc, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from typer.models import ArgumentInfo, OptionInfo

from nbmf.cli import app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """# Command line

<!-- Written by scripts/cli_docs.py (`make docs`); a test fails when it is out of step. -->

`nbmf COMMAND --help` shows the same. Every command that prints figures has `--json`. Long work shows a progress bar on
a terminal and none in a pipe. An error is one line on standard error and exit code 1 (2 for a wrong option);
`NBMF_TRACEBACK=1` shows where it came from. `NBMF_KERNEL=c|numpy` chooses the kernel and `NBMF_MODELS` adds folders to
look for models and packs in. `nbmf --version` prints the version and the kernel in use.

The commands from `put` to `migrate` work on a [store](store.md). Where the environment's `NBMF_STORE` holds its
address, STORE may be left out; one that is given counts. A namespace is written with slashes, `users/ann`; a slash
within a segment is `\\/`, a backslash `\\\\`. `NBMF_KEY` holds the key of an encrypted store.
"""

Info = OptionInfo | ArgumentInfo


def parameters(function: Any) -> Iterator[tuple[Parameter, Any, Info]]:
    """Each parameter of a command with its type and what the command line says of it."""
    for parameter in signature(function).parameters.values():
        annotation = parameter.annotation
        assert get_origin(annotation) is Annotated, f"{function.__name__}({parameter.name}) is not annotated"
        kind, info = get_args(annotation)
        yield parameter, kind, info


def choices(kind: Any) -> str | None:
    """The members of an enumeration, as the command line spells them."""
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, Enum):
            return "|".join(str(member.value) for member in one)
    return None


def spelling(parameter: Parameter, kind: Any, info: Info) -> str:
    """An option or argument as one types it."""
    if isinstance(info, ArgumentInfo):
        name = info.metavar or parameter.name.upper()
        return name if parameter.default is Parameter.empty or name.startswith("[") else f"[{name}]"
    # Typer takes the first name of an option for its default until it has made the command.
    first = (info.default,) if isinstance(info.default, str) and info.default.startswith("-") else ()
    names = (*first, *(info.param_decls or ())) or ("--" + parameter.name.replace("_", "-"),)
    value = None if kind is bool else info.metavar or choices(kind) or "N"
    return ", ".join(names) + (f" {value}" if value else "")


def default(parameter: Parameter) -> str:
    """What happens without the option."""
    value = parameter.default
    if value is Parameter.empty:
        return "required"
    if value is None or value is False or value == "":
        return ""
    if value is True:
        return "on"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def section(name: str, function: Any) -> str:
    found = list(parameters(function))
    arguments = [spelling(*item) for item in found if isinstance(item[2], ArgumentInfo)]
    required = [
        spelling(*item) for item in found if isinstance(item[2], OptionInfo) and item[0].default is Parameter.empty
    ]
    usage = " ".join(["nbmf", name, *arguments, *required])
    if any(isinstance(info, OptionInfo) and one.default is not Parameter.empty for one, _, info in found):
        usage += " [OPTIONS]"
    lines = [f"## nbmf {name}", "", cleandoc(function.__doc__ or ""), "", "```", usage, "```"]
    if found:
        lines += ["", "| option | meaning | default |", "|---|---|---|"]
    for item in found:
        typed = spelling(*item).replace("|", "\\|")
        meaning = (item[2].help or "").replace("\\", "\\\\")
        lines.append(f"| `{typed}` | {meaning} | {default(item[0])} |")
    return "\n".join(lines) + "\n"


def commands() -> Iterator[tuple[str, Any]]:
    """Name and function of every command, those of groups as `group command`."""
    groups = [("", app), *((f"{group.name} ", group.typer_instance) for group in app.registered_groups)]
    for before, group in groups:
        for command in group.registered_commands if group is not None else ():
            if command.callback is not None:
                yield before + (command.name or command.callback.__name__), command.callback


def page() -> str:
    """The whole of docs/cli.md."""
    return "\n".join([HEAD, *(section(name, function) for name, function in commands())])


def main() -> int:
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("docs/cli.md is out of step with the command line: run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
