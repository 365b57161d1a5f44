"""SwiftSpec (arXiv 2506.11309): one verification in flight, and a tree that grows beside it.

Published: 1.75 times SpecExec, of it 1.43 to 1.50 times from the asynchronous tree (the authors' claim).
"""

from collections.abc import Sequence

from pipeinfer.core import theory
from pipeinfer.core.generation import Generation, Order, Strategy
from pipeinfer.core.messages import DraftSettings
from pipeinfer.core.strategies.options import require
from pipeinfer.core.strategies.window import by_score, that_fit
from pipeinfer.core.tree import Node


class SwiftSpec(Strategy):
    """Verifies the most probable connected subtree of `batch` rows, the last committed token's among them, while the
    draft reads the `width` likeliest nodes per forward, until the tree has `nodes` undecided ones. What was verified
    becomes the root, and its subtree stays. Where there is none, the tree first grows `depth` levels.
    """

    drafting = "frontier"
    sweeps = {"batch": (2, 4, 8, 16, 32, 64)}  # noqa: RUF012 - replaced, never changed

    def __init__(self, batch: int = 8, width: int = 8, depth: int = 4, nodes: int = 48) -> None:
        require("batch", batch, 2, 64)
        require("width", width, 1, 32)
        require("depth", depth, 1, 64)
        require("nodes", nodes, 1, 512)
        self.batch, self.depth = batch, depth
        self._settings = DraftSettings(micro_batch=1, width=width, nodes=nodes)
        self._reach = max(depth, nodes)

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        if generation.covered() or generation.in_flight:
            return None
        tree = by_score(generation)
        deepest = max((node.position for node in tree), default=generation.tip.position)
        if deepest - generation.tip.position < self.depth and not generation.stalled:
            return None
        nodes = [generation.tip, *tree[: self.batch - 1]]
        return that_fit(generation, nodes) or [generation.tip]

    def next_order(self, generation: Generation) -> Order:
        return Order(generation.tip.position + self._reach, self._settings)

    def limit(self, a: float, stages: int, draft: float) -> float:
        chances = [a * (1 - a) ** rank for rank in range(self.batch)]
        return theory.expected_tree_lengths(chances, self.batch - 1)[-1]
