"""PipeInfer (SC'24): continuous asynchronous speculation with early inference cancellation.

Where the artifact sends a single-token run for every committed token, this sends one only for a token that no live run
covers (`redundant` brings the habit back). Results of cancelled runs are not waited for, the draft rank streams without
lock-step, and the verdict on a run is that of its whole tree.
"""

from collections import deque
from collections.abc import Sequence

from pipeinfer.core import theory
from pipeinfer.core.generation import Generation, Order, Strategy
from pipeinfer.core.messages import DraftSettings, RunKind
from pipeinfer.core.strategies.options import COUNTS, require
from pipeinfer.core.tree import Node


class PipeInfer(Strategy):
    """Streams micro-batches of `draft` drafted tokens into the pipeline, each in a fresh KV partition.

    A branch stops where confidence < `cutoff` + runs since the last order * `recovery` - failed attempts * `decay`, and
    splits where the candidate ranked 2nd to 8th is above `split` plus the same adjustment, up to `branches` branches. A
    stalled branch is tried again each millisecond, so that an idle pipeline soon gets what drafts there are, in smaller
    runs; where ranks share cores a doubtful run is at the expense of others, and `decay=0` keeps it back.
    `in_flight` bounds the runs under way (0: twice the stages plus two). `continuous` off: one speculative run at a
    time. `cancellation` off: dead runs are computed to their end.
    """

    as_published = "light-head"
    sweeps = {"draft": COUNTS}  # noqa: RUF012 - replaced, never changed
    # With its decay an idle pipeline gets doubtful drafts too, and a cutoff would do little.
    sweeps_by_confidence = {"cutoff": (0.0, 0.2, 0.4, 0.6), "decay": (0.0,)}  # noqa: RUF012

    def __init__(
        self,
        draft: int = 3,
        cutoff: float = 0.3,
        branches: int = 1,
        split: float = 0.2,
        recovery: float = 0.0,
        decay: float = 0.05,
        in_flight: int = 0,
        continuous: bool = True,
        cancellation: bool = True,
    ) -> None:
        require("draft", draft, 1, 64)
        require("cutoff", cutoff, 0, 1)
        require("branches", branches, 1, 8)
        require("split", split, 0, 1)
        require("recovery", recovery, 0, 1)
        require("decay", decay, 0, 1)
        if in_flight:
            require("in_flight", in_flight, 2, 4096)  # One would be the single-token run's.
        self.ahead = draft * continuous
        self.draft, self.in_flight, self.continuous, self.cancels = draft, in_flight, continuous, cancellation
        self.drafting = "tree" if branches > 1 else "chain"
        self._settings = DraftSettings(draft, cutoff, branches, split, recovery, decay)
        self._waiting: deque[list[Node]] = deque()
        self._order = Order(-draft, self._settings)

    def started(self, generation: Generation) -> None:
        self.in_flight = self.in_flight or 2 * generation.pipe.pipeline.stages + 2

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        tip = generation.tip
        return [tip] if tip.run is None else self.next_micro_batch(generation)

    def next_micro_batch(self, generation: Generation) -> Sequence[Node] | None:
        """The oldest that waits, if there is room; what died or was sent meanwhile is left out."""
        if len(generation.pipe.in_flight) >= self.in_flight:
            return None
        while self._waiting:
            nodes = [node for node in self._waiting[0] if node.alive and node.run is None]
            if nodes:
                return nodes if generation.fits(nodes) else None
            self._waiting.popleft()
        return None

    def next_order(self, generation: Generation) -> Order:
        reach = generation.tip.position
        if self.continuous:
            # The draft is let on by whole micro-batches: each commit's one token more would make a batch of one.
            until = reach + self.in_flight * self.draft
            if until >= self._order.until + self.draft:
                self._order = Order(until, self._settings)
            return self._order
        speculates = any(run.kind is RunKind.SPECULATIVE and run.live for run in generation.in_flight)
        return Order(reach if self._waiting or speculates else reach + self.draft, self._settings)

    def proposed(self, generation: Generation, nodes: list[Node]) -> None:
        self._waiting.append(nodes)

    def limit(self, a: float, stages: int, draft: float) -> float | None:
        return None if self.drafting == "tree" else theory.pipelined_chain(a, stages, self.draft)
