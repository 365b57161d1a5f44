"""Verdicts on the paper's claims, each from the analyses of the recipes that bear on it: one judge per claim.

A verdict is *reproduced*, *partly*, *not reproduced*, or *not testable here* where nothing that would show it was run.
Where simulation and live runs both speak, the verdict is that of the simulation, which has a cluster, and the evidence
has both; only C10, lossless, is judged by real runs alone.
"""

from collections.abc import Mapping

from pipeinfer import workload
from pipeinfer.assets import asset
from pipeinfer.reproduce.analysis import Analysis
from pipeinfer.reproduce.claims.finding import Bearing, Claim, Finding, Judge, Published
from pipeinfer.reproduce.claims.latency import latency, utilisation
from pipeinfer.reproduce.claims.lossless import lossless
from pipeinfer.reproduce.claims.mechanisms import ablated, micro_batch
from pipeinfer.reproduce.claims.speed import speed
from pipeinfer.reproduce.claims.tolerance import low_acceptance, slow_links

__all__ = ["Claim", "Published", "judge"]

JUDGES: dict[str, Judge] = {
    "C1": speed,
    "C2": latency,
    "C3": utilisation,
    "C4": low_acceptance,
    "C5": slow_links,
    "C6": ablated("not continuous"),
    "C7": ablated("no cancellation"),
    "C9": micro_batch,
    "C10": lossless,
}


def judge(analyses: Mapping[str, Analysis]) -> list[Claim]:
    """Every claim that there is a judge for, in the order of the reference file."""
    published = workload.load(asset("paper_figures/reference/claims.toml"), dict[str, Published])
    return [_judged(name, entry, analyses) for name, entry in published.items() if name in JUDGES]


def _judged(name: str, published: Published, analyses: Mapping[str, Analysis]) -> Claim:
    bearing = [one for one in analyses.values() if name in one.recipe.claims]
    simulated = [one for one in bearing if one.recipe.simulated is not None]
    live = [one for one in bearing if one.recipe.live is not None]
    found = JUDGES[name](Bearing(simulated, live, published))
    if found is None:
        found = Finding("-", "not testable here", ["no trial that bears on it was run, or none passed"])
    text = f"{published.published} [{published.source}]"
    figure, evidence = found.figure, "; ".join(found.evidence)
    if any(one.recipe.emulation for one in simulated):  # judged alike, and to be told apart
        figure, evidence = (words.replace("simulated", "emulated") for words in (figure, evidence))
    return Claim(name, published.claim, text, figure, found.verdict, evidence)
