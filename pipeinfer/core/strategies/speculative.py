"""Standard speculative inference, the paper's baseline: draft, verify in one traversal, repeat, synchronously."""

from pipeinfer.core.head import Head
from pipeinfer.core.strategies.options import require
from pipeinfer.core.tree import Node


class Speculative:
    """Draft up to `k` tokens past the tip, then verify tip and drafts in one run of up to k + 1 rows.

    Drafting stops early where the draft's confidence is below `cutoff`. With `branches` > 1 a branch splits where the
    candidate ranked 2nd to 8th has a confidence above `split`, and `k` counts the nodes of the tree.
    """

    drafts = True
    cancellation = False
    redundant = False

    def __init__(self, k: int = 4, cutoff: float = 0.0, branches: int = 1, split: float = 0.2) -> None:
        require("k", k, 1, 64)
        require("cutoff", cutoff, 0, 1)
        require("branches", branches, 1, 8)
        require("split", split, 0, 1)
        self.k, self.cutoff, self.width, self.split = k, cutoff, branches, split
        self._tree: list[Node] = []

    def draft_options(self) -> dict[str, float | int]:
        return {"micro_batch": self.k, "cutoff": self.cutoff, "branches": self.width, "split": self.split, "once": 1}

    def started(self, head: Head) -> None:
        # The draft reads the prompt while the target does, and drafts once the first token is known.
        head.order_draft(head.tip.position)

    def advanced(self, head: Head) -> None:
        # Where cells were short, the last drafts were not sent; the draft goes on from those that came true.
        self._tree = [node for node in self._tree if node.alive and not node.committed]
        head.order_draft(head.tip.position + self.k)

    def proposed(self, head: Head, nodes: list[Node], stalled: bool) -> None:
        self._tree += nodes
        if stalled and not head.covered():
            self._verify(head)

    def returned(self, head: Head) -> None:
        """Prompt chunks only: each verification commits at least one token."""

    def _verify(self, head: Head) -> None:
        tree = self._tree[: self.k]
        while tree and not head.room(len(tree) + 1):
            tree.pop()
        head.submit([head.tip, *tree])
