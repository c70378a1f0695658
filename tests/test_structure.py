"""How the house is built: who imports whom, how long things are, that each part is named where newcomers look."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import REPOSITORY

from drwr_dist.config import TuneConfig

PACKAGE = REPOSITORY / "drwr_dist"
MAX_FILE, MAX_FUNCTION = 400, 60  # lines

# Longer than that, for a reason.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS = {
    "drwr_dist/losses/objective.py:drwr_loss": "the whole interface of the loss: two thirds are its docstring",
}


def sources() -> list[Path]:
    folders = ("drwr_dist", "tests", "benchmarks", "launch")
    found = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.suffix in (".py", ".js")]
    assert len(found) > 200
    return [path for path in found if "vendor" not in path.parts]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{path.relative_to(REPOSITORY)}:{node.name}", (node.end_lineno or 0) - node.lineno + 1


def test_imports_keep_the_contracts():
    """Layers, no circles, pure parts: the contracts are in pyproject.toml."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_the_linter_sees_every_module():
    """A folder without __init__.py would escape it."""
    assert [str(path) for path in PACKAGE.rglob("*.py") if not (path.parent / "__init__.py").exists()] == []


def test_files_are_short():
    long = {
        str(path.relative_to(REPOSITORY)): lines
        for path in sources()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE
    }
    assert set(long) == set(LONG_FILES), f"split these, or give a reason in LONG_FILES: {long}"


def test_functions_are_short():
    long = {
        name: lines for path in sources() if path.suffix == ".py" for name, lines in functions(path)
        if lines > MAX_FUNCTION
    }  # fmt: skip
    assert set(long) == set(LONG_FUNCTIONS), f"split these, or give a reason in LONG_FUNCTIONS: {long}"


def test_no_file_is_a_drawer_for_everything():
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "base", "core"}
    assert [str(path) for path in PACKAGE.rglob("*.py") if path.stem in drawers] == []


def test_no_test_file_is_imported():
    """What two test files need has a file of its own: a newcomer who changes a test changes no other."""
    imports = re.compile(r"^\s*(?:from|import) test_\w+", re.MULTILINE)
    tests = (REPOSITORY / "tests").rglob("*.py")
    found = {str(path): names for path in tests if (names := imports.findall(path.read_text(encoding="utf-8")))}
    assert found == {}


def test_architecture_names_every_part():
    text = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    parts = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    named = [path.name if path.suffix else f"{path.name}/" for path in parts if not path.name.startswith("__")]
    assert [name for name in named if name not in text] == []


@pytest.mark.parametrize("folder", ["data", "engine", "sweep"])
def test_architecture_names_every_module_of(folder: str):
    lines = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith(f"| `drwr_dist/{folder}/`"))
    modules = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
    assert modules - set(re.findall(r"`([a-z_]+)`", row)) == set()


@pytest.mark.parametrize("schema", [TuneConfig])
def test_no_key_is_dead(schema: type):
    """Each key is read somewhere outside the schema and its checks."""
    readers = [path for path in PACKAGE.rglob("*.py") if path.name not in ("config.py", "validation.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in readers)

    def leaves(owner: type) -> Iterator[str]:
        for entry in dataclasses.fields(owner):
            group = entry.default_factory
            if isinstance(group, type) and dataclasses.is_dataclass(group):
                yield from leaves(group)
            else:
                yield entry.name

    names = set(leaves(schema))
    assert len(names) > 90
    # a weight may be read as "<term>_weight" of the terms that are active
    read = {name for name in names if re.search(rf"\.{name}\b", text)}
    terms = {name for name in names - read if name.endswith("_weight") and f'"{name.removesuffix("_weight")}"' in text}
    assert names - read - terms == set()
