"""Verdicts on the paper's claims, each from the analyses of the recipes that bear on it.

A verdict is *reproduced*, *partly*, *not reproduced*, or *not testable here* where nothing that would show it was run.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from pipeinfer import metrics, workload
from pipeinfer.assets import asset
from pipeinfer.reproduce.analysis import REFERENCE, Analysis, Metric, Place, paired_ratio
from pipeinfer.results import Trial
from pipeinfer.workload import Entry

Verdict = Literal["reproduced", "partly", "not reproduced", "not testable here"]
Analyses = Mapping[str, Analysis]

NOISE = 1.02
"""A ratio below this is no speedup: the simulator's agreement with theory is no closer."""


class Published(Entry, frozen=True):
    """An entry of paper_figures/reference/claims.toml."""

    claim: str
    published: str
    source: str
    value: float | None = None


class Claim(msgspec.Struct, frozen=True):
    """One line of claims.json. `reproduced` is the figure found here, as text."""

    id: str
    claim: str
    published: str
    reproduced: str
    verdict: Verdict
    evidence: str


class Ratio(msgspec.Struct, frozen=True):
    """PipeInfer over another strategy in one place."""

    value: float
    place: Place
    recipe: str


def judge(analyses: Analyses) -> list[Claim]:
    """Every claim that there is a judgement for, in the order of the reference file."""
    path = asset("paper_figures/reference/claims.toml")
    published = workload.load(path, dict[str, Published])
    return [JUDGES[name](name, entry, analyses) for name, entry in published.items() if name in JUDGES]


def ratios(analyses: Iterable[Analysis], over: str, metric: Metric = metrics.tokens_per_second) -> list[Ratio]:
    """PipeInfer over the strategy `over`, everywhere that both were run."""
    found = []
    for analysis in analyses:
        for place in analysis.places:
            there = analysis.at(place)
            if "pipeinfer" in there and over in there:
                value = paired_ratio(there["pipeinfer"], there[over], metric)
                if value is not None:
                    found.append(Ratio(value, place, analysis.recipe.name))
    return found


def _speed(name: str, published: Published, analyses: Analyses) -> Claim:
    """C1: up to 2.15x over standard speculative inference."""
    simulated = _of(analyses, "sim")
    everywhere = ratios(simulated, "speculative")
    modelled = [ratio for ratio in everywhere if ratio.place.width_cost == 1.0]
    live = ratios(_of(analyses, "real"), "speculative")
    judged = modelled or live
    if not judged or published.value is None:
        return _untested(name, published, "neither a simulated nor a live comparison was run")
    most = max(judged, key=_value)
    verdict: Verdict = "reproduced" if most.value >= published.value else "partly"
    if most.value < NOISE:
        verdict = "not reproduced"
    parts = [*_simulated_speed(modelled), *_free_width(everywhere), *_live_speed(live), *_losses(everywhere, live)]
    return _claim(name, published, _found(modelled, live), verdict, parts)


def _found(modelled: list[Ratio], live: list[Ratio]) -> str:
    parts = [f"up to {max(map(_value, modelled)):.2f}x simulated"] if modelled else []
    if live:
        parts.append(f"{min(map(_value, live)):.2f}x to {max(map(_value, live)):.2f}x live on one machine")
    return ", ".join(parts)


def _simulated_speed(modelled: list[Ratio]) -> list[str]:
    if not modelled:
        return []
    most, least = max(modelled, key=_value), min(modelled, key=_value)
    return [
        f"simulated over the baseline at its best K: at most {most.value:.2f}x ({most.place.text}), at least "
        f"{least.value:.2f}x ({least.place.text}); acceptance and arithmetic efficiency are assumed"
    ]


def _free_width(everywhere: list[Ratio]) -> list[str]:
    free = [ratio.value for ratio in everywhere if ratio.place.width_cost == 0]
    if not free:
        return []
    return [f"where verifying more rows costs nothing: {min(free):.2f}x to {max(free):.2f}x"]


def _live_speed(live: list[Ratio]) -> list[str]:
    return [f"live on this machine, {ratio.place.text}: {ratio.value:.2f}x" for ratio in live]


def _losses(everywhere: list[Ratio], live: list[Ratio]) -> list[str]:
    parts = []
    lost = [ratio for ratio in everywhere if ratio.value < 1]
    if lost:
        worst = min(lost, key=_value)
        parts.append(
            f"it loses at {len(lost)} of {len(everywhere)} simulated points, most at {worst.place.text} "
            f"({worst.value:.2f}x): a wide synchronous run gets there for the price of one row what PipeInfer sends in "
            "several, and a short pipeline has few stages to overlap"
        )
    elif everywhere:
        parts.append(f"it loses at none of {len(everywhere)} simulated points")
    if any(ratio.value < 1 for ratio in live):
        parts.append(
            "it loses live because all ranks share this machine's cores: speculation that fills idle stages of a "
            "cluster takes time from the other ranks here"
        )
    return parts


def _latency(name: str, published: Published, analyses: Analyses) -> Claim:
    """C2: reduces inter-token latency, against both baselines."""
    simulated, real = _of(analyses, "sim"), _of(analyses, "real")
    found = {over: ratios(simulated, over, _mean_gap) for over in ("speculative", REFERENCE)}
    values = [ratio.value for over in found.values() for ratio in over]
    where = "simulated"
    if not values:
        found = {over: ratios(real, over, _mean_gap) for over in ("speculative", REFERENCE)}
        values = [ratio.value for over in found.values() for ratio in over]
        where = "live"
    if not values:
        return _untested(name, published, "neither a simulated nor a live comparison was run")
    lower = sum(value < 1 for value in values)
    verdict: Verdict = "reproduced" if lower == len(values) else "partly" if lower else "not reproduced"
    parts = [f"mean gap {where}, of that of {over}: {_least_and_most(there)}" for over, there in found.items() if there]
    tails = ratios(simulated, "speculative", _tail_gap)
    if tails:
        parts.append(f"95th percentile, of that of speculative: {_least_and_most(tails)}")
    if where == "simulated":
        parts += [f"live mean gap, {r.place.text}: {r.value:.2f} of that of speculative"
                  for r in ratios(real, "speculative", _mean_gap)]  # fmt: skip
    found_here = f"mean gap {min(values):.2f} to {max(values):.2f} of the baselines', {where}"
    return _claim(name, published, found_here, verdict, parts)


def _lossless(name: str, published: Published, analyses: Analyses) -> Claim:
    """C10: the same tokens as plain decoding. Only real models can show it: simulated tokens come from an oracle."""
    real = _of(analyses, "real")
    compared = [analysis for analysis in real if analysis.passed or analysis.rejected]
    passed = sum(analysis.passed for analysis in compared)
    differing = [one for analysis in compared for one in analysis.rejected if "differ" in one.reason]
    failed = sum(len(analysis.rejected) for analysis in compared) - len(differing)
    if not passed and not differing:
        why = "no live generation succeeded" if failed else "no live generation was run"
        return _untested(name, published, why)
    total = passed + len(differing)
    parts = [f"{passed} of {total} live generations gave the token ids of the iterative run, greedy and sampled"]
    parts += [f"{failed} failed"] * bool(failed)
    parts += [f"{one.strategy} {one.place.text}, {one.draw}: {one.reason}" for one in differing[:3]]
    return _claim(
        name, published, f"{passed} of {total} identical", "not reproduced" if differing else "reproduced", parts
    )


JUDGES: dict[str, Callable[[str, Published, Analyses], Claim]] = {"C1": _speed, "C2": _latency, "C10": _lossless}


def _of(analyses: Analyses, fidelity: str) -> list[Analysis]:
    return [one for one in analyses.values() if one.recipe.fidelity == fidelity and one.recipe.claims]


def _value(ratio: Ratio) -> float:
    return ratio.value


def _mean_gap(trial: Trial) -> float | None:
    return metrics.itl_s(trial)["mean"]


def _tail_gap(trial: Trial) -> float | None:
    return metrics.itl_s(trial)["p95"]


def _least_and_most(found: list[Ratio]) -> str:
    least, most = min(found, key=_value), max(found, key=_value)
    return f"{least.value:.2f} ({least.place.text}) to {most.value:.2f} ({most.place.text})"


def _claim(name: str, published: Published, reproduced: str, verdict: Verdict, parts: Iterable[str]) -> Claim:
    value = f"{published.published} [{published.source}]"
    return Claim(name, published.claim, value, reproduced, verdict, "; ".join(parts))


def _untested(name: str, published: Published, why: str) -> Claim:
    return _claim(name, published, "-", "not testable here", [why])
