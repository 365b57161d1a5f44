"""Plain decoding: one token per traversal of the pipeline. What every speedup is measured against."""

from collections.abc import Sequence

from pipeinfer.core.generation import Generation, Strategy
from pipeinfer.core.tree import Node


class Iterative(Strategy):
    """Sends a single-token run for each committed token and waits for it."""

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        return None if generation.covered() else [generation.tip]

    def limit(self, a: float, stages: int, draft: float) -> float:
        return 1.0
