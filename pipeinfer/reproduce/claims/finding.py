"""What judges work with: ratios between contenders over all places, and what they find."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias

import msgspec

from pipeinfer.reproduce.analysis import Analysis, Best, Metric, Place, paired_ratio
from pipeinfer.reproduce.published import Published
from pipeinfer.results import metrics

Verdict = Literal["reproduced", "partly", "not reproduced", "not testable here"]

NOISE = 1.02
"""A ratio below this is no gain: the simulator's agreement with theory is no closer."""


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
    """One contender over another in one place. `own_compute`: no rank had to share a core with another."""

    value: float
    place: Place
    own_compute: bool = True


class Bearing(msgspec.Struct, frozen=True):
    """The analyses of the recipes that name a claim, by fidelity."""

    simulated: list[Analysis]
    emulated: list[Analysis]
    live: list[Analysis]
    published: Published


Judge: TypeAlias = Callable[[Bearing], Finding | None]
"""None: nothing that bears on the claim was run."""


def ratios(
    analyses: Iterable[Analysis], over: str, metric: Metric = metrics.tokens_per_second, of: str = "pipeinfer"
) -> list[Ratio]:
    """The contender `of` over `over`, everywhere that both were run."""
    found = []
    for there in places(analyses):
        if of in there and over in there:
            value = paired_ratio(there[of], there[over], metric)
            if value is not None:
                found.append(Ratio(value, there[of].place, has_own_compute(there[of])))
    return found


def has_own_compute(best: Best) -> bool:
    """Whether the ranks of its trials had cores enough for all of them at once, host by host; a rank that was made
    slower by a share of its core counts as that share. Hosts are taken to have as many cores as the head's."""
    cores = best.record.environment.get("cores", 0)
    return all(
        sum(rank.cpu_share for rank in trial.ranks if rank.host == host) <= cores
        for trial in best.trials.values()
        if trial.fidelity == "real"
        for host in {rank.host for rank in trial.ranks}
    )


def places(analyses: Iterable[Analysis]) -> Iterator[dict[str, Best]]:
    """The contenders of each place, by name."""
    for analysis in analyses:
        for place in analysis.places:
            yield analysis.at(place)


def first(there: dict[str, Best]) -> Best:
    """Any contender of a place."""
    return next(iter(there.values()))


def all_or_some(holds: list[bool]) -> Verdict:
    return "reproduced" if all(holds) else "partly" if any(holds) else "not reproduced"


def most(found: list[Ratio]) -> Ratio:
    return max(found, key=lambda ratio: ratio.value)


def least(found: list[Ratio]) -> Ratio:
    return min(found, key=lambda ratio: ratio.value)


def as_modelled(found: Iterable[Ratio]) -> list[Ratio]:
    """Those in which neither the cost of width nor that of the draft was changed."""
    return [ratio for ratio in found if (ratio.place.width_cost, ratio.place.draft_cost) == (1.0, 1.0)]


def at(ratio: Ratio) -> str:
    return f"{ratio.value:.2f}x ({ratio.place.text})"


def span(found: list[Ratio]) -> str:
    low, high = least(found), most(found)
    return f"{low.value:.2f} ({low.place.text}) to {high.value:.2f} ({high.place.text})"
