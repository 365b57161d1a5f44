"""C1, generation speed, and C8, the same by how well the models are aligned."""

from collections.abc import Callable, Iterator

import pandas as pd

from pipeinfer.report.axes import drafts_title
from pipeinfer.report.claims.finding import (
    NOISE,
    Bearing,
    Evidence,
    Finding,
    Ratio,
    Verdict,
    as_modelled,
    at,
    least,
    most,
    ratios,
)
from pipeinfer.report.claims.latency import NO_REAL_RUN
from pipeinfer.results.analysis import BASELINE
from pipeinfer.study.places import Place


def speed(bearing: Bearing) -> Finding | None:
    everywhere = ratios(bearing.simulated, BASELINE)
    modelled, live = as_modelled(everywhere), ratios(bearing.live, BASELINE)
    own, shared = ([one for one in live if one.own_compute is kind] for kind in (True, False))
    target = bearing.published.value
    if target is None or not (modelled or live):
        return None
    figures = [f"up to {most(modelled).value:.2f}x simulated"] if modelled else []
    figures += [f"{_range(own)} real, ranks with compute of their own"] if own else []
    figures += [f"{_range(shared)} real, ranks sharing one machine's cores"] if shared else []
    evidence = [
        *_simulated(bearing, modelled, target),
        *_sensitivity(everywhere),
        *_emulated(bearing),
        *_real(own, shared),
        *_losses(everywhere),
    ]
    condition = (
        "from 4 nodes on, where a further row costs compute, as on CPUs; acceptance and the efficiency of arithmetic "
        "are assumed"
    )
    return Finding(", ".join(figures), _verdict(modelled, own, target), evidence, condition)


def _verdict(modelled: list[Ratio], own: list[Ratio], target: float) -> Verdict:
    reached = bool(modelled) and most(modelled).value >= target
    gained = bool(modelled) and most(modelled).value >= NOISE
    really = bool(own) and most(own).value >= NOISE
    if (reached and really) or (own and most(own).value >= target):
        return "reproduced"
    if gained or really:
        return "partly"
    return "not reproduced" if modelled or own else "not testable here"


def _range(found: list[Ratio]) -> str:
    low, high = f"{least(found).value:.2f}x", f"{most(found).value:.2f}x"
    return low if low == high else f"{low} to {high}"


def _simulated(bearing: Bearing, modelled: list[Ratio], target: float) -> Iterator[Evidence]:
    if not modelled:
        return
    best = most(modelled)
    reached = sum(ratio.value >= target for ratio in modelled)
    yield Evidence("simulated, over the baseline at its best K and cutoff: at most", at(best))
    yield Evidence(f"{target:g}x or more", f"at {reached} of {len(modelled)} points")
    yield Evidence("assumed", "acceptance, and the efficiency of arithmetic (0.4 of peak)")
    bound = _closed_forms(bearing, best.place)
    if bound is not None:
        yield Evidence("there the closed forms, in which width is free, allow", f"{bound:.2f}x")
    kinds: dict[str, list[Ratio]] = {drafts_title(ratio.place): [] for ratio in modelled}
    for ratio in modelled:
        kinds[drafts_title(ratio.place)].append(ratio)
    yield from (Evidence(f"drafts right by {kind}", _range(found)) for kind, found in kinds.items())


def _closed_forms(bearing: Bearing, place: Place) -> float | None:
    """The limit of pipelined chains over that of synchronous speculation."""
    for one in bearing.simulated:
        limits = one.medians.set_index(["place", "contender"]).limit_tokens_per_s.unstack()
        for number, other in one.places.items():
            if other == place and {"pipeinfer", BASELINE} <= set(limits):
                found = limits.pipeinfer[number] / limits[BASELINE][number]
                return None if pd.isna(found) else float(found)
    return None


def _sensitivity(everywhere: list[Ratio]) -> Iterator[Evidence]:
    if any(ratio.place.width_cost == 0 for ratio in everywhere):
        by = _along(everywhere, lambda place: place.width_cost, lambda place: place.draft_cost == 1.0)
        yield Evidence("by what a further row costs, from free (0) to the roofline's (1) and beyond", by)
    if any(ratio.place.draft_cost != 1 for ratio in everywhere):
        by = _along(everywhere, lambda place: place.draft_cost, lambda place: place.width_cost == 1.0)
        yield Evidence("by the cost of a drafted token (1: TinyLlama 1.1B)", by)


def _along(found: list[Ratio], axis: Callable[[Place], float], rest: Callable[[Place], bool]) -> str:
    """The range for each value of an axis, at the places that are swept along it."""
    swept = {_but_costs(ratio.place) for ratio in found if axis(ratio.place) != 1.0}
    here = [ratio for ratio in found if rest(ratio.place) and _but_costs(ratio.place) in swept]
    values = sorted({axis(ratio.place) for ratio in here})
    return ", ".join(f"{value:g}: {_range([one for one in here if axis(one.place) == value])}" for value in values)


def _but_costs(place: Place) -> tuple[str, str, int, float, str, str]:
    return place.cluster, place.pair, place.nodes, place.acceptance, place.drafts, place.accounting


def _emulated(bearing: Bearing) -> Iterator[Evidence]:
    found = ratios(bearing.emulated, BASELINE)
    if found:
        yield Evidence("emulated, in real time", f"{_range(found)} at {len(found)} points")


def _real(own: list[Ratio], shared: list[Ratio]) -> Iterator[Evidence]:
    yield from (
        Evidence(f"real, ranks with compute of their own, {one.place.text}", f"{one.value:.2f}x") for one in own
    )
    if not own:
        yield NO_REAL_RUN
    yield from (
        Evidence(f"real, ranks sharing this machine's cores, {one.place.text}", f"{one.value:.2f}x") for one in shared
    )
    if shared:
        yield Evidence(
            "where ranks share cores",
            "no stage is idle, and speculation takes time from the other ranks: a limit of the machine, which decides "
            "nothing",
        )


def _losses(everywhere: list[Ratio]) -> Iterator[Evidence]:
    modelled = as_modelled(everywhere)
    lost = [ratio for ratio in modelled if ratio.value < 1]
    if lost:
        shallow = all(ratio.place.nodes == 2 for ratio in lost)
        reason = "one stage of the target has nothing to overlap" if shallow else _CHEAP
        where = f"at {len(lost)} of {len(modelled)} points as modelled, most at {at(least(lost))}"
        yield Evidence("it loses", f"{where}: {reason}")
    elif modelled:
        yield Evidence("it loses", f"at none of {len(modelled)} points as modelled; least at {at(least(modelled))}")
    cheap = [ratio for ratio in everywhere if ratio.place.width_cost < 1 and ratio.value < 1]
    if cheap:
        yield Evidence("with cheaper width it loses", f"at {len(cheap)} points, most at {at(least(cheap))}: {_CHEAP}")


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
    everywhere = [ratio for ratio in ratios(bearing.simulated, BASELINE) if not ratio.place.drafts]
    modelled = as_modelled(everywhere)
    poor, good = ([one for one in modelled if one.place.acceptance == level] for level in (POOR, GOOD))
    if not poor or not good:
        return None
    pairs = [(one, other) for one in poor for other in good if _alike(one.place, other.place)]
    more = sum(one.value > other.value for one, other in pairs)
    evidence = [
        Evidence("at most, poorly and well aligned", f"{at(most(poor))}; {at(most(good))}"),
        Evidence("the poorly aligned pair gains more", f"at {more} of {len(pairs)} points that differ in nothing else"),
    ]
    free = [ratio for ratio in everywhere if ratio.place.width_cost == 0]
    if free:
        values = {level: [one for one in free if one.place.acceptance == level] for level in (POOR, GOOD)}
        text = ", ".join(f"{_range(found)} at {level:g}" for level, found in values.items() if found)
        evidence.append(Evidence("where width is free", text))
    evidence.append(
        Evidence(
            "why",
            "the better the draft, the longer the chains of runs that PipeInfer keeps in flight; the synchronous "
            "baseline gains from a good draft only as far as width is cheap",
        )
    )
    figure = f"up to {most(good).value:.2f}x well aligned, {most(poor).value:.2f}x poorly aligned, simulated"
    share = more / len(pairs) if pairs else 0.0
    verdict: Verdict = "reproduced" if share > MOSTLY else "partly" if share > 0.5 else "not reproduced"
    condition = f"poor is {POOR:g}, good {GOOD:g}; which acceptance the digest calls poor or good is not known"
    return Finding(figure, verdict, evidence, condition)


def _alike(one: Place, other: Place) -> bool:
    return one.parts() | {"acceptance": ""} == other.parts() | {"acceptance": ""}
