"""What is done with the table of trials, once, for figures, tables, claims and comparisons alike: the gate that token
ids must pass, each contender's best variant per place, ratios draw by draw, and bands."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from pipeinfer.results.divergence import divergence

REFERENCE = "iterative"
"""The contender whose token ids every other must give."""

BASELINE = "speculative"
"""The contender that gains are over."""

SPEED = "tokens_per_s"
VALID = ("passed", "tie", "not judged")
"""Status of trials that have a performance."""


def judged(trials: pd.DataFrame) -> pd.DataFrame:
    """The table with `status`, `why`, `best` and the two ratios of speed filled in."""
    trials = gated(trials, ["place", "text"], trials.contender == REFERENCE)
    others = trials.program != ""
    trials.loc[others & (trials.status != "failed"), ["status", "why"]] = (
        "not judged", "a program of others, with another llama.cpp: its text is shown"
    )  # fmt: skip
    trials = trials.assign(best=_best(trials))
    chosen = trials[trials.best]
    for column, over in (("over_iterative", REFERENCE), ("over_speculative", BASELINE)):
        trials[column] = quotients(trials, SPEED, chosen[chosen.contender == over])
    return trials


def gated(trials: pd.DataFrame, by: list[str], is_reference: pd.Series) -> pd.DataFrame:
    """The table with `status` and `why`: each text held against the first of the references with equal columns `by`."""
    known = trials[is_reference & (trials.status != "failed")].drop_duplicates(by)
    first = dict(zip(known[by].itertuples(index=False, name=None), known.itertuples(), strict=True))
    keys = trials[by].itertuples(index=False, name=None)
    found = [_verdict(row, first.get(key)) for key, row in zip(keys, trials.itertuples(), strict=True)]
    return trials.assign(**pd.DataFrame(found, trials.index, ["status", "why"]))


def _verdict(own: Any, reference: Any) -> tuple[str, str]:
    """Status of a trial, and why it is not passed."""
    if own.status == "failed":
        return own.status, own.why
    if reference is None:
        return "no reference", "there is no iterative run to compare its token ids with"
    found = divergence(own, reference)
    if found is None:
        return "passed", ""
    return ("tie", found.text) if found.is_tie else (
        "differs", f"token ids differ from the iterative run's: {found.text}"
    )  # fmt: skip


def _best(trials: pd.DataFrame) -> pd.Series:
    """Whether a trial is valid and of the variant with the highest median speed; the first of equals. Those by which
    options were chosen count where there are no others."""
    valid = trials[trials.status.isin(VALID)].fillna({SPEED: 0.0})
    valid = valid[~valid.tuning | valid.groupby(["place", "contender"]).tuning.transform("all")]
    medians = valid.groupby(["place", "contender", "variant"])[SPEED].transform("median")
    fastest = medians.groupby([valid.place, valid.contender]).transform("idxmax")
    chosen = valid.variant == valid.variant.reindex(fastest).to_numpy()
    return chosen.reindex(trials.index, fill_value=False)


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
    by_place = found.groupby("place", sort=False).agg({"value": "median", "own_compute": "all"})
    return found.drop_duplicates("place").drop(columns=[*by_place]).merge(by_place, on="place")


def band(values: Iterable[float]) -> tuple[float, float]:
    """Bootstrap interval around the median: what seaborn takes as an error bar."""
    known = [value for value in values if value == value]
    return interval(known) if known else (float("nan"),) * 2


def interval(
    *samples: Sequence[float], statistic: Callable[..., Any] = np.median, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile-bootstrap interval of a statistic of a sample, or of several whose values belong together one by one.
    Percentile, because the bias-corrected kind is undefined on constant samples, which deterministic simulations give.
    """
    if all(len(set(sample)) < 2 for sample in samples):
        return (float(statistic(*samples)),) * 2
    return _interval(tuple(map(tuple, samples)), statistic, confidence)


@cache
def _interval(
    samples: tuple[tuple[float, ...], ...], statistic: Callable[..., Any], confidence: float
) -> tuple[float, float]:
    """Kept, since tables, figures and verdicts ask for the same ones."""
    from scipy.stats import bootstrap

    found = bootstrap(
        tuple(map(np.asarray, samples)), statistic, paired=len(samples) > 1, confidence_level=confidence,
        n_resamples=2000, method="percentile", rng=np.random.Generator(np.random.Philox(key=[0, 0xB007])),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)
