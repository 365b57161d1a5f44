"""Position-keyed sampling: the same seed gives the same tokens at every temperature, however they were scheduled.

Position n is sampled as argmax over v of logits[v] / T + gumbel(seed, n, v). By the Gumbel-max trick that is an exact
sample of softmax(logits / T); since the noise depends on seed and position alone, verification of a drafted token is
plain equality, and a draft that uses the same noise agrees as often as its distribution allows. Top-k and top-p filter
before the noise is added. T = 0 is greedy decoding. A logit of -inf is a token that cannot be chosen.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import Candidates, Message

Floats: TypeAlias = NDArray[np.float32]
Tokens: TypeAlias = NDArray[np.intp]


GREEDY_BELOW = 1e-20
"""A temperature below this is taken for 0: no noise would change a choice, and logits / T would leave float32."""


SEEDS = 2**64
"""A seed is half of the key of a Philox generator."""


class Sampling(Message, frozen=True):
    """How tokens are chosen from logits. `top_k` 0 and `top_p` 1 switch a filter off.

    Raises ValueError on what is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature = {self.temperature}: expected 0, which is greedy, or more")
        if not 0 <= self.top_k < 2**63:
            raise ValueError(f"top_k = {self.top_k}: expected a number of tokens, or 0 for all of them")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: expected a probability from 0 to 1")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed = {self.seed}: expected 0 to {SEEDS - 1}")


class NotFinite(ValueError):  # noqa: N818 - reads as what came
    """Logits hold NaN or +inf, or -inf alone: there is no distribution to choose from. One line that says what to do.

    `position` is that of the token that was to be chosen, `value` the best of the logits, where it is known.
    """

    def __init__(self, position: int, value: float | None = None) -> None:
        best = "" if value is None else f" (the best is {value:g})"
        super().__init__(
            f"the logits for position {position} are not finite{best}: the model's arithmetic "
            "overflows in this data type, or its weights are damaged; choose a data type of wider range, like bfloat16 "
            "or float32, or fetch the model again"
        )
        self.position = position


class Choice(NamedTuple):
    """The tokens that may be chosen, ascending (None: all of the vocabulary), what the argmax is taken of, and it."""

    tokens: Tokens | None
    values: Floats
    best: int

    def token(self, index: int) -> int:
        """The id of the value at `index`."""
        return index if self.tokens is None else int(self.tokens[index])


def gumbel(seed: int, position: int, vocabulary: int, tokens: Tokens | None = None) -> Floats:
    """Standard Gumbel noise, float32 [vocabulary] or for `tokens` alone, from Philox keyed by (seed, position)."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, position], dtype=np.uint64)
    uniform = np.random.Generator(np.random.Philox(key=key)).random(vocabulary, dtype=np.float64)
    if tokens is not None:
        uniform = uniform[tokens]
    np.clip(uniform, 1e-300, None, out=uniform)
    return (-np.log(-np.log(uniform))).astype(np.float32)


def scores(logits: Floats, position: int, how: Sampling) -> Choice:
    """Of the logits [vocabulary] those that the filters keep, over T, plus noise; all of them as they are when T = 0.

    `position` is that of the token to be chosen, one after the row that gave the logits. Raises NotFinite.
    """
    if how.temperature < GREEDY_BELOW:
        return _choice(None, logits, position)
    scaled = _scaled(logits, how)
    if _filters(how, len(logits)):  # which may keep the finite ones alone; a maximum is NaN where anything is
        _check_finite(scaled.max(), position)
    tokens = _kept(scaled, how)
    noise = gumbel(how.seed, position, len(logits), tokens)
    return _choice(tokens, (scaled if tokens is None else scaled[tokens]) + noise, position)


def _choice(tokens: Tokens | None, values: Floats, position: int) -> Choice:
    """Looks at what the argmax finds, which is NaN or +inf where anything is: no second pass over the vocabulary."""
    best = int(np.argmax(values))
    _check_finite(values[best], position)
    return Choice(tokens, values, best)


def _check_finite(value: np.float32, position: int) -> None:
    if not math.isfinite(value):
        raise NotFinite(position, float(value))


def _scaled(logits: Floats, how: Sampling) -> Floats:
    """Logits over T. Models mask tokens by the lowest float32 too, which may become -inf here."""
    with np.errstate(over="ignore"):
        return logits / np.float32(how.temperature)


def _filters(how: Sampling, vocabulary: int) -> bool:
    return how.top_p < 1 or 0 < how.top_k < vocabulary


def sample(logits: Floats, position: int, how: Sampling) -> int:
    """The token at `position`; the lowest id wins a tie. Raises NotFinite."""
    choice = scores(logits, position, how)
    return choice.token(choice.best)


def margin(logits: Floats, position: int, how: Sampling) -> float:
    """How far this choice was from being another one: how much nearer two logits have to come, moving both, for that.

    Mostly that is the distance of the best two scores, times T. Where logits are filtered, the choice is also another
    one when the token leaves what is kept, or one that would beat it comes in. Of logits that `sample` accepts.
    """
    if how.temperature < GREEDY_BELOW:
        top = np.partition(logits, -2)[-2:]
        return float(top[1] - top[0])
    scaled = _scaled(logits, how)
    tokens = _kept(scaled, how)
    kept = np.zeros(len(scaled), bool)
    kept[slice(None) if tokens is None else tokens] = True
    values = scaled + gumbel(how.seed, position, len(logits))
    chosen = int(np.argmax(np.where(kept, values, -np.inf)))
    edge = _edge(scaled, kept, how)
    behind = values[chosen] - values
    behind[~kept] = np.maximum(behind, edge)[~kept]
    behind[chosen] = edge[chosen]
    return float(behind.min()) * how.temperature


def candidates(logits: Floats, position: int, how: Sampling, count: int) -> list[tuple[int, float]]:
    """The draft's best `count` tokens for `position` with their confidence, best first; fewer if no more are kept.

    Confidence is softmax over the scores: at T = 0 the model's own probability p(k-th) as in the artifact, at T > 0 the
    same with this position's noise known. A draft whose logits are not finite has no idea: token 0, confidence 0.
    """
    try:
        choice = scores(logits, position, how)
    except NotFinite:
        return [(0, 0.0)]
    values = choice.values
    count = min(count, len(values))
    best = [choice.best] if count == 1 else _largest(values, count)
    top = values[best[0]]
    total = float(np.exp(values - top).sum())
    return [(choice.token(index), float(np.exp(values[index] - top)) / total) for index in best]


def best_candidates(logits: Floats, positions: Sequence[int], hows: Sequence[Sampling], count: int) -> Candidates:
    """The same for every row of `logits`, which are the last of the rows that stand at `positions`; by its own sampling
    each."""
    after = positions[len(positions) - len(logits) :]
    rows = zip(logits, after, hows, strict=True)
    return tuple([tuple(candidates(row, at + 1, how, count)) for row, at, how in rows])


def _largest(values: Floats, count: int) -> list[int]:
    some = np.argpartition(-values, count - 1)[:count]
    return [int(token) for token in some[np.lexsort((some, -values[some]))]]


def _kept(scaled: Floats, how: Sampling) -> Tokens | None:
    """What top-k and then top-p leave of logits over T, ascending; None: all. The nucleus always holds its first."""
    tokens = _top_k(scaled, how)
    if how.top_p >= 1:
        return tokens
    values = scaled if tokens is None else scaled[tokens]
    weights = _weights(values)
    # Tokens that weigh less than this are less than 1 - top_p together: none is in the nucleus, and of a large
    # vocabulary few are left to sort. Half of it, so that rounding decides nothing.
    likely = np.flatnonzero(weights >= 0.5 * (1 - how.top_p) * weights.mean())
    order = likely[np.argsort(-values[likely], kind="stable")]
    inside = np.count_nonzero(_before(weights[order]) / weights.sum() < how.top_p)
    nucleus = np.sort(order[: max(1, inside)])
    return nucleus if tokens is None else tokens[nucleus]


def _top_k(scaled: Floats, how: Sampling) -> Tokens | None:
    if not 0 < how.top_k < len(scaled):
        return None
    tokens = np.sort(np.argpartition(-scaled, how.top_k - 1)[: how.top_k])
    return tokens[scaled[tokens] > -np.inf]


def _weights(scaled: Floats) -> NDArray[np.float64]:
    """Proportional to the probabilities."""
    return np.asarray(np.exp(scaled - scaled.max(), dtype=np.float64))


def _before(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum before each."""
    return np.cumsum(weights) - weights


def _edge(scaled: Floats, kept: NDArray[np.bool_], how: Sampling) -> NDArray[np.float64]:
    """How far each token is from the edge of what the filters keep, on its own side; infinite without a filter.

    It crosses the edge when it trades places with its neighbour there, or when the probability before it comes to be
    top_p: logits that move by x, those before it one way and the rest the other, change that one's log-odds by 2x.
    """
    distance = np.full(len(scaled), np.inf)
    if kept.all():
        return distance
    distance[kept] = scaled[kept] - scaled[~kept].max()
    distance[~kept] = scaled[kept].min() - scaled[~kept]
    if how.top_p < 1:
        tokens = _top_k(scaled, how)
        tokens = np.arange(len(scaled)) if tokens is None else tokens
        order = tokens[np.argsort(-scaled[tokens], kind="stable")]
        weights = _weights(scaled[order])
        before = _before(weights) / weights.sum()
        distance[order] = np.minimum(distance[order], np.abs(_log_odds(before) - _log_odds(how.top_p)))
    return distance


def _log_odds(share: Any) -> Any:
    """Of a probability; infinite at 0 and from 1 on."""
    with np.errstate(divide="ignore"):
        return np.log(share) - np.log(np.maximum(0.0, 1.0 - share))
