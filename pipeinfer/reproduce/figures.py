"""The figures of a recipe: its analysis as panels, strips or lanes, with a caption that says what was run on what."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeinfer import metrics, plots, workload
from pipeinfer.reproduce.analysis import REFERENCE, Analysis, Best, Metric, Place
from pipeinfer.reproduce.recipes import Figure, Live, Recipe
from pipeinfer.results import Trial
from pipeinfer.simulate import Setting, limits


def mean_gap(trial: Trial) -> float | None:
    """Mean inter-token latency (s)."""
    return metrics.itl_s(trial)["mean"]


def tail_gap(trial: Trial) -> float | None:
    """95th percentile of inter-token latency (s)."""
    return metrics.itl_s(trial)["p95"]


class Axis(NamedTuple):
    """What is drawn along y."""

    label: str
    metric: Metric


Y = {
    "speed": Axis("generation speed (tokens/s)", metrics.tokens_per_second),
    "gap": Axis("mean inter-token latency (s)", mean_gap),
    "tail": Axis("inter-token latency, p95 (s)", tail_gap),
    "first": Axis("time to first token (s)", metrics.ttft_s),
    "utilisation": Axis("utilisation of the ranks", metrics.mean_utilisation),
}

X = {
    "nodes": "nodes",
    "width_cost": "cost of width (0: free, 1: roofline)",
    "acceptance": "acceptance per drafted token",
    "bandwidth_gbps": "link bandwidth (Gbit/s)",
    "latency_us": "link latency (µs)",
}
LOGARITHMIC = {"nodes": 2, "bandwidth_gbps": 10, "latency_us": 10}

_PANEL: dict[str, Callable[[Any], str]] = {
    "cluster": lambda name: workload.cluster(name).link.title,
    "pair": lambda name: workload.pair(name).title,
    "acceptance": lambda rate: f"acceptance {rate:g}",
}

_SWEPT = "K and micro-batch swept, the best shown."
_BAND = "band: 95 % bootstrap interval"


def figure_name(recipe: Recipe, figure: Figure) -> str:
    """File name without suffix: that of the recipe, its fidelity where it is emulated, and what is on the y axis unless
    it is speed."""
    parts = [recipe.name, *["emulated"] * (recipe.emulation is not None), *[figure.y] * (figure.y != "speed")]
    return "-".join(parts)


def draw(analysis: Analysis, figure: Figure, folder: Path) -> None:
    """Write a figure of an analysis that has points: SVG and PNG."""
    path = folder / figure_name(analysis.recipe, figure)
    if figure.kind == "timeline":
        _timeline(analysis, path)
    else:
        {"lines": _lines, "dots": _dots}[figure.kind](analysis, figure, path)


def limit(best: Best) -> float | None:
    """The closed form that applies to a strategy in a simulated place, in tokens/s. Contenders that are not plainly one
    of the three strategies have none."""
    place, trial = best.place, next(iter(best.trials.values()))
    setting = Setting(
        best.strategy, nodes=place.nodes, acceptance=place.acceptance, prompt=trial.prompt_tokens,
        tokens=len(trial.token_ids), width_cost=place.width_cost,
    )  # fmt: skip
    bound = limits(workload.cluster(place.cluster), workload.pair(place.pair), setting)
    if best.strategy == "pipeinfer":
        return bound.pipelined.get(best.options.get("draft", 3))
    return {REFERENCE: bound.iterative, "speculative": bound.synchronous}.get(best.strategy)


def _panels(analysis: Analysis, figure: Figure) -> dict[str, list[Place]]:
    """Places by the title of their panel. Without fields to part them by, real ones are parted by temperature."""
    panels: dict[str, list[Place]] = {}
    for place in analysis.places:
        title = ", ".join(_PANEL[field](getattr(place, field)) for field in figure.panels)
        panels.setdefault(place.text if place.temperature is not None else title, []).append(place)
    return panels


# Lines


def _lines(analysis: Analysis, figure: Figure, path: Path) -> None:
    sweep = analysis.recipe.simulated
    assert sweep is not None
    panels = {title: _series(analysis, places, figure) for title, places in _panels(analysis, figure).items()}
    dashed = " Dashed: the same cells, simulated." if analysis.beside else (
        " Dashed: closed form where width and links are free." if figure.y == "speed" else "")  # fmt: skip
    plots.lines(
        [plots.Panel(title, series) for title, series in panels.items()],
        path,
        xlabel=X[figure.x],
        ylabel=Y[figure.y].label,
        base=LOGARITHMIC.get(figure.x),
        caption=f"{_setting(analysis.recipe)} {_SWEPT} Median of {len(sweep.seeds)} draws of the acceptance trace, "
        f"{_BAND}.{dashed}",
    )


def _series(analysis: Analysis, places: list[Place], figure: Figure) -> list[plots.Series]:
    """A line per contender along one field of the places, and a dashed one for its limit or, beside what is emulated,
    for its simulation."""
    series = []
    for name in analysis.recipe.strategies:
        found = [there[name] for there in map(analysis.at, places) if name in there]
        x = [float(getattr(best.place, figure.x)) for best in found]
        series.append(plots.Series(name, name, x, [best.band(Y[figure.y].metric) for best in found]))
        if analysis.beside:
            bands = [_simulated(analysis, best).band(Y[figure.y].metric) for best in found]
            series.append(plots.Series(f"{name}, simulated", name, x, [(m, m, m) for _, m, _ in bands], dashed=True))
        elif figure.y == "speed" and name != REFERENCE:
            bounds = [(at, bound) for at, bound in zip(x, map(limit, found), strict=True) if bound is not None]
            bands = [(bound, bound, bound) for _, bound in bounds]
            series += [plots.Series(f"{name} limit", name, [at for at, _ in bounds], bands, dashed=True)] * bool(bounds)
    return series


def _simulated(analysis: Analysis, best: Best) -> Best:
    """The simulation of what was emulated."""
    def same(one: Best) -> bool:
        return (one.place, one.strategy, one.options) == (best.place, best.strategy, best.options)

    return next(one.simulated for one in analysis.beside if same(one.emulated))


# Timeline


def _timeline(analysis: Analysis, path: Path) -> None:
    sweep = analysis.recipe.simulated
    assert sweep is not None
    found = [(best, next(iter(best.trials.values())), best.record.spans) for best in analysis.best]
    until = min(trial.emit_s[-1] for _, trial, _ in found)
    lanes = []
    for best, trial, spans in found:
        count = sum(when <= until for when in trial.emit_s)
        title = f"{best.strategy}: {count} tokens in {until:.1f} s" + f" ({analysis.chosen(best)})" * bool(
            analysis.chosen(best)
        )
        lanes.append(plots.Lane(title, trial, spans))
    caption = (
        f"{_setting(analysis.recipe)} Acceptance {analysis.places[0].acceptance:g}, one draw. K and micro-batch: the "
        "fastest that was tried."
    )
    plots.timeline(lanes, path, until=until, caption=caption)


# Dots


def _dots(analysis: Analysis, figure: Figure, path: Path) -> None:
    recipe, (label, metric) = analysis.recipe, Y[figure.y]
    groups = {
        title: [
            plots.Strip(
                f"{place.pair}, {best.strategy}" if len(places) > 1 else best.strategy,
                recipe.strategies[best.strategy].of or best.strategy,
                best.values(metric),
                analysis.chosen(best),
            )
            for place in places
            for best in analysis.at(place).values()
        ]
        for title, places in _panels(analysis, figure).items()
    }
    what = _setting(recipe) if recipe.simulated else _real(recipe.live, analysis.best)
    repeated = "a draw of the acceptance trace" if recipe.simulated else "a trial"
    plots.dots(
        groups, path, xlabel=label, caption=f"{what} {_SWEPT} Each dot is {repeated}; bar: median, {_BAND}.",
    )  # fmt: skip


# Captions


def _setting(recipe: Recipe) -> str:
    """The first half of a caption: fidelity, models, hardware, workload."""
    sweep = recipe.simulated
    assert sweep is not None
    clusters = [workload.cluster(name) for name in sweep.clusters]
    nodes = " and ".join(dict.fromkeys(node.title for cluster in clusters for node in cluster.nodes))
    links = ", ".join(dict.fromkeys(cluster.link.title for cluster in clusters))
    links += ", its bandwidth as stated" * bool(sweep.bandwidth_gbps) + ", its latency as stated" * bool(
        sweep.latency_us
    )
    count = f"{sweep.nodes[0]} of them" if len(sweep.nodes) == 1 else "as many for every strategy"
    pairs = "; ".join(workload.pair(name).title for name in sweep.pairs)
    return (
        f"Fidelity: {recipe.fidelity}. {pairs}; nodes: {nodes}, {count}, the draft's included; {links}; "
        f"{sweep.prompt} + {sweep.tokens} tokens; i.i.d. acceptance per drafted token, assumed."
    )


def _real(live: Live | None, found: Sequence[Best]) -> str:
    assert live is not None
    models = "Built-in pair" if live.target == "builtin:target" else f"{_short(live.target)} + {_short(live.draft)}"
    return (
        f"Fidelity: real. {models}, backend {live.backend}, {live.stages} target stages and 1 draft over "
        f"{live.transport}, {_where(found)}. "
        f"{len(live.prompts)} prompts, {live.repeats} repetitions with the strategies in turn, {live.tokens} tokens. "
        "All token ids equal the iterative run's."
    )


def _short(model: str) -> str:
    """The last part of a model's path."""
    return model.rstrip("/").rpartition("/")[2]


def _where(found: Sequence[Best]) -> str:
    """The hosts on which the ranks were."""
    machine = found[0].record.environment
    hosts = list(dict.fromkeys(rank.host for one in found for trial in one.trials.values() for rank in trial.ranks))
    if len(hosts) > 1:
        return f"on {len(hosts)} hosts ({', '.join(hosts)})"
    return f"all on one machine with {machine['cores']} cores ({machine['processor']})"
