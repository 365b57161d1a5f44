"""From records to points: each strategy at its best, place by place, after the gate that token ids must pass."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from pipeinfer import metrics
from pipeinfer.reproduce.recipes import Cell, Recipe, SimCell, cells
from pipeinfer.reproduce.records import Record, config_hash
from pipeinfer.results import Trial

Metric = Callable[[Trial], float | None]

REFERENCE = "iterative"
"""The strategy whose token ids every other must give."""


class Place(msgspec.Struct, frozen=True):
    """Where strategies are compared: everything about a cell but the strategy, its options and the repetition."""

    cluster: str = ""
    pair: str = ""
    nodes: int = 0
    acceptance: float = 0.0
    accounting: str = "same-ranks"
    width_cost: float = 1.0
    temperature: float | None = None

    @property
    def text(self) -> str:
        """For a sentence."""
        if self.temperature is not None:
            return "greedy" if self.temperature == 0 else f"temperature {self.temperature:g}"
        text = f"{self.cluster}, {self.nodes} nodes, acceptance {self.acceptance:g}"
        text += f", {self.accounting}" * (self.accounting != "same-ranks")
        return text + f", width cost {self.width_cost:g}" * (self.width_cost != 1.0)


class Best(msgspec.Struct, frozen=True):
    """A strategy at the options that gave the highest median speed in a place. `trials` and their `records` by draw:
    seed, or prompt and repetition; `tried` is the median speed of every variant, by its label."""

    place: Place
    strategy: str
    options: dict[str, Any]
    records: dict[str, Record]
    tried: dict[str, float]

    @property
    def trials(self) -> dict[str, Trial]:
        return {draw: record.trial for draw, record in self.records.items() if record.trial is not None}

    @property
    def record(self) -> Record:
        """Any one of them."""
        return next(iter(self.records.values()))

    @property
    def speeds(self) -> list[float]:
        return [metrics.tokens_per_second(trial) or 0.0 for trial in self.trials.values()]

    @property
    def band(self) -> tuple[float, float, float]:
        """Bootstrap interval around the median speed: low, median, high."""
        return metrics.median_band(self.speeds)

    @property
    def label(self) -> str:
        return label(self.options)

    def median(self, metric: Metric) -> float | None:
        """Median of a metric over the trials that have it."""
        known = [value for value in map(metric, self.trials.values()) if value is not None]
        return float(np.median(known)) if known else None


class Rejected(msgspec.Struct, frozen=True):
    """A trial without a performance figure, and why."""

    place: Place
    strategy: str
    options: dict[str, Any]
    draw: str
    reason: str


class Analysis(msgspec.Struct, frozen=True):
    """What a recipe's records say. `missing` counts cells that have no record yet."""

    recipe: Recipe
    best: list[Best]
    rejected: list[Rejected]
    passed: int
    missing: int

    def at(self, place: Place) -> dict[str, Best]:
        """The strategies of a place, by name."""
        return {best.strategy: best for best in self.best if best.place == place}

    @property
    def places(self) -> list[Place]:
        return list(dict.fromkeys(best.place for best in self.best))


def analyse(recipe: Recipe, records: Mapping[str, Record]) -> Analysis:
    """Gate every trial by its token ids, then pick each strategy's best variant per place."""
    known = [(cell, records.get(config_hash(cell))) for cell in cells(recipe)]
    reference = _references(known)
    variants: dict[tuple[Place, str], dict[str, dict[str, Record]]] = defaultdict(lambda: defaultdict(dict))
    options: dict[str, dict[str, Any]] = {}
    rejected, passed, missing = [], 0, 0
    for cell, record in known:
        place, draw, strategy, chosen = describe(cell)
        if record is None:
            missing += 1
            continue
        reason = _objection(record, reference.get((place, draw.partition(" #")[0])))
        if record.trial is None or reason:
            rejected.append(Rejected(place, strategy, chosen, draw, reason))
            continue
        passed += 1
        options[label(chosen)] = chosen
        variants[place, strategy][label(chosen)][draw] = record
    best = [_best(place, strategy, found, options) for (place, strategy), found in variants.items()]
    return Analysis(recipe, best, rejected, passed, missing)


def describe(cell: Cell) -> tuple[Place, str, str, dict[str, Any]]:
    """A cell's place, its draw (what is repeated there; after " #" the repetition), its strategy and options."""
    if isinstance(cell, SimCell):
        setting = cell.setting
        place = Place(
            cell.cluster, cell.pair, setting.nodes, setting.acceptance, setting.accounting, setting.width_cost
        )
        return place, f"seed {setting.seed}", setting.strategy, setting.options
    place = Place(nodes=cell.live.stages + 1, temperature=cell.temperature)
    return place, f"{cell.prompt} #{cell.repeat}", cell.strategy, cell.options


def label(options: dict[str, Any]) -> str:
    """Options for a table: `k 4`."""
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _references(known: Iterable[tuple[Cell, Record | None]]) -> dict[tuple[Place, str], tuple[int, ...]]:
    """Token ids of the first iterative trial per place and draw."""
    found: dict[tuple[Place, str], tuple[int, ...]] = {}
    for cell, record in known:
        place, draw, strategy, _ = describe(cell)
        if strategy == REFERENCE and record is not None and record.trial is not None:
            found.setdefault((place, draw.partition(" #")[0]), record.trial.token_ids)
    return found


def _objection(record: Record, reference: tuple[int, ...] | None) -> str:
    if record.trial is None:
        return record.error
    if reference is None:
        return "there is no iterative run to compare its token ids with"
    ids = record.trial.token_ids
    if ids == reference:
        return ""
    pairs = enumerate(zip(ids, reference, strict=False))
    at = next((i for i, (own, expected) in pairs if own != expected), min(len(ids), len(reference)))
    return f"token ids differ from the iterative run's from token {at} on"


def _best(place: Place, strategy: str, found: dict[str, dict[str, Record]], options: dict[str, dict[str, Any]]) -> Best:
    every = [Best(place, strategy, options[name], records, {}) for name, records in found.items()]
    tried = {best.label: float(np.median(best.speeds)) for best in every}
    return msgspec.structs.replace(max(every, key=lambda best: tried[best.label]), tried=tried)


def paired_ratio(over: Best, under: Best, metric: Metric = metrics.tokens_per_second) -> float | None:
    """Median over the draws that both have of the quotient of a metric: chance hits both alike."""
    quotients = []
    for draw in over.trials.keys() & under.trials.keys():
        above, below = metric(over.trials[draw]), metric(under.trials[draw])
        if above is not None and below:
            quotients.append(above / below)
    return float(np.median(quotients)) if quotients else None
