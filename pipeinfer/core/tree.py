"""The tree of tokens: committed text as its trunk, speculation as its branches; and the runs that carry its nodes.

The scheduler keeps one per request, of what it has heard; the drafter keeps one of what it has drafted.
"""

from collections.abc import Iterator, Sequence
from math import log

import msgspec

from pipeinfer.core.messages import NOT_CANCELLED, RunKind

LEAST_CONFIDENCE = 1e-9

SURE = 0.999
"""The mean confidence of a draft that is always sure, which tells nothing."""


class Node(msgspec.Struct, eq=False):
    """One token at one position after one particular text.

    `sequence` is a sequence id whose path holds it while it is uncommitted. `alive`: it is committed, or the committed
    text may still grow through it.

    For the scheduler: `run` carries it to the target (None: not sent); `verdict` is the token that the target chose
    after it, with its top-2 `margin` where asked for. For the drafter: `id` names it in proposals; `fed`: it is in the
    draft's cache or being computed; `next`: the candidates after it; `score`: the sum of the logs of the confidences of
    its branch up to here.
    """

    token: int
    position: int
    parent: "Node | None"
    confidence: float = 1.0
    children: dict[int, "Node"] = {}
    sequence: int = 0
    committed: bool = False
    alive: bool = True
    run: "Run | None" = None
    verdict: int | None = None
    margin: float | None = None
    id: int = -1
    fed: bool = False
    next: tuple[tuple[int, float], ...] | None = None
    score: float = 0.0

    def subtree(self) -> Iterator["Node"]:
        """This node and all below it."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def commit(self, token: int) -> tuple["Node", Sequence["Node"]]:
        """The text goes on with `token` after this node, its tip. Gives the new tip, and those that have lost."""
        lost: Sequence[Node] = ()
        child = self.children.get(token)
        if child is None or len(self.children) > 1:
            lost = [other for other in self.children.values() if other is not child]
            child = child or Node(token, self.position + 1, self)
            self.children = {token: child}
        child.committed = True
        return child, lost


def root() -> Node:
    """What the first token of a text continues."""
    return Node(-1, -1, None)


def log_of(confidence: float) -> float:
    """Of a candidate, for its score: a draft may say 0."""
    return log(LEAST_CONFIDENCE if confidence < LEAST_CONFIDENCE else confidence)


def chance(confidence: float, first: float, power: float) -> float:
    """That a candidate of this confidence is right, its predecessors being: that of the draft's first choice, which has
    the confidence `first`, is first ** power, and the others share what it leaves."""
    best: float = first**power
    if confidence >= first:
        return best
    return confidence * (1 - best) / (1 - first) if first < 1 else confidence


class Run(msgspec.Struct, eq=False):
    """Rows of one request in flight, and afterwards the record of it. Runs of several requests may travel as one: they
    have one id, and are `together` while they are under way; who travels alone has nobody in it.

    `first_row` is where its rows begin in the micro-batch, which has `width` of them. `live` counts its nodes that are
    alive: a speculative run without any is cancelled. `pruned` are the rows of the micro-batch that were this run's and
    are computed no more. `sequences` are the ids of each row, `partition` those that were taken for it, `drafted` how
    many of its nodes were not the text's. Times are seconds on the scheduler's clock.
    """

    id: int
    request: int
    kind: RunKind
    nodes: list[Node]
    outputs: int
    submitted_at: float
    rows: int
    width: int
    live: int
    sequences: tuple[tuple[int, ...], ...] = ()
    partition: tuple[int, ...] = ()
    drafted: int = 0
    first_row: int = 0
    together: tuple["Run", ...] = ()
    pruned: tuple[int, ...] = ()
    cancel_sent_at: float | None = None
    finished_at: float | None = None
    cancelled_at: int = NOT_CANCELLED
    compute_s: tuple[float, ...] = ()
    accepted: int = 0
