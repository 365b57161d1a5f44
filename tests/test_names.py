"""One name, one thing; and functions that fit on a screen."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "pipeinfer").rglob("*.py"), *(ROOT / "backends").rglob("*.py")])
MOST_LINES = 49
"""Of a function, with its docstring."""

IN_EVERY_BACKEND = {"OutputHead"}
"""The same thing in backends that share no code for it."""


def definitions(kinds: type | tuple[type, ...]) -> Iterator[tuple[Path, ast.AST]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kinds):
                yield path.relative_to(ROOT), node


def test_no_two_classes_have_the_same_name() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for path, node in definitions(ast.ClassDef):
        places[node.name].add(str(path))
    assert {name: files for name, files in places.items() if len(files) > 1 and name not in IN_EVERY_BACKEND} == {}


def test_functions_are_short() -> None:
    long = [
        f"{path}:{node.lineno} {node.name}: {lines} lines"
        for path, node in definitions((ast.FunctionDef, ast.AsyncFunctionDef))
        if (lines := node.end_lineno - node.lineno + 1) > MOST_LINES
    ]
    assert long == []


def test_no_two_test_files_of_one_run_have_the_same_name() -> None:
    """Pytest would take the second for the first. The gate's cells are a run of their own."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if path.parent.name != "gate":
            places[path.name].append(str(path.relative_to(ROOT)))
    assert [paths for paths in places.values() if len(paths) > 1] == []
