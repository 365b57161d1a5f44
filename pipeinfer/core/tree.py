"""The tree of tokens: committed text as its trunk, speculation as its branches; and the runs that carry its nodes.

The scheduler keeps one per request, of what it has heard; the drafter keeps one of what it has drafted.
"""

from collections.abc import Iterator
from math import log

from pipeinfer.core.messages import RunKind

LEAST_CONFIDENCE = 1e-9


class Node:
    """One token at one position after one particular text.

    `sequence` is a sequence id whose path holds it while it is uncommitted. `alive`: it is committed, or the committed
    text may still grow through it.

    For the scheduler: `run` carries it to the target (None: not sent) as row `row` of the micro-batch; `verdict` is the
    token that the target chose after it, with its top-2 `margin` where asked for. For the drafter: `id` names it in
    proposals; `fed`: it is in the draft's cache or being computed; `next`: the candidates after it; `score`: the sum of
    the logs of the confidences of its branch up to here.
    """

    __slots__ = (
        "alive", "children", "committed", "confidence", "fed", "id", "margin", "next", "parent", "position", "row",
        "run", "score", "sequence", "token", "verdict",
    )  # fmt: skip

    def __init__(self, token: int, position: int, parent: "Node | None", confidence: float = 1.0) -> None:
        self.token = token
        self.position = position
        self.parent = parent
        self.confidence = confidence
        self.sequence = 0
        self.score = 0.0
        self.children: dict[int, Node] = {}
        self.committed = False
        self.alive = True
        self.run: Run | None = None
        self.row = 0
        self.verdict: int | None = None
        self.margin: float | None = None
        self.id = -1
        self.fed = False
        self.next: tuple[tuple[int, float], ...] | None = None

    def subtree(self) -> Iterator["Node"]:
        """This node and all below it."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def commit(self, token: int) -> tuple["Node", list["Node"]]:
        """The text goes on with `token` after this node, its tip. Gives the new tip, and those that have lost."""
        child = self.children.pop(token, None) or Node(token, self.position + 1, self)
        lost = [*self.children.values()]
        child.committed = True
        self.children = {token: child}
        return child, lost


def root() -> Node:
    """What the first token of a text continues."""
    return Node(-1, -1, None)


def log_of(confidence: float) -> float:
    """Of a candidate, for its score: a draft may say 0."""
    return log(max(confidence, LEAST_CONFIDENCE))


class Run:
    """Rows of one request in flight, and afterwards the record of it. Runs of several requests may travel as one: they
    have one id, and are `together` while they are under way.

    `first_row` is where its rows begin in the micro-batch, which has `width` of them. `live` counts its nodes that are
    alive: a speculative run without any is cancelled. `pruned` are the rows of the micro-batch that were this run's and
    are computed no more. `partition` are its sequence ids. Times are seconds on the scheduler's clock.
    """

    __slots__ = (
        "accepted", "cancel_sent_at", "cancelled_at", "compute_s", "drafted", "finished_at", "first_row", "id", "kind",
        "live", "nodes", "outputs", "partition", "pruned", "request", "rows", "submitted_at", "together", "width",
    )  # fmt: skip

    def __init__(self, run: int, request: int, kind: RunKind, nodes: list[Node], outputs: int, now: float) -> None:
        self.id = run
        self.request = request
        self.kind = kind
        self.nodes = nodes
        self.rows = self.width = len(nodes)
        self.first_row = 0
        self.together: tuple[Run, ...] = (self,)
        self.outputs = outputs
        self.live = len(nodes)
        self.pruned: frozenset[int] = frozenset()
        self.partition: tuple[int, ...] = ()
        self.submitted_at = now
        self.cancel_sent_at: float | None = None
        self.finished_at: float | None = None
        self.cancelled_at = -1
        self.compute_s: tuple[float, ...] = ()
        self.drafted = 0
        self.accepted = 0
