"""One forward of the draft: rows of one request, or of several that go as one, and of how many had best."""

from collections import deque
from collections.abc import Sequence
from statistics import median_low
from typing import NamedTuple

from pipeinfer.core.draft import Draft
from pipeinfer.core.effects import ComputeDraft
from pipeinfer.core.slots import ENOUGH, no_slower_than_wider, seconds_of
from pipeinfer.core.tree import Node

REMEMBERED = 64
"""Forwards whose times count. What some number of rows takes is found out anew where the last time is longer ago."""


class Share(NamedTuple):
    """The rows of one request in a forward: after each of the last `outputs` it wants so many `candidates`."""

    draft: Draft
    rows: list[Node]
    outputs: int
    candidates: int

    @property
    def silent(self) -> list[Node]:
        """Rows of text that nothing is asked of."""
        return self.rows[: len(self.rows) - self.outputs]

    @property
    def asked(self) -> list[Node]:
        """The others."""
        return self.rows[len(self.rows) - self.outputs :]


def assemble(shares: Sequence[Share]) -> ComputeDraft:
    """The forward that computes them. Its outputs are those of the shares, one after the other."""
    draft, first, outputs, candidates = shares[0]
    rows: Sequence[Node] = first
    requests: tuple[int, ...] = (draft.number,)
    if len(shares) > 1:  # Most go alone, and it is done for every forward.
        silent = [(node, share.draft.number) for share in shares for node in share.silent]
        asked = [(node, share.draft.number) for share in shares for node in share.asked]
        rows, requests = zip(*silent, *asked, strict=True)
        outputs, candidates = sum([share.outputs for share in shares]), max([share.candidates for share in shares])
    tokens, positions, sequences = zip(*[(node.token, node.position, (node.sequence,)) for node in rows], strict=True)
    return ComputeDraft(tokens, positions, sequences, outputs, candidates, requests)


class DraftTimes:
    """What forwards of so many rows take."""

    def __init__(self) -> None:
        self._newest: deque[tuple[int, float]] = deque(maxlen=REMEMBERED)

    def add(self, rows: int, seconds: float) -> None:
        """One more forward."""
        self._newest.append((rows, seconds))

    def best(self, rows: Sequence[int]) -> int:
        """Of requests that have so many rows to feed, each in its turn, how many had best go as one: the fewest that
        come within 5 % of as many requests per second as any number of them."""
        known = self._known()
        rates, together = [], 0
        for count, more in enumerate(rows, 1):
            together += more
            rates.append(count / max(seconds_of(known, together), 1e-9))
        enough = ENOUGH * max(rates)
        return next(count for count, rate in enumerate(rates, 1) if rate >= enough)

    def _known(self) -> dict[int, float]:
        taken: dict[int, list[float]] = {}
        for rows, seconds in self._newest:
            taken.setdefault(rows, []).append(seconds)
        return no_slower_than_wider({rows: median_low(several) for rows, several in taken.items()})
