"""Level by level: all branches grow by one token in one forward, and the best ones of the new level go on."""

from heapq import nlargest

from pipeinfer.core.draft import Draft, DraftPolicy
from pipeinfer.core.messages import DraftSettings
from pipeinfer.core.tree import Node, log_of


class Beam(DraftPolicy):
    """Keeps of all candidates after the live frontier the `width` with the highest probability of their whole branch.
    An end without any rests; those that rest go on where all that grew beyond them has died."""

    def candidates(self, settings: DraftSettings) -> int:
        return settings.width

    def grow(self, draft: Draft) -> None:
        if not draft.leaves:
            for leaf in list(draft.resting):
                draft.resume(leaf)
        ends = [leaf for leaf in draft.leaves if leaf.next is not None]
        options = [option for leaf in ends for option in _options(leaf)]
        grown: set[Node] = set()
        for score, leaf, token, confidence in nlargest(draft.settings.width, options, key=lambda option: option[0]):
            if draft.may_grow(leaf, score):
                draft.branch(leaf, token, confidence)
                grown.add(leaf)
        if grown:
            for leaf in ends:
                if leaf not in grown:
                    draft.rest(leaf)


def _options(leaf: Node) -> list[tuple[float, Node, int, float]]:
    """What may follow a leaf and has not been tried: score of the whole branch, leaf, token, confidence."""
    assert leaf.next is not None
    return [
        (leaf.score + log_of(confidence), leaf, token, confidence)
        for token, confidence in leaf.next
        if token not in leaf.children
    ]
