"""Experiments from records, for tests."""

from collections.abc import Mapping

import pandas as pd

from pipeinfer.report.claims import Claim
from pipeinfer.report.experiment import Experiment
from pipeinfer.results.records import Record
from pipeinfer.study.recipes import Recipe
from pipeinfer.study.table import tables


def analyse(recipe: Recipe, records: Mapping[str, Record]) -> Experiment:
    return Experiment(recipe, tables([recipe], records))


def at(experiment: Experiment, place: int) -> dict[str, pd.Series]:
    """The medians of a place's contenders, by name."""
    there = experiment.medians[experiment.medians.place == place]
    return {row.contender: row for row in there.itertuples()}


def evidence_of(claim: Claim) -> str:
    """All of it as one text."""
    return "; ".join(f"{line.what}: {line.found}" for line in claim.evidence)
