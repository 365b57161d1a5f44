"""C2, inter-token latency, and C3, utilisation."""

from pipeinfer import metrics
from pipeinfer.reproduce.analysis import REFERENCE
from pipeinfer.reproduce.claims.finding import NOISE, Bearing, Finding, all_or_some, least, most, places, ratios, span
from pipeinfer.reproduce.figures import mean_gap, tail_gap


def latency(bearing: Bearing) -> Finding | None:
    analyses, where = (bearing.simulated, "simulated") if bearing.simulated else (bearing.live, "live")
    found = {over: ratios(analyses, over, mean_gap) for over in ("speculative", REFERENCE)}
    every = [ratio for over in found.values() for ratio in over]
    if not every:
        return None
    evidence = [f"mean gap, of that of {over}: {span(there)}" for over, there in found.items() if there]
    tails = ratios(analyses, "speculative", tail_gap)
    evidence += [f"95th percentile, of that of speculative: {span(tails)}"] if tails else []
    if where == "simulated":
        live = ratios(bearing.live, "speculative", mean_gap)
        evidence += [f"live, {ratio.place.text}: mean gap {ratio.value:.2f} of that of speculative" for ratio in live]
    figure = f"mean gap {least(every).value:.2f} to {most(every).value:.2f} of the baselines', {where}"
    return Finding(figure, all_or_some([ratio.value < 1 for ratio in every]), evidence)


def utilisation(bearing: Bearing) -> Finding | None:
    found = {over: ratios(bearing.simulated, over, metrics.mean_utilisation) for over in ("speculative", REFERENCE)}
    every = [ratio for over in found.values() for ratio in over]
    if not every:
        return None
    shares = [
        share for there in places(bearing.simulated) if "pipeinfer" in there
        for share in [there["pipeinfer"].median(metrics.mean_utilisation)] if share is not None
    ]  # fmt: skip
    evidence = [f"mean share of the time that ranks compute: {min(shares):.0%} to {max(shares):.0%}"]
    evidence += [f"of that of {over}: {span(there)}" for over, there in found.items() if there]
    evidence.append("work on runs that turn out wrong counts as use")
    figure = f"{least(every).value:.1f}x to {most(every).value:.1f}x the baselines', simulated"
    return Finding(figure, all_or_some([ratio.value >= NOISE for ratio in every]), evidence)
