"""The ways of decoding among which `adaptive` chooses, with what each should take."""

from collections.abc import Callable
from typing import NamedTuple

from pipeinfer.core.forecast import Forecast

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Tokens per run of a pipelined chain that are considered."""

BEAMS = (2, 4, 8)
"""Branches per level of a pipelined tree that are considered."""

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Drafted tokens per round of synchronous speculation that are considered."""

DEAR = 0.5
"""Where a further row costs as much of the first, no tree is tried: its levels hold the slowest stage up."""


class Way(NamedTuple):
    """How to decode: `kind` is plain, synchronous, chain or tree; runs are of `k` drafted tokens, or of levels of `k`
    branches."""

    kind: str
    k: int = 0

    @property
    def forwards(self) -> int:
        """Of the draft, for a run."""
        return 1 if self.kind == "tree" else self.k

    def __str__(self) -> str:
        return self.kind if self.kind == "plain" else f"{self.kind} of {self.k}"


def every_way(forecast: Forecast, hit: Callable[[int, float], float]) -> list[tuple[Way, float]]:
    """Every way there is, with the seconds that it should take per token. `hit`: the chance that a level of so many
    branches holds the target's token, by the acceptance."""
    trees = BEAMS if forecast.width_cost < DEAR else ()
    return [
        (Way("plain"), forecast.plain_s()),
        *((Way("synchronous", k), forecast.synchronous_s(k)) for k in LENGTHS),
        *((Way("chain", k), forecast.chain_s(k)) for k in WIDTHS),
        *((Way("tree", w), forecast.tree_s(w, hit(w, forecast.acceptance))) for w in trees),
    ]
