"""The section of a recipe that holds the simulator against what was measured: its figure and its tables."""

from itertools import groupby
from pathlib import Path

import numpy as np

from pipeinfer.report import plots
from pipeinfer.reproduce.analysis import Analysis
from pipeinfer.reproduce.predictions import Prediction
from pipeinfer.reproduce.report import Block, Paragraph, Table

BAND = 0.15
"""The band that is drawn: errors up to this are what real runs should have in the median."""


def draw_scatter(analysis: Analysis, found: list[Prediction], path: Path) -> None:
    """Predicted over measured speed, a marker per backend and a colour per strategy."""
    recipe = analysis.recipe
    check = recipe.checked
    assert check is not None
    points = [
        plots.Spot(
            _engine(one), recipe.strategies[one.best.strategy].of or one.best.strategy, one.measured, one.predicted
        )
        for one in found
    ]
    names = {name: f"{name}: median error {_percent(_median_error(some))}" for name, some in _by_engine(found).items()}
    machine = analysis.best[0].record.environment
    links = " and ".join(f"{link.bandwidth_gbps:g} Gbit/s with {link.latency_us:g} us" for link in check.links)
    stages = ", ".join(map(str, check.stages))
    plots.scatter(
        points, path, names, band=BAND, xlabel="measured (tokens/s)", ylabel="simulated (tokens/s)",
        caption=f"Fidelity: sim over real and emulated (processes that wait). {stages} target stages and 1 draft over "
        f"{check.transport} on one machine with {machine['cores']} cores ({machine['processor']}), links shaped to "
        f"{links}; {check.tokens} tokens, greedy; median of {check.repeats} trials. The simulator was calibrated and "
        f"rehearsed on 2 stages with links as they are. Line: equal; band: within {BAND:.0%}.",
    )  # fmt: skip


def summary(found: list[Prediction]) -> Table:
    """Errors per backend and strategy."""
    rows = []
    for engine, some in _by_engine(found).items():
        rows.append(_row(some[0], engine, "all", some))
        for strategy, those in groupby(sorted(some, key=_strategy), _strategy):
            rows.append(_row(some[0], engine, strategy, list(those)))
    head = ["backend", "fidelity", "strategy", "cells", "median error", "largest", f"within {BAND:.0%}", "bias"]
    return Table(head, rows, numbers=range(3, 8))


def check_blocks(found: list[Prediction]) -> list[Block]:
    """What follows the summary: every cell."""
    rows = [
        [one.best.place.text, f"{one.best.strategy} {one.best.label}".strip(), f"{one.measured:.1f}",
         f"{one.predicted:.1f}", f"{one.error:+.1%}"]
        for one in found
    ]  # fmt: skip
    about = "Error: of the simulated tokens/s, as a share of the measured median; its median is over absolute values."
    head = ["where", "strategy", "measured, tokens/s", "simulated, tokens/s", "error"]
    return [Paragraph(about), Table(head, rows, numbers=range(2, 5))]


def _row(first: Prediction, engine: str, strategy: str, some: list[Prediction]) -> list[str]:
    errors = np.array([one.error for one in some])
    return [engine, first.best.record.fidelity, strategy, str(len(some)), _percent(_median_error(some)),
            _percent(float(abs(errors).max())), f"{np.mean(abs(errors) <= BAND):.0%}",
            f"{float(np.median(errors)):+.1%}"]  # fmt: skip


def _strategy(one: Prediction) -> str:
    return one.cell.strategy


def _engine(one: Prediction) -> str:
    return one.cell.live.backend


def _by_engine(found: list[Prediction]) -> dict[str, list[Prediction]]:
    return {name: [one for one in found if _engine(one) == name] for name in dict.fromkeys(map(_engine, found))}


def _median_error(some: list[Prediction]) -> float:
    return float(np.median([abs(one.error) for one in some]))


def _percent(share: float) -> str:
    return f"{share:.1%}"
