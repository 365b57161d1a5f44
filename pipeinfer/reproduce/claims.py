"""Verdicts on the paper's claims, each from the analyses of the recipes that bear on it.

A verdict is *reproduced*, *partly*, *not reproduced*, or *not testable here* where nothing that would show it was run.
Where simulation and live runs both speak, the verdict is that of the simulation, which has a cluster, and the evidence
has both; only C10, lossless, is judged by real runs alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from pipeinfer import metrics, workload
from pipeinfer.assets import asset
from pipeinfer.reproduce.analysis import REFERENCE, Analysis, Best, Metric, Place, paired_ratio
from pipeinfer.reproduce.figures import mean_gap, tail_gap
from pipeinfer.workload import Entry

Verdict = Literal["reproduced", "partly", "not reproduced", "not testable here"]

NOISE = 1.02
"""A ratio below this is no gain: the simulator's agreement with theory is no closer."""

LARGEST_MICRO_BATCH = 4
"""C9: micro-batches of 1 to 4 tokens beat larger ones."""


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


class Finding(msgspec.Struct, frozen=True):
    """What a judge found: the figure, the verdict, and what speaks for it."""

    figure: str
    verdict: Verdict
    evidence: list[str]


class Ratio(msgspec.Struct, frozen=True):
    """One contender over another in one place."""

    value: float
    place: Place


class Bearing(msgspec.Struct, frozen=True):
    """The analyses of the recipes that name a claim."""

    simulated: list[Analysis]
    live: list[Analysis]
    published: Published


Judge = Callable[[Bearing], Finding | None]


def judge(analyses: Mapping[str, Analysis]) -> list[Claim]:
    """Every claim that there is a judge for, in the order of the reference file."""
    published = workload.load(asset("paper_figures/reference/claims.toml"), dict[str, Published])
    return [_judged(name, entry, analyses) for name, entry in published.items() if name in JUDGES]


def _judged(name: str, published: Published, analyses: Mapping[str, Analysis]) -> Claim:
    bearing = [one for one in analyses.values() if name in one.recipe.claims]
    simulated = [one for one in bearing if one.recipe.simulated is not None]
    live = [one for one in bearing if one.recipe.live is not None]
    found = JUDGES[name](Bearing(simulated, live, published))
    if found is None:
        found = Finding("-", "not testable here", ["no trial that bears on it was run, or none passed"])
    text = f"{published.published} [{published.source}]"
    return Claim(name, published.claim, text, found.figure, found.verdict, "; ".join(found.evidence))


def ratios(
    analyses: Iterable[Analysis], over: str, metric: Metric = metrics.tokens_per_second, of: str = "pipeinfer"
) -> list[Ratio]:
    """The contender `of` over `over`, everywhere that both were run."""
    found = []
    for there in _places(analyses):
        if of in there and over in there:
            value = paired_ratio(there[of], there[over], metric)
            if value is not None:
                found.append(Ratio(value, there[of].place))
    return found


def _places(analyses: Iterable[Analysis]) -> Iterator[dict[str, Best]]:
    for analysis in analyses:
        for place in analysis.places:
            yield analysis.at(place)


# C1: speed


def _speed(bearing: Bearing) -> Finding | None:
    everywhere = ratios(bearing.simulated, "speculative")
    modelled = [ratio for ratio in everywhere if ratio.place.width_cost == 1.0]
    live = ratios(bearing.live, "speculative")
    judged = modelled or live
    if not judged or bearing.published.value is None:
        return None
    most = _most(judged).value
    verdict: Verdict = (
        "reproduced" if most >= bearing.published.value else "partly" if most >= NOISE else "not reproduced"
    )
    figures = [f"up to {_most(modelled).value:.2f}x simulated"] if modelled else []
    figures += [f"{_least(live).value:.2f}x to {_most(live).value:.2f}x live on one machine"] if live else []
    evidence = []
    if modelled:
        evidence.append(
            f"simulated, over the baseline at its best K: at most {_at(_most(modelled))}, at least "
            f"{_at(_least(modelled))}; acceptance and the efficiency of arithmetic are assumed"
        )
    free = [ratio for ratio in everywhere if ratio.place.width_cost == 0]
    if free:
        evidence.append(
            f"where verifying more rows costs nothing: {_least(free).value:.2f}x to {_most(free).value:.2f}x"
        )
    evidence += [f"live on this machine, {ratio.place.text}: {ratio.value:.2f}x" for ratio in live]
    return Finding(", ".join(figures), verdict, [*evidence, *_losses(everywhere, live)])


def _losses(everywhere: list[Ratio], live: list[Ratio]) -> Iterator[str]:
    lost = [ratio for ratio in everywhere if ratio.value < 1]
    if lost:
        yield (
            f"it loses at {len(lost)} of {len(everywhere)} simulated points, most at {_at(_least(lost))}: there a wide "
            "synchronous run gets for the price of one row what PipeInfer sends in several, or the pipeline is too "
            "short to overlap much"
        )
    elif everywhere:
        yield f"it loses at none of {len(everywhere)} simulated points"
    if any(ratio.value < 1 for ratio in live):
        yield (
            "it loses live because all ranks share this machine's cores: speculation that fills idle stages of a "
            "cluster takes time from the other ranks here"
        )


# C2: latency


def _latency(bearing: Bearing) -> Finding | None:
    analyses, where = (bearing.simulated, "simulated") if bearing.simulated else (bearing.live, "live")
    found = {over: ratios(analyses, over, mean_gap) for over in ("speculative", REFERENCE)}
    every = [ratio for over in found.values() for ratio in over]
    if not every:
        return None
    evidence = [f"mean gap, of that of {over}: {_range(there)}" for over, there in found.items() if there]
    tails = ratios(analyses, "speculative", tail_gap)
    evidence += [f"95th percentile, of that of speculative: {_range(tails)}"] if tails else []
    if where == "simulated":
        live = ratios(bearing.live, "speculative", mean_gap)
        evidence += [f"live, {ratio.place.text}: mean gap {ratio.value:.2f} of that of speculative" for ratio in live]
    figure = f"mean gap {_least(every).value:.2f} to {_most(every).value:.2f} of the baselines', {where}"
    return Finding(figure, _all_or_some([ratio.value < 1 for ratio in every]), evidence)


# C3: utilisation


def _utilisation(bearing: Bearing) -> Finding | None:
    found = {over: ratios(bearing.simulated, over, metrics.mean_utilisation) for over in ("speculative", REFERENCE)}
    every = [ratio for over in found.values() for ratio in over]
    if not every:
        return None
    shares = [
        share for there in _places(bearing.simulated) if "pipeinfer" in there
        for share in [there["pipeinfer"].median(metrics.mean_utilisation)] if share is not None
    ]  # fmt: skip
    evidence = [f"mean share of the time that ranks compute: {min(shares):.0%} to {max(shares):.0%}"]
    evidence += [f"of that of {over}: {_range(there)}" for over, there in found.items() if there]
    evidence.append("work on runs that turn out wrong counts as use")
    figure = f"{_least(every).value:.1f}x to {_most(every).value:.1f}x the baselines', simulated"
    return Finding(figure, _all_or_some([ratio.value >= NOISE for ratio in every]), evidence)


# C4: low acceptance


def _low_acceptance(bearing: Bearing) -> Finding | None:
    mine = ratios(bearing.simulated, REFERENCE)
    baseline = ratios(bearing.simulated, REFERENCE, of="speculative")
    if not mine or not baseline:
        return None
    lowest = min(mine, key=_acceptance)
    other = min(baseline, key=_acceptance)
    holds = [ratio.value >= 1 / NOISE for ratio in mine] + [lowest.value > other.value]
    below = [ratio.place.acceptance for ratio in baseline if ratio.value < 1]
    evidence = [
        f"over iterative decoding, by acceptance: {_by_acceptance(mine)}; speculative: {_by_acceptance(baseline)}"
    ]
    evidence += [f"speculative at its best K is slower than iterative up to acceptance {max(below):g}"] if below else []
    figure = f"{lowest.value:.2f}x iterative at acceptance {lowest.place.acceptance:g}, speculative {other.value:.2f}x"
    return Finding(figure, _all_or_some(holds), evidence)


def _by_acceptance(found: list[Ratio]) -> str:
    return ", ".join(f"{ratio.place.acceptance:g}: {ratio.value:.2f}x" for ratio in sorted(found, key=_acceptance))


def _acceptance(ratio: Ratio) -> float:
    return ratio.place.acceptance


# C5: slow links


def _slow_links(bearing: Bearing) -> Finding | None:
    by_bandwidth = [one for one in bearing.simulated if any(place.bandwidth_gbps for place in one.places)]
    holds, evidence, kept = [], [], []
    for acceptance in sorted({place.acceptance for one in by_bandwidth for place in one.places}):
        places = [there for there in _places(by_bandwidth) if _first(there).place.acceptance == acceptance]
        slowest, fastest = (pick(places, key=_bandwidth) for pick in (min, max))
        shares = {name: slowest[name].band()[1] / fastest[name].band()[1] for name in slowest if name in fastest}
        if not {"pipeinfer", "speculative"} <= set(shares):
            continue
        kept.append(shares["pipeinfer"])
        gains = {_bandwidth(there): paired_ratio(there["pipeinfer"], there["speculative"]) or 0.0 for there in places}
        gigabit = gains.get(1.0, gains[min(gains)])
        holds += [shares["pipeinfer"] >= shares["speculative"] - 0.005, gigabit >= NOISE * gains[max(gains)]]
        text = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        evidence.append(
            f"acceptance {acceptance:g}: speed at {_bandwidth(slowest):g} Gbit/s, of that at {_bandwidth(fastest):g}: "
            f"{text}; speedup over speculative by Gbit/s: "
            + ", ".join(f"{at:g}: {gain:.2f}x" for at, gain in sorted(gains.items()))
        )
    if not holds:
        return None
    return Finding(f"keeps {min(kept):.0%} to {max(kept):.0%} of its speed", _all_or_some(holds), evidence)


def _bandwidth(there: dict[str, Best]) -> float:
    return _first(there).place.bandwidth_gbps or 0.0


def _first(there: dict[str, Best]) -> Best:
    return next(iter(there.values()))


# C6, C7: what a mechanism is worth


def _ablated(without: str) -> Judge:
    """The judge of a mechanism that the contender `without` lacks."""

    def judge_it(bearing: Bearing) -> Finding | None:
        speeds = ratios(bearing.simulated, without)
        gaps = ratios(bearing.simulated, without, mean_gap)
        if not speeds:
            return None
        evidence = [f"speed with it, of that of {without}: {_range(speeds)}"]
        evidence.append(f"mean inter-token latency: {_range(gaps)}")
        figure = f"{_least(speeds).value:.2f}x to {_most(speeds).value:.2f}x the speed without, simulated"
        return Finding(figure, _all_or_some([ratio.value >= NOISE for ratio in speeds]), evidence)

    return judge_it


# C9: small micro-batches


def _micro_batch(bearing: Bearing) -> Finding | None:
    holds, evidence, best = [], [], set()
    for there in _places(bearing.simulated):
        speeds = {one.options["draft"]: one.band()[1] for one in there.values() if "draft" in one.options}
        small = [size for size in speeds if size <= LARGEST_MICRO_BATCH]
        large = [size for size in speeds if size > LARGEST_MICRO_BATCH]
        if not small or not large:
            continue
        holds.append(max(speeds[size] for size in small) > max(speeds[size] for size in large))
        best.add(max(speeds, key=lambda size: speeds[size]))
        text = ", ".join(f"{size}: {speed:.2f}" for size, speed in speeds.items())
        evidence.append(f"tokens/s by size, {_first(there).place.text}: {text}")
    if not holds:
        return None
    return Finding(f"best: {', '.join(map(str, sorted(best)))}, simulated", _all_or_some(holds), evidence)


# C10: the same tokens


def _lossless(bearing: Bearing) -> Finding | None:
    """Only real models can show it: simulated tokens come from an oracle."""
    passed = sum(analysis.passed for analysis in bearing.live)
    differing = [one for analysis in bearing.live for one in analysis.rejected if "differ" in one.reason]
    failed = sum(len(analysis.rejected) for analysis in bearing.live) - len(differing)
    if not passed and not differing:
        return None
    total = passed + len(differing)
    evidence = [f"{passed} of {total} live generations gave the token ids of the iterative run, greedy and sampled"]
    evidence += [f"{failed} failed"] * bool(failed)
    evidence += [f"{one.strategy} {one.place.text}, {one.draw}: {one.reason}" for one in differing[:3]]
    return Finding(f"{passed} of {total} identical", "not reproduced" if differing else "reproduced", evidence)


JUDGES: dict[str, Judge] = {
    "C1": _speed,
    "C2": _latency,
    "C3": _utilisation,
    "C4": _low_acceptance,
    "C5": _slow_links,
    "C6": _ablated("not continuous"),
    "C7": _ablated("no cancellation"),
    "C9": _micro_batch,
    "C10": _lossless,
}


def _all_or_some(holds: list[bool]) -> Verdict:
    return "reproduced" if all(holds) else "partly" if any(holds) else "not reproduced"


def _most(found: list[Ratio]) -> Ratio:
    return max(found, key=lambda ratio: ratio.value)


def _least(found: list[Ratio]) -> Ratio:
    return min(found, key=lambda ratio: ratio.value)


def _at(ratio: Ratio) -> str:
    return f"{ratio.value:.2f}x ({ratio.place.text})"


def _range(found: list[Ratio]) -> str:
    least, most = _least(found), _most(found)
    return f"{least.value:.2f} ({least.place.text}) to {most.value:.2f} ({most.place.text})"
