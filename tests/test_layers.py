"""The tree shows the architecture: every file imports only what lies below it, and no files import in a circle.

What a function imports when it is called counts as well; what only a type checker reads does not.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pipeinfer"

LAYERS = [
    ("errors", "units", "assets", "files", "workload", "plugins", "prompt_sets",
     "runtime.spans", "runtime.processor_quota"),
    ("core",),
    ("results",),
    ("engine", "runtime", "cluster.memory"),
    ("testing",),
    ("cluster",),
    ("modelling.profile", "modelling.rank_survey"),
    ("cluster.launch", "cluster.auto_split", "cluster.settings", "pipeline"),
    ("serve",),
    ("modelling",),
    ("study",),
    ("report",),
    ("commands",),
    ("cli",),
    ("__main__",),
]
"""From the bottom; each may import its own layer and those before it. A file named here is no part of its package's."""


@cache
def modules() -> dict[str, Path]:
    """Every file of the package, by its name without "pipeinfer."."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, *, when_called: bool) -> set[str]:
    """Modules of this package that a module imports; those that its functions import only `when_called`."""
    tree = ast.parse(modules()[name].read_text())
    return {target for target in _imports(tree, when_called) if target}


def _imports(node: ast.AST, when_called: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not when_called:
            continue
        if isinstance(child, ast.ImportFrom) and (child.module or "").partition(".")[0] == "pipeinfer":
            module = (child.module or "").partition(".")[2]
            for alias in child.names:
                longer = f"{module}.{alias.name}".lstrip(".")
                yield longer if longer in modules() else module
        elif isinstance(child, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in child.names if alias.name.startswith("pipeinfer"))
        yield from _imports(child, when_called)


def layer(name: str) -> int:
    """The layer of a module: that of the longest name in LAYERS which it lies below."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        start = ".".join(parts[:length])
        for number, names in enumerate(LAYERS):
            if start in names:
                return number
    raise AssertionError(f"pipeinfer/{name.replace('.', '/')}.py has no layer: name it or its package in LAYERS")


@pytest.mark.parametrize("name", sorted(filter(None, modules())))
def test_a_file_imports_only_what_lies_below_it(name: str) -> None:
    above = {target for target in imports(name, when_called=True) if layer(target) > layer(name)}
    assert not above, f"{name} imports {', '.join(sorted(above))}, which lie above it"


def test_the_report_needs_nothing_of_a_study_but_what_it_is_and_its_tables() -> None:
    """Whoever reads results runs nothing: no ranks, no pool, no program."""
    needed = {target for name in modules() if name.startswith("report") for target in imports(name, when_called=True)}
    assert {target for target in needed if target.startswith("study")} == {
        "study.growth", "study.places", "study.points", "study.recipes", "study.table",
    }  # fmt: skip


def test_no_files_import_in_a_circle() -> None:
    """When they are loaded: a function may import later what imports its file."""
    left = {name: imports(name, when_called=False) & modules().keys() - {name, ""} for name in modules() if name}
    while leaves := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in leaves:
            del left[name]
    assert not left, f"a circle in {', '.join(sorted(left))}"
