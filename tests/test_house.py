"""The shape of the house: who imports whom, what is public, and that asking for help costs nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import transfuse

ROOT = Path(transfuse.__file__).parent
COMMAND = Path(sys.executable).with_name("transfuse")

MAY_IMPORT = {
    "errors": set(),
    "durable": set(),
    "config": {"errors"},
    "data": {"errors", "config", "durable"},
    "strings": {"errors", "kernels"},
    "trees": {"errors", "kernels"},
    "kernels": set(),
    "nn": {"errors", "config"},
    "metrics": {"errors"},
    "models": {"errors", "config", "nn"},
    "generation": {"errors", "config", "kernels", "models", "nn", "strings"},
    "pretrained": {"errors", "config", "durable", "models", "nn"},
    "regrouping": {"errors", "config", "nn", "models"},
    "training": {"errors", "config", "durable", "data", "nn", "models", "pretrained", "regrouping"},
    "estimators": {
        *("errors", "config", "durable", "data", "nn", "models", "metrics"),
        *("generation", "pretrained", "regrouping", "training", "trees"),
    },
}
MAY_IMPORT["reports"] = MAY_IMPORT["estimators"] | {"estimators", "strings"}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Names of `transfuse` modules a file imports, at the top or inside functions."""
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name for name in names if name.split(".")[0] == "transfuse"}


FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or room_of(path) in MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    room = room_of(path)
    rooms = {name.split(".")[1] for name in imported(path) if "." in name} - {room}
    if room == "cli":
        # the command line uses the public face, as a stranger would; errors are part of it without its cost
        assert rooms <= {"errors"}
    else:
        assert rooms <= MAY_IMPORT[room], f"{room} may not import {sorted(rooms - MAY_IMPORT[room])}"


def test_every_room_is_described() -> None:
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= {*MAY_IMPORT, "cli"}


def test_the_public_face_is_one_sorted_list() -> None:
    assert transfuse.__all__ == sorted(transfuse.__all__)
    assert dir(transfuse) == transfuse.__all__
    for name in transfuse.__all__:
        assert getattr(transfuse, name).__module__.startswith("transfuse.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        transfuse.nothing  # noqa: B018


def test_type_checkers_see_the_same_face() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(transfuse.__all__)


@pytest.mark.alone
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fit"],
        ["fit", "seq2seq"],
        ["fit", "generate"],
        ["fit", "answer"],
        ["predict"],
        ["evaluate"],
        ["inspect"],
        ["regroup"],
        ["compare"],
        ["importance"],
        ["longest"],
        ["demo"],
    ],
)
def test_help_is_quick_and_needs_no_torch(words: list[str]) -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        result = subprocess.run([COMMAND, *words, "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - began)
        assert "Usage: transfuse" in result.stdout
    assert min(seconds) < 0.5
    probe = (
        "import sys; from transfuse.cli.main import app; app(sys.argv[1:] + ['--help'], standalone_mode=False);"
        "assert not {'torch', 'numpy', 'sklearn'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", probe, *words], capture_output=True, check=True)


def test_importing_the_package_needs_no_torch() -> None:
    probe = "import sys, transfuse; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_say_what_they_are(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_the_changelog_has_this_version() -> None:
    changelog = (ROOT.parents[1] / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(transfuse.__version__)}\b", changelog, re.MULTILINE)
