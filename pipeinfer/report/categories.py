"""Real generations by the category of their prompts: what each strategy gains, and how its drafts fare."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeinfer.report import captions
from pipeinfer.report.experiment import Experiment, medians
from pipeinfer.report.page import Columns, Table, rounded, table_of
from pipeinfer.report.style import BLACK, GREY, legend_above, load_seaborn, looks, new_figure
from pipeinfer.results.analysis import REFERENCE, band
from pipeinfer.study.recipes import Figure

LONGEST = 4
"""Accepted drafts of a run that are counted apart; more are counted together."""

COUNTS = [*(f"{count} accepted" for count in range(LONGEST)), f"{LONGEST} or more"]
COLUMNS: Columns = {
    "category": ("category", ""), "contender": ("strategy", ""), "tokens_per_s": ("tokens/s", rounded),
    "over_iterative": ("over iterative", "{:.2f}x"), "over_speculative": ("over speculative", "{:.2f}x"),
    "acceptance_length": ("acceptance length", "{:.2f}"), "acceptance_rate": ("accepted", "{:.0%}"),
    **{name: (name, "{:.0%}") for name in COUNTS}, "prompts": ("prompts", "{:d}"),
}  # fmt: skip


def gains(experiment: Experiment) -> pd.DataFrame:
    """The trials at their best, with a category."""
    return experiment.best[experiment.best.category.notna()]


def by_category(experiment: Experiment) -> Table:
    """A row per category and contender: medians, and of all its runs the share with 0, 1, 2, ... accepted drafts."""
    rows, by = gains(experiment), ["category", "contender"]
    runs = rows.explode("accepted").astype({"accepted": "float64"})
    accepted = runs.groupby(level=0).cumcount().clip(upper=LONGEST).map(COUNTS.__getitem__)
    counts = runs.groupby([*by, accepted]).accepted.sum().unstack(fill_value=0.0)
    counts = counts.reindex(columns=COUNTS, fill_value=0.0)
    shares = counts.div(counts.sum(axis=1), axis=0)
    found = medians(rows, by).join(shares, on=by)
    prompts = rows.groupby(by, sort=False).text.nunique().to_numpy()
    return table_of(found.assign(prompts=prompts), COLUMNS, "By category of prompt")


def categories(experiment: Experiment, figure: Figure, path: Path) -> None:
    """Gains over plain decoding as bars, and the acceptance length beside them."""
    sns = load_seaborn()
    rows = gains(experiment)
    contenders = [name for name in experiment.contenders(rows) if name != REFERENCE]
    look = looks("contender", {name: experiment.style_of(name) for name in contenders})
    kinds = list(dict.fromkeys(rows.category))
    caption = (
        f"{captions.setting(experiment)} {captions.swept(experiment.recipe, figure)} Bars and points: median over "
        f"the prompts of a category, {captions.BAND}; the ratio is of each prompt's own."
    )
    shared: dict[str, Any] = {"y": "category", "order": kinds, "hue": "contender", "hue_order": contenders,
                              "palette": look["palette"], "estimator": "median", "errorbar": band,
                              "err_kws": {"linewidth": 1}}  # fmt: skip
    height = 0.9 + 0.17 * len(kinds) * (len(contenders) + 1)
    with new_figure(path, captions.title(experiment.recipe, figure), caption, height) as drawing:
        left, right = drawing.subplots(1, 2, sharey=True)
        shown = rows[rows.contender.isin(contenders)]
        sns.barplot(shown, x="over_iterative", ax=left, **{**shared, "err_kws": {"linewidth": 1, "color": BLACK}})
        left.axvline(1, color=GREY, linewidth=1)
        sns.pointplot(shown, x="acceptance_length", ax=right, legend=False, dodge=0.5, linestyle="none", markersize=5,
                      markers=[*look["markers"].values()], **shared)  # fmt: skip
        left.set(xlabel="speed over plain decoding", ylabel="")
        right.set(xlabel="tokens made known per verified run", ylabel="", xlim=(1, None))
        for axis in (left, right):
            axis.grid(visible=False, axis="y")
        legend_above(drawing, left)
