"""The tables of recipes: their records as rows that know their experiment and contender, judged, with what theory and
the simulator say beside what was found."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pandas as pd
from pyarrow.lib import ArrowException

from pipeinfer.modelling.platform import platform_of
from pipeinfer.plugins import open_strategy
from pipeinfer.results.analysis import judged
from pipeinfer.results.frame import MADE_FROM, Tables, collected, read_tables
from pipeinfer.results.makers import makers_digest
from pipeinfer.results.metrics import row_cost
from pipeinfer.results.records import Record, Store
from pipeinfer.study.identity import config_hash
from pipeinfer.study.points import (
    Cell,
    EmulatedCell,
    LiveCell,
    LoadCell,
    PredictorCell,
    SimCell,
    cells,
    points,
    predictor_of,
    simulated_twin,
)
from pipeinfer.study.predictions import Predictor, predicted_tokens_per_s
from pipeinfer.study.recipes import Recipe


def tables_in(folder: Path, recipes: Sequence[Recipe], store: Store) -> Tables:
    """The tables of recipes as they lie in a folder: written anew, unless they were made from these records already.
    Raises OSError."""
    mark = _mark(recipes, store)
    try:
        found = read_tables(folder)
    except (OSError, ValueError, ArrowException):
        found = None
    if found is None or found.trials.attrs.get(MADE_FROM) != mark:
        tables(recipes, store.records).write(folder, mark)
        found = read_tables(folder)
    # In one piece and with Python's own strings: rows are taken of it hundreds of times, in a third of the time.
    words = dict.fromkeys(found.trials.select_dtypes("str"), object)
    return found._replace(trials=found.trials.astype(words).copy())


def _mark(recipes: Sequence[Recipe], store: Store) -> str:
    """Of the file of records as it is now; of recipes and their cells, whose hashes say what names stand for; and of
    what makes tables of them."""
    _, memberships = _recorded(recipes, store.records)
    file = store.path.stat()
    made_from = (recipes, memberships, file.st_size, file.st_mtime_ns, makers_digest())
    return hashlib.sha256(msgspec.json.encode(made_from)).hexdigest()


def tables(recipes: Sequence[Recipe], records: Mapping[str, Record]) -> Tables:
    """Every record of the recipes, in the order of their cells."""
    run, memberships = _recorded(recipes, records)
    found = collected((records[name], belongs) for name, belongs in memberships.items())
    trials = judged(found.trials)
    trials["limit_tokens_per_s"] = _limits(trials, run)
    trials["predicted_tokens_per_s"] = _predictions(trials, recipes, run, records)
    trials["row_cost"] = _row_costs(trials, records)
    return found._replace(trials=trials)


def _recorded(
    recipes: Sequence[Recipe], records: Mapping[str, Record]
) -> tuple[Mapping[str, Cell], Mapping[str, list[tuple[str, str]]]]:
    """By their hashes, the cells that have a record, and the (recipe, contender) pairs that each belongs to."""
    run: dict[str, Cell] = {}
    memberships: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for recipe, contender, cell in _points(recipes):
        if (name := config_hash(cell)) in records:
            run[name] = cell
            memberships[name].append((recipe, contender))
    return run, memberships


def _points(recipes: Iterable[Recipe]) -> Iterator[tuple[str, str, Cell]]:
    """The cells of each recipe, by their contenders. What is emulated is beside its simulation."""
    for recipe in recipes:
        for contender, cell in points(recipe):
            yield recipe.name, contender, cell
            if isinstance(cell, EmulatedCell):
                yield recipe.name, contender, simulated_twin(cell)


def _limits(trials: pd.DataFrame, run: Mapping[str, Cell]) -> pd.Series:
    """Closed forms in tokens/s, for the best variants of strategies that have one, where acceptance is i.i.d."""
    found = trials[trials.best & trials.temperature.isna() & (trials.drafts == "")]
    first = found.drop_duplicates(["place", "contender"]).config_hash
    known = first.map({name: _limit(run[name]) for name in first}).astype("float64")
    alike = known.reindex(found.index).groupby([found.place, found.contender])
    return alike.transform("first").reindex(trials.index)


def _limit(cell: Cell) -> float | None:
    assert isinstance(cell, SimCell)
    bound = platform_of(cell.cluster, cell.pair).limits(cell.setting)
    strategy = open_strategy(cell.setting.strategy, cell.setting.options)
    requests = cell.requests if isinstance(cell, LoadCell) else 1
    return bound.of(strategy) if requests == 1 else bound.shared(strategy, requests)


def _row_costs(trials: pd.DataFrame, records: Mapping[str, Record]) -> pd.Series:
    """Of each place that was not simulated."""
    known = {
        place: row_cost(trial for name in there.config_hash if (trial := records[name].trial) is not None)
        for place, there in trials[(trials.fidelity != "sim") & (trials.program == "")].groupby("place")
    }
    return trials.place.map(known).astype("float64")


def _predictions(
    trials: pd.DataFrame, recipes: Iterable[Recipe], run: Mapping[str, Cell], records: Mapping[str, Record]
) -> pd.Series:
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
        cell = run[row.config_hash]
        assert isinstance(cell, LiveCell)
        predictor = predictors.get(msgspec.json.encode(predictor_of(cell.live)))
        key = msgspec.json.encode(msgspec.structs.replace(cell, repeat=0))
        if predictor is not None and key not in known:
            known[key] = predicted_tokens_per_s(predictor, cell, int(row.prompt_tokens))
        found[row.Index] = known.get(key)
    return pd.Series(found, dtype="float64").reindex(trials.index)
