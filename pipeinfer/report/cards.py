"""The figure on a claim's card: small, of what shows the claim best."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeAlias

import msgspec
import pandas as pd

from pipeinfer.report import captions
from pipeinfer.report.axes import X, Y
from pipeinfer.report.claims import Claim
from pipeinfer.report.claims.finding import as_modelled, ratios
from pipeinfer.report.claims.speed import GOOD, POOR
from pipeinfer.report.drawn import Drawings, fingerprint
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.figures import WORDS, draw_card
from pipeinfer.report.style import (
    BLUE,
    CARD_IN,
    GREY,
    ORANGE,
    VERMILLION,
    legend_above,
    load_seaborn,
    new_figure,
    ticked,
)
from pipeinfer.results.analysis import BASELINE

Card: TypeAlias = Callable[[Drawings, str, list[Experiment], Path], str]
"""Has the experiments that bear on a claim (by its id) drawn into a folder; the figure's file name without suffix: the
claim, and what is drawn; or "" where they have nothing to show."""


def with_card(drawings: Drawings, claim: Claim, experiments: Mapping[str, Experiment], folder: Path) -> Claim:
    """The claim with the figure of its card, which is drawn."""
    if claim.verdict == "not testable here":
        return claim
    bearing = [one for one in experiments.values() if claim.id in one.recipe.claims and not one.best.empty]
    return msgspec.structs.replace(claim, figure=CARDS[claim.id](drawings, claim.id, bearing, folder))


def _figure_of(
    recipe: str, quantity: str, beside: str, drawings: Drawings, claim: str, bearing: list[Experiment], folder: Path
) -> str:
    """The recipe's figure of that quantity, or where it was not run another's; with `beside`, of PipeInfer beside that
    contender and the baseline."""
    for experiment in sorted(bearing, key=lambda one: one.recipe.name != recipe):
        for shown in sorted(experiment.recipe.figures, key=lambda one: one.y != quantity):
            if shown.kind in ("lines", "dots"):
                some = experiment.among([BASELINE, "pipeinfer", beside]) if beside else experiment
                name = f"claim-{claim}-{WORDS.get(shown.y, shown.y)}"
                draw_card(drawings, some, shown, folder / name, claim)
                return name
    return ""


def _alignments(drawings: Drawings, claim: str, bearing: list[Experiment], folder: Path) -> str:
    """The gains of poorly and of well aligned models in one panel."""
    first = sorted(bearing, key=lambda one: one.recipe.name != "speed")[:1]
    gains = as_modelled(ratios(first, BASELINE))
    names = {GOOD: f"well aligned (acceptance {GOOD:g})", POOR: f"poorly aligned ({POOR:g})"}
    gains = gains.assign(models=gains.acceptance.map(names))[gains.acceptance.isin(names) & (gains.drafts == "")]
    name, mark = f"claim-{claim}-{WORDS['gain']}-by-alignment", fingerprint("alignments", gains)
    drawings.draw(folder / name, mark, _draw_alignments, first[0], claim, gains, [*names.values()])
    return name


def _draw_alignments(
    experiment: Experiment, claim: str, gains: pd.DataFrame, order: list[str], path: Path
) -> None:
    sns = load_seaborn()
    title, caption = f"{claim}: {Y['gain'].label}", captions.of_card(experiment, banded=False)
    with new_figure(path, title, caption, 2.5, CARD_IN, png=False) as figure:
        axis = figure.subplots()
        sns.lineplot(
            gains, x="nodes", y="value", style="models", style_order=order, markers=["o", "s"], dashes=["", (4, 2)],
            color=BLUE, estimator="median", errorbar=None, ax=axis,
        )  # fmt: skip
        axis.axhline(1, color=GREY, linewidth=1, label="no gain")
        ticked(axis, gains.nodes, X["nodes"].base)
        axis.set(xlabel=X["nodes"].label, ylabel="", ylim=(0, 1.06 * gains.value.max()))
        legend_above(figure, axis)


def _texts(drawings: Drawings, claim: str, bearing: list[Experiment], folder: Path) -> str:
    """How many really generated texts are those of plain decoding."""
    live = [one.trials[["recipe", "status"]] for one in bearing if one.recipe.live is not None]
    rows = pd.concat(live).replace({"status": VERDICTS})
    name = f"claim-{claim}-texts-by-experiment"
    drawings.draw(folder / name, fingerprint("texts", rows), _draw_texts, claim, rows)
    return name


def _draw_texts(claim: str, rows: pd.DataFrame, path: Path) -> None:
    sns = load_seaborn()
    title, caption = f"{claim}: texts really generated, by experiment", "Each held against plain decoding's."
    with new_figure(path, title, caption, 0.9 + 0.4 * rows.recipe.nunique(), CARD_IN, png=False) as figure:
        axis = figure.subplots()
        sns.countplot(rows, y="recipe", hue="status", palette=STATUS, ax=axis)
        for bars in axis.containers:
            axis.bar_label(bars, padding=3, fontsize=8)
        axis.margins(x=0.12)
        axis.set(xlabel="texts", ylabel="")
        axis.grid(visible=False, axis="y")
        legend_above(figure, axis)


VERDICTS = {"passed": "same tokens", "tie": "parted at a tie", "differs": "other tokens"}
STATUS = {"same tokens": BLUE, "parted at a tie": ORANGE, "other tokens": VERMILLION, "failed": GREY,
          "no reference": GREY, "not judged": GREY}  # fmt: skip

CARDS: dict[str, Card] = {
    "C1": partial(_figure_of, "speed", "gain", ""),
    "C2": partial(_figure_of, "speed", "gap", ""),
    "C3": partial(_figure_of, "speed", "utilisation", ""),
    "C4": partial(_figure_of, "acceptance", "speed", ""),
    "C5": partial(_figure_of, "bandwidth", "gain", ""),
    "C6": partial(_figure_of, "ablation", "speed", "not continuous"),
    "C7": partial(_figure_of, "ablation", "speed", "no cancellation"),
    "C8": _alignments,
    "C9": partial(_figure_of, "microbatch", "speed", ""),
    "C10": _texts,
}
