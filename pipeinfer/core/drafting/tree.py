"""Several branches, as in the artifact: a branch splits where another candidate is likely as well."""

from pipeinfer.core.draft import Draft, DraftPolicy
from pipeinfer.core.messages import DraftSettings

MOST_CANDIDATES = 8
"""The artifact looks at the drafts ranked 1 to 8 when it splits a branch."""


class Tree(DraftPolicy):
    """Continues each branch with its best candidate above the cutoff, and with others that are above the split."""

    def candidates(self, settings: DraftSettings) -> int:
        return MOST_CANDIDATES if settings.width > 1 else 1

    def grow(self, draft: Draft) -> None:
        settings, adjustment = draft.settings, draft.adjustment
        for leaf in [leaf for leaf in draft.leaves if leaf.next is not None and draft.may_grow(leaf)]:
            assert leaf.next is not None
            token, confidence = leaf.next[0]
            if confidence < settings.cutoff + adjustment:
                draft.retry_later()
                continue
            chosen = [(token, confidence)]
            spare = min(settings.width - len(draft.leaves), draft.spare - 1)
            for other, probability in leaf.next[1:]:
                if spare > 0 and probability > settings.split + adjustment:
                    chosen.append((other, probability))
                    spare -= 1
            for rank, (child, probability) in enumerate(chosen, 1):
                draft.branch(leaf, child, probability, last=rank == len(chosen))
