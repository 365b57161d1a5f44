"""One branch, and beside it what follows each way in which its verification may end. It hides the draft's restart.

Source: speculative speculative decoding (arXiv 2603.03251).
"""

from pipeinfer.core.draft import Draft, DraftPolicy
from pipeinfer.core.messages import DraftSettings
from pipeinfer.core.strategies.options import require
from pipeinfer.core.tree import Node

SPARED = 4
"""Sequences that are left to others, for text and branch of two more requests."""


class Outcomes(DraftPolicy):
    """Drafts one branch like `chain`. Once that may go no further, it prepares: after each of the first `length` of its
    tokens it tries the `alternatives` candidates that are next in line, and `length` tokens after each. When the text
    comes to one of them, what was prepared is proposed at once.

    `rounds`: the branch ends `length` tokens after the text, wherever the order ends.
    """

    def __init__(self, alternatives: int = 3, length: int = 7, rounds: bool = False) -> None:
        require("alternatives", alternatives, 1, 7)
        require("length", length, 1, 64)
        self._alternatives, self._length, self._rounds = alternatives, length, rounds
        self._branch: set[Node] = set()
        self._opened: set[Node] = set()

    def candidates(self, settings: DraftSettings) -> int:
        return 1 + self._alternatives

    def grow(self, draft: Draft) -> None:
        reach = min(draft.until, draft.tip.position + self._length) if self._rounds else draft.until
        branch = self._adopt(draft, reach)
        end = branch[-1]
        if end.position < reach and draft.may_grow(end):
            if end.next is None:
                return  # The branch comes first: nothing else is computed beside its end.
            token, confidence = end.next[0]
            if self._confident(draft, confidence):
                branch.append(draft.branch(end, token, confidence))
                self._branch.add(branch[-1])
                if branch[-1].position < reach:
                    return
        self._grow_prepared(draft, set(branch))
        self._open(draft, branch)

    def _adopt(self, draft: Draft, reach: int) -> list[Node]:
        """The branch from the text's last token to its end. What was prepared there becomes part of it."""
        branch = [draft.tip]
        while branch[-1].children:
            children = list(branch[-1].children.values())
            known = [child for child in children if child in self._branch]
            if not known and (children[0].position > reach or not self._confident(draft, children[0].confidence)):
                break
            if not known:
                draft.propose(children[0])
            branch.append(known[0] if known else children[0])
        self._branch = set(branch)
        self._opened = {node for node in self._opened if node.alive and node.position >= draft.tip.position}
        return branch

    def _confident(self, draft: Draft, confidence: float) -> bool:
        if confidence >= draft.settings.cutoff + draft.adjustment:
            return True
        draft.retry_later()
        return False

    def _open(self, draft: Draft, branch: list[Node]) -> None:
        """Try other candidates along the branch, those that are decided first before the others."""
        for node in branch[: self._length + 1]:
            if node.next is None or node in self._opened:
                continue
            others = [one for one in node.next if one[0] not in node.children][: self._alternatives]
            for token, confidence in others:
                if not self._room(draft, node):
                    return
                draft.branch(node, token, confidence, last=False, propose=False)
            self._opened.add(node)

    def _room(self, draft: Draft, node: Node) -> bool:
        """Sequences and cells for one more, grown to its end like all others."""
        cells = (len(draft.leaves) + 1) * (self._length + 1)
        return draft.spare > SPARED and draft.room >= cells and draft.may_grow(node)

    def _grow_prepared(self, draft: Draft, branch: set[Node]) -> None:
        for leaf in [leaf for leaf in draft.leaves if leaf not in branch and leaf.next is not None]:
            assert leaf.next is not None
            if _distance(leaf, branch) <= self._length and draft.may_grow(leaf):
                draft.branch(leaf, *leaf.next[0], propose=False)


def _distance(node: Node, branch: set[Node]) -> int:
    """How many tokens lie between the branch and this node, itself included."""
    steps = 0
    above: Node | None = node
    while above is not None and above not in branch:
        steps, above = steps + 1, above.parent
    return steps
