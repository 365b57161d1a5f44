"""Which cells are compared with one another, what each is called, and why two results cannot be compared."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from pipeinfer.results.analysis import gated
from pipeinfer.results.compare.read import Results
from pipeinfer.workload import WorkloadError

NAMED = 2
"""How many differing keys an error names."""


def pair(base: Results, head: Results, *, common: bool) -> pd.DataFrame:
    """Both results' rows of the cells that both have, in the order of the base: `name` is what sets the cell apart from
    the others, `side` is base or head, `turn` counts repetitions, and `status` is that of the table of trials, the
    texts held against the base's. Raises WorkloadError where the workloads are not the same."""
    cells = [cell for cell in base.rows.cell.unique() if cell in set(head.rows.cell)]
    if not cells or (not common and max(base.rows.cell.nunique(), head.rows.cell.nunique()) > len(cells)):
        raise WorkloadError(f"different workloads: {_difference(base, head)}")
    both = pd.concat([base.rows.assign(side="base"), head.rows.assign(side="head")], ignore_index=True)
    both = both[both.cell.isin(cells)]
    configs = both.drop_duplicates("cell").set_index("cell").config.to_dict()
    both = both.assign(
        name=both.cell.map(dict(zip(configs, _names([*configs.values()]), strict=True))),
        turn=both.groupby(["side", "cell"]).cumcount(),
    )
    _check_meaning(both, base.name, head.name)
    return gated(both, ["cell"], both.side == "base")


def notes(base: Results, head: Results, paired: int) -> Iterator[str]:
    """What the reader of a comparison should know besides."""
    for one in (base, head):
        if (count := one.rows.cell.nunique()) > paired:
            yield f"left out: {count - paired} cells that only {one.name} has"
    machines = [sorted(one.rows.machine.unique()) for one in (base, head)]
    if not base.rows.exact.all() and machines[0] != machines[1]:
        told = " against ".join(" and ".join(one) for one in machines)
        yield f"measured on different machines ({told}): the ratios say nothing of the code"


def _difference(base: Results, head: Results) -> str:
    """A cell without a partner, beside the one of the other side that is most like it."""
    apart = [
        [*one.rows[~one.rows.cell.isin(other.rows.cell)].drop_duplicates("cell").config]
        for one, other in ((base, head), (head, base))
    ]
    (alone, candidates), (one, other) = (apart, (base, head)) if apart[0] else (apart[::-1], (head, base))
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


def _check_meaning(both: pd.DataFrame, base: str, head: str) -> None:
    """Equal names must stand for equal things. The hash of a record covers them, but also pipeinfer's version."""
    found = both.groupby(["name", "side"], sort=False)[["version", "config_hash"]].agg(set).unstack()
    for name, of in zip(found.index, found.itertuples(index=False), strict=True):
        versions, hashes = of[:2], of[2:]
        if versions[0] == versions[1] and hashes[0].isdisjoint(hashes[1]):
            raise WorkloadError(
                f"different workloads: what {name} stands for is not the same in {base} and {head}: a profile of "
                "workloads/ or the files of a model have changed"
            )


def _names(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    keys: Iterable[str] = dict.fromkeys(key for config in configs for key in config)
    telling = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    return [_text({key: config[key] for key in telling if key in config} or config) for config in configs]


def _text(config: Mapping[str, Any]) -> str:
    """Words alone, numbers with their name."""
    return ", ".join(
        value if isinstance(value, str) else f"{key.rpartition('.')[2]} {value}" for key, value in config.items()
    )
