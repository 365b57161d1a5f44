"""PEARL: draft and target work side by side in rounds, a forward of the target beside `gamma` drafts.

Source: arXiv 2408.11850.
"""

from collections.abc import Sequence

from pipeinfer.core import theory
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
    what was measured, and fewer where each row costs the target time.
    """

    drafting = "chain"

    def __init__(self, gamma: int = 0) -> None:
        require("gamma", gamma, 0, MOST)
        self.gamma = gamma or FIRST
        self._adapts = gamma == 0
        self._settings = DraftSettings(micro_batch=1)
        self._chain = DraftedChain()

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        if generation.covered() or generation.in_flight:
            return None
        if self._chain.came_true and len(self._chain.nodes) < self.gamma - 1 and not generation.stalled:
            return None  # The round lasts until its drafts are made.
        drafts = self.gamma - 1 if self._chain.came_true else 0
        return self._chain.run(generation, drafts)

    def next_order(self, generation: Generation) -> Order:
        if self._adapts:
            self.gamma = best_round(generation.pipe.measured, self.gamma)
        # The next round's drafts follow those that are being verified.
        verified = max([generation.tip.position, *(run.nodes[-1].position for run in generation.in_flight)])
        return Order(verified + self.gamma, self._settings)

    def proposed(self, generation: Generation, nodes: list[Node]) -> None:
        self._chain.add(nodes)

    def limit(self, a: float, stages: int, draft: float) -> float | None:
        return theory.asynchronous_chain(a, 1 / draft) if self._adapts and 0 < draft <= 1 else None

    def advanced(self, generation: Generation) -> None:
        self._chain.advance(generation.tip)


def best_round(measured: Measured, unknown: int) -> int:
    """The drafts of a round that promise the most tokens per second; `unknown` before target and draft were timed.

    From one wrong draft to the next, a run of one row is followed by a / (1 - a^gamma) rounds, each as long as the
    slower of its two sides. Where rows are free that makes T / d; where they are dear, fewer.
    """
    narrow_s, draft_s = measured.traversal_s(1), measured.draft_s
    if not narrow_s or not draft_s:
        return unknown
    widest = max(measured.rows)
    row_s = max(0.0, measured.traversal_s(widest) - narrow_s) / max(1, widest - 1)
    right = min(measured.acceptance, 0.99)

    def seconds(gamma: int) -> float:
        round_s = max(narrow_s + row_s * (gamma - 1), draft_s * gamma)
        return round_s / (1 - right**gamma)

    return min(range(1, MOST + 1), key=seconds)
