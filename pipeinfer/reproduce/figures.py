"""The figures of a recipe: its analysis as panels, strips or lanes, with a caption that says what was run on what."""

from collections.abc import Callable
from pathlib import Path

from pipeinfer.modelling.platform import platform_of
from pipeinfer.modelling.simulate import Setting
from pipeinfer.report import plots
from pipeinfer.reproduce import captions
from pipeinfer.reproduce.analysis import REFERENCE, Analysis, Best, Place, fastest, quotients
from pipeinfer.reproduce.axes import OPTIONS, PANEL, X, Y, percentile
from pipeinfer.reproduce.drafts import calibration, stretches
from pipeinfer.reproduce.published import published_claims
from pipeinfer.reproduce.recipes import Figure, Recipe
from pipeinfer.results import metrics


def figure_name(recipe: Recipe, figure: Figure) -> str:
    """File name without suffix: that of the recipe, its fidelity where it is emulated, and what is on the y axis unless
    it is speed or what the recipe is called after, or the kind of figure that has no such axis."""
    what = figure.kind if figure.kind in ("calibration", "stretches") else figure.y
    said = what in ("speed", recipe.name)
    return "-".join([recipe.name, *["emulated"] * (recipe.emulation is not None), *[what] * (not said)])


def draw(analysis: Analysis, figure: Figure, folder: Path) -> None:
    """Write a figure of an analysis that has points: SVG and PNG."""
    path = folder / figure_name(analysis.recipe, figure)
    if figure.kind in _WHOLE:
        _WHOLE[figure.kind](analysis, path)
    else:
        {"lines": _lines, "dots": _dots, "percentiles": _percentiles}[figure.kind](analysis, figure, path)


def limit(best: Best) -> float | None:
    """The closed form that applies to a strategy in a simulated place, in tokens/s. Contenders that are not plainly one
    of the three strategies have none, and neither has acceptance that is not i.i.d."""
    if best.place.drafts:
        return None  # They are for i.i.d. acceptance.
    place, trial = best.place, next(iter(best.trials.values()))
    setting = Setting(
        best.strategy, nodes=place.nodes, acceptance=place.acceptance, prompt=trial.prompt_tokens,
        tokens=len(trial.token_ids), width_cost=place.width_cost, draft_cost=place.draft_cost,
    )  # fmt: skip
    bound = platform_of(place.cluster, place.pair).limits(setting)
    if best.strategy == "pipeinfer":
        return bound.pipelined.get(best.options.get("draft", 3))
    return {REFERENCE: bound.iterative, "speculative": bound.synchronous}.get(best.strategy)


def _panels(analysis: Analysis, figure: Figure) -> dict[str, list[Place]]:
    """Places by the title of their panel. Without fields to part them by, real ones are parted by temperature."""
    panels: dict[str, list[Place]] = {}
    for place in analysis.places:
        title = ", ".join(PANEL[field](place) for field in figure.panels)
        panels.setdefault(place.text if place.temperature is not None else title, []).append(place)
    return panels


# Lines


def _lines(analysis: Analysis, figure: Figure, path: Path) -> None:
    panels = {title: _series(analysis, places, figure) for title, places in _panels(analysis, figure).items()}
    theory = any(series.dashed for found in panels.values() for series in found)
    parts = [
        captions.setting(analysis),
        captions.swept(analysis.recipe, figure),
        captions.repeated(analysis),
        "Without markers: " + ("the same cells, simulated." if analysis.beside else _CLOSED) if theory else "",
    ]
    plots.lines(
        [plots.Panel(title, series) for title, series in panels.items()],
        path,
        xlabel=X[figure.x].label,
        ylabel=Y[figure.y].label,
        base=X[figure.x].base,
        logarithmic=Y[figure.y].logarithmic,
        caption=" ".join(filter(None, parts)),
        marks=_marks(analysis.recipe) if figure.y == "gain" else None,
    )


_CLOSED = "closed form for i.i.d. acceptance where width and links are free."


def _marks(recipe: Recipe) -> dict[str, float]:
    """What a gain is held against: none, and what was published where the recipe bears on it."""
    published = [published_claims()[name] for name in recipe.claims]
    return {"no gain": 1.0, **{f"published: {one.published}": one.value for one in published if one.value}}


def _series(analysis: Analysis, places: list[Place], figure: Figure) -> list[plots.Series]:
    """A line per contender along x, and one of theory for its limit or, beside what is emulated, for its simulation."""
    series = []
    for name in analysis.recipe.strategies:
        found = _along(analysis, name, places, figure)
        bands = [_band(analysis, best, figure) for best in found]
        x = [value for best in found if (value := X[figure.x].of(best)) is not None]
        if figure.y == "gain" and name == "speculative":
            continue
        if not x:  # plain decoding knows no such option
            x, bands = _ends(analysis, figure), bands[:1] * 2
        contender = analysis.recipe.strategies[name]
        variant = bool(contender.of and contender.setting)
        series.append(plots.Series(name, contender.of if variant else name, x, bands, broken=variant))
        if analysis.beside and figure.y != "gain":
            simulated = [_simulated(analysis, best).band(Y[figure.y].metric)[1] for best in found]
            series.append(plots.Series(f"{name}, simulated", name, x, [(m, m, m) for m in simulated], dashed=True))
        elif not analysis.beside and figure.y == "speed" and figure.x not in OPTIONS and name != REFERENCE:
            bounds = [(at, (b, b, b)) for at, b in zip(x, map(limit, found), strict=True) if b is not None]
            if bounds:
                at, theory = [at for at, _ in bounds], [bound for _, bound in bounds]
                series.append(plots.Series(f"{name} limit", name, at, theory, dashed=True))
    return series


def _simulated(analysis: Analysis, best: Best) -> Best:
    """The simulation of what was emulated."""

    def same(one: Best) -> bool:
        return (one.place, one.strategy, one.options) == (best.place, best.strategy, best.options)

    return next(one.simulated for one in analysis.beside if same(one.emulated))


def _along(analysis: Analysis, name: str, places: list[Place], figure: Figure) -> list[Best]:
    """A contender's points: in each place its best, or for each value of an option the best with that value."""
    if figure.x not in OPTIONS:
        return [there[name] for there in map(analysis.at, places) if name in there]
    groups: dict[float | None, list[Best]] = {}
    for one in analysis.variants:
        if one.strategy == name and one.place in places:
            groups.setdefault(X[figure.x].of(one), []).append(one)
    return [fastest(groups[value]) for value in sorted(groups, key=lambda value: value or 0.0)]


def _ends(analysis: Analysis, figure: Figure) -> list[float]:
    values = [value for one in analysis.variants if (value := X[figure.x].of(one)) is not None]
    return [min(values), max(values)]


def _band(analysis: Analysis, best: Best, figure: Figure) -> tuple[float, float, float]:
    if figure.y != "gain":
        return best.band(Y[figure.y].metric)
    return metrics.median_band(quotients(best, analysis.at(best.place)["speculative"]))


# Percentiles


def _percentiles(analysis: Analysis, figure: Figure, path: Path) -> None:
    groups = {
        title: [
            plots.Spread(
                _row(analysis, best, figure), _style(analysis, best),
                {name: best.band(percentile(name)) for name in ("p50", "mean", "p95", "p99")},
            )
            for place in places for best in analysis.at(place).values()
        ]
        for title, places in _panels(analysis, figure).items()
    }  # fmt: skip
    what, swept = captions.setting(analysis), captions.swept(analysis.recipe, figure)
    plots.percentiles(
        groups, path, xlabel=Y["gaps"].label,
        caption=f"{what} {swept} Gaps of zero, within tokens committed together, count. Median of "
        f"{captions.draws(analysis)}; lines: 95 % bootstrap interval.",
    )  # fmt: skip


def _row(analysis: Analysis, best: Best, figure: Figure) -> str:
    drafts = {"": "i.i.d.", "varied": "varied"}.get(best.place.drafts, "recorded") if "rate" in figure.panels else ""
    where = analysis.where(best.place, (*figure.panels, "temperature"))  # Real places have a panel for each.
    return ", ".join(filter(None, [drafts, where, best.strategy]))


def _style(analysis: Analysis, best: Best) -> str:
    return analysis.recipe.strategies[best.strategy].of or best.strategy


# Timeline


def _timeline(analysis: Analysis, path: Path) -> None:
    found = [(best, next(iter(best.trials.values())), best.record.spans) for best in analysis.best]
    until = min(trial.emit_s[-1] for _, trial, _ in found)
    lanes = []
    for best, trial, spans in found:
        count = sum(when <= until for when in trial.emit_s)
        chosen = analysis.chosen(best)
        title = f"{best.strategy}: {count} tokens in {until:.1f} s" + f" ({chosen})" * bool(chosen)
        lanes.append(plots.Lane(title, trial, spans))
    caption = (
        f"{captions.setting(analysis)} Acceptance {analysis.places[0].acceptance:g}, one draw. K and micro-batch: the "
        "fastest that was tried."
    )
    plots.timeline(lanes, path, until=until, caption=caption)


# Dots


def _dots(analysis: Analysis, figure: Figure, path: Path) -> None:
    recipe, (label, metric, _) = analysis.recipe, Y[figure.y]
    groups = {
        title: [
            plots.Strip(
                _row(analysis, best, figure),
                _style(analysis, best),
                best.values(metric),
                analysis.chosen(best),
                place.text,
            )
            for place in places
            for best in analysis.at(place).values()
        ]
        for title, places in _panels(analysis, figure).items()
    }
    what = captions.setting(analysis) if recipe.simulated else captions.real(recipe.live, analysis.best)
    repeated = f"one of {captions.draws(analysis)}" if recipe.simulated else "a trial"
    swept = captions.swept(recipe, figure)
    plots.dots(
        groups, path, xlabel=label, caption=f"{what} {swept} Each dot is {repeated}; bar: median, {captions.BAND}.",
    )  # fmt: skip


_WHOLE: dict[str, Callable[[Analysis, Path], None]] = {
    "timeline": _timeline, "calibration": calibration, "stretches": stretches,
}  # fmt: skip
