"""Position-keyed sampling: the same seed gives the same tokens at every temperature, however they were scheduled.

Position n is sampled as argmax over v of logits[v] / T + gumbel(seed, n, v). By the Gumbel-max trick that is an exact
sample of softmax(logits / T); since the noise depends on seed and position alone, verification of a drafted token is
plain equality, and a draft that uses the same noise agrees as often as its distribution allows. Top-k and top-p filter
before the noise is added. T = 0 is greedy decoding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import Candidates, Sampling

Floats: TypeAlias = NDArray[np.float32]
Tokens: TypeAlias = NDArray[np.intp]


class Choice(NamedTuple):
    """The tokens that may be chosen, ascending (None: all of the vocabulary), and what the argmax is taken of."""

    tokens: Tokens | None
    values: Floats

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

    `position` is that of the token to be chosen, one after the row that gave the logits.
    """
    if how.temperature <= 0:
        return Choice(None, logits)
    scaled = logits / np.float32(how.temperature)
    tokens = _kept(scaled, how)
    noise = gumbel(how.seed, position, len(logits), tokens)
    return Choice(tokens, (scaled if tokens is None else scaled[tokens]) + noise)


def sample(logits: Floats, position: int, how: Sampling) -> int:
    """The token at `position`; the lowest id wins a tie."""
    choice = scores(logits, position, how)
    return choice.token(int(np.argmax(choice.values)))


def margin(logits: Floats, position: int, how: Sampling) -> float:
    """How far this choice was from being another one: how much nearer two logits have to come, moving both, for that.

    Mostly that is the distance of the best two scores, times T. Where logits are filtered, the choice is also another
    one when the token leaves what is kept, or one that would beat it comes in.
    """
    if how.temperature <= 0:
        top = np.partition(logits, -2)[-2:]
        return float(top[1] - top[0])
    scaled = logits / np.float32(how.temperature)
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
    same with this position's noise known.
    """
    choice = scores(logits, position, how)
    values = choice.values
    count = min(count, len(values))
    best = [int(np.argmax(values))] if count == 1 else _largest(values, count)
    top = values[best[0]]
    total = float(np.exp(values - top).sum())
    return [(choice.token(index), float(np.exp(values[index] - top)) / total) for index in best]


def best_candidates(logits: Floats, positions: Sequence[int], how: Sampling, count: int) -> Candidates:
    """The same for every row of `logits`, which are the last of the rows that stand at `positions`."""
    after = positions[len(positions) - len(logits) :]
    return tuple([tuple(candidates(row, at + 1, how, count)) for row, at in zip(logits, after, strict=True)])


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
    return np.sort(np.argpartition(-scaled, how.top_k - 1)[: how.top_k])


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
