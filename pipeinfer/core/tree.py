"""The tree of tokens: committed text as its trunk, speculation as its branches; and the runs that carry its nodes.

The scheduler keeps one per request, of what it has heard; the drafter keeps one of what it has drafted.
"""

from collections.abc import Iterator
from math import log

from pipeinfer.core.messages import RunKind

LEAST_CONFIDENCE = 1e-9
"""Of a candidate, for its score: a draft may say 0."""


class Node:
    """One token at one position after one particular text.

    `sequence` is a sequence id whose path holds it while it is uncommitted. `alive`: it is committed, or the committed
    text may still grow through it. `score` is the sum of the logs of the confidences from the trunk to here.

    For the scheduler: `run` carries it to the target (None: not sent); `verdict` is the target's
    choice of the token after it, with its top-2 `margin` where asked for. For the drafter: `id` names it in proposals;
    `fed`: it is in the draft's cache or being computed; `next`: the candidates after it.
    """

    __slots__ = (
        "alive", "children", "committed", "confidence", "fed", "id", "margin", "next", "parent", "position", "run",
        "score", "sequence", "token", "verdict",
    )  # fmt: skip

    def __init__(
        self, token: int, position: int, parent: "Node | None", confidence: float = 1.0, score: float = 0.0
    ) -> None:
        self.token = token
        self.position = position
        self.parent = parent
        self.confidence = confidence
        self.sequence = 0
        self.score = score
        self.children: dict[int, Node] = {}
        self.committed = False
        self.alive = True
        self.run: Run | None = None
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


class TokenTree:
    """A trunk that grows token by token, and branches from its tip."""

    def __init__(self) -> None:
        self.tip = Node(-1, -1, None)
        """The last committed token; before the first, the root of everything."""

    def add(self, parent: Node, token: int, confidence: float) -> Node:
        """A new child of `parent`."""
        score = parent.score + log(confidence if confidence > LEAST_CONFIDENCE else LEAST_CONFIDENCE)
        node = parent.children[token] = Node(token, parent.position + 1, parent, confidence, score)
        return node

    def commit(self, token: int) -> tuple[Node, list[Node]]:
        """Grow the trunk by one token. Gives its node, and its siblings, which have lost."""
        tip = self.tip
        child = tip.children.pop(token, None) or Node(token, tip.position + 1, tip)
        lost = [*tip.children.values()]
        child.committed = True
        tip.children = {token: child}
        self.tip = child
        return child, lost


class Run:
    """A micro-batch in flight, and afterwards the record of it.

    `live` counts its nodes that are alive: a speculative run without any is cancelled. `pruned` are the rows that are
    computed no more. `partition` are its sequence ids. Times are seconds on the scheduler's clock.
    """

    __slots__ = (
        "accepted", "cancel_sent_at", "cancelled_at", "compute_s", "drafted", "finished_at", "id", "kind", "live",
        "nodes", "outputs", "partition", "pruned", "request", "rows", "submitted_at",
    )  # fmt: skip

    def __init__(self, run: int, request: int, kind: RunKind, nodes: list[Node], outputs: int, now: float) -> None:
        self.id = run
        self.request = request
        self.kind = kind
        self.nodes = nodes
        self.rows = len(nodes)
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


