"""PipeInfer (SC'24): continuous asynchronous speculation with early inference cancellation.

Where the artifact sends a single-token run for every committed token, this sends one only for a token that no live run
covers (`redundant_runs` brings the habit back). Results of cancelled runs are not waited for, the draft rank streams
without lock-step, and the verdict on a run is that of its whole tree.
"""

from collections import deque

from pipeinfer.core.head import Head
from pipeinfer.core.messages import RunKind
from pipeinfer.core.strategies.options import require
from pipeinfer.core.tree import Node


class PipeInfer:
    """Streams micro-batches of `draft` drafted tokens into the pipeline, each in a fresh KV partition.

    A branch stops where confidence < `cutoff` + runs since the last order * `recovery` - failed attempts * `decay`, and
    splits where the candidate ranked 2nd to 8th is above `split` plus the same adjustment, up to `branches` branches. A
    stalled branch is tried again each millisecond, so that an idle pipeline soon gets what drafts there are, in smaller
    runs; where ranks share cores a doubtful run is at the expense of others, and `decay=0` keeps it back.
    `in_flight` bounds the runs under way (0: twice the stages plus two). `continuous` off: one speculative run at a
    time. `cancellation` off: dead runs are computed to their end. `redundant_runs`: a single-token run per commit.
    """

    drafts = True

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
        redundant_runs: bool = False,
    ) -> None:
        require("draft", draft, 1, 64)
        require("cutoff", cutoff, 0, 1)
        require("branches", branches, 1, 8)
        require("split", split, 0, 1)
        require("recovery", recovery, 0, 1)
        require("decay", decay, 0, 1)
        if in_flight:
            require("in_flight", in_flight, 2, 4096)  # One would be the single-token run's.
        self.draft, self.cutoff, self.width, self.split = draft, cutoff, branches, split
        self.recovery, self.decay, self.in_flight = recovery, decay, in_flight
        self.continuous, self.cancellation, self.redundant = continuous, cancellation, redundant_runs
        self._waiting: deque[list[Node]] = deque()
        self._until = -self.draft

    def draft_options(self) -> dict[str, float | int]:
        return {
            "micro_batch": self.draft,
            "cutoff": self.cutoff,
            "branches": self.width,
            "split": self.split,
            "recovery": self.recovery,
            "decay": self.decay,
        }

    def started(self, head: Head) -> None:
        self.in_flight = self.in_flight or 2 * head.pipeline.stages + 2
        self._order(head)

    def advanced(self, head: Head) -> None:
        if self.redundant:
            head.resubmit()
        elif not head.covered():
            head.submit([head.tip])
        self._send_waiting(head)
        self._order(head)

    def proposed(self, head: Head, nodes: list[Node], stalled: bool) -> None:
        self._waiting.append(nodes)
        self._send_waiting(head)

    def returned(self, head: Head) -> None:
        self._send_waiting(head)
        self._order(head)

    def _order(self, head: Head) -> None:
        if self.continuous:
            # The draft is let on by whole micro-batches: each commit's one token more would make a batch of one.
            reach = head.tip.position + self.in_flight * self.draft
            if reach >= self._until + self.draft:
                self._until = reach
            head.order_draft(self._until)
        elif not self._waiting and not any(run.kind is RunKind.SPECULATIVE and run.live for run in head.in_flight):
            head.order_draft(head.tip.position + self.draft)
        else:
            head.order_draft(head.tip.position)

    def _send_waiting(self, head: Head) -> None:
        """Send micro-batches in the order drafted while there is room; what died or was sent meanwhile is left out."""
        while self._waiting:
            nodes = [node for node in self._waiting[0] if node.alive and node.run is None]
            if nodes and (len(head.in_flight) >= self.in_flight or not head.room(len(nodes))):
                return
            self._waiting.popleft()
            if nodes:
                head.submit(nodes)
