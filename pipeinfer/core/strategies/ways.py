"""The ways of decoding among which `adaptive` chooses, with what each should take."""

from typing import NamedTuple

from pipeinfer.core.forecast import Forecast

RUNS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
"""Rows per run of a pipelined tree that are considered."""

ROUNDS = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64)
"""Rows per round, the last committed token's among them, of verifying a tree that goes on growing meanwhile."""

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Drafted tokens per round in which draft and target take turns."""


class Way(NamedTuple):
    """How to decode.

    plain          one token per traversal
    synchronous    draft `rows` tokens, verify them, one after the other
    rounds         verify the likeliest `rows` nodes of a tree, one run at a time; the draft goes on meanwhile
    runs           the likeliest `rows` nodes that were not sent follow those before them down the pipeline
    """

    kind: str
    rows: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "plain" else f"{self.kind} of {self.rows}"


def every_way(forecast: Forecast) -> dict[Way, float]:
    """Every way there is, with the seconds that it should take per token."""
    return {
        Way("plain"): forecast.plain_s(),
        **{Way("synchronous", k): forecast.synchronous_s(k) for k in LENGTHS},
        **{Way("rounds", rows): forecast.rounds_s(rows) for rows in ROUNDS},
        **{Way("runs", rows): forecast.runs_s(rows) for rows in RUNS},
    }
