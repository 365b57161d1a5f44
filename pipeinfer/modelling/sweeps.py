"""Sweeps of options that find the best: what is tried at first, and what next.

A strategy says which of its options are swept and with which values (`Strategy.sweeps`). A sweep whose best is the
largest value tried has not seen the best yet, so it goes on, to the last value that the strategy names.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from pipeinfer.core.generation import Strategy

FIRST = 6
"""Values of an option that a sweep begins with."""

Options = dict[str, Any]


def first_options(strategy: Strategy, *, confident: bool) -> list[Options]:
    """What a sweep begins with; `confident`: the draft's confidence tells something."""
    values = {name: ladder[:FIRST] for name, ladder in strategy.sweeps.items()}
    values |= strategy.sweeps_by_confidence if confident else {}
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def further_options(sweeps: Mapping[str, Sequence[Any]], tried: Sequence[Options], best: int) -> list[Options]:
    """What to try next, where the best of those tried has a swept option at its largest; empty: the sweep has seen
    enough, or there is no more to be tried."""
    return [
        {**tried[best], name: larger[0]}
        for name, ladder in sweeps.items()
        if at_largest(tried, best, name)
        if (larger := [value for value in ladder if value > tried[best][name]])
    ]


def at_largest(tried: Sequence[Options], best: int, name: str) -> bool:
    """Whether several values of an option were tried with the best one's other options, and its own is the largest."""
    found = tried[best]
    values = {one[name] for one in tried if name in one and {**one, name: None} == {**found, name: None}}
    return name in found and len(values) > 1 and bool(found[name] == max(values))
