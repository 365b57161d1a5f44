"""Real generations by the category of their prompts: what each strategy gains, and how its drafts fare."""

from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeinfer.report import captions
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.page import Table, compact, number, rounded
from pipeinfer.report.style import BLACK, GREY, legend_above, load_seaborn, new_figure, style
from pipeinfer.results.analysis import REFERENCE, SPEED, band
from pipeinfer.study.recipes import Figure

LONGEST = 4
"""Accepted drafts of a run that are counted apart; more are counted together."""

COLUMNS = {
    "over_iterative": ("over iterative", "{:.2f}x"), "over_speculative": ("over speculative", "{:.2f}x"),
    "acceptance_length": ("acceptance length", "{:.2f}"),
    "acceptance_rate": ("accepted", "{:.0%}"),
}  # fmt: skip
COUNTS = [*(f"{count} accepted" for count in range(LONGEST)), f"{LONGEST} or more"]


def gains(experiment: Experiment) -> pd.DataFrame:
    """The trials at their best, with a category."""
    return experiment.best[experiment.best.category.notna()]


def by_category(experiment: Experiment) -> Table:
    """A row per category and contender: medians, and of all its runs the share with 0, 1, 2, ... accepted drafts."""
    rows = []
    for (category, contender), some in gains(experiment).groupby(["category", "contender"], sort=False):
        counts = histogram(some)
        said = [rounded(some[SPEED].median())]
        said += [number(some[name].median(), form) for name, (_, form) in COLUMNS.items()]
        shares = [number(count / (counts.sum() or float("nan")), "{:.0%}") for count in counts]
        rows.append([str(category), str(contender), *said, *shares, str(some.text.nunique())])
    head = ["category", "strategy", "tokens/s", *(name for name, _ in COLUMNS.values()), *COUNTS, "prompts"]
    return compact(Table(head, rows, range(2, len(head)), "By category of prompt"))


def histogram(some: pd.DataFrame) -> Any:
    """How many runs had 0, 1, ... accepted drafts, `LONGEST` or more in the last: int64 [LONGEST + 1]."""
    counts = [*map(sum, zip_longest(*some.accepted.dropna(), fillvalue=0)), *[0] * LONGEST]
    return np.array([*counts[:LONGEST], sum(counts[LONGEST:])])


def categories(experiment: Experiment, path: Path) -> None:
    """Gains over plain decoding as bars, and the acceptance length beside them."""
    sns = load_seaborn()
    rows = gains(experiment)
    contenders = [name for name in experiment.recipe.strategies if name in set(rows.contender) - {REFERENCE}]
    looks = {name: style(experiment.style_of(name)) for name in contenders}
    kinds = list(dict.fromkeys(rows.category))
    swept = captions.swept(experiment.recipe, Figure("categories"))
    caption = (
        f"{captions.setting(experiment)} {swept} Bars and points: median over "
        f"the prompts of a category, {captions.BAND}; the ratio is of each prompt's own."
    )
    shared: dict[str, Any] = {"y": "category", "order": kinds, "hue": "contender", "hue_order": contenders,
                              "palette": {name: look[0] for name, look in looks.items()}, "estimator": "median",
                              "errorbar": band, "err_kws": {"linewidth": 1}}  # fmt: skip
    height = 0.9 + 0.17 * len(kinds) * (len(contenders) + 1)
    with new_figure(path, experiment.recipe.title, caption, height) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        shown = rows[rows.contender.isin(contenders)]
        sns.barplot(shown, x="over_iterative", ax=left, **{**shared, "err_kws": {"linewidth": 1, "color": BLACK}})
        left.axvline(1, color=GREY, linewidth=1)
        sns.pointplot(shown, x="acceptance_length", ax=right, legend=False, dodge=0.5, linestyle="none", markersize=5,
                      markers=[look[1] for look in looks.values()], **shared)  # fmt: skip
        left.set(xlabel="speed over plain decoding", ylabel="")
        right.set(xlabel="tokens made known per verified run", ylabel="", xlim=(1, None))
        for axis in (left, right):
            axis.grid(visible=False, axis="y")
        legend_above(figure, left)
