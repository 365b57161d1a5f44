"""The token tree: committed text as its trunk, speculation as its branches; and the runs that carry its nodes."""

from collections.abc import Iterator

from pipeinfer.core.messages import RunKind


class Node:
    """One token at one position after one particular text.

    `run` is the run that carries it to the target (None: not sent). `sequence` is a sequence id whose path holds it
    while it is uncommitted. `verdict` is the target's choice of the token after it
    (with its top-2 `margin`, where asked for). `alive`: it is committed, or the
    committed text may still grow through it.
    """

    __slots__ = (
        "alive", "children", "committed", "confidence", "margin", "parent", "position", "run", "sequence", "token",
        "verdict",
    )

    def __init__(self, token: int, position: int, parent: "Node | None", confidence: float = 1.0) -> None:
        self.token = token
        self.position = position
        self.parent = parent
        self.confidence = confidence
        self.children: dict[int, Node] = {}
        self.run: Run | None = None
        self.sequence = 0
        self.verdict: int | None = None
        self.margin: float | None = None
        self.committed = False
        self.alive = True

    def subtree(self) -> Iterator["Node"]:
        """This node and all below it."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())


class Run:
    """A micro-batch in flight, and afterwards the record of it.

    `live` counts its nodes that are alive: a speculative run without any is cancelled. Times are the driver's clock.
    """

    __slots__ = (
        "accepted", "cancel_sent_at", "cancelled_at", "compute_s", "drafted", "finished_at", "id", "kind", "live",
        "nodes", "outputs", "partition", "rows", "submitted_at",
    )

    def __init__(self, run: int, kind: RunKind, nodes: list[Node], outputs: int, now: float) -> None:
        self.id = run
        self.kind = kind
        self.nodes = nodes
        self.rows = len(nodes)
        self.outputs = outputs
        self.live = len(nodes)
        self.partition: tuple[int, ...] = ()
        self.submitted_at = now
        self.cancel_sent_at: float | None = None
        self.finished_at: float | None = None
        self.cancelled_at = -1
        self.compute_s: tuple[float, ...] = ()
        self.drafted = 0
        self.accepted = 0
