"""C2, inter-token latency, and C3, utilisation."""

import pandas as pd

from pipeinfer.report.claims.finding import (
    NOISE,
    Bearing,
    Evidence,
    Finding,
    Verdict,
    all_or_some,
    as_modelled,
    low_to_high,
    ratios,
    span,
)
from pipeinfer.report.page import ends
from pipeinfer.results.analysis import BASELINE, REFERENCE
from pipeinfer.study.places import Place

OWN, SHARED = "ranks with compute of their own", "ranks sharing one machine's cores"

NO_REAL_RUN = Evidence(f"real, {OWN}", "no such run, which reproduced would take")

SHALLOWEST = 4
"""The fewest nodes that the authors' scripts are for; with less there is hardly a pipeline."""


def latency(bearing: Bearing) -> Finding | None:
    live = ratios(bearing.live, BASELINE, "itl_mean_s")
    own, shared = live[live.own_compute], live[~live.own_compute]
    found = {over: as_modelled(ratios(bearing.simulated, over, "itl_mean_s")) for over in (BASELINE, REFERENCE)}
    every = pd.concat(found.values(), ignore_index=True)
    deep = every[every.nodes >= SHALLOWEST]
    judged = own if deep.empty else deep
    if judged.empty and live.empty:
        return None
    figures = [f"mean gap {low_to_high(deep, '')} of the baselines' (simulated)"] if len(deep) else []
    for some, which in ((own, OWN), (shared, SHARED)):
        figures += [f"{low_to_high(some, '')} of speculative's (real, {which})"] if len(some) else []
    evidence = [Evidence(f"mean gap, of that of {over}", span(there)) for over, there in found.items() if len(there)]
    tails = as_modelled(ratios(bearing.simulated, BASELINE, "itl_p95_s"))
    evidence += [Evidence("95th percentile, of that of speculative", span(tails))] if len(tails) else []
    lost = every[every.value >= 1]
    why = f", all below {SHALLOWEST} nodes: nothing to overlap, not judged" * bool((lost.nodes < SHALLOWEST).all())
    evidence += [Evidence("no shorter", f"at {len(lost)} of {len(every)} points{why}")] * bool(len(lost))
    evidence += [
        Evidence(f"mean gap, of that of speculative, real, {which}, {Place.of(row).text}", f"{row.value:.2f}")
        for some, which in ((own, OWN), (shared, SHARED)) for row in some.itertuples()
    ]  # fmt: skip
    evidence += [NO_REAL_RUN] * own.empty
    verdict: Verdict = "not testable here" if judged.empty else all_or_some(judged.value < 1)
    if verdict == "reproduced" and not own.value.min() < 1 / NOISE:
        verdict = "partly"
    condition = f"from {SHALLOWEST} nodes on; below there is hardly a pipeline to overlap anything in"
    brief = f"gap {low_to_high(deep)}, simulated" if len(deep) else ""
    return Finding(", ".join(figures), verdict, evidence, condition, brief)


def utilisation(bearing: Bearing) -> Finding | None:
    found = {over: ratios(bearing.simulated, over, "utilisation") for over in (BASELINE, REFERENCE)}
    every = pd.concat(found.values(), ignore_index=True)
    deep = every[every.nodes >= SHALLOWEST]
    if deep.empty:
        return None
    shares = pd.concat([one.medians[one.medians.contender == "pipeinfer"].utilisation for one in bearing.simulated])
    evidence = [Evidence("mean share of the time that ranks compute", f"{shares.min():.0%} to {shares.max():.0%}")]
    evidence += [Evidence(f"of that of {over}", span(there)) for over, there in found.items() if len(there)]
    brief = f"{ends(deep.value, '{:.1f}x')}, simulated"
    figure = f"{ends(deep.value, '{:.1f}x')} the baselines' (simulated)"
    condition = f"from {SHALLOWEST} nodes on; work on runs that turn out wrong counts as use"
    return Finding(figure, all_or_some(deep.value >= NOISE), evidence, condition, brief)
