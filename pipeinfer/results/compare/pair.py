"""Which cells are compared with one another, what each is called, and why two results cannot be compared."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pipeinfer.results.compare.read import ComparedCell, Results
from pipeinfer.workload import WorkloadError

NAMED = 2
"""How many differing keys an error names."""


class CellPair(NamedTuple):
    """One cell in both results, named by what sets it apart from the others."""

    name: str
    base: ComparedCell
    head: ComparedCell


def pair(base: Results, head: Results, *, common: bool) -> list[CellPair]:
    """The cells of both, in the order of the base. Raises WorkloadError where the workloads are not the same."""
    keys = [key for key in base.cells if key in head.cells]
    if not keys or (not common and len(keys) < len(base.cells | head.cells)):
        raise WorkloadError(f"different workloads: {_difference(base, head)}")
    names = _names([base.cells[key].config for key in keys])
    pairs = [CellPair(name, base.cells[key], head.cells[key]) for name, key in zip(names, keys, strict=True)]
    for one in pairs:
        _check_meaning(one, base.name, head.name)
    return pairs


def notes(base: Results, head: Results, paired: int) -> Iterator[str]:
    """What the reader of a comparison should know besides."""
    for one in (base, head):
        if len(one.cells) > paired:
            yield f"left out: {len(one.cells) - paired} cells that only {one.name} has"
    measured = not all(cell.exact for cell in base.cells.values())
    if measured and base.machines != head.machines:
        machines = " against ".join(" and ".join(sorted(one.machines)) for one in (base, head))
        yield f"measured on different machines ({machines}): the ratios say nothing of the code"


def _difference(base: Results, head: Results) -> str:
    """A cell without a partner, beside the one of the other side that is most like it."""
    one, other = (base, head) if base.cells.keys() - head.cells.keys() else (head, base)
    alone = [cell.config for key, cell in one.cells.items() if key not in other.cells]
    candidates = [cell.config for key, cell in other.cells.items() if key not in one.cells]
    if not candidates:
        return f"{other.name} lacks {len(alone)} cells of {one.name} (--common leaves them out), as {_text(alone[0])}"
    config = alone[0]
    nearest = min(candidates, key=lambda candidate: len(_unequal(config, candidate)))
    unequal = _unequal(config, nearest)
    more = f", and {len(unequal) - NAMED} more keys" if len(unequal) > NAMED else ""
    told = [
        f"{name} is {config.get(name, 'absent')} in {one.name} and {nearest.get(name, 'absent')} in {other.name}"
        for name in unequal[:NAMED]
    ]
    return "; ".join(told) + more


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def _check_meaning(one: CellPair, base: str, head: str) -> None:
    """Equal names must stand for equal things. The hash of a record covers them, but also pipeinfer's version."""
    versions = [{version for version, _ in cell.hashes} for cell in (one.base, one.head)]
    if one.base.hashes and versions[0] == versions[1] and one.base.hashes.isdisjoint(one.head.hashes):
        raise WorkloadError(
            f"different workloads: what {one.name} stands for is not the same in {base} and {head}: a profile of "
            "workloads/ or the files of a model have changed"
        )


def _names(configs: list[dict[str, Any]]) -> list[str]:
    keys: Iterable[str] = dict.fromkeys(key for config in configs for key in config)
    telling = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    return [_text({key: config[key] for key in telling if key in config} or config) for config in configs]


def _text(config: Mapping[str, Any]) -> str:
    """Words alone, numbers with their name."""
    return ", ".join(
        value if isinstance(value, str) else f"{key.rpartition('.')[2]} {value}" for key, value in config.items()
    )
