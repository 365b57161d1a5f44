"""C6, C7 and C9: what a mechanism, and the size of the micro-batch, are worth."""

from pipeinfer.reproduce.analysis import Analysis, Place
from pipeinfer.reproduce.axes import mean_gap
from pipeinfer.reproduce.claims.finding import (
    NOISE,
    Bearing,
    Finding,
    Judge,
    all_or_some,
    least,
    most,
    ratios,
    span,
)

LARGEST_MICRO_BATCH = 4
"""C9: micro-batches of 1 to 4 tokens beat larger ones."""


def ablated(without: str) -> Judge:
    """The judge of a mechanism that the contender `without` lacks."""

    def judge_it(bearing: Bearing) -> Finding | None:
        speeds = ratios(bearing.simulated, without)
        gaps = ratios(bearing.simulated, without, mean_gap)
        if not speeds:
            return None
        evidence = [f"speed with it, of that of {without}: {span(speeds)}"]
        evidence.append(f"mean inter-token latency: {span(gaps)}")
        figure = f"{least(speeds).value:.2f}x to {most(speeds).value:.2f}x the speed without, simulated"
        return Finding(figure, all_or_some([ratio.value >= NOISE for ratio in speeds]), evidence)

    return judge_it


def micro_batch(bearing: Bearing) -> Finding | None:
    """Over every size that was tried, not only the best."""
    holds, evidence, best = [], [], set()
    for analysis in bearing.simulated:
        for place in analysis.places:
            speeds = _by_size(analysis, place)
            small = [speed for size, speed in speeds.items() if size <= LARGEST_MICRO_BATCH]
            large = [speed for size, speed in speeds.items() if size > LARGEST_MICRO_BATCH]
            if not small or not large:
                continue
            holds.append(max(small) > max(large))
            best.add(max(speeds, key=lambda size: speeds[size]))
            text = ", ".join(f"{size}: {speed:.2f}" for size, speed in sorted(speeds.items()))
            evidence.append(f"tokens/s by size, {place.text}: {text}")
    if not holds:
        return None
    return Finding(f"best: {', '.join(map(str, sorted(best)))}, simulated", all_or_some(holds), evidence)


def _by_size(analysis: Analysis, place: Place) -> dict[int, float]:
    """Median tokens/s of PipeInfer at each micro-batch, at its best otherwise."""
    speeds: dict[int, float] = {}
    for one in analysis.variants:
        if one.place == place and one.strategy == "pipeinfer" and "draft" in one.options:
            size = one.options["draft"]
            speeds[size] = max(one.speed, speeds.get(size, 0.0))
    return speeds
