"""What fills a pipe: how many runs in flight, which nodes can be sent, and how many of a run there is room for."""

from collections.abc import Sequence

from pipeinfer.core.generation import Generation
from pipeinfer.core.messages import RunKind
from pipeinfer.core.tree import Node, log_of


def depth(generation: Generation) -> int:
    """Runs in flight that keep the slowest stage busy; one waits before it and one is on its way back."""
    return generation.pipe.measured.slots + 2


def that_fit(generation: Generation, nodes: Sequence[Node]) -> Sequence[Node] | None:
    """These nodes; where there are not enough sequence ids or cells, None while runs that hold some are in flight, and
    the first of them that fit otherwise."""
    if generation.fits(nodes):
        return nodes
    if any(run.kind is RunKind.SPECULATIVE for run in generation.in_flight):
        return None
    for count in range(len(nodes) - 1, 0, -1):
        if generation.fits(nodes[:count]):
            return nodes[:count]
    return None


def as_many_as_fit(generation: Generation, nodes: list[Node]) -> list[Node]:
    """The first of these nodes for which there are sequence ids and cells; one at least, which is the tip."""
    while len(nodes) > 1 and not generation.fits(nodes):
        nodes.pop()
    return nodes


def sendable(node: Node) -> bool:
    """It is alive and not sent, and what it continues was sent."""
    parent = node.parent
    return node.alive and node.run is None and parent is not None and (parent.committed or parent.run is not None)


def by_score(generation: Generation) -> list[Node]:
    """The undecided nodes that were not sent, the likeliest first: parents before their children, which cannot be
    likelier, so that the first of them are connected to what was sent."""
    scores = {generation.tip: 0.0}
    for node in generation.tip.subtree():
        if node is not generation.tip and node.parent is not None:
            scores[node] = scores[node.parent] + log_of(node.confidence)
    unsent = [node for node in scores if node.run is None and not node.committed]
    return sorted(unsent, key=lambda node: (-scores[node], node.position))
