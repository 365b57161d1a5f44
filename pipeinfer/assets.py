"""Where the project's data files are: workloads, figure recipes, published reference values."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def asset(name: str) -> Path:
    """The file or folder `name`, such as "workloads/builtin/target": the checkout's own, else the installed copy.

    Raises FileNotFoundError when neither has it.
    """
    for root in _roots():
        if (root / name).exists():
            return root / name
    looked = " and ".join(str(root) for root in _roots())
    raise FileNotFoundError(f"no project file {name!r} in {looked}: install PipeInfer again or use a checkout")


def _roots() -> list[Path]:
    installed = PACKAGE / "_data"
    checkout = PACKAGE.parent
    # Beside an installed package lie other people's folders; only a checkout has a pyproject.toml there.
    return [checkout, installed] if (checkout / "pyproject.toml").exists() else [installed]
