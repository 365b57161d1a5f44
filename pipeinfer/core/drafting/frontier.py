"""Best first: the likeliest tokens anywhere in the tree are tried next, wherever they hang."""

from heapq import heapify, heappop, heappush
from itertools import count

from pipeinfer.core.draft import Draft, DraftPolicy
from pipeinfer.core.messages import DraftSettings
from pipeinfer.core.tree import Node, chance, log_of

Option = tuple[float, int, Node, tuple[int, float] | None]
"""What may be read next: minus the score of its branch, a number that breaks ties, and either a leaf that rests unread
or a node with the candidate after it that has not been tried."""


class Frontier(DraftPolicy):
    """Each forward reads the `width` likeliest nodes of the tree that were not read, new ones among them, until the
    tree has `nodes` undecided ones."""

    def candidates(self, settings: DraftSettings) -> int:
        return settings.width

    def grow(self, draft: Draft) -> None:
        settings, resting = draft.settings, set(draft.resting)
        known = [node for node in draft.tip.subtree() if node is not draft.tip]
        slots = settings.width - sum(not leaf.fed for leaf in draft.leaves)
        room = settings.nodes - len(known) if settings.nodes else slots
        least = draft.tip.score + log_of(settings.cutoff)
        discount, serial = log_of(settings.discount), count()
        options = [_option(draft, node, resting, discount, next(serial)) for node in (draft.tip, *known)]
        heap = [option for option in options if option is not None]
        heapify(heap)
        while heap and slots > 0 and heap[0][0] <= -least:
            _, _, node, candidate = heappop(heap)
            if not node.alive:
                continue  # it gave its sequence to a likelier one
            if candidate is None:
                draft.resume(node)
            elif room > 0 and draft.may_grow(node, score := node.score + log_of(_likely(draft, node, candidate))):
                room -= 1
                child = draft.branch(node, *candidate)
                child.score = score
                if child.position >= draft.until:
                    draft.rest(child)  # it is read when the order reaches beyond it
                option = _option(draft, node, resting, discount, next(serial))
                if option is not None:
                    heappush(heap, option)
            else:
                continue
            slots -= 1


def _option(draft: Draft, node: Node, resting: set[Node], discount: float, serial: int) -> Option | None:
    """The one thing that may be read next at this node, if there is any."""
    candidate = None
    if node.next is None:
        if node.fed or node not in resting or node.position >= draft.until:
            return None
    else:
        # A loop, and not `next` of a generator: this is asked of each node of the tree for each forward of the draft.
        for candidate in node.next:
            if candidate[0] not in node.children:
                break
        else:
            return None
    score = node.score + discount * (node.position - draft.tip.position)
    if candidate is None:
        return (-score, serial, node, None)
    return (-score - discount - log_of(_likely(draft, node, candidate)), serial, node, candidate)


def _likely(draft: Draft, node: Node, candidate: tuple[int, float]) -> float:
    assert node.next is not None
    return chance(candidate[1], node.next[0][1], draft.settings.power)
