"""C10: the same tokens."""

from pipeinfer.report.claims.finding import Bearing, Evidence, Finding, Verdict
from pipeinfer.report.experiment import Experiment
from pipeinfer.study.places import Place

SHOWN = 3
"""Texts that part, by name."""


def lossless(bearing: Bearing) -> Finding | None:
    """Only real models can show it: simulated tokens come from an oracle.

    A text that parts at a tie of coarse arithmetic speaks neither for it nor against it.
    """
    counts = {kind: sum(one.count(kind) for one in bearing.live) for kind in ("passed", "tie", "differs", "failed")}
    passed, parted = counts["passed"], counts["tie"]
    total = passed + parted + counts["differs"]
    if not total:
        return None
    evidence = [Evidence("live generations with the token ids of the iterative run", f"{passed} of {total}")]
    evidence += [Evidence("parted from them at a tie", str(parted))] * bool(parted)
    evidence += [Evidence("failed", str(counts["failed"]))] * bool(counts["failed"])
    evidence += [line for kind in ("differs", "tie") for line in _named(bearing.live, kind)[:SHOWN]]
    shown = any(one.count("passed") and not one.count("tie") for one in bearing.live)
    verdict: Verdict = "not reproduced" if counts["differs"] else "reproduced" if shown else "partly"
    ties = f", {parted} parted at a tie" if parted else ""
    condition = "greedy and sampled, in arithmetic of 32 bits; coarser arithmetic may part at a tie, which is shown"
    return Finding(f"{passed} of {total} identical{ties}", verdict, evidence, condition)


def _named(live: list[Experiment], status: str) -> list[Evidence]:
    return [
        Evidence(f"{row.contender} {Place.of(row).text}, {row.draw}", row.why)
        for one in live
        for row in one.trials[one.trials.status == status].itertuples()
    ]
