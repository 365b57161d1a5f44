"""The report's first screen: what was asked, the answer, where PipeInfer loses, and one figure of the gains."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from pipeinfer.modelling.platform import platform_of
from pipeinfer.report.claims import Claim
from pipeinfer.report.claims.finding import as_modelled, ratios
from pipeinfer.report.claims.speed import LOSES
from pipeinfer.report.drawn import Drawings, fingerprint
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.league import behind
from pipeinfer.report.published import published_claims
from pipeinfer.report.style import BLUE, GREEN, GREY, ORANGE, legend, load_seaborn, new_figure
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
        return f"this machine: {row.recipe}"
    cluster = platform_of(row.cluster, row.pair).name
    return f"{cluster}, emulated" if row.fidelity == "emulated" else cluster


def _answer(speed: Claim, lossless: Claim) -> str:
    """Two sentences."""
    if speed.reproduced == "-":
        return f"Nothing was run here that compares speeds: {speed.verdict}."
    tokens = "That the tokens are the same was not tested." if lossless.verdict == "not testable here" else (
        f"Of the texts really generated, {lossless.reproduced} with plain decoding's."
    )  # fmt: skip
    return f"{speed.verdict.capitalize()}: {speed.reproduced}. {tokens}"


def _losses(speed: Claim) -> list[str]:
    lines = [line for line in speed.evidence if line.what.endswith(LOSES)]
    return [f"{line.what[0].upper()}{line.what[1:].removesuffix(LOSES).strip()}: {line.found}." for line in lines]


def _draw(gains: pd.DataFrame, path: Path) -> None:
    """By cluster, every place as a dot; and by what a further row costs."""
    sns = load_seaborn()

    clusters, costs = as_modelled(gains), gains[gains.groupby("recipe").width_cost.transform("nunique") > 1]
    order = list(dict.fromkeys(clusters.sort_values(["fidelity", "value"], ascending=[False, True])["where"]))
    published = published_claims()["C1"].value
    count = 1 + (not costs.empty)
    height = 0.75 + 0.26 * len(order) + 2.6 * (count - 1)
    with new_figure(path, "", height, width=4.6) as figure:
        axes = figure.subplots(count, 1, squeeze=False, height_ratios=[0.75 + 0.26 * len(order), 2.6][:count])[:, 0]
        kinds = [kind for kind in KINDS if kind in set(clusters.kind)]
        sns.stripplot(clusters, x="value", y="where", order=order, hue="kind", hue_order=kinds, palette=KINDS, size=4,
                      alpha=0.7, jitter=0.2, ax=axes[0])  # fmt: skip
        axes[0].set(xlabel="speed over best speculative, by cluster", ylabel="")
        axes[0].set_xlim(0, 1.05 * max(published, clusters.value.max()))
        axes[0].grid(visible=False, axis="y")
        handles, _ = axes[0].get_legend_handles_labels()
        axes[0].get_legend().remove()
        axes[0].axvline(1, color=GREY, linewidth=1)
        broken: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": (0, (6, 3))}
        line = axes[0].axvline(published, label=f"published: up to {published:g}x", **broken)
        if count > 1:
            sns.lineplot(costs.assign(nodes=costs.nodes.map("{} nodes".format)), x="width_cost", y="value", hue="nodes",
                         style="acceptance", markers=True, palette="colorblind", ax=axes[1])  # fmt: skip
            axes[1].set(xlabel="cost of a further row (0: free, 1: roofline)", ylabel="speed over speculative")
            axes[1].set_ylim(0, 1.05 * max(published, costs.value.max()))
            axes[1].axhline(1, color=GREY, linewidth=1)
            axes[1].axhline(published, **broken)
            axes[1].legend(fontsize=7, loc="lower right", ncols=2)
        legend(figure, [*handles, line])
