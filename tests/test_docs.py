"""The documents say what the code does: options in step, commands that exist, examples that run."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from nbmf import samples
from nbmf.cli import app
from nbmf.codec import kernel

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
GROUPS = {"": app} | {f"{one.name} ": one.typer_instance for one in app.registered_groups if one.typer_instance}
CALLBACKS = {
    group + (command.name or command.callback.__name__): command.callback
    for group, commands in GROUPS.items()
    for command in commands.registered_commands
    if command.callback
}
COMMANDS = list(CALLBACKS)

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="not run from the repository")


def cli_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cli_docs", ROOT / "scripts" / "cli_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fenced(path: Path, language: str) -> list[str]:
    """The blocks of a language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_cli_page_is_in_step() -> None:
    assert read("docs/cli.md") == cli_docs().page(), "run `make docs`"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented(command: str) -> None:
    """Against the rendered help, so that the page's own reading of the commands is checked too."""
    wide = {"COLUMNS": "200", "TERMINAL_WIDTH": "200"}
    shown = CliRunner().invoke(app, [*command.split(), "--help"], env=wide).output
    section = read("docs/cli.md").split(f"## nbmf {command}\n")[1].split("\n## ")[0]
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"\x1b\[[0-9;]*m", "", shown))) - {"--help"}
    assert {option for option in options if option not in section} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    assert (CALLBACKS[command].__doc__ or "").strip()


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_documents_exist(path: Path) -> None:
    names = {command.split()[0] for command in COMMANDS}
    for block in [block for language in ("sh", "console", "bash") for block in fenced(path, language)]:
        for name in re.findall(r"(?:^|[|&\s/])nbmf ([a-z]+)", block):
            assert name in names, f"nbmf {name}"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_readme_commands() -> None:
    readme = read("README.md")
    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/nbmf quickstart" in readme
    assert "make test" in fenced(ROOT / "README.md", "sh")[1]
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    assert {"test", "quick", "lint", "types", "docs", "bench", "golden", "build"} <= targets
    named = set(re.findall(r"\bmake ([a-z-]+)\b", "\n".join(re.findall(r"`([^`\n]+)`", readme))))
    assert named <= targets


def test_ci_runs_the_readmes_test_command() -> None:
    lines = [line for line in read(".ci/run").splitlines() if line and not line.startswith(("#", "set ", "cd "))]
    assert lines == ["make test"]


def test_version_is_in_the_changelog_or_coming() -> None:
    assert "## [Unreleased]" in read("CHANGELOG.md")


@pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference")
def test_quickstart_commands_run(tmp_path: Path) -> None:
    """Every `$` line of the quickstart, in order, in one folder."""
    shim = tmp_path / "bin" / "nbmf"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m nbmf.cli "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    values = [sample.value for sample in samples.generate(200, seed=31)]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    environment = {**os.environ, "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}"}
    lines = [line[2:] for block in fenced(ROOT / "docs/quickstart.md", "console") for line in block.splitlines()]
    assert len(lines) >= 6
    for line in lines:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        if "decode" in line:
            assert "tea" in done.stdout


def test_quickstart_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of the quickstart, as one program."""
    monkeypatch.chdir(tmp_path)
    program = "\n".join(fenced(ROOT / "docs/quickstart.md", "python"))
    exec(compile(program, "quickstart.md", "exec"), {})


def test_the_python_page_names_everything() -> None:
    import nbmf

    page = read("docs/python-api.md")
    methods = {name for name in vars(nbmf.Memory) if not name.startswith("_")}
    # What the store's own parts call.
    inner = {"close", "cold", "fetch", "heat_of", "live", "open", "pairs", "records_of", "store", "with_own_pack"}
    missing = [
        name for name in [*nbmf.__all__, *(methods - inner)] if f"`{name}" not in page and f".{name}" not in page
    ]
    assert missing == []


def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in [*fenced(ROOT / "docs/python-api.md", "python"), *fenced(ROOT / "docs/store.md", "python")]:
        exec(block, names)
