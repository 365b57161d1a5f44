"""What the simulator makes of generations that are really run: rehearsals, and predictions from them."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from pipeinfer import workload
from pipeinfer.errors import LaunchError, RankLost, one_line
from pipeinfer.modelling.profiled_cluster import simulate_one
from pipeinfer.modelling.simulate import Setting
from pipeinfer.reproduce.analysis import Analysis, Best
from pipeinfer.reproduce.cells import live_plan, sampling_of
from pipeinfer.reproduce.recipes import LiveCell, RehearsalCell, rehearsal_of
from pipeinfer.reproduce.records import Record, Rehearsed, record_of, text_of
from pipeinfer.results import metrics
from pipeinfer.runtime.oracle import Trace
from pipeinfer.runtime.transports import TransportError

PART_S = 0.2
"""How long each part of a model is timed. What comes of it is fitted to a rehearsal anyway."""

BEYOND = 64
"""Tokens of a trace beyond the text: what is drafted before the generation is known to have ended."""


def run_rehearsal(cell: RehearsalCell, key: str | None = None) -> Iterator[Record]:
    """Its record; one with an error, where ranks or an engine cannot be had."""
    start = time.perf_counter()
    rehearsed, problem = None, ""
    try:
        rehearsed = _rehearse(cell, key)
    except (LaunchError, RankLost, TransportError, ValueError, OSError) as failed:
        problem = one_line(failed)
    yield record_of(cell, None, [], problem, time.perf_counter() - start, rehearsed)


def _rehearse(cell: RehearsalCell, key: str | None) -> Rehearsed:
    from pipeinfer.modelling.calibrate import calibrate
    from pipeinfer.modelling.calibration_fit import rehearsed, traces
    from pipeinfer.plugins import open_backend

    live = cell.live
    plan = live_plan(live, key)
    tokenizer = open_backend(plan.backend, plan.backend_options).tokenizer(plan.target)
    prompts = {name: tokenizer.encode(workload.prompt(name)) for name in live.prompts}
    greedy = sampling_of(live, 0.0)
    profile = calibrate(plan, greedy, lambda _what: None, PART_S)
    profile = rehearsed(profile, plan, next(iter(prompts.values())), greedy)
    found: dict[str, Trace] = {}
    for temperature in live.temperatures:
        recorded = traces(plan, prompts.values(), live.tokens + BEYOND, sampling_of(live, temperature))
        found |= {text_of(name, temperature): trace for name, trace in zip(prompts, recorded, strict=True)}
    return Rehearsed(profile, found)


class Prediction(NamedTuple):
    """Tokens per second: the median that was measured, and what the simulator says."""

    best: Best
    cell: LiveCell
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return self.predicted / self.measured - 1


def predictions(analysis: Analysis) -> list[Prediction]:
    """Of all that was measured and rehearsed."""
    known = {msgspec.json.encode(cell): rehearsed for cell, rehearsed in analysis.rehearsed}
    found = [_prediction(known, best) for best in analysis.best if known]
    return [one for one in found if one is not None]


def _prediction(known: dict[bytes, Rehearsed], best: Best) -> Prediction | None:
    """Of a contender: the median over the texts that it wrote. `known`: what was rehearsed, by its cell."""
    cells = [msgspec.convert(record.config, LiveCell) for record in best.records.values()]
    rehearsed = known.get(msgspec.json.encode(rehearsal_of(cells[0].live)))
    measured = best.median(metrics.tokens_per_second)
    if rehearsed is None or not measured:
        return None
    lengths = {cell.prompt: trial.prompt_tokens for cell, trial in zip(cells, best.trials.values(), strict=True)}
    first = {cell.prompt: cell for cell in cells}
    predicted = [_speed(rehearsed, cell, lengths[prompt]) for prompt, cell in first.items()]
    return Prediction(best, cells[0], measured, float(np.median(predicted)))


def _speed(rehearsed: Rehearsed, cell: LiveCell, prompt: int) -> float:
    from pipeinfer.modelling.calibration_fit import nodes

    live = cell.live
    setting = Setting(
        cell.strategy, cell.options, nodes=nodes(cell.strategy, live.stages), tokens=live.tokens, prompt=prompt,
        bandwidth_gbps=live.bandwidth_gbps, latency_us=live.latency_us or None,
    )  # fmt: skip
    trace = rehearsed.traces[text_of(cell.prompt, cell.temperature)]
    return metrics.tokens_per_second(simulate_one(rehearsed.profile, setting, oracle=trace)) or 0.0
