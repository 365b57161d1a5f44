"""One branch: after each token the draft's best, while it is confident enough."""

from pipeinfer.core.draft import Draft, DraftPolicy


class Chain(DraftPolicy):
    """Continues its branch until the confidence falls below the cutoff."""

    def grow(self, draft: Draft) -> None:
        for leaf in list(draft.leaves):
            if leaf.next is None or not draft.may_grow(leaf):
                continue
            token, confidence = leaf.next[0]
            if confidence < draft.settings.cutoff + draft.adjustment:
                draft.retry_later()
            else:
                draft.branch(leaf, token, confidence)
