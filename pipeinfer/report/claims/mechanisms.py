"""C6, C7 and C9: what a mechanism, and the size of the micro-batch, are worth."""

from pipeinfer.report.claims.finding import (
    NOISE,
    Bearing,
    Evidence,
    Finding,
    Judge,
    all_or_some,
    low_to_high,
    ratios,
    span,
)
from pipeinfer.results.analysis import SPEED
from pipeinfer.study.places import Place

LARGEST_MICRO_BATCH = 4
"""C9: micro-batches of 1 to 4 tokens beat larger ones."""


def ablated(without: str) -> Judge:
    """The judge of a mechanism that the contender `without` lacks."""

    def judge_it(bearing: Bearing) -> Finding | None:
        speeds = ratios(bearing.simulated, without)
        gaps = ratios(bearing.simulated, without, "itl_mean_s")
        if speeds.empty:
            return None
        evidence = [Evidence(f"speed with it, of that of {without}", span(speeds))]
        evidence.append(Evidence(f"mean inter-token latency, of that of {without}", span(gaps)))
        figure, brief = f"{low_to_high(speeds)} the speed without (simulated)", f"{low_to_high(speeds)}, simulated"
        condition = f"PipeInfer beside itself without it, on {speeds.nodes.iloc[0]} nodes; poor and good acceptance"
        return Finding(figure, all_or_some(speeds.value >= NOISE), evidence, condition, brief)

    return judge_it


def micro_batch(bearing: Bearing) -> Finding | None:
    """Over every size that was tried, not only the best."""
    holds, evidence, best = [], [], set()
    for one in bearing.simulated:
        own = one.valid[(one.valid.contender == "pipeinfer") & one.valid.draft.notna()]
        by_variant = own.groupby(["place", "draft", "variant"], sort=False)[SPEED].median()
        for _, there in own.groupby("place", sort=False):
            place = Place.of(next(there.itertuples()))
            speeds = by_variant[there.place.iloc[0]].groupby("draft").max()
            small, large = speeds[speeds.index <= LARGEST_MICRO_BATCH], speeds[speeds.index > LARGEST_MICRO_BATCH]
            if small.empty or large.empty:
                continue
            holds.append(bool(small.max() > large.max()))
            best.add(int(speeds.idxmax()))
            text = ", ".join(f"{size:g}: {speed:.2f}" for size, speed in speeds.items())
            evidence.append(Evidence(f"tokens/s by size, {place.text}", text))
    if not holds:
        return None
    brief = f"best: {', '.join(map(str, sorted(best)))} token{'s' * (max(best) > 1)}, simulated"
    return Finding(brief, all_or_some(holds), evidence, "every size at its best otherwise")
