"""C10: the same tokens."""

from pipeinfer.reproduce.claims.finding import Bearing, Finding, Verdict


def lossless(bearing: Bearing) -> Finding | None:
    """Only real models can show it: simulated tokens come from an oracle.

    A text that parts at a tie of coarse arithmetic speaks neither for it nor against it.
    """
    passed = sum(analysis.passed for analysis in bearing.live)
    parted = [one for analysis in bearing.live for one in analysis.diverged]
    differing = [one for analysis in bearing.live for one in analysis.rejected if "differ" in one.reason]
    failed = sum(len(analysis.rejected) for analysis in bearing.live) - len(differing)
    total = passed + len(parted) + len(differing)
    if not total:
        return None
    evidence = [f"{passed} of {total} live generations gave the token ids of the iterative run, greedy and sampled"]
    evidence += [f"{len(parted)} parted from them at a tie"] * bool(parted)
    evidence += [f"{failed} failed"] * bool(failed)
    evidence += [f"{one.strategy} {one.place.text}, {one.draw}: {one.reason}" for one in differing[:3]]
    evidence += [f"{one.strategy} {one.place.text}, {one.draw}: {one.divergence.text}" for one in parted[:3]]
    shown = any(analysis.passed and not analysis.diverged for analysis in bearing.live)
    verdict: Verdict = "not reproduced" if differing else "reproduced" if shown else "partly"
    ties = f", {len(parted)} parted at a tie" if parted else ""
    return Finding(f"{passed} of {total} identical{ties}", verdict, evidence)
