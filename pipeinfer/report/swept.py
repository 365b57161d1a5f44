"""Which sweeps of an experiment went on beyond what its recipe lists, and which ended with the best at their edge."""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from pipeinfer.report.experiment import Experiment
from pipeinfer.study.growth import growing


class Swept(NamedTuple):
    """An option of a contender: the largest value that the recipe lists, the largest tried anywhere, and by place the
    best value where that is the largest tried; `ends`: the last value that its strategy names."""

    contender: str
    option: str
    listed: float
    tried: float
    ends: float
    edges: pd.Series


def swept_options(experiment: Experiment) -> Iterator[Swept]:
    """Of every contender the options whose sweeps grow."""
    for name, known in growing(experiment.recipe).items():
        rows = experiment.valid.loc[experiment.valid.contender == name, ["place", "variant", "best"]].drop_duplicates()
        for option, values in known.items() if len(rows) else ():
            own = f"(?:^|, ){option} ([^,]+)"
            tried = rows.variant.str.extract(own)[0].astype("float64")
            alike = tried.groupby([rows.place, rows.variant.str.replace(own, "", regex=True)])
            at_edge = rows.best & (tried == alike.transform("max")) & (alike.transform("nunique") > 1)
            edges = tried[at_edge].set_axis(rows.place[at_edge])
            listed = max(experiment.recipe.strategies[name].options[option])
            yield Swept(name, option, listed, tried.max(), max(values), edges)


def sweep_notes(experiment: Experiment) -> Iterator[str]:
    """For people: what grew, and what is still at its edge and why."""
    swept = list(swept_options(experiment))
    grew = [f"{one.contender} {one.option} from {one.listed:g} up to {one.tried:g}"
            for one in swept if one.tried > one.listed]  # fmt: skip
    if grew:
        yield f"Sweeps went on where the largest value tried was the best: {'; '.join(grew)}."
    for one in swept:
        for value, places in one.edges.groupby(one.edges):
            where = [experiment.where(place) for place in places.index]
            why = "there is no larger one to try" if value >= one.ends else "larger ones were not run, or failed"
            text = "; ".join(filter(None, where)) or "everywhere"
            yield f"At the edge of its sweep: {one.contender} {one.option} {value:g} ({text}): {why}."
