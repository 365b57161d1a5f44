"""C10: the same tokens."""

from pipeinfer.reproduce.claims.finding import Bearing, Finding


def lossless(bearing: Bearing) -> Finding | None:
    """Only real models can show it: simulated tokens come from an oracle."""
    passed = sum(analysis.passed for analysis in bearing.live)
    differing = [one for analysis in bearing.live for one in analysis.rejected if "differ" in one.reason]
    failed = sum(len(analysis.rejected) for analysis in bearing.live) - len(differing)
    if not passed and not differing:
        return None
    total = passed + len(differing)
    evidence = [f"{passed} of {total} live generations gave the token ids of the iterative run, greedy and sampled"]
    evidence += [f"{failed} failed"] * bool(failed)
    evidence += [f"{one.strategy} {one.place.text}, {one.draw}: {one.reason}" for one in differing[:3]]
    return Finding(f"{passed} of {total} identical", "not reproduced" if differing else "reproduced", evidence)
