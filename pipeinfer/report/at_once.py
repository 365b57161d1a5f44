"""Several requests at once in one pipeline: what each gets beside what all get together, as a figure and a table."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeinfer.report import captions
from pipeinfer.report.experiment import Experiment, medians
from pipeinfer.report.page import Columns, Table, in_ms, rounded, table_of
from pipeinfer.report.style import GREY, THIN, legend_above, load_seaborn, looks, new_figure, ticked
from pipeinfer.study.recipes import Figure

COLUMNS: Columns = {
    "where": ("at once", "{}"), "contender": ("strategy", ""), "all_tokens_per_s": ("tokens/s of all", rounded),
    "closed": ("closed form (tokens/s)", rounded), "over_plain": ("over iterative", "{:.2f}x"),
    "tokens_per_s": ("tokens/s each", rounded), "ttft_s": ("first token (ms)", in_ms),
    "itl_mean_s": ("mean gap (ms)", in_ms), "itl_p95_s": ("p95 (ms)", in_ms),
    "acceptance_length": ("acceptance length", rounded), "loads": ("loads", "{:d}"),
}  # fmt: skip

ABOUT = (
    "Tokens/s of all: what was committed while all requests decoded, from the last first token to the first end. The "
    "closed form, 1 / (a R/N + 1 - a) of R requests without speculation, is for runs of one token that travel alone, "
    "with drafts always ready, free links and i.i.d. acceptance, up to as many requests as stages. Where rows are "
    "cheap, runs of several requests travel as one and come to more."
)


def loads(experiment: Experiment) -> pd.DataFrame:
    """A row per contender and load at its best: medians over its requests, with `all_tokens_per_s` of all of them
    while all decoded; missing where not all did."""
    by = ["place", "contender", "requests", "load"]
    spans = experiment.gaps.groupby("config_hash").at_s.agg(["min", "max"])
    rows = []
    for key, some in experiment.best.groupby(by, sort=False):
        own = spans.loc[list(some.config_hash)]
        start, end = own["min"].max(), own["max"].min()
        times = experiment.gaps[experiment.gaps.config_hash.isin(some.config_hash)].at_s
        whole = end > start and len(some) == some.requests.iloc[0]
        rows.append((*key, ((times > start) & (times <= end)).sum() / (end - start) if whole else float("nan")))
    speeds = pd.DataFrame(rows, columns=[*by, "all_tokens_per_s"])
    return medians(experiment.best, by).merge(speeds, on=by)


def by_requests(experiment: Experiment) -> pd.DataFrame:
    """A row per contender and number of requests: medians over the loads, with `closed` of all (tokens/s), and
    `over_plain`, the speed of all over that of plain decoding."""
    found = medians(loads(experiment).drop(columns="trials"), ["place", "contender"])
    found = found.rename(columns={"trials": "loads"})
    shared = set(found[(found.requests > 1) & found.limit_tokens_per_s.notna()].contender)
    found["limit_tokens_per_s"] = found.limit_tokens_per_s.where(found.contender.isin(shared))
    plain = found[found.contender == "iterative"].set_index("place").all_tokens_per_s
    return found.assign(
        closed=found.limit_tokens_per_s * found.requests, over_plain=found.all_tokens_per_s / found.place.map(plain)
    )


def at_once_table(experiment: Experiment) -> Table:
    """What was found of each contender with each number of requests."""
    found = by_requests(experiment)
    where = found.place.map(lambda place: experiment.where(place, ("requests",)))
    return table_of(found.assign(where=(found.requests.map("{:.0f}, ".format) + where).str.removesuffix(", ")), COLUMNS)


def _join_alike(axis: Any, found: pd.DataFrame) -> None:
    """Join what is of as many requests at once, with their number beside the one that is fastest for each: numbers
    beside all points would lie on one another."""
    for requests, some in found.groupby("requests"):
        alike = some.sort_values("tokens_per_s")
        axis.plot(alike.tokens_per_s, alike.all_tokens_per_s, color=GREY, linewidth=0.8, zorder=1)
        fastest = alike.iloc[-1]
        axis.annotate(
            f"{requests:.0f}", (fastest.tokens_per_s, fastest.all_tokens_per_s), xytext=(7, 0),
            textcoords="offset points", va="center", color="#555555", fontsize=8, zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
        )  # fmt: skip


def at_once(experiment: Experiment, figure: Figure, path: Path) -> None:
    """Speed of all over the number of requests and over the speed of each; latencies over the number of requests."""
    sns = load_seaborn()
    recipe, found = experiment.recipe, by_requests(experiment)
    caption = (
        f"{captions.setting(experiment)} All requests of a load begin at the same moment; medians over them. Of all: "
        "while all of them decode, where they do. Grey: as many requests at once."
    )
    caption += " Thin: closed form for runs of one token, drafts always ready." * bool(found.closed.notna().any())
    shared = looks("contender", {name: experiment.style_of(name) for name in experiment.contenders(found)})
    shared |= {"estimator": "median", "errorbar": None}
    with new_figure(path, captions.title(recipe, figure), caption, height=5.2) as drawing:
        ((total, pareto), (first, gap)) = drawing.subplots(2, 2)
        known = found.dropna(subset=["all_tokens_per_s"])
        sns.lineplot(known, x="requests", y="all_tokens_per_s", ax=total, **shared)
        sns.lineplot(known, x="tokens_per_s", y="all_tokens_per_s", ax=pareto, legend=False, sort=False, **shared)
        _join_alike(pareto, known)
        for name, line in found.dropna(subset=["closed"]).groupby("contender"):
            total.plot(line.requests, line.closed, color=shared["palette"][name], **THIN)
            pareto.plot(line.limit_tokens_per_s, line.closed, color=shared["palette"][name], **THIN)
        sns.lineplot(found, x="requests", y="ttft_s", ax=first, legend=False, **shared)
        sns.lineplot(found, x="requests", y="itl_mean_s", ax=gap, legend=False, **shared)
        for axis, label in ((total, "tokens/s of all"), (first, "time to first token (s)"),
                            (gap, "mean inter-token latency (s)")):  # fmt: skip
            ticked(axis, found.requests, 2)
            axis.set(xlabel="requests at once", ylabel=label, ylim=(0, None))
        pareto.set(xlabel="tokens/s of each", ylabel="tokens/s of all", xlim=(0, None), ylim=(0, None))
        legend_above(drawing, total)
