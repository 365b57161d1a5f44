"""C2, inter-token latency, and C3, utilisation."""

from pipeinfer.report.claims.finding import (
    NOISE,
    Bearing,
    Evidence,
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
from pipeinfer.results.analysis import BASELINE, REFERENCE

NO_REAL_RUN = Evidence("real, ranks with compute of their own", "no such run, which reproduced would take")

SHALLOWEST = 4
"""The fewest nodes that the authors' scripts are for; with less there is hardly a pipeline."""


def latency(bearing: Bearing) -> Finding | None:
    live = ratios(bearing.live, BASELINE, "itl_mean_s")
    own = [ratio for ratio in live if ratio.own_compute]
    shared = [ratio for ratio in live if not ratio.own_compute]
    found = {over: as_modelled(ratios(bearing.simulated, over, "itl_mean_s")) for over in (BASELINE, REFERENCE)}
    every = [ratio for over in found.values() for ratio in over]
    deep = [ratio for ratio in every if ratio.place.nodes >= SHALLOWEST]
    judged = deep or own
    if not judged and not live:
        return None
    figures = [f"mean gap {span_of(deep)} of the baselines', simulated"] if deep else []
    figures += [f"{span_of(own)} of speculative's, real, ranks with compute of their own"] if own else []
    figures += [f"{span_of(shared)} of speculative's, real, ranks sharing one machine's cores"] if shared else []
    evidence = [Evidence(f"mean gap, of that of {over}", span(there)) for over, there in found.items() if there]
    tails = as_modelled(ratios(bearing.simulated, BASELINE, "itl_p95_s"))
    evidence += [Evidence("95th percentile, of that of speculative", span(tails))] if tails else []
    lost = [ratio for ratio in every if ratio.value >= 1]
    shallow = all(ratio.place.nodes < SHALLOWEST for ratio in lost)
    why = f", all below {SHALLOWEST} nodes: nothing to overlap, not judged" * shallow
    evidence += [Evidence("no shorter", f"at {len(lost)} of {len(every)} points{why}")] * bool(lost)
    evidence += [
        Evidence(f"mean gap, of that of speculative, real, {one.place.text}", f"{one.value:.2f}") for one in live
    ]
    if not own:
        evidence.append(NO_REAL_RUN)
    verdict: Verdict = all_or_some([ratio.value < 1 for ratio in judged]) if judged else "not testable here"
    if verdict == "reproduced" and not (own and least(own).value < 1 / NOISE):
        verdict = "partly"
    condition = f"from {SHALLOWEST} nodes on; below there is hardly a pipeline to overlap anything in"
    return Finding(", ".join(figures), verdict, evidence, condition)


def span_of(found: list[Ratio]) -> str:
    return f"{least(found).value:.2f} to {most(found).value:.2f}"


def utilisation(bearing: Bearing) -> Finding | None:
    found = {over: ratios(bearing.simulated, over, "utilisation") for over in (BASELINE, REFERENCE)}
    every = [ratio for over in found.values() for ratio in over if ratio.place.nodes >= SHALLOWEST]
    if not every:
        return None
    shares = [there.utilisation["pipeinfer"] for there in places(bearing.simulated) if "pipeinfer" in there.index]
    evidence = [Evidence("mean share of the time that ranks compute", f"{min(shares):.0%} to {max(shares):.0%}")]
    evidence += [Evidence(f"of that of {over}", span(there)) for over, there in found.items() if there]
    figure = f"{least(every).value:.1f}x to {most(every).value:.1f}x the baselines', simulated"
    condition = f"from {SHALLOWEST} nodes on; work on runs that turn out wrong counts as use"
    return Finding(figure, all_or_some([ratio.value >= NOISE for ratio in every]), evidence, condition)
