"""The tables of recipes: their records as rows that know their experiment and contender, judged, with what theory and
the simulator say beside what was found."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import pandas as pd

from pipeinfer.modelling.platform import platform_of
from pipeinfer.modelling.simulate import Setting
from pipeinfer.plugins import open_strategy
from pipeinfer.results.analysis import judged
from pipeinfer.results.frame import Tables, collected
from pipeinfer.results.metrics import row_cost
from pipeinfer.results.records import Record
from pipeinfer.study.identity import config_hash
from pipeinfer.study.places import Place
from pipeinfer.study.points import EmulatedCell, LiveCell, PredictorCell, cells, points, predictor_of, simulated_twin
from pipeinfer.study.predictions import Predictor, predicted_tokens_per_s
from pipeinfer.study.recipes import Recipe


def tables(recipes: Iterable[Recipe], records: Mapping[str, Record]) -> Tables:
    """Every record of the recipes, in the order of their cells."""
    belonging = {name: belongs for name, belongs in _memberships(recipes).items() if name in records}
    found = collected((records[name], belongs) for name, belongs in belonging.items())
    trials = judged(found.trials)
    trials["limit_tokens_per_s"] = _limits(trials, records)
    trials["predicted_tokens_per_s"] = _predictions(trials, recipes, records)
    trials["row_cost"] = _row_costs(trials, records)
    return found._replace(trials=trials.copy())  # in one piece, from which rows are taken several times as fast


def _memberships(recipes: Iterable[Recipe]) -> dict[str, list[tuple[str, str]]]:
    """By the hash of each cell: the recipes in which it is, and as which contender. What is emulated is beside its
    simulation."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for recipe in recipes:
        for contender, cell in points(recipe):
            found[config_hash(cell)].append((recipe.name, contender))
            if isinstance(cell, EmulatedCell):
                found[config_hash(simulated_twin(cell))].append((recipe.name, contender))
    return found


def _limits(trials: pd.DataFrame, records: Mapping[str, Record]) -> pd.Series:
    """Closed forms in tokens/s, for the best variants of strategies that have one, where acceptance is i.i.d."""
    found = trials[trials.best & trials.temperature.isna() & (trials.drafts == "")]
    first = found.drop_duplicates(["place", "contender"])
    known = pd.Series([_limit(row, records) for row in first.itertuples()], first.index, dtype="float64")
    alike = known.reindex(found.index).groupby([found.place, found.contender])
    return alike.transform("first").reindex(trials.index)


def _limit(row: Any, records: Mapping[str, Record]) -> float | None:
    place = Place.of(row)
    setting = Setting(
        row.strategy, nodes=place.nodes, acceptance=place.acceptance, prompt=int(row.prompt_tokens),
        tokens=int(row.tokens), width_cost=place.width_cost, draft_cost=place.draft_cost,
    )  # fmt: skip
    bound = platform_of(place.cluster, place.pair).limits(setting)
    strategy = open_strategy(row.strategy, records[row.config_hash].config["setting"]["options"])
    return bound.of(strategy) if place.requests == 1 else bound.shared(strategy, place.requests)


def _row_costs(trials: pd.DataFrame, records: Mapping[str, Record]) -> pd.Series:
    """Of each place that was not simulated."""
    known = {
        place: row_cost(trial for name in there.config_hash if (trial := records[name].trial) is not None)
        for place, there in trials[(trials.fidelity != "sim") & (trials.program == "")].groupby("place")
    }
    return trials.place.map(known).astype("float64")


def _predictions(trials: pd.DataFrame, recipes: Iterable[Recipe], records: Mapping[str, Record]) -> pd.Series:
    """What the simulator says of the best variants for which there is a predictor."""
    predictors = {
        msgspec.json.encode(cell): msgspec.convert(record.predictor, Predictor, strict=False)
        for recipe in recipes for cell in cells(recipe) if isinstance(cell, PredictorCell)
        for record in [records.get(config_hash(cell))] if record is not None and record.predictor is not None
    }  # fmt: skip
    known: dict[bytes, float | None] = {}
    found = {}
    for row in (
        trials[trials.best & trials.temperature.notna() & (trials.program == "")].itertuples() if predictors else ()
    ):
        cell = msgspec.convert(records[row.config_hash].config, LiveCell)
        predictor = predictors.get(msgspec.json.encode(predictor_of(cell.live)))
        key = msgspec.json.encode(msgspec.structs.replace(cell, repeat=0))
        if predictor is not None and key not in known:
            known[key] = predicted_tokens_per_s(predictor, cell, int(row.prompt_tokens))
        found[row.Index] = known.get(key)
    return pd.Series(found, dtype="float64").reindex(trials.index)
