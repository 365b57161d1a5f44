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


SEEK = 512
"""Tokens whose noise is drawn in the time that it takes to go to a single one's."""

FAR = 1.0
"""Where logits are filtered, margins beyond this (logits) are not told apart: of these no rounding makes a tie."""


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
    """Standard Gumbel noise, float32 [vocabulary] or for `tokens` alone (ascending), from Philox keyed by (seed,
    position)."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, position], dtype=np.uint64)
    stream = np.random.Philox(key=key)
    if tokens is not None and SEEK * len(tokens) < vocabulary:
        uniform = _drawn_at(stream, tokens)
    else:
        uniform = np.random.Generator(stream).random(vocabulary, dtype=np.float64)
        uniform = uniform if tokens is None else uniform[tokens]
    np.clip(uniform, 1e-300, None, out=uniform)
    return (-np.log(-np.log(uniform))).astype(np.float32)


def _drawn_at(stream: np.random.Philox, places: Tokens) -> NDArray[np.float64]:
    """What the stream's draws from [0, 1) are at these places: it counts in blocks of four, and can go to any."""
    blocks, block_of = np.unique(places >> 2, return_inverse=True)
    drawn, at = [], 0
    for block in blocks.tolist():
        stream.advance(block - at)
        drawn.append(stream.random_raw(4))
        at = block + 1
    bits = np.asarray(drawn)[block_of, places & 3]
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53)


def scores(logits: Floats, position: int, how: Sampling) -> Choice:
    """Of the logits [vocabulary] those that the filters keep, over T, plus noise; all of them as they are when T = 0.

    `position` is that of the token to be chosen, one after the row that gave the logits. Raises NotFinite.
    """
    if how.temperature < GREEDY_BELOW:
        return _choice(None, logits, position)
    scaled = _finite(logits, position, how)
    return _with_noise(scaled, _kept(scaled, how), position, how)


def _with_noise(scaled: Floats, kept: Tokens | None, position: int, how: Sampling) -> Choice:
    noise = gumbel(how.seed, position, len(scaled), kept)
    return _choice(kept, (scaled if kept is None else scaled[kept]) + noise, position)


def _choice(tokens: Tokens | None, values: Floats, position: int) -> Choice:
    """Looks at what the argmax finds, which is NaN or +inf where anything is: no second pass over the vocabulary."""
    best = int(np.argmax(values))
    _check_finite(values[best], position)
    return Choice(tokens, values, best)


def _check_finite(value: np.float32, position: int) -> None:
    if not math.isfinite(value):
        raise NotFinite(position, float(value))


def _finite(logits: Floats, position: int, how: Sampling) -> Floats:
    """Logits over T. Models mask tokens by the lowest float32 too, which may become -inf here. Filters might keep the
    finite ones alone, so they are looked at before; a maximum is NaN where anything is."""
    with np.errstate(over="ignore"):
        scaled = logits / np.float32(how.temperature)
    if _filters(how, len(logits)):
        _check_finite(scaled.max(), position)
    return scaled


def _filters(how: Sampling, vocabulary: int) -> bool:
    return how.top_p < 1 or 0 < how.top_k < vocabulary


def sample(logits: Floats, position: int, how: Sampling) -> int:
    """The token at `position`; the lowest id wins a tie. Raises NotFinite."""
    choice = scores(logits, position, how)
    return choice.token(choice.best)


def sample_and_margin(logits: Floats, position: int, how: Sampling) -> tuple[int, float]:
    """The token at `position`, and how far this choice was from being another one: how much nearer two logits have to
    come, moving both, for that. Raises NotFinite.

    Mostly that is the distance of the best two scores, times T. Where logits are filtered, the choice is also another
    one when the token leaves what is kept, or one that would beat it comes in; then it is told up to `FAR`.
    """
    if how.temperature < GREEDY_BELOW:
        choice = _choice(None, logits, position)
        return choice.best, _ahead(choice)
    scaled = _finite(logits, position, how)
    kept = _kept(scaled, how)
    choice = _with_noise(scaled, kept, position, how)
    distance = _ahead(choice)
    if kept is not None:
        distance = min(distance, FAR / how.temperature)
        distance = min(distance, _over_the_edge(scaled, kept, choice, position, how, distance))
    return choice.token(choice.best), distance * how.temperature


def _ahead(choice: Choice) -> float:
    """By how much the best is ahead of the second."""
    if len(choice.values) < 2:
        return math.inf
    top = np.partition(choice.values, -2)[-2:]
    return float(top[1] - top[0])


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
    ranked = _ranked(scaled if tokens is None else scaled[tokens], how.top_p, 0.5)
    nucleus = np.sort(ranked.order[: max(1, np.count_nonzero(ranked.before < how.top_p))])
    return nucleus if tokens is None else tokens[nucleus]


def _top_k(scaled: Floats, how: Sampling) -> Tokens | None:
    if not 0 < how.top_k < len(scaled):
        return None
    tokens = np.sort(np.argpartition(-scaled, how.top_k - 1)[: how.top_k])
    return tokens[scaled[tokens] > -np.inf]


class Ranked(NamedTuple):
    """Tokens by how likely they are, the likeliest first, and the probability of those before each."""

    order: Tokens
    before: NDArray[np.float64]


def _ranked(scaled: Floats, top_p: float, share: float) -> Ranked:
    """The tokens whose rank matters to a nucleus of `top_p`. All others, each less likely than any of these, are
    together less than a `share` of what is outside it: of a large vocabulary few are left to sort.

    What those few weigh is worked out in double precision, what all the others do in single: it is little.
    """
    top = scaled.max()
    weights = np.exp(scaled - top)
    likely = np.flatnonzero(weights >= share * (1 - top_p) * weights.mean())
    order = likely[np.argsort(-scaled[likely], kind="stable")]
    exactly = np.exp(scaled[order] - top, dtype=np.float64)
    others = weights.sum(dtype=np.float64) - weights[order].sum(dtype=np.float64)
    return Ranked(order, (np.cumsum(exactly) - exactly) / (exactly.sum() + others))


def _over_the_edge(scaled: Floats, kept: Tokens, choice: Choice, position: int, how: Sampling, within: float) -> float:
    """How far the chosen token is from leaving what the filters keep, or another from coming in and beating it;
    infinite where that is more than `within`.

    A token crosses the edge when it trades places with its neighbour there, or when the probability before it comes to
    be top_p: logits that move by x, those before it one way and the rest the other, change that one's log-odds by 2x.
    """
    if len(kept) == len(scaled):
        return math.inf
    chosen, lowest = kept[choice.best], scaled[kept].min()
    near = scaled > lowest - within
    near[kept] = False
    outside = np.flatnonzero(near)
    distance = np.full(len(scaled), np.inf)
    if len(outside):
        distance[outside] = lowest - scaled[outside]
        distance[chosen] = scaled[chosen] - scaled[outside].max()
    if 0 < how.top_p < 1:
        top_k = _top_k(scaled, how)
        ranked = _ranked(scaled if top_k is None else scaled[top_k], how.top_p, min(0.5, math.exp(-within)))
        tokens = ranked.order if top_k is None else top_k[ranked.order]
        shift = np.abs(_log_odds(ranked.before) - _log_odds(how.top_p))
        distance[tokens] = np.minimum(distance[tokens], shift)
        near[tokens] = True
        near[kept] = False
        outside = np.flatnonzero(near)
    nearest = float(distance[chosen])
    rivals = outside[distance[outside] < min(within, nearest)]
    if len(rivals):
        behind = choice.values[choice.best] - scaled[rivals] - gumbel(how.seed, position, len(scaled), rivals)
        nearest = min(nearest, float(np.maximum(behind, distance[rivals]).min()))
    return nearest


def _log_odds(share: Any) -> Any:
    """Of a probability; infinite at 0 and from 1 on."""
    with np.errstate(divide="ignore"):
        return np.log(share) - np.log(np.maximum(0.0, 1.0 - share))
