"""SpecPipe / PipeDec (arXiv 2504.04104): a token tree whose levels follow one another down the pipeline.

Published: 4.2 to 7.8 times pipeline parallelism, 2.1 to 2.7 times tree speculation (the authors' claim).
"""

from collections import deque
from collections.abc import Sequence

from pipeinfer.core import theory
from pipeinfer.core.generation import Generation, Order, Strategy
from pipeinfer.core.messages import DraftSettings
from pipeinfer.core.strategies.options import require
from pipeinfer.core.strategies.window import depth, sendable, that_fit
from pipeinfer.core.tree import Node


class SpecPipe(Strategy):
    """Each level of the draft's tree, its `width` likeliest branches, enters the first stage as one run while those
    before it are still under way. Where the target's token is in the tree, its subtree goes on and all other rows are
    dropped wherever they are; where it is not, nothing in flight is of use and the pipe is filled anew.

    A level is drafted no earlier than it can be sent: the later, the more is known. `in_flight` bounds the runs under
    way (0: as many as the pipe is deep, by what stages and links were measured to take). With `width` 1 it is a chain.
    """

    drafting = "beam"
    cancels = True
    sweeps = {"width": (1, 2, 4, 8, 16, 32)}  # noqa: RUF012 - replaced, never changed

    def __init__(self, width: int = 4, in_flight: int = 0) -> None:
        require("width", width, 1, 32)
        if in_flight:
            require("in_flight", in_flight, 2, 4096)  # One would be the single-token run's.
        self.width, self.in_flight = width, in_flight
        self._settings = DraftSettings(micro_batch=1, width=width)
        self._levels: deque[list[Node]] = deque()

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        if not generation.covered():
            return [generation.tip]
        while self._levels:
            nodes = [node for node in self._levels[0] if sendable(node)]
            if nodes:
                room = len(generation.pipe.in_flight) < self._window(generation)
                return that_fit(generation, nodes) if room else None
            self._levels.popleft()
        return None

    def next_order(self, generation: Generation) -> Order:
        return Order(generation.tip.position + self._window(generation), self._settings)

    def proposed(self, generation: Generation, nodes: list[Node]) -> None:
        self._levels.append(nodes)

    def limit(self, a: float, stages: int, draft: float) -> float:
        return theory.pipelined_tree(1 - (1 - a) ** self.width, stages)

    def _window(self, generation: Generation) -> int:
        return self.in_flight or depth(generation)
