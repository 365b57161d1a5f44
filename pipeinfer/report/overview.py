"""The report's first screen: what was asked, the answer, where PipeInfer loses, and one figure of the gains."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from pipeinfer.modelling.platform import platform_of
from pipeinfer.report.axes import X, Y
from pipeinfer.report.claims import Claim
from pipeinfer.report.claims.finding import as_modelled, ratios
from pipeinfer.report.claims.speed import LOSES
from pipeinfer.report.drawn import Drawings, fingerprint
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.league import behind
from pipeinfer.report.page import ends
from pipeinfer.report.published import published_claims
from pipeinfer.report.style import BLUE, BROKEN, GREEN, GREY, ORANGE, legend, load_seaborn, new_figure, taken_legend
from pipeinfer.results.analysis import BASELINE

NAME = "gain-by-cluster-and-row-cost"
"""The figure's file name, without suffix."""

ASKED = (
    "Does PipeInfer (SC'24) answer one request faster on a pipeline of nodes than speculative decoding at its best, "
    "with the same tokens? The paper says: up to {published}."
)
KINDS = {"simulated": BLUE, "emulated": ORANGE, "real": GREEN, "real, shared cores": GREY}


class FirstScreen(msgspec.Struct, frozen=True):
    """`losses` are sentences; `figure` is drawn, or "" where nothing of it was run."""

    asked: str
    answer: str
    losses: list[str]
    figure: str


def first_screen(
    drawings: Drawings, claims: Sequence[Claim], experiments: Mapping[str, Experiment], folder: Path
) -> FirstScreen:
    """Has the figure drawn into `folder`."""
    gains = _gains(experiments.values())
    if not gains.empty:
        drawings.draw(folder / NAME, fingerprint(NAME, gains), _draw, gains)
    asked = ASKED.format(published=f"{published_claims()['C1'].value:g}x")
    leagues = [one for one in experiments.values() if one.recipe.draws("league") and not one.best.empty]
    known = {claim.id: claim for claim in claims}
    losses = [*_losses(known["C1"]), *filter(None, map(behind, leagues))]
    return FirstScreen(asked, _answer(known["C1"], known["C10"]), losses, "" if gains.empty else NAME)


def _gains(experiments: Iterable[Experiment]) -> pd.DataFrame:
    """Rows of the places that bear on C1 with `value`, the gain over the best baseline, and `kind`."""
    gains = ratios((one for one in experiments if "C1" in one.recipe.claims), BASELINE)
    if gains.empty:
        return gains
    gains["kind"] = gains.fidelity.map({"sim": "simulated", "emulated": "emulated", "real": "real"})
    gains.loc[(gains.kind == "real") & ~gains.own_compute, "kind"] = "real, shared cores"
    gains["where"] = [_where(row) for row in gains.itertuples()]
    return gains.sort_values("nodes", kind="stable")


def _where(row: Any) -> str:
    if row.fidelity == "real":
        return f"this machine ({row.recipe})"
    cluster = platform_of(row.cluster, row.pair).name
    return f"{cluster}, emulated" if row.fidelity == "emulated" else cluster


def _answer(speed: Claim, lossless: Claim) -> str:
    """Two sentences."""
    if speed.reproduced == "-":
        return f"Nothing was run here that compares speeds: {speed.verdict}."
    tokens = "Whether the tokens are the same was not tested." if lossless.verdict == "not testable here" else (
        f"Texts really generated, held against plain decoding: {lossless.reproduced}."
    )  # fmt: skip
    gain = f"PipeInfer's speed over that of the best speculative decoding is {speed.reproduced}"
    return f"{speed.verdict.capitalize()}: {gain}. {tokens}"


def _losses(speed: Claim) -> list[str]:
    lines = [line for line in speed.evidence if line.what.endswith(LOSES)]
    return [f"{line.what[0].upper()}{line.what[1:].removesuffix(LOSES).strip()}: {line.found}." for line in lines]


TITLE = "PipeInfer over the best speculative decoding, by cluster and by what a further row costs"


def _draw(gains: pd.DataFrame, path: Path) -> None:
    """By cluster, every place as a dot; and by what a further row costs."""
    clusters, costs = as_modelled(gains), gains[gains.groupby("recipe").width_cost.transform("nunique") > 1]
    rows = [1.0 + 0.26 * clusters["where"].nunique(), *[2.7] * (not costs.empty)]
    published = published_claims()["C1"].value
    broken: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": BROKEN}
    with new_figure(path, TITLE, _caption(clusters), 0.25 + sum(rows), width=4.6, png=False) as figure:
        above, *below = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
        handles = _by_cluster(above, clusters)
        above.set_xlim(0, 1.05 * max(published, clusters.value.max()))
        handles.append(above.axvline(published, label=f"published: up to {published:g}x", **broken))
        for axis in below:
            _by_row_cost(axis, costs)
            axis.set_ylim(0, 1.05 * max(published, costs.value.max()))
            axis.axhline(published, **broken)
        legend(figure, handles)


def _caption(clusters: pd.DataFrame) -> str:
    real = clusters[clusters.kind.str.startswith("real")]
    costs = [f"{recipe} {ends(some.row_cost, '{:.2f}')}" for recipe, some in real.groupby("recipe", sort=False)]
    return (
        "A dot is a place (models, nodes, acceptance): the median of its draws. Simulated clusters are assumed."
        + f" A further row of a real run cost, as a share of a run of one: {', '.join(costs)}." * bool(costs)
    )


def _by_cluster(axis: Any, clusters: pd.DataFrame) -> list[Any]:
    """What its dots stand for."""
    order = clusters.sort_values(["fidelity", "value"], ascending=[False, True])["where"].unique()
    kinds = [kind for kind in KINDS if kind in set(clusters.kind)]
    load_seaborn().stripplot(clusters, x="value", y="where", order=order, hue="kind", hue_order=kinds, palette=KINDS,
                             size=4, alpha=0.7, jitter=0.2, ax=axis)  # fmt: skip
    axis.set(xlabel="speed over best speculative (times)", ylabel="")
    axis.grid(visible=False, axis="y")
    axis.axvline(1, color=GREY, linewidth=1)
    return taken_legend(axis)


def _by_row_cost(axis: Any, costs: pd.DataFrame) -> None:
    named = costs.assign(nodes=costs.nodes.map("{} nodes".format))
    load_seaborn().lineplot(named, x="width_cost", y="value", hue="nodes", style="acceptance", markers=True,
                            palette="colorblind", ax=axis)  # fmt: skip
    axis.set(xlabel=f"{X['width_cost'].label}, simulated", ylabel=f"{Y['gain'].label}\n(times)")
    axis.axhline(1, color=GREY, linewidth=1)
    axis.legend(fontsize=7.5, loc="lower right", ncols=2)
