"""Standard speculative inference, the paper's baseline: draft, verify in one traversal, repeat, synchronously."""

from collections.abc import Sequence

from pipeinfer.core import theory
from pipeinfer.core.generation import Generation, Order, Strategy
from pipeinfer.core.messages import DraftSettings
from pipeinfer.core.strategies.options import COUNTS, require
from pipeinfer.core.strategies.window import as_many_as_fit
from pipeinfer.core.tree import Node


class Speculative(Strategy):
    """Draft up to `k` tokens past the tip, then verify tip and drafts in one run of up to k + 1 rows.

    Drafting stops early where the draft's confidence is below `cutoff`. With `branches` > 1 a branch splits where the
    candidate ranked 2nd to 8th has a confidence above `split`, and `k` counts the nodes of the tree.
    """

    as_published = "draft-on-head"
    sweeps = {"k": COUNTS}  # noqa: RUF012 - replaced, never changed
    sweeps_by_confidence = {"cutoff": (0.0, 0.2, 0.4, 0.6)}  # noqa: RUF012

    def __init__(self, k: int = 4, cutoff: float = 0.0, branches: int = 1, split: float = 0.2) -> None:
        require("k", k, 1, 64)
        require("cutoff", cutoff, 0, 1)
        require("branches", branches, 1, 8)
        require("split", split, 0, 1)
        self.k = k
        self.drafting = "tree" if branches > 1 else "chain"
        self._settings = DraftSettings(k, cutoff, branches, split, once=True)
        self._tree: list[Node] = []

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        if generation.covered() or not generation.stalled:
            return None
        return as_many_as_fit(generation, [generation.tip, *self._tree[: self.k]])

    def next_order(self, generation: Generation) -> Order:
        # The draft reads the prompt while the target does, and drafts once the first token is known.
        ahead = self.k if generation.begun else 0
        return Order(generation.tip.position + ahead, self._settings)

    def advanced(self, generation: Generation) -> None:
        # Where cells were short, the last drafts were not sent; the draft goes on from those that came true.
        self._tree = [node for node in self._tree if node.alive and not node.committed]

    def proposed(self, generation: Generation, nodes: list[Node]) -> None:
        self._tree += nodes

    def limit(self, a: float, stages: int, draft: float) -> float | None:
        """At its best K, not at this one."""
        return None if self.drafting == "tree" else theory.best_synchronous(a, draft, COUNTS[-1])[1]
