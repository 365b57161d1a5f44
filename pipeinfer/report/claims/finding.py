"""What judges work with: ratios between contenders over all places, as rows of a table, and what they find."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

import msgspec
import pandas as pd

from pipeinfer.report.experiment import Experiment
from pipeinfer.report.page import ends
from pipeinfer.report.published import Published
from pipeinfer.results import analysis
from pipeinfer.results.frame import PLACE
from pipeinfer.study.places import Place

Verdict = Literal["reproduced", "partly", "not reproduced", "not testable here"]

NOISE = 1.02
"""A ratio below this is no gain: the simulator's agreement with theory is no closer."""


class Evidence(msgspec.Struct, frozen=True):
    """One line of what speaks for a verdict, or against it."""

    what: str
    found: str


NAMES = {
    "C1": "generation speed", "C2": "inter-token latency", "C3": "utilisation", "C4": "low acceptance",
    "C5": "slow links", "C6": "continuous speculation", "C7": "early cancellation", "C8": "alignment of models",
    "C9": "size of micro-batches", "C10": "the same tokens",
}  # fmt: skip
"""What claims are about, for a line of each."""


class Claim(msgspec.Struct, frozen=True):
    """One entry of claims.json. `reproduced` is the figure found here, as text, and `brief` the same in few words;
    `condition` says under which it holds; `figure` is the file that shows it, without suffix, or ""."""

    id: str
    claim: str
    published: str
    reproduced: str
    verdict: Verdict
    condition: str
    evidence: list[Evidence]
    brief: str
    figure: str = ""

    @property
    def name(self) -> str:
        """Of what it is about."""
        return NAMES[self.id]


class Finding(msgspec.Struct, frozen=True):
    """What a judge found: the figure, the verdict, what speaks for it, under which condition it holds, and where the
    figure has many words a `brief` one: a line of a terminal has room for 35 characters of it."""

    figure: str
    verdict: Verdict
    evidence: list[Evidence]
    condition: str = ""
    brief: str = ""


class Bearing(msgspec.Struct, frozen=True):
    """The experiments that name a claim, by fidelity."""

    simulated: list[Experiment]
    emulated: list[Experiment]
    live: list[Experiment]
    published: Published


Judge: TypeAlias = Callable[[Bearing], Finding | None]
"""None: nothing that bears on the claim was run."""


NOWHERE = pd.DataFrame(columns=[*PLACE, "value"], dtype="float64").assign(own_compute=pd.Series(dtype=bool))


def ratios(
    experiments: Iterable[Experiment], over: str, metric: str = analysis.SPEED, of: str = "pipeinfer"
) -> pd.DataFrame:
    """The contender `of` over `over`: a row, of the table of trials, per place in which both were run, with `value`."""
    found = [one.ratios(metric, of, over) for one in experiments]
    return pd.concat(found, ignore_index=True) if found else NOWHERE


def all_or_some(holds: Iterable[bool]) -> Verdict:
    known = list(holds)
    return "reproduced" if all(known) else "partly" if any(known) else "not reproduced"


def most(found: pd.DataFrame) -> Any:
    return found.loc[found.value.idxmax()]


def least(found: pd.DataFrame) -> Any:
    return found.loc[found.value.idxmin()]


def as_modelled(found: pd.DataFrame) -> pd.DataFrame:
    """Those in which neither the cost of width nor that of the draft was changed."""
    return found[(found.width_cost == 1) & (found.draft_cost == 1)]


def at(row: Any) -> str:
    return f"{row.value:.2f}x ({Place.of(row).text})"


def span(found: pd.DataFrame) -> str:
    """The lowest and the highest, and where."""
    return " to ".join(f"{row.value:.2f} ({Place.of(row).text})" for row in (least(found), most(found)))


def low_to_high(found: pd.DataFrame, unit: str = "x") -> str:
    """Like `1.64x to 2.06x`."""
    return ends(found.value, "{:.2f}" + unit)
