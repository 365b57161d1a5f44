"""What judges work with: ratios between contenders over all places, and what they find."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import pandas as pd

from pipeinfer.report.experiment import Experiment
from pipeinfer.report.published import Published
from pipeinfer.results import analysis
from pipeinfer.study.places import Place

Verdict = Literal["reproduced", "partly", "not reproduced", "not testable here"]

NOISE = 1.02
"""A ratio below this is no gain: the simulator's agreement with theory is no closer."""


class Evidence(msgspec.Struct, frozen=True):
    """One line of what speaks for a verdict, or against it."""

    what: str
    found: str


class Claim(msgspec.Struct, frozen=True):
    """One entry of claims.json. `reproduced` is the figure found here, as text; `condition` says under which it holds;
    `figure` is the file that shows it, without suffix, or ""."""

    id: str
    claim: str
    published: str
    reproduced: str
    verdict: Verdict
    condition: str
    evidence: list[Evidence]
    figure: str = ""

    @property
    def text(self) -> str:
        """All of the evidence."""
        return "; ".join(f"{line.what}: {line.found}" for line in self.evidence)


class Finding(msgspec.Struct, frozen=True):
    """What a judge found: the figure, the verdict, what speaks for it, and under which condition it holds."""

    figure: str
    verdict: Verdict
    evidence: list[Evidence]
    condition: str = ""


class Ratio(NamedTuple):
    """One contender over another in one place. `own_compute`: no rank had to share a core with another."""

    value: float
    place: Place
    own_compute: bool = True


class Bearing(msgspec.Struct, frozen=True):
    """The experiments that name a claim, by fidelity."""

    simulated: list[Experiment]
    emulated: list[Experiment]
    live: list[Experiment]
    published: Published


Judge: TypeAlias = Callable[[Bearing], Finding | None]
"""None: nothing that bears on the claim was run."""


def ratios(
    experiments: Iterable[Experiment], over: str, metric: str = analysis.SPEED, of: str = "pipeinfer"
) -> list[Ratio]:
    """The contender `of` over `over`, everywhere that both were run."""
    return [
        Ratio(row.value, Place.of(row), row.own_compute)
        for one in experiments
        for row in analysis.ratios(one.trials, metric, of, over).itertuples()
    ]


def places(experiments: Iterable[Experiment]) -> Iterator[pd.DataFrame]:
    """The contenders' medians, place by place, indexed by contender."""
    for one in experiments:
        for _, there in one.medians.groupby("place", sort=False):
            yield there.set_index("contender")


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
