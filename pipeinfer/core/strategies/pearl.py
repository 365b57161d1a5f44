"""PEARL: draft and target work side by side in rounds, a forward of the target beside `gamma` drafts.

Source: arXiv 2408.11850.
"""

from collections.abc import Sequence

from pipeinfer.core.generation import Generation, Order, Strategy
from pipeinfer.core.measured import Measured
from pipeinfer.core.messages import DraftSettings
from pipeinfer.core.strategies.drafted_chain import DraftedChain
from pipeinfer.core.strategies.options import require
from pipeinfer.core.tree import Node

FIRST = 4
"""Drafts of a round before target and draft have been timed."""

MOST = 64


class Pearl(Strategy):
    """After a wrong draft the target verifies the first of the next drafts while they are being made (pre-verify: a
    forward of the last committed token alone). If it was right, the round's drafts are verified while the draft makes
    the next ones (post-verify), for as long as all of them are right.

    `gamma` is the number of drafts in a round; 0: as many as the draft makes during one traversal of the pipeline, by
    what was measured.
    """

    drafting = "chain"

    def __init__(self, gamma: int = 0) -> None:
        require("gamma", gamma, 0, MOST)
        self.gamma = gamma or FIRST
        self._adapts = gamma == 0
        self._settings = DraftSettings(micro_batch=1)
        self._chain = DraftedChain()
        self._stalled = False

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        if generation.covered() or generation.in_flight:
            return None
        if self._chain.came_true and len(self._chain.nodes) < self.gamma - 1 and not self._stalled:
            return None  # The round lasts until its drafts are made.
        drafts = self.gamma - 1 if self._chain.came_true else 0
        return self._chain.run(generation, drafts)

    def next_order(self, generation: Generation) -> Order:
        if self._adapts:
            self.gamma = drafts_per_traversal(generation.pipe.measured, self.gamma)
        # The next round's drafts follow those that are being verified.
        verified = max([generation.tip.position, *(run.nodes[-1].position for run in generation.in_flight)])
        return Order(verified + self.gamma, self._settings)

    def proposed(self, generation: Generation, nodes: list[Node], stalled: bool) -> None:
        self._chain.add(nodes)
        self._stalled = stalled

    def advanced(self, generation: Generation) -> None:
        self._chain.advance(generation.tip)
        self._stalled = False


def drafts_per_traversal(measured: Measured, rows: int) -> int:
    """How many drafts are made while a run of about so many rows is under way; `rows` while that is not known."""
    traversal_s = measured.traversal_s(rows)
    if not measured.draft_s or not traversal_s:
        return rows
    return max(1, min(MOST, round(traversal_s / measured.draft_s)))
