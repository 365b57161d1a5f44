"""Position-keyed sampling: the same seed gives the same tokens at every temperature, however they were scheduled.

Position n is sampled as argmax over v of logits[v] / T + gumbel(seed, n, v). By the Gumbel-max trick that is an exact
sample of softmax(logits / T); since the noise depends on seed and position alone, verification of a drafted token is
plain equality, and a draft that uses the same noise agrees as often as its distribution allows. Top-k and top-p filter
before the noise is added. T = 0 is greedy decoding.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import Candidates, Sampling

Floats: TypeAlias = NDArray[np.float32]


def gumbel(seed: int, position: int, vocabulary: int) -> Floats:
    """Standard Gumbel noise, float32 [vocabulary], from Philox keyed by (seed, position)."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, position], dtype=np.uint64)
    uniform = np.random.Generator(np.random.Philox(key=key)).random(vocabulary, dtype=np.float64)
    np.clip(uniform, 1e-300, None, out=uniform)
    return (-np.log(-np.log(uniform))).astype(np.float32)


def scores(logits: Floats, position: int, how: Sampling) -> Floats:
    """What the argmax is taken of, float32 [vocabulary]: filtered logits over T plus noise; the logits when T = 0.

    `position` is that of the token to be chosen, one after the row that gave the logits.
    """
    if how.temperature <= 0:
        return logits
    scaled = _filtered(logits / np.float32(how.temperature), how)
    return scaled + gumbel(how.seed, position, len(logits))


def sample(logits: Floats, position: int, how: Sampling) -> int:
    """The token at `position`; the lowest id wins a tie."""
    return int(np.argmax(scores(logits, position, how)))


def margin(logits: Floats, position: int, how: Sampling) -> float:
    """How far this choice was from being another one: how much nearer two logits have to come, moving both, for that.

    Mostly that is the distance of the best two scores, times T. Where logits are filtered, the choice is also another
    one when the token leaves what is kept, or one that would beat it comes in.
    """
    if how.temperature <= 0:
        top = np.partition(logits, -2)[-2:]
        return float(top[1] - top[0])
    scaled = logits / np.float32(how.temperature)
    kept = np.isfinite(_filtered(scaled, how))
    values = scaled + gumbel(how.seed, position, len(logits))
    chosen = int(np.argmax(np.where(kept, values, -np.inf)))
    edge = _edge(scaled, kept, how)
    behind = values[chosen] - values
    behind[~kept] = np.maximum(behind, edge)[~kept]
    behind[chosen] = edge[chosen]
    return float(behind.min()) * how.temperature


def candidates(logits: Floats, position: int, how: Sampling, count: int) -> list[tuple[int, float]]:
    """The draft's best `count` tokens for `position` with their confidence, best first.

    Confidence is softmax over the scores: at T = 0 the model's own probability p(k-th) as in the artifact, at T > 0 the
    same with this position's noise known.
    """
    values = scores(logits, position, how)
    count = min(count, len(values))
    best = [int(np.argmax(values))] if count == 1 else _largest(values, count)
    top = values[best[0]]
    total = float(np.exp(values - top).sum())
    return [(token, float(np.exp(values[token] - top)) / total) for token in best]


def best_candidates(logits: Floats, positions: Sequence[int], how: Sampling, count: int) -> Candidates:
    """The same for every row of `logits`, which are the last of the rows that stand at `positions`."""
    after = positions[len(positions) - len(logits) :]
    return tuple([tuple(candidates(row, at + 1, how, count)) for row, at in zip(logits, after, strict=True)])


def _largest(values: Floats, count: int) -> list[int]:
    some = np.argpartition(-values, count - 1)[:count]
    return [int(token) for token in some[np.lexsort((some, -values[some]))]]


def _filtered(scaled: Floats, how: Sampling) -> Floats:
    """Logits outside the top-k or the top-p nucleus set to -inf. The nucleus always holds its first token."""
    scaled = _top_k(scaled, how)
    if how.top_p < 1:
        order, before = _nucleus(scaled)
        kept = np.full_like(scaled, -np.inf)
        inside = order[: max(1, np.count_nonzero(before < how.top_p))]
        kept[inside] = scaled[inside]
        scaled = kept
    return scaled


def _top_k(scaled: Floats, how: Sampling) -> Floats:
    if not 0 < how.top_k < len(scaled):
        return scaled
    kept = np.full_like(scaled, -np.inf)
    best = np.argpartition(-scaled, how.top_k - 1)[: how.top_k]
    kept[best] = scaled[best]
    return kept


def _nucleus(scaled: Floats) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Tokens from the likeliest on, and the probability before each."""
    order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order] - scaled[order[0]], dtype=np.float64)
    return order, (np.cumsum(weights) - weights) / weights.sum()


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
        order, before = _nucleus(_top_k(scaled, how))
        distance[order] = np.minimum(distance[order], np.abs(_log_odds(before) - _log_odds(how.top_p)))
    return distance


def _log_odds(share: Any) -> Any:
    """Of a probability; infinite at 0 and from 1 on."""
    with np.errstate(divide="ignore"):
        return np.log(share) - np.log(np.maximum(0.0, 1.0 - share))
