"""Imports go one way: cli, serve, integrations -> memory -> policy -> store; memory, policy -> codec."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbmf

ROOT = Path(nbmf.__file__).parent
FRONT = {
    "bench",
    "cli",
    "cli_base",
    "cli_bench",
    "cli_serve",
    "cli_store",
    "cli_train",
    "data",
    "doctor",
    "inspect",
    "integrations",
    "quickstart",
    "quickstart_store",
    "quickstart_vectors",
    "serve",
    "store_access",
    "store_report",
    "transcode",
}
BELOW_FRONT = {"errors", "samples", "report", "codec", "store", "policy", "memory"}

# What each part may import of nbmf, besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "samples": set(),
    "report": set(),
    "codec": {"errors"},
    "store": {"errors"},
    "policy": {"errors", "store", "codec"},
    "memory": {"errors", "store", "codec", "policy"},
    "train": {"errors", "codec", "samples", "report"},
    "__init__": BELOW_FRONT,
    **dict.fromkeys(FRONT, FRONT | BELOW_FRONT),
    "cli_train": FRONT | BELOW_FRONT | {"train"},
}
# Packages from outside the standard library that only some parts may import; the others are free.
ONLY_IN: dict[str, set[str]] = {
    "torch": {"train"},
    "langchain_core": {"integrations"},
    "numcodecs": {"integrations"},
    "sqlalchemy": {"integrations"},
    "typer": {"cli", "cli_base", "cli_bench", "cli_serve", "cli_store", "cli_train"},
    "fastapi": {"serve"},
    "mcp": {"serve"},
    "prometheus_client": {"serve"},
    "uvicorn": {"serve"},
    "rich": {"bench", "inspect", "quickstart", "quickstart_store", "quickstart_vectors", "report", "store_report"},
}
CODEC_NEEDS = {"numpy", "zstandard"}

FILES = sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    """The part of the package that a file belongs to: its folder, or its own name at the top."""
    inside = path.relative_to(ROOT)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported(path: Path) -> Iterator[str]:
    """The dotted name of every import in a file, `from` imports with what they take."""
    package = ["nbmf", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*stem, alias.name]) for alias in node.names)


def test_every_part_has_a_rule() -> None:
    assert {part(path) for path in FILES} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_directions(path: Path) -> None:
    own = part(path)
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "nbmf":
            wanted = rest.split(".")[0]
            # `from nbmf import __version__` and the like name no part.
            if (ROOT / wanted).is_dir() or (ROOT / f"{wanted}.py").exists():
                assert wanted == own or wanted in MAY_IMPORT[own], f"{own} may not import nbmf.{wanted}"
            continue
        assert own in ONLY_IN.get(top, {own}), f"{own} may not import {top}"
        if own == "codec" and top not in sys.stdlib_module_names:
            assert top in CODEC_NEEDS, f"codec may not import {top}"


def test_no_import_loads_what_it_need_not() -> None:
    """The library alone must not pull in the command line's packages, nor training."""
    import subprocess

    code = "import sys, nbmf; print(sorted({'typer', 'rich', 'torch', 'nbmf.train'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
