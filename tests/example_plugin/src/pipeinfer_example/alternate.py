"""A strategy: every other round is speculation, and the one between is plain decoding."""

from collections.abc import Sequence

from pipeinfer.core.generation import Generation, Order, Strategy
from pipeinfer.core.messages import DraftSettings
from pipeinfer.core.tree import Node


class Alternate(Strategy):
    """Sends the last committed token alone, and the time after with up to `k` drafts, as far as there are any."""

    drafting = "phrases"

    def __init__(self, k: int = 4) -> None:
        self.k = k
        self._drafts: list[Node] = []

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        if generation.covered():
            return None
        alone = len(generation.runs) % 2 == 1
        nodes = [generation.tip, *([] if alone else self._drafts[: self.k])]
        return nodes if len(nodes) == 1 or generation.fits(nodes) else nodes[:1]

    def next_order(self, generation: Generation) -> Order:
        return Order(generation.tip.position + self.k + 1, DraftSettings(micro_batch=1))

    def proposed(self, generation: Generation, nodes: list[Node]) -> None:
        self._drafts += nodes

    def advanced(self, generation: Generation) -> None:
        self._drafts = [node for node in self._drafts if node.alive and not node.committed]
