"""The house rules that a parser can check: who may import whom, and which packages stay out of which rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "clipdistill"
#: Each floor may import only what stands below it.
FLOORS = [
    {"errors", "files", "progress"},
    {"algebra", "data"},
    {"models", "search"},
    {"config", "teachers", "evaluation"},
    {"training", "serve", "machine", "run_file"},
    {"export"},
    {"evidence", "bench", "coming_from"},
    {"cli"},
    {"__init__", "__main__"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module a file imports, wherever in the file, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_every_room_has_its_floor() -> None:
    assert {room(path) for path in FILES} <= set(FLOOR)


def test_the_documented_house_is_this_one() -> None:
    page = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = page.split("```text\n")[1].split("```")[0].splitlines()
    assert [set(line.split()) for line in reversed(drawn)] == FLOORS[:-1]
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(
        re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_floor_imports_only_what_stands_below_it(path: Path) -> None:
    for line, module in imports(path):
        parts = module.split(".")
        if parts[0] != "clipdistill" or len(parts) == 1 or parts[1] not in FLOOR:
            continue
        own, other = room(path), parts[1]
        assert own == other or FLOOR[other] < FLOOR[own], f"{path.name}:{line}: {own} may not import {other}"


def test_search_needs_little_of_the_rest() -> None:
    data = {f"data.{name}" for name in ("views", "images", "samples", "sources", "remote", "secrets")}
    known = {"errors", "files", "progress", "search", *data}
    for path in (path for path in FILES if room(path) == "search"):
        for line, module in imports(path):
            name = module.removeprefix("clipdistill.")
            near = any(name == one or name.startswith(f"{one}.") for one in known)
            assert near or not module.startswith("clipdistill."), f"{path.name}:{line} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_models_import_model_libraries(path: Path) -> None:
    for line, module in imports(path):
        if module.split(".")[0] in {"transformers", "open_clip", "timm"}:
            assert room(path) == "models", f"{path.name}:{line} imports {module}"


@pytest.mark.parametrize(
    "module",
    [
        "clipdistill",
        "clipdistill.cli",
        "clipdistill.data.views",
        "clipdistill.data.sources",
        "clipdistill.data.check",
        "clipdistill.data.convert",
        "clipdistill.data.mixing",
        "clipdistill.data.mix_order",
        "clipdistill.config",
        "clipdistill.search.runtime",
        "clipdistill.search.golden",
    ],
)
def test_the_light_base_needs_no_torch(module: str) -> None:
    """Importing with torch and transformers made impossible, in a process of its own."""
    blocked = "{'torch', 'transformers', 'safetensors', 'pyarrow', 'jaxtyping', 'matplotlib', 'jinja2', 'torchvision'}"
    program = (
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {blocked}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"import {module}\n"
        "import clipdistill\n"
        "clipdistill.pairs\n"
        "try:\n"
        "    clipdistill.distill\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'clipdistill[train]'" in done.stdout


def test_shapes_are_checked_wherever_the_algebra_writes_them(pytestconfig: pytest.Config) -> None:
    checked = str(pytestconfig.getoption("--jaxtyping-packages")).split(",")
    shapes = {"jaxtyping", "clipdistill.algebra.objectives.PerRow"}
    algebra = [path for path in FILES if room(path) == "algebra"]
    writing = [path for path in algebra if shapes & {module for _, module in imports(path)}]
    names = [".".join(("clipdistill", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in writing]
    assert checked == [*sorted(names), "beartype.beartype"]


def test_public_names_exist() -> None:
    import clipdistill

    assert all(getattr(clipdistill, name) is not None for name in clipdistill.__all__)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        clipdistill.distil  # noqa: B018


def test_functions_and_files_stay_small() -> None:
    lengths = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{path.name} has more than 400 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append((node.end_lineno or 0) - node.lineno + 1)
                assert lengths[-1] <= 60, f"{path.name}: {node.name} has {lengths[-1]} lines"
    assert sorted(lengths)[len(lengths) // 2] <= 12
