"""A recipe with what was found: its rows of the table of trials, as report, figures and claims ask for them."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import pandas as pd

from pipeinfer.report.drawn import digest, fingerprint
from pipeinfer.results.analysis import VALID, ratios
from pipeinfer.results.frame import PLACE, Tables
from pipeinfer.study.places import Place
from pipeinfer.study.points import points
from pipeinfer.study.recipes import Recipe


class Experiment:
    """`trials` are those of the recipe's fidelity; `simulated`, of an emulated recipe, what was simulated of the same.
    `gaps`, `ranks` and `spans` are the folder's."""

    def __init__(self, recipe: Recipe, tables: Tables) -> None:
        own = _in_order(tables.trials[tables.trials.recipe == recipe.name], recipe)
        real = own.fidelity == "sim" if recipe.fidelity == "sim" else own.fidelity != "sim"
        self.recipe = recipe
        self.trials = own[real]
        self.simulated = own[~real]
        self.gaps, self.ranks, self.spans = tables.gaps, tables.ranks, tables.spans
        self._ratios: dict[tuple[str, str, str], pd.DataFrame] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For another process that draws it: of what is the folder's, its own rows, where they are drawn."""
        names = self.trials.config_hash if self.recipe.draws("timeline") or self.recipe.draws("requests") else ()
        tables = {"gaps": self.gaps, "ranks": self.ranks, "spans": self.spans}
        own = {name: table[table.config_hash.isin(names)] for name, table in tables.items()}
        return {"recipe": self.recipe, "trials": self.trials, "simulated": self.simulated, "_ratios": {}, **own}

    def mark(self, what: Any) -> str:
        """The fingerprint of a figure of it."""
        return fingerprint((self.recipe, what, self._digest))

    @cached_property
    def _digest(self) -> str:
        return digest(self.trials, self.simulated)

    @cached_property
    def valid(self) -> pd.DataFrame:
        """Trials with a performance, of every variant."""
        return self.trials[self.trials.status.isin(VALID)]

    @cached_property
    def best(self) -> pd.DataFrame:
        """Those of each contender's best variant per place."""
        return self.trials[self.trials.best]

    @cached_property
    def places(self) -> dict[int, Place]:
        """By the number that they have in the table, in the order in which they were run."""
        return {row.place: Place.of(row) for row in self.valid.drop_duplicates("place").itertuples()}

    @cached_property
    def medians(self) -> pd.DataFrame:
        """A row per place and contender at its best: medians of what is a number, the first of what is not, and the
        number of `trials`."""
        return medians(self.best, ["place", "contender"])

    def ratios(self, metric: str, of: str, over: str) -> pd.DataFrame:
        """The contender `of` over `over`: a row per place in which both were run, with `value`."""
        if (metric, of, over) not in self._ratios:
            self._ratios[metric, of, over] = ratios(self.trials, metric, of, over)
        return self._ratios[metric, of, over]

    @property
    def missing(self) -> int:
        """Cells that have no record."""
        return len(points(self.recipe)) - len(self.trials)

    def count(self, *status: str) -> int:
        return int(self.trials.status.isin(status).sum())

    def chosen(self, contender: str, variant: str) -> str:
        """Of a variant's options those that were swept: `k 4`."""
        swept = {name for name, values in self.recipe.strategies[contender].options.items() if len(values) > 1}
        return ", ".join(option for option in variant.split(", ") if option.partition(" ")[0] in swept)

    def best_of(self, row: Any) -> str:
        """A contender with its options, of a row of the table of trials: `speculative k 4`."""
        return f"{row.contender} {self.chosen(row.contender, row.variant)}".strip()

    def in_words(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows with `where`, their place in words, and `who`: the contender and all its options."""
        places = rows.place.map({number: place.text for number, place in self.places.items()})
        return rows.assign(where=places, who=(rows.contender + " " + rows.variant).str.strip())

    def among(self, contenders: Iterable[str]) -> "Experiment":
        """The same, of some contenders only."""
        trials = pd.concat([self.trials, self.simulated])
        trials = trials[trials.contender.isin(contenders)]
        return Experiment(self.recipe, Tables(trials, self.gaps, self.ranks, self.spans))

    def contenders(self, rows: pd.DataFrame) -> list[str]:
        """Those that rows are of, in the order of the recipe."""
        there = set(rows.contender)
        return [name for name in self.recipe.strategies if name in there]

    def style_of(self, contender: str) -> str:
        """The strategy whose colour it has."""
        return self.recipe.strategies[contender].of or contender

    def where(self, place: int, without: Iterable[str] = ()) -> str:
        """What tells a place from the recipe's others."""
        return self.places[place].differing(self.places.values(), without)


def _in_order(trials: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """As they are shown, whichever of a place's contenders was run first: places by their names, in the order in which
    these come, and by numbers as they grow, and contenders as the recipe has them."""
    names = [name for name in PLACE if trials[name].dtype.kind not in "if"]
    numbers = sorted(PLACE.keys() - names, key=["acceptance", *PLACE].index)
    keys = trials[[*names, *numbers]].assign(contender=trials.contender.map(list(recipe.strategies).index))
    for name in names:
        keys[name] = pd.factorize(keys[name])[0]
    return trials.loc[keys.sort_values([*keys], kind="stable").index]


def medians(trials: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One row per group: medians of numbers, the first of what is not, `trials`, in the order of the trials."""
    groups = trials.groupby(by, sort=False, dropna=False)
    numbers = trials.select_dtypes("number").columns.difference([*by, "place"])
    found = groups[[*trials.columns.difference([*numbers, *by])]].first().join(groups[[*numbers]].median())
    return found.assign(trials=groups.size()).reset_index()
