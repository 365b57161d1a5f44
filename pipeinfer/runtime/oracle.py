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
    text is longer than the trace. Token ids are made up, below `vocabulary`; `source` says where the trace is from;
    `lengths` are those of the texts that a recorded one consists of (empty: it is one text)."""

    ranks: Sequence[int]
    confidences: Sequence[Sequence[float]]
    vocabulary: int = 512
    source: str = ""
    lengths: Sequence[int] = ()

    @property
    def acceptance(self) -> float:
        """How often the draft's first candidate is right."""
        return sum(rank == 0 for rank in self.ranks) / len(self.ranks)

    def text(self, index: int, start: int) -> "Trace":
        """One of its texts alone (counted round and round), whose first token is at position `start`."""
        lengths = self.lengths or [len(self.ranks)]
        index %= len(lengths)
        begin = sum(lengths[:index])
        order = [begin + (at - start) % lengths[index] for at in range(lengths[index])]
        return msgspec.structs.replace(
            self, ranks=[self.ranks[i] for i in order], confidences=[self.confidences[i] for i in order], lengths=()
        )

    def target(self, position: int) -> int:
        return (position * 7919) % (self.vocabulary - RANKS - 1)

    def candidates(self, position: int, count: int) -> tuple[tuple[int, float], ...]:
        at = position % len(self.ranks)
        rank, confidence = self.ranks[at], self.confidences[at]
        right = self.target(position)
        if count == 1:  # Most drafts are chains.
            return ((right if rank == 0 else right + 1, confidence[0]),)
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
    if trace.lengths and (sum(trace.lengths) != len(trace.ranks) or min(trace.lengths) < 1):
        raise ValueError(f"{path}: expected texts of {len(trace.ranks)} tokens together, came {sum(trace.lengths)}")
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


class Phases(msgspec.Struct, frozen=True):
    """A text that changes its kind: the chance that a draft is right is `rates[0]` for the first `tokens` of it, then
    `rates[1]` for as many, and so on, round and round."""

    name: str
    rates: tuple[float, ...]
    tokens: int

    def rate(self, position: int, start: int) -> float:
        """That of a position in a text whose first generated token is at `start`."""
        return self.rates[(position - start) // self.tokens % len(self.rates)]


def phased(phases: Phases, *, start: int, seed: int = 0, length: int = 8192, vocabulary: int = 512) -> Trace:
    """Each position as in `independent`, at the rate of its phase, of which the draft's confidence tells nothing."""
    kinds = {rate: independent(rate, seed=seed, length=length, vocabulary=vocabulary) for rate in phases.rates}
    chosen = [kinds[phases.rate(position, start)] for position in range(length)]
    return Trace(
        [kind.ranks[position] for position, kind in enumerate(chosen)],
        [kind.confidences[position] for position, kind in enumerate(chosen)],
        vocabulary,
    )


class Difficulty(msgspec.Struct, frozen=True):
    """Some positions are easier than others, and the draft has an idea which. The chance that its first candidate is
    right has a Beta distribution with the acceptance for a mean; `spread` is its standard deviation over the largest
    possible one, from 0 (all alike: i.i.d.) to 1 (certain or hopeless). Confidence is that chance and Gaussian `noise`
    (standard deviation), within 0 and 1."""

    spread: float
    noise: float


def varied(
    acceptance: float, difficulty: Difficulty, *, seed: int = 0, length: int = 8192, vocabulary: int = 512
) -> Trace:
    """Acceptance by position difficulty, independent from position to position: the k-th candidate is right with
    probability p (1 - p)^k, p being the position's own.

    Whether drafts are right is then as in `independent`; what differs is that confidence tells something of it.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 0xD1FF]))
    concentration = 1 / difficulty.spread**2 - 1
    chance = generator.beta(acceptance * concentration, (1 - acceptance) * concentration, length)
    confidence = np.clip(chance + difficulty.noise * generator.standard_normal(length), 0, 1)
    uniform = generator.random(length)
    ranks = (uniform[:, None] >= 1 - (1 - chance[:, None]) ** np.arange(1, RANKS + 1)).sum(axis=1)
    confidences = confidence[:, None] * (1 - confidence[:, None]) ** np.arange(RANKS)
    return Trace(np.where(ranks < RANKS, ranks, -1).tolist(), confidences.tolist(), vocabulary)
