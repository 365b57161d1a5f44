"""Where tokens come from when no model runs: what the target would say, and where the draft's candidates rank it.

A trace says, per position, the rank of the target's token among the draft's candidates (-1: not among them) and the
confidence of each candidate. Both are keyed by position alone, which is enough: a branch that has left the target's
text is rejected at the token where it left.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

RANKS = 8
"""How many of the draft's candidates a trace ranks."""


class Oracle(Protocol):
    """Answers for both models, by position. Token ids are below `vocabulary`."""

    @property
    def vocabulary(self) -> int: ...

    def target(self, position: int) -> int:
        """The token that the target puts at `position`."""

    def candidates(self, position: int, count: int) -> tuple[tuple[int, float], ...]:
        """The draft's best `count` tokens for `position` with their confidence, best first."""


class Trace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Position by position: the target token's rank among the draft's candidates, and their confidences. Repeats when a
    text is longer than the trace. Token ids are made up, below `vocabulary`; `source` says where the trace is from."""

    ranks: Sequence[int]
    confidences: Sequence[Sequence[float]]
    vocabulary: int = 512
    source: str = ""

    @property
    def acceptance(self) -> float:
        """How often the draft's first candidate is right."""
        return sum(rank == 0 for rank in self.ranks) / len(self.ranks)

    def target(self, position: int) -> int:
        return (position * 7919) % (self.vocabulary - RANKS - 1)

    def candidates(self, position: int, count: int) -> tuple[tuple[int, float], ...]:
        at = position % len(self.ranks)
        rank, confidence = self.ranks[at], self.confidences[at]
        right = self.target(position)
        return tuple([(right if k == rank else right + 1 + k, confidence[k]) for k in range(min(count, RANKS))])


def read_trace(path: Path) -> Trace:
    """A trace that `pipeinfer record` wrote. Raises ValueError, one line, where the file is not one."""
    try:
        trace = msgspec.json.decode(path.read_bytes(), type=Trace)
    except OSError as problem:
        raise ValueError(f"cannot read the trace {path}: {problem.strerror}") from problem
    except msgspec.DecodeError as problem:
        raise ValueError(f"{path} is not a trace, as `pipeinfer record` writes them: {problem}") from problem
    if not trace.ranks or len(trace.ranks) != len(trace.confidences):
        raise ValueError(f"{path}: expected as many ranks as confidences and at least one, came {len(trace.ranks)} and "
                         f"{len(trace.confidences)}")  # fmt: skip
    if any(len(confidences) != RANKS for confidences in trace.confidences):
        raise ValueError(f"{path}: expected {RANKS} confidences at every position")
    return trace


def independent(acceptance: float, *, seed: int = 0, length: int = 8192, vocabulary: int = 512) -> Trace:
    """I.i.d. acceptance: the draft's k-th candidate is right with probability a (1 - a)^k.

    Confidence then tells nothing about correctness, so the first candidate's is 1 everywhere and no cutoff acts; that
    of the others is their probability, for trees to split by.
    """
    uniform = np.random.Generator(np.random.Philox(key=[seed, 0x0ACC])).random(length)
    chances = acceptance * (1 - acceptance) ** np.arange(RANKS)
    ranks = np.searchsorted(np.cumsum(chances), uniform, side="right")
    confidences = [1.0, *chances[1:].tolist()]
    return Trace(np.where(ranks < RANKS, ranks, -1).tolist(), [confidences] * length, vocabulary)
