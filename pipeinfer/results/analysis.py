"""What is done with the table of trials, once, for figures, tables, claims and comparisons alike: the gate that token
ids must pass, each contender's best variant per place, ratios draw by draw, and bands."""

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from pipeinfer.results.divergence import divergence
from pipeinfer.results.metrics import median_band

REFERENCE = "iterative"
"""The contender whose token ids every other must give."""

BASELINE = "speculative"
"""The contender that gains are over."""

SPEED = "tokens_per_s"
VALID = ("passed", "tie", "not judged")
"""Status of trials that have a performance."""


class Text(NamedTuple):
    """What decides whether two texts are the same."""

    token_ids: tuple[int, ...]
    margins: tuple[float, ...]
    precision: str


def judged(trials: pd.DataFrame) -> pd.DataFrame:
    """The table with `status`, `why`, `best` and the two ratios of speed filled in."""
    found = [
        (status, why) if status == "failed" else _verdict(own, reference, program)
        for status, why, own, reference, program in zip(
            trials.status, trials.why, _texts(trials), _references(trials), trials.program, strict=True
        )
    ]
    trials = trials.assign(status=[status for status, _ in found], why=[why for _, why in found])
    trials = trials.assign(best=_best(trials))
    chosen = trials[trials.best]
    for column, over in (("over_iterative", REFERENCE), ("over_speculative", BASELINE)):
        trials[column] = quotients(trials, SPEED, chosen[chosen.contender == over])
    return trials


def _texts(trials: pd.DataFrame) -> list[Text | None]:
    columns = trials[["status", "token_ids", "margins", "precision"]].itertuples(index=False, name=None)
    return [None if status == "failed" else Text(tuple(ids), tuple(near), what) for status, ids, near, what in columns]


def _references(trials: pd.DataFrame) -> list[Text | None]:
    """For each trial the first iterative text of its place and draw."""
    keys = list(zip(trials.place, trials.text, strict=True))
    first: dict[tuple[int, str], Text] = {}
    for key, contender, text in zip(keys, trials.contender, _texts(trials), strict=True):
        if contender == REFERENCE and text is not None:
            first.setdefault(key, text)
    return [first.get(key) for key in keys]


def _verdict(own: Text | None, reference: Text | None, program: str) -> tuple[str, str]:
    """Status of a trial, and why it is not passed."""
    if program:
        return "not judged", "a program of others, with another llama.cpp: its text is shown"
    if own is None or reference is None:
        return "no reference", "there is no iterative run to compare its token ids with"
    found = divergence(own, reference)
    if found is None:
        return "passed", ""
    return ("tie", found.text) if found.is_tie else (
        "differs", f"token ids differ from the iterative run's: {found.text}"
    )  # fmt: skip


def _best(trials: pd.DataFrame) -> pd.Series:
    """Whether a trial is valid and of the variant with the highest median speed; the first of equals."""
    valid = trials.status.isin(VALID)
    medians = trials[valid].fillna({SPEED: 0.0}).groupby(["place", "contender", "variant"], sort=False)[SPEED].median()
    if medians.empty:
        return valid
    fastest = set(medians.groupby(["place", "contender"], sort=False).idxmax())
    of = zip(trials.place, trials.contender, trials.variant, strict=True)
    return valid & pd.Series([one in fastest for one in of], index=trials.index)


def quotients(trials: pd.DataFrame, metric: str, over: pd.DataFrame) -> pd.Series:
    """For each trial: its metric, of that in `over` in the same place and draw, so that chance hits both alike."""
    below = over.drop_duplicates(["place", "draw"]).set_index(["place", "draw"])[metric]
    under = below.reindex(pd.MultiIndex.from_frame(trials[["place", "draw"]])).to_numpy()
    return (trials[metric] / under).where(under != 0)


def ratios(trials: pd.DataFrame, metric: str, of: str, over: str) -> pd.DataFrame:
    """A row per place in which both contenders have trials, with `value`: the median quotient at their best."""
    best = trials[trials.best]
    own = best[best.contender == of]
    found = own.assign(value=quotients(own, metric, best[best.contender == over])).dropna(subset=["value"])
    by_place = found.groupby("place", sort=False)
    return by_place.first().assign(value=by_place.value.median(), own_compute=by_place.own_compute.all()).reset_index()


def band(values: Iterable[float]) -> tuple[float, float]:
    """Bootstrap interval around the median: what seaborn takes as an error bar."""
    known = [value for value in values if value == value]
    low, _, high = median_band(known) if known else (float("nan"),) * 3
    return low, high
