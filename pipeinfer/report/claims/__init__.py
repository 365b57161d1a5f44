"""Verdicts on the paper's claims, each from the experiments of the recipes that bear on it: one judge per claim.

A verdict is *reproduced*, *partly*, *not reproduced*, or *not testable here* where nothing that would show it was run.

C1 and C2 are about how fast a cluster is. A simulated cluster rests on assumptions and alone brings them to *partly*;
*reproduced* takes real runs as well, of ranks that each have compute of their own, that do not contradict it. Real runs
whose ranks share the cores of one machine are reported beside it, and decide nothing: they have no idle stages.
C3 to C9 compare the same scheduler with itself or ask how it scales, under the same costs; simulation can show them,
and says so. C10, lossless, is judged by real runs alone.
"""

from collections.abc import Mapping

from msgspec.structs import astuple

from pipeinfer.report.claims.finding import Bearing, Claim, Evidence, Finding, Judge
from pipeinfer.report.claims.latency import latency, utilisation
from pipeinfer.report.claims.lossless import lossless
from pipeinfer.report.claims.mechanisms import ablated, micro_batch
from pipeinfer.report.claims.speed import alignment, speed
from pipeinfer.report.claims.tolerance import low_acceptance, slow_links
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.published import Published, published_claims

__all__ = ["Claim", "judge"]

JUDGES: dict[str, Judge] = {
    "C1": speed,
    "C2": latency,
    "C3": utilisation,
    "C4": low_acceptance,
    "C5": slow_links,
    "C6": ablated("not continuous"),
    "C7": ablated("no cancellation"),
    "C8": alignment,
    "C9": micro_batch,
    "C10": lossless,
}


def judge(experiments: Mapping[str, Experiment]) -> list[Claim]:
    """Every claim that there is a judge for, in the order of the reference file."""
    return [_judged(name, entry, experiments) for name, entry in published_claims().items() if name in JUDGES]


def _judged(name: str, published: Published, experiments: Mapping[str, Experiment]) -> Claim:
    bearing = [one for one in experiments.values() if name in one.recipe.claims]
    simulated = [one for one in bearing if one.recipe.fidelity == "sim"]
    emulated = [one for one in bearing if one.recipe.fidelity == "emulated"]
    live = [one for one in bearing if one.recipe.live is not None]
    alone = bool(emulated) and not simulated  # then judged like a simulation, and called what it is
    found = JUDGES[name](Bearing(*((emulated, []) if alone else (simulated, emulated)), live, published))
    if found is None:
        found = Finding(
            "-", "not testable here", [Evidence("why", "no trial that bears on it was run, or none passed")]
        )
    text = f"{published.published} [{published.source}]"
    figure, evidence, brief = found.figure, found.evidence, found.brief or found.figure
    if alone:
        figure, brief = (words.replace("simulated", "emulated") for words in (figure, brief))
        said = [[words.replace("simulated", "emulated") for words in astuple(line)] for line in evidence]
        evidence = [Evidence(*line) for line in said]
    return Claim(name, published.claim, text, figure, found.verdict, found.condition, evidence, brief)
