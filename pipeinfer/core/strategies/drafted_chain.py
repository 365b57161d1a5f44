"""What was drafted beyond the text and not sent yet, for strategies with one run in flight at a time."""

from collections.abc import Sequence

from pipeinfer.core.generation import Generation
from pipeinfer.core.strategies.window import as_many_as_fit
from pipeinfer.core.tree import Node


class DraftedChain:
    """The branch of drafts that follows the last committed token, in order."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.came_true = False
        """The last committed token was one of the drafts."""

    def add(self, nodes: Sequence[Node]) -> None:
        """The draft proposes these. Of several branches the first is kept."""
        for node in nodes:
            if not self.nodes or node.parent is self.nodes[-1]:
                self.nodes.append(node)

    def advance(self, tip: Node) -> None:
        """The text was committed up to `tip`: only what follows it is left."""
        self.came_true = tip in self.nodes
        self.nodes = [node for node in self.nodes if node.alive and not node.committed]

    def run(self, generation: Generation, most: int) -> list[Node]:
        """The last committed token and up to `most` drafts after it, as many as there are cells for."""
        return as_many_as_fit(generation, [generation.tip, *self.nodes[:most]])
