"""Speculative speculative decoding: rounds as in `speculative`, the next round's drafts being prepared during this one.

Source: arXiv 2603.03251.
"""

from collections.abc import Sequence

from pipeinfer.core import theory
from pipeinfer.core.generation import Generation, Order, Strategy
from pipeinfer.core.messages import DraftSettings
from pipeinfer.core.strategies.drafted_chain import DraftedChain
from pipeinfer.core.strategies.options import COUNTS, require
from pipeinfer.core.tree import Node


class Ssd(Strategy):
    """Verifies the last committed token and `k` drafts in one run. Meanwhile the draft prepares `k` tokens for every
    number of drafts that may be accepted, and each of the `alternatives` tokens that are likeliest after them. If the
    target says one of these, the next run leaves at once; otherwise it waits for the draft as in `speculative`.
    """

    drafting = "outcomes"
    sweeps = {"k": COUNTS}  # noqa: RUF012 - replaced, never changed

    def __init__(self, k: int = 7, alternatives: int = 3) -> None:
        require("k", k, 1, 64)
        require("alternatives", alternatives, 1, 7)
        self.k = k
        self.drafting_options = {"alternatives": alternatives, "length": k, "rounds": True}
        self._settings = DraftSettings(micro_batch=1)
        self._chain = DraftedChain()

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        if generation.covered() or not (generation.stalled or len(self._chain.nodes) >= self.k):
            return None
        return self._chain.run(generation, self.k)

    def next_order(self, generation: Generation) -> Order:
        # All k accepted, the target's own token, and k after that.
        return Order(generation.tip.position + 2 * self.k + 1, self._settings)

    def proposed(self, generation: Generation, nodes: list[Node]) -> None:
        self._chain.add(nodes)

    def advanced(self, generation: Generation) -> None:
        self._chain.advance(generation.tip)

    def limit(self, a: float, stages: int, draft: float) -> float:
        """Every round's outcome was prepared."""
        return theory.expected_length(a, self.k)
