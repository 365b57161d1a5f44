"""A strategy: adaptive speculation that is told how good its drafts are, for simulations to hold others against."""

from pipeinfer.core.generation import Generation
from pipeinfer.core.strategies.adaptive import Adaptive
from pipeinfer.core.strategies.forecast import Forecast


class Foresight(Adaptive):
    """As `adaptive`, but it knows at every token how good drafts are from here on, instead of having to find out."""

    simulated_only = "how often drafts will be right"

    def forecast(self, generation: Generation) -> Forecast:
        found = super().forecast(generation)
        assert self.foreseen is not None
        found.acceptance = min(0.99, self.foreseen(generation.tip.position + 1))
        return found
