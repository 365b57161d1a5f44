"""From records to points: each strategy at its best, place by place, after the gate that token ids must pass."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from pipeinfer.modelling.platform import cluster_name
from pipeinfer.reproduce.recipes import (
    Cell,
    EmulatedCell,
    LiveCell,
    Point,
    ProgramCell,
    Recipe,
    RehearsalCell,
    SimCell,
    cells,
    points,
    simulated_twin,
)
from pipeinfer.reproduce.records import Record, Rehearsed, config_hash
from pipeinfer.results import metrics
from pipeinfer.results.divergence import Divergence, divergence
from pipeinfer.results.trial import Trial

Metric = Callable[[Trial], float | None]

REFERENCE = "iterative"
"""The strategy whose token ids every other must give."""


USUAL_PROMPT = 64
"""Tokens of the prompt where a recipe is not about it."""


class Place(msgspec.Struct, frozen=True):
    """Where strategies are compared: everything about a cell but the strategy, its options and the repetition.
    `drafts`: what acceptance is like where it is not i.i.d. ("varied", or a recorded trace's name)."""

    cluster: str = ""
    pair: str = ""
    nodes: int = 0
    acceptance: float = 0.0
    drafts: str = ""
    accounting: str = "same-ranks"
    width_cost: float = 1.0
    draft_cost: float = 1.0
    bandwidth_gbps: float | None = None
    latency_us: float | None = None
    temperature: float | None = None
    prompt: int = USUAL_PROMPT

    @property
    def text(self) -> str:
        """For a sentence."""
        parts = self.parts()
        if self.prompt == USUAL_PROMPT:
            parts.pop("prompt", None)
        return ", ".join(parts.values())

    def parts(self) -> dict[str, str]:
        """Field by field; all but the first four and the prompt are left out at their default."""
        if self.temperature is not None and self.cluster:
            link = {"bandwidth_gbps": f"{self.bandwidth_gbps:g} Gbit/s", "latency_us": f"{self.latency_us:g} us"}
            return {"cluster": self.cluster, "nodes": f"{self.nodes - 1} stages", **link}
        if self.temperature is not None:
            return {"temperature": "greedy" if self.temperature == 0 else f"temperature {self.temperature:g}"}
        parts = {"pair": self.pair, "cluster": cluster_name(self.cluster), "nodes": f"{self.nodes} nodes"}
        parts["acceptance"] = f"{self.drafts} acceptance {self.acceptance:.2g}".strip()
        if self.accounting != "same-ranks":
            parts["accounting"] = self.accounting
        if self.width_cost != 1.0:
            parts["width_cost"] = f"width cost {self.width_cost:g}"
        if self.draft_cost != 1.0:
            parts["draft_cost"] = f"draft cost {self.draft_cost:g}"
        if self.bandwidth_gbps is not None:
            parts["bandwidth_gbps"] = f"{self.bandwidth_gbps:g} Gbit/s"
        if self.latency_us is not None:
            parts["latency_us"] = f"{self.latency_us:g} us"
        parts["prompt"] = f"prompt of {self.prompt}"
        return parts


class Best(msgspec.Struct, frozen=True):
    """A contender at the options that gave the highest median speed in a place. `trials` and their `records` by draw:
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

    def values(self, metric: Metric) -> list[float]:
        """A metric of the trials that have it."""
        return [value for value in map(metric, self.trials.values()) if value is not None]

    def band(self, metric: Metric = metrics.tokens_per_second) -> tuple[float, float, float]:
        """Bootstrap interval around the median of a metric: low, median, high."""
        return metrics.median_band(self.values(metric))

    @property
    def speed(self) -> float:
        """Median tokens/s, without the work of its interval."""
        return float(np.median(self.values(metrics.tokens_per_second)))

    @property
    def label(self) -> str:
        return label(self.options)

    def median(self, metric: Metric) -> float | None:
        """Median of a metric over the trials that have it."""
        known = self.values(metric)
        return float(np.median(known)) if known else None


class Rejected(msgspec.Struct, frozen=True):
    """A trial without a performance figure, and why."""

    place: Place
    strategy: str
    options: dict[str, Any]
    draw: str
    reason: str


class Diverged(msgspec.Struct, frozen=True):
    """A trial whose text parts from the reference's at a tie, as it may in coarse arithmetic. It keeps its figures."""

    place: Place
    strategy: str
    options: dict[str, Any]
    draw: str
    divergence: Divergence


class Beside(msgspec.Struct, frozen=True):
    """One variant in real time, and the simulation of the same, by draw."""

    emulated: Best
    simulated: Best

    def deviation(self, metric: Metric = metrics.tokens_per_second) -> float | None:
        """Of what was measured from what was simulated: median over the draws, of the simulated value."""
        ratio = paired_ratio(self.emulated, self.simulated, metric)
        return None if ratio is None else ratio - 1

    @property
    def same_tokens(self) -> bool:
        """They have to be: both ask one oracle."""
        simulated = self.simulated.trials
        return all(trial.token_ids == simulated[draw].token_ids for draw, trial in self.emulated.trials.items())


class Analysis(msgspec.Struct, frozen=True):
    """What a recipe's records say. `variants` are all that was tried, `best` the best of each contender in each place;
    `passed` counts trials with the reference's tokens, `missing` cells that have no record yet; `beside` holds every
    variant of an emulated recipe against its simulation."""

    recipe: Recipe
    best: list[Best]
    rejected: list[Rejected]
    diverged: list[Diverged]
    passed: int
    missing: int
    variants: list[Best] = []
    beside: list[Beside] = []
    rehearsed: list[tuple[RehearsalCell, Rehearsed]] = []

    def at(self, place: Place) -> dict[str, Best]:
        """The strategies of a place, by name."""
        return {best.strategy: best for best in self.best if best.place == place}

    def chosen(self, best: Best) -> str:
        """The options that were swept, at what was found best: `k 4`."""
        swept = self.recipe.strategies[best.strategy].options
        return label({name: value for name, value in best.options.items() if len(swept[name]) > 1})

    def where(self, place: Place, without: Sequence[str] = ()) -> str:
        """What tells a place from the recipe's others, but for some fields (that a panel's title says)."""
        every = [other.parts() for other in self.places]
        leave_out = {"acceptance"} if {"drafts", "rate"} & set(without) else set(without)
        own = place.parts().items()
        return ", ".join(
            text for name, text in own if name not in leave_out and any(other.get(name) != text for other in every)
        )

    @property
    def places(self) -> list[Place]:
        return list(dict.fromkeys(best.place for best in self.best))


def analyse(recipe: Recipe, records: Mapping[str, Record]) -> Analysis:
    """Gate every trial by its token ids, then pick each contender's best variant per place."""
    known = [(point, records.get(config_hash(point.cell))) for point in points(recipe)]
    reference = _references(known)
    variants: dict[tuple[Place, str], dict[str, dict[str, Record]]] = defaultdict(lambda: defaultdict(dict))
    options: dict[str, dict[str, Any]] = {}
    rejected, diverged, passed, missing = [], [], 0, 0
    for point, record in known:
        place, draw = describe(point.cell)
        chosen = _options(point.cell)
        if record is None:
            missing += 1
            continue
        found = _objection(point.cell, record, reference.get((place, _text_of(draw))))
        if isinstance(found, str):
            rejected.append(Rejected(place, point.contender, chosen, draw, found))
            continue
        if found is None:
            passed += 1
        else:
            diverged.append(Diverged(place, point.contender, chosen, draw, found))
        options[label(chosen)] = chosen
        variants[place, point.contender][label(chosen)][draw] = record
    every = [
        [Best(place, contender, options[name], tried, {}) for name, tried in found.items()]
        for (place, contender), found in variants.items()
    ]
    best = list(map(fastest, every))
    beside = list(_beside(known, records)) if recipe.emulation else []
    tried = [one for found in every for one in found]
    rehearsed = list(_rehearsed(recipe, records))
    return Analysis(recipe, best, rejected, diverged, passed, missing, tried, beside, rehearsed)


def _rehearsed(recipe: Recipe, records: Mapping[str, Record]) -> Iterator[tuple[RehearsalCell, Rehearsed]]:
    for cell in cells(recipe):
        record = records.get(config_hash(cell)) if isinstance(cell, RehearsalCell) else None
        if isinstance(cell, RehearsalCell) and record is not None and record.rehearsed is not None:
            yield cell, record.rehearsed


def _beside(known: Iterable[tuple[Point, Record | None]], records: Mapping[str, Record]) -> Iterator[Beside]:
    both: dict[tuple[Place, str, str], Beside] = {}
    for point, record in known:
        if not isinstance(point.cell, EmulatedCell) or record is None or record.trial is None:
            continue
        twin = records.get(config_hash(simulated_twin(point.cell)))
        if twin is None or twin.trial is None:
            continue
        place, draw = describe(point.cell)
        chosen = _options(point.cell)
        empty = Beside(*[Best(place, point.contender, chosen, {}, {}) for _ in range(2)])
        found = both.setdefault((place, point.contender, label(chosen)), empty)
        found.emulated.records[draw], found.simulated.records[draw] = record, twin
    yield from both.values()


def describe(cell: Cell) -> tuple[Place, str]:
    """A cell's place and its draw: what is repeated there, and after " #" the repetition."""
    if isinstance(cell, SimCell):
        one = cell.setting
        drafts = one.trace or ("varied" if one.difficulty else "")
        place = Place(cell.cluster, cell.pair, one.nodes, one.acceptance, drafts, one.accounting, one.width_cost,
                      one.draft_cost, one.bandwidth_gbps, one.latency_us, prompt=one.prompt)  # fmt: skip
        return place, f"text {one.seed}" if one.trace else f"seed {one.seed}"
    assert isinstance(cell, LiveCell | ProgramCell)
    live = cell.live
    place = Place(nodes=live.stages + 1, temperature=cell.temperature)
    if live.predicted and live.bandwidth_gbps is not None:
        place = msgspec.structs.replace(
            place, cluster=live.backend, bandwidth_gbps=live.bandwidth_gbps, latency_us=live.latency_us
        )
    return place, f"{cell.prompt} #{cell.repeat}"


def _options(cell: Cell) -> dict[str, Any]:
    assert not isinstance(cell, RehearsalCell)
    return cell.setting.options if isinstance(cell, SimCell) else cell.options


def _text_of(draw: str) -> str:
    """What decides the token ids of a draw: its repetitions must give the same."""
    return draw.partition(" #")[0]


def label(options: dict[str, Any]) -> str:
    """Options for a table: `k 4`."""
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _references(known: Iterable[tuple[Point, Record | None]]) -> dict[tuple[Place, str], Trial]:
    """The first iterative trial per place and text."""
    found: dict[tuple[Place, str], Trial] = {}
    for point, record in known:
        if point.contender == REFERENCE and record is not None and record.trial is not None:
            place, draw = describe(point.cell)
            found.setdefault((place, _text_of(draw)), record.trial)
    return found


def _objection(cell: Cell, record: Record, reference: Trial | None) -> str | Divergence | None:
    """Why a trial has no figures, in words; or where it parts from its reference at a tie; or None."""
    if record.trial is None:
        return record.error
    if isinstance(cell, ProgramCell):
        return None  # The authors' programs are of another llama.cpp: their text is shown, not judged.
    if reference is None:
        return "there is no iterative run to compare its token ids with"
    found = divergence(record.trial, reference)
    if found is None or found.is_tie:
        return found
    return f"token ids differ from the iterative run's: {found.text}"


def fastest(variants: Sequence[Best]) -> Best:
    """The variant with the highest median speed; the first of equals."""
    tried = {one.label: float(np.median(one.speeds)) for one in variants}
    return msgspec.structs.replace(max(variants, key=lambda one: tried[one.label]), tried=tried)


def quotients(over: Best, under: Best, metric: Metric = metrics.tokens_per_second) -> list[float]:
    """A metric of one over that of the other, for the draws that both have: chance hits both alike."""
    found = []
    for draw, trial in over.trials.items():
        above, below = metric(trial), metric(under.trials[draw]) if draw in under.trials else None
        if above is not None and below:
            found.append(above / below)
    return found


def paired_ratio(over: Best, under: Best, metric: Metric = metrics.tokens_per_second) -> float | None:
    """The median of their quotients."""
    found = quotients(over, under, metric)
    return float(np.median(found)) if found else None
