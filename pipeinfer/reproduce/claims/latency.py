"""C2, inter-token latency, and C3, utilisation."""

from pipeinfer.reproduce.analysis import REFERENCE
from pipeinfer.reproduce.axes import mean_gap, tail_gap
from pipeinfer.reproduce.claims.finding import (
    NOISE,
    Bearing,
    Finding,
    Ratio,
    Verdict,
    all_or_some,
    as_modelled,
    least,
    most,
    places,
    ratios,
    span,
)
from pipeinfer.results import metrics

SHALLOWEST = 4
"""The fewest nodes that the authors' scripts are for; with less there is hardly a pipeline."""


def latency(bearing: Bearing) -> Finding | None:
    live = ratios(bearing.live, "speculative", mean_gap)
    own = [ratio for ratio in live if ratio.own_compute]
    shared = [ratio for ratio in live if not ratio.own_compute]
    found = {over: as_modelled(ratios(bearing.simulated, over, mean_gap)) for over in ("speculative", REFERENCE)}
    every = [ratio for over in found.values() for ratio in over]
    deep = [ratio for ratio in every if ratio.place.nodes >= SHALLOWEST]
    judged = deep or own
    if not judged and not live:
        return None
    figures = [f"mean gap {span_of(deep)} of the baselines', simulated"] if deep else []
    figures += [f"{span_of(own)} of speculative's, real, ranks with compute of their own"] if own else []
    figures += [f"{span_of(shared)} of speculative's, real, ranks sharing one machine's cores"] if shared else []
    evidence = [f"mean gap, of that of {over}: {span(there)}" for over, there in found.items() if there]
    tails = as_modelled(ratios(bearing.simulated, "speculative", tail_gap))
    evidence += [f"95th percentile, of that of speculative: {span(tails)}"] if tails else []
    lost = [ratio for ratio in every if ratio.value >= 1]
    shallow = all(ratio.place.nodes < SHALLOWEST for ratio in lost)
    why = f", all below {SHALLOWEST} nodes: nothing to overlap, not judged" * shallow
    evidence += [f"no shorter at {len(lost)} of {len(every)} points{why}"] * bool(lost)
    evidence += [f"real, {one.place.text}: mean gap {one.value:.2f} of that of speculative" for one in live]
    if not own:
        evidence.append("no real run in which each rank has compute of its own, which reproduced would take")
    verdict: Verdict = all_or_some([ratio.value < 1 for ratio in judged]) if judged else "not testable here"
    if verdict == "reproduced" and not (own and least(own).value < 1 / NOISE):
        verdict = "partly"
    return Finding(", ".join(figures), verdict, evidence)


def span_of(found: list[Ratio]) -> str:
    return f"{least(found).value:.2f} to {most(found).value:.2f}"


def utilisation(bearing: Bearing) -> Finding | None:
    found = {over: ratios(bearing.simulated, over, metrics.mean_utilisation) for over in ("speculative", REFERENCE)}
    every = [ratio for over in found.values() for ratio in over if ratio.place.nodes >= SHALLOWEST]
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
