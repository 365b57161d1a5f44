"""A strategy: the way of decoding that was the fastest so far, and now and then another; it forecasts nothing."""

from random import Random

from pipeinfer.core.generation import Generation
from pipeinfer.core.strategies.adaptive import Adaptive
from pipeinfer.core.strategies.ways import Way

ARMS = (Way("plain"), *(Way("synchronous", k) for k in (1, 2, 4, 8)), *(Way("runs", m) for m in (1, 2, 4, 8)))
NEWEST = 0.3
"""Weight of the newest reward in an average."""


class EpsilonGreedy(Adaptive):
    """Tries each of the ARMS for `every` verified runs, and then the one with the most tokens per second so far, but
    any of them with the chance `epsilon`. The same events give the same choices."""

    def __init__(self, every: int = 6, epsilon: float = 0.1) -> None:
        super().__init__(every=every)
        self.epsilon = epsilon
        self._random = Random(0)
        self._rewards: dict[Way, float] = {}
        self._since = (0, 0.0)

    def _choose(self, generation: Generation) -> None:
        tokens, now = len(generation.text), generation.pipe.now
        before, began = self._since
        if before and now > began:
            reward = (tokens - before) / (now - began)
            known = self._rewards.get(self.way, reward)
            self._rewards[self.way] = known + NEWEST * (reward - known)
        self._since = (tokens, now)
        untried = [arm for arm in ARMS if arm not in self._rewards]
        if untried:
            self.way = untried[0]
        elif self._random.random() < self.epsilon:
            self.way = self._random.choice(ARMS)
        else:
            self.way = max(ARMS, key=lambda arm: self._rewards[arm])
