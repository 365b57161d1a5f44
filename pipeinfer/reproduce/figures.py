"""The figure of a recipe: its analysis as panels, strips or lanes, with a caption that says what was run on what."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeinfer import plots, workload
from pipeinfer.reproduce.analysis import REFERENCE, Analysis, Best, Place
from pipeinfer.reproduce.recipes import Figure, Simulated
from pipeinfer.simulate import Setting, limits

SPEED = "generation speed (tokens/s)"

AXES = {
    "nodes": "nodes",
    "width_cost": "cost of width (0: free, 1: roofline)",
    "acceptance": "acceptance per drafted token",
}
LOG2 = {"nodes"}

_PANEL: dict[str, Callable[[Any], str]] = {
    "cluster": lambda name: workload.cluster(name).link.title,
    "pair": lambda name: workload.pair(name).title,
    "acceptance": lambda rate: f"acceptance {rate:g}",
}

_SWEPT = "K and micro-batch swept, the best shown."
_BAND = "band: 95 % bootstrap interval"


def draw(analysis: Analysis, figure: Figure, path: Path) -> None:
    """Write the figure of an analysis that has points: path.svg and path.png."""
    if figure.kind == "lines":
        _lines(analysis, figure, path)
    else:
        {"dots": _dots, "timeline": _timeline}[figure.kind](analysis, path)


def limit(best: Best) -> float | None:
    """The closed form that applies to a strategy in a simulated place, in tokens/s."""
    place, trial = best.place, next(iter(best.trials.values()))
    setting = Setting(
        best.strategy, nodes=place.nodes, acceptance=place.acceptance, prompt=trial.prompt_tokens,
        tokens=len(trial.token_ids), width_cost=place.width_cost,
    )  # fmt: skip
    bound = limits(workload.cluster(place.cluster), workload.pair(place.pair), setting)
    if best.strategy == "pipeinfer":
        return bound.pipelined.get(best.options.get("draft", 3))
    return {REFERENCE: bound.iterative, "speculative": bound.synchronous}.get(best.strategy)


# Lines


def _lines(analysis: Analysis, figure: Figure, path: Path) -> None:
    sweep = analysis.recipe.simulated
    assert sweep is not None
    panels: dict[str, list[Place]] = {}
    for place in analysis.places:
        title = ", ".join(_PANEL[field](getattr(place, field)) for field in figure.panels)
        panels.setdefault(title, []).append(place)
    plots.lines(
        [plots.Panel(title, _series(analysis, places, figure.x)) for title, places in panels.items()],
        path,
        xlabel=AXES[figure.x],
        ylabel=SPEED,
        log2=figure.x in LOG2,
        caption=f"{_setting(sweep)} {_SWEPT} Median of {len(sweep.seeds)} draws of the acceptance trace, "
        f"{_BAND}. Dashed: closed form where width and links are free.",
    )


def _series(analysis: Analysis, places: list[Place], x: str) -> list[plots.Series]:
    """A line per strategy along one field of the places, and a dashed one for its limit."""
    series = []
    for strategy in analysis.recipe.strategies:
        found = [there[strategy] for there in map(analysis.at, places) if strategy in there]
        at = [float(getattr(best.place, x)) for best in found]
        series.append(plots.Series(strategy, strategy, at, [best.band for best in found]))
        bounds = [limit(best) for best in found]
        known = [(where, bound) for where, bound in zip(at, bounds, strict=True) if bound is not None]
        if known and strategy != REFERENCE:
            bands = [(bound, bound, bound) for _, bound in known]
            series.append(
                plots.Series(f"{strategy} limit", strategy, [where for where, _ in known], bands, dashed=True)
            )
    return series


def _setting(sweep: Simulated) -> str:
    """The first half of a caption: fidelity, models, hardware, workload."""
    clusters = [workload.cluster(name) for name in sweep.clusters]
    nodes = ", ".join(dict.fromkeys(node.title for cluster in clusters for node in cluster.nodes))
    links = ", ".join(dict.fromkeys(cluster.link.title for cluster in clusters))
    count = f"{sweep.nodes[0]} of them" if len(sweep.nodes) == 1 else "as many for every strategy"
    pairs = "; ".join(workload.pair(name).title for name in sweep.pairs)
    return (
        f"Fidelity: sim. {pairs}; nodes: {nodes}, {count}, the draft's included; {links}; "
        f"{sweep.prompt} + {sweep.tokens} tokens; i.i.d. acceptance per drafted token, assumed."
    )


# Timeline


def _timeline(analysis: Analysis, path: Path) -> None:
    sweep = analysis.recipe.simulated
    assert sweep is not None
    found = [(best, next(iter(best.trials.values())), best.record.spans) for best in analysis.best]
    until = min(trial.emit_s[-1] for _, trial, _ in found)
    lanes = []
    for best, trial, spans in found:
        count = sum(when <= until for when in trial.emit_s)
        title = f"{best.strategy}: {count} tokens in {until:.1f} s" + f" ({best.label})" * bool(best.label)
        lanes.append(plots.Lane(title, trial, spans))
    caption = (
        f"{_setting(sweep)} Acceptance {analysis.places[0].acceptance:g}, one draw. K and micro-batch: the "
        "fastest that was tried."
    )
    plots.timeline(lanes, path, until=until, caption=caption)


# Dots


def _dots(analysis: Analysis, path: Path) -> None:
    live = analysis.recipe.live
    assert live is not None
    groups = {
        place.text: [
            plots.Strip(f"{best.strategy}\n{best.label}".strip(), best.strategy, best.speeds)
            for best in analysis.at(place).values()
        ]
        for place in analysis.places
    }
    machine = analysis.best[0].record.environment
    caption = (
        f"Fidelity: real. Built-in pair, backend {live.backend}, {live.stages} target stages and 1 draft over "
        f"{live.transport}, all on one machine with {machine['cores']} cores ({machine['processor']}). "
        f"{len(live.prompts)} prompts, {live.repeats} repetitions with the strategies in turn, {live.tokens} tokens. "
        f"{_SWEPT} Each dot is a trial; bar: median, {_BAND}. All token ids equal the iterative run's."
    )
    plots.dots(groups, path, ylabel=SPEED, caption=caption)
