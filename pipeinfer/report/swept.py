"""Which sweeps of an experiment went on beyond what its recipe lists, and which ended with the best at their edge."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from pipeinfer.modelling.sweeps import Options, at_largest
from pipeinfer.report.experiment import Experiment
from pipeinfer.study.growth import growing


class Swept(NamedTuple):
    """An option of a contender: the largest value that the recipe lists, the largest tried anywhere, and the places at
    which the best is the largest tried, each with that value; `ends`: the last value that its strategy names."""

    contender: str
    option: str
    listed: float
    tried: float
    ends: float
    edges: dict[int, float]


def swept_options(experiment: Experiment) -> Iterator[Swept]:
    """Of every contender the options whose sweeps grow."""
    for name, known in growing(experiment.recipe).items():
        rows = experiment.valid[experiment.valid.contender == name]
        for option, values in known.items() if len(rows) else ():
            listed = max(experiment.recipe.strategies[name].options[option])
            tried = max(_value(variant, option) for variant in rows.variant.unique())
            yield Swept(name, option, listed, tried, max(values), dict(_edges(rows, option)))


def _edges(rows: pd.DataFrame, option: str) -> Iterator[tuple[int, float]]:
    for place, there in rows.groupby("place", sort=False):
        variants = list(there.variant.unique())
        best = variants.index(there[there.best].variant.iloc[0]) if there.best.any() else None
        if best is not None and at_largest([_options(variant, option) for variant in variants], best, option):
            yield place, _value(variants[best], option)


def _options(variant: str, option: str) -> Options:
    parts: dict[str, Any] = dict(part.split(" ", 1) for part in variant.split(", "))
    return {**parts, option: float(parts[option])}


def _value(variant: str, option: str) -> float:
    return float(_options(variant, option)[option])


def sweep_notes(experiment: Experiment) -> Iterator[str]:
    """For people: what grew, and what is still at its edge and why."""
    swept = list(swept_options(experiment))
    grew = [f"{one.contender} {one.option} from {one.listed:g} up to {one.tried:g}"
            for one in swept if one.tried > one.listed]  # fmt: skip
    if grew:
        yield f"Sweeps went on where the largest value tried was the best: {'; '.join(grew)}."
    for one in swept:
        for value in sorted(set(one.edges.values())):
            where = [experiment.where(place) for place, edge in one.edges.items() if edge == value]
            why = "there is no larger one to try" if value >= one.ends else "larger ones were not run, or failed"
            text = "; ".join(filter(None, where)) or "everywhere"
            yield f"At the edge of its sweep: {one.contender} {one.option} {value:g} ({text}): {why}."
