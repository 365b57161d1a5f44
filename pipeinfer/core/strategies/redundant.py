"""The artifact's habit, as an ablation of PipeInfer: a single-token run for every commit, covered or not."""

from collections.abc import Sequence

from pipeinfer.core.generation import Generation
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.core.tree import Node


class Redundant(PipeInfer):
    """PipeInfer whose text fills its sequence by runs of its own, and never by the cells of speculative ones. Takes the
    options of `pipeinfer`."""

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        missing: list[Node] = []
        node: Node | None = generation.tip
        while node is not None and node.position >= generation.pipe.ledger.length(generation.sequence):
            missing.insert(0, node)
            node = node.parent
        return missing or self.next_micro_batch(generation)

    def accepted(self, generation: Generation, node: Node) -> None:
        """The cell stays the speculative run's: another run fills one for the text."""

    def reserve(self, generation: Generation, rows: int) -> int:
        """Every speculative row may be accepted and then needs a second cell."""
        return 1 + rows + sum(run.rows for run in generation.in_flight)
