"""FlowSpec (arXiv 2507.02620): a tree, sorted by score and cut into segments that fill the pipeline."""

from collections.abc import Sequence

from pipeinfer.core import theory
from pipeinfer.core.generation import Generation, Order, Strategy
from pipeinfer.core.messages import DraftSettings, RunKind
from pipeinfer.core.strategies.options import require
from pipeinfer.core.strategies.window import by_score, depth, that_fit
from pipeinfer.core.tree import Node


class FlowSpec(Strategy):
    """The draft's tree, `depth` levels beyond the text and `nodes` undecided tokens at most, grows by the likeliest
    `width` per forward. Its nodes that were not sent, likeliest first and parents before children, are cut into runs of
    `segment` that follow one another; only a pipe without any takes what there is at once. After each verdict the rows
    that are lost are dropped everywhere, and the tree grows on from what was verified.

    `in_flight` bounds the runs under way (0: as many as the pipe is deep).
    """

    drafting = "frontier"
    cancels = True
    sweeps = {"segment": (1, 2, 4, 8, 16, 32, 64)}  # noqa: RUF012 - replaced, never changed

    def __init__(self, segment: int = 16, width: int = 10, depth: int = 6, nodes: int = 80, in_flight: int = 0) -> None:
        require("segment", segment, 1, 64)
        require("width", width, 1, 32)
        require("depth", depth, 1, 64)
        require("nodes", nodes, segment, 512)
        if in_flight:
            require("in_flight", in_flight, 2, 4096)  # One would be the single-token run's.
        self.segment, self.width, self.depth, self.in_flight = segment, width, depth, in_flight
        self._settings = DraftSettings(micro_batch=1, width=width, nodes=nodes)

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        if not generation.covered():
            return [generation.tip]
        if len(generation.pipe.in_flight) >= (self.in_flight or depth(generation)):
            return None
        unsent = by_score(generation)
        idle = not any(run.kind is RunKind.SPECULATIVE and run.live for run in generation.in_flight)
        ready = len(unsent) >= self.segment or generation.stalled or idle
        return that_fit(generation, unsent[: self.segment]) if unsent and ready else None

    def next_order(self, generation: Generation) -> Order:
        return Order(generation.tip.position + self.depth, self._settings)

    def limit(self, a: float, stages: int, draft: float) -> float | None:
        return theory.segmented_chain(a, stages, self.segment) if self.width == 1 else None
