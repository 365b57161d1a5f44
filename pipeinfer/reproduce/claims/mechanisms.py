"""C6, C7 and C9: what a mechanism, and the size of the micro-batch, are worth."""

from pipeinfer.reproduce.claims.finding import (
    NOISE,
    Bearing,
    Finding,
    Judge,
    all_or_some,
    first,
    least,
    most,
    places,
    ratios,
    span,
)
from pipeinfer.reproduce.figures import mean_gap

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
    holds, evidence, best = [], [], set()
    for there in places(bearing.simulated):
        speeds = {one.options["draft"]: one.band()[1] for one in there.values() if "draft" in one.options}
        small = [size for size in speeds if size <= LARGEST_MICRO_BATCH]
        large = [size for size in speeds if size > LARGEST_MICRO_BATCH]
        if not small or not large:
            continue
        holds.append(max(speeds[size] for size in small) > max(speeds[size] for size in large))
        best.add(max(speeds, key=lambda size: speeds[size]))
        text = ", ".join(f"{size}: {speed:.2f}" for size, speed in speeds.items())
        evidence.append(f"tokens/s by size, {first(there).place.text}: {text}")
    if not holds:
        return None
    return Finding(f"best: {', '.join(map(str, sorted(best)))}, simulated", all_or_some(holds), evidence)
