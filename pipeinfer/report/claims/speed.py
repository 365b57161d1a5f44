"""C1, generation speed, and C8, the same by how well the models are aligned."""

from collections.abc import Iterator

import pandas as pd

from pipeinfer.report.axes import drafts_title
from pipeinfer.report.claims.finding import (
    NOISE,
    Bearing,
    Evidence,
    Finding,
    Verdict,
    as_modelled,
    at,
    least,
    low_to_high,
    most,
    ratios,
)
from pipeinfer.report.claims.latency import NO_REAL_RUN, OWN, SHARED
from pipeinfer.results.analysis import BASELINE
from pipeinfer.results.frame import PLACE
from pipeinfer.study.places import Place

LOSES = "it loses"
"""How the evidence ends that says where."""


def speed(bearing: Bearing) -> Finding | None:
    everywhere, live = ratios(bearing.simulated, BASELINE), ratios(bearing.live, BASELINE)
    modelled, own, shared = as_modelled(everywhere), live[live.own_compute], live[~live.own_compute]
    target = bearing.published.value
    if target is None or (modelled.empty and live.empty):
        return None
    emulated = ratios(bearing.emulated, BASELINE)
    figures = [f"up to {modelled.value.max():.2f}x (simulated)"] if len(modelled) else []
    for some, how in ((emulated, "emulated in real time"), (own, f"real, {OWN}"), (shared, f"real, {SHARED}")):
        figures += [f"{low_to_high(some)} ({how})"] if len(some) else []
    evidence = [
        *_simulated(bearing, modelled, target),
        *_sensitivity(everywhere),
        *_each("emulated in real time", emulated),
        *_each(f"real, {OWN}", own),
        *[NO_REAL_RUN] * own.empty,
        *_each(f"real, {SHARED}", shared),
        *_losses(everywhere, shared),
    ]
    condition = (
        "from 4 nodes on, where a further row costs compute, as on CPUs; acceptance and the efficiency of arithmetic "
        "are assumed; ranks that share cores decide nothing"
    )
    brief = f"up to {modelled.value.max():.2f}x simulated (paper {target:g}x)" if len(modelled) else ""
    return Finding(", ".join(figures), _verdict(modelled, own, target), evidence, condition, brief)


def _verdict(modelled: pd.DataFrame, own: pd.DataFrame, target: float) -> Verdict:
    simulated, really = modelled.value.max(), own.value.max()  # nan, and no more than anything, where there is none
    if really >= target or (simulated >= target and really >= NOISE):
        return "reproduced"
    if simulated >= NOISE or really >= NOISE:
        return "partly"
    return "not testable here" if modelled.empty and own.empty else "not reproduced"


def _simulated(bearing: Bearing, modelled: pd.DataFrame, target: float) -> Iterator[Evidence]:
    if modelled.empty:
        return
    best = most(modelled)
    yield Evidence("simulated, over the baseline at its best K and cutoff: at most", at(best))
    yield Evidence(f"{target:g}x or more", f"at {(modelled.value >= target).sum()} of {len(modelled)} points")
    yield Evidence("assumed", "acceptance, and the efficiency of arithmetic (0.4 of peak)")
    medians = pd.concat([one.medians for one in bearing.simulated])
    limits = medians[medians.place == best.place].set_index("contender").limit_tokens_per_s
    if (bound := limits["pipeinfer"] / limits[BASELINE]) > 0:
        yield Evidence("there the closed forms, in which width is free, allow", f"{bound:.2f}x")
    for _, some in modelled.groupby("drafts", sort=False):
        yield Evidence(f"where drafts are {drafts_title(Place.of(some.iloc[0]))}", low_to_high(some))


def _sensitivity(everywhere: pd.DataFrame) -> Iterator[Evidence]:
    if (everywhere.width_cost == 0).any():
        by = _along(everywhere[everywhere.draft_cost == 1], "width_cost")
        yield Evidence("by what a further row costs, from free (0) to the roofline's (1) and beyond", by)
    if (everywhere.draft_cost != 1).any():
        by = _along(everywhere[everywhere.width_cost == 1], "draft_cost")
        yield Evidence("by the cost of a drafted token (1: TinyLlama 1.1B)", by)


def _along(found: pd.DataFrame, cost: str) -> str:
    """The range for each value of a cost, at the places that are swept along it."""
    place = ["cluster", "pair", "nodes", "acceptance", "drafts", "accounting"]
    swept = found[found[cost] != 1][place].drop_duplicates()
    return ", ".join(f"{value:g}: {low_to_high(some)}" for value, some in found.merge(swept, on=place).groupby(cost))


def _each(what: str, found: pd.DataFrame) -> Iterator[Evidence]:
    return (Evidence(f"{what}, {Place.of(row).text}", f"{row.value:.2f}x") for row in found.itertuples())


def _losses(everywhere: pd.DataFrame, shared: pd.DataFrame) -> Iterator[Evidence]:
    """What the report begins with, too."""
    modelled = as_modelled(everywhere)
    lost = modelled[modelled.value < 1]
    if len(modelled):
        why = _CHEAP if (lost.nodes > 2).any() else "one stage of the target has nothing to overlap"
        where = f"down to {at(least(lost))}: {why}" if len(lost) else f"the least is {at(least(modelled))}"
        yield Evidence(f"simulated as modelled {LOSES}", f"at {len(lost) or 'none'} of {len(modelled)} points, {where}")
    cheap = everywhere[(everywhere.width_cost < 1) & (everywhere.value < 1)]
    if len(cheap):
        where = f"at {len(cheap)} points, down to {at(least(cheap))}: {_CHEAP}"
        yield Evidence(f"where further rows cost less than the roofline says {LOSES}", where)
    if (shared.value < 1).any():
        why = "no core is idle that a draft could use, a limit of the machine, which decides nothing"
        yield Evidence(f"really run by {SHARED} {LOSES}", f"{low_to_high(shared)}; {why}")


_CHEAP = (
    "a wide synchronous run gets for the price of one row what PipeInfer sends in several, and the pipeline is too "
    "short to overlap more"
)


# C8: by alignment

POOR, GOOD = 0.52, 0.79
"""The levels of workloads/acceptance.toml; which rates the digest means is not known."""

MOSTLY = 0.9
"""At that share of the points a single one may be chance."""


def alignment(bearing: Bearing) -> Finding | None:
    """The digest says that poorly aligned pairs gain more."""
    found = ratios(bearing.simulated, BASELINE)
    everywhere = found[found.drafts == ""]
    poor, good = (found[found.acceptance == level] for found in [as_modelled(everywhere)] for level in (POOR, GOOD))
    if poor.empty or good.empty:
        return None
    pairs = poor.merge(good, on=[name for name in PLACE if name != "acceptance"], suffixes=("_poor", "_good"))
    more = int((pairs.value_poor > pairs.value_good).sum())
    evidence = [
        Evidence("at most, poorly and well aligned", f"{at(most(poor))}; {at(most(good))}"),
        Evidence("the poorly aligned pair gains more", f"at {more} of {len(pairs)} points that differ in nothing else"),
    ]
    free = everywhere[(everywhere.width_cost == 0) & everywhere.acceptance.isin((POOR, GOOD))]
    if len(free):
        text = ", ".join(f"{low_to_high(some)} at {level:g}" for level, some in free.groupby("acceptance"))
        evidence.append(Evidence("where width is free", text))
    evidence.append(
        Evidence(
            "why",
            "the better the draft, the longer the chains of runs that PipeInfer keeps in flight; the synchronous "
            "baseline gains from a good draft only as far as width is cheap",
        )
    )
    figure = f"up to {good.value.max():.2f}x well aligned, {poor.value.max():.2f}x poorly aligned, simulated"
    share = more / len(pairs) if len(pairs) else 0.0
    verdict: Verdict = "reproduced" if share > MOSTLY else "partly" if share > 0.5 else "not reproduced"
    condition = f"poor is {POOR:g}, good {GOOD:g}; which acceptance the digest calls poor or good is not known"
    brief = f"{good.value.max():.2f}x well, {poor.value.max():.2f}x poorly, simulated"
    return Finding(figure, verdict, evidence, condition, brief)
