"""A chain where one branch is wanted and a beam where more are, from one order to the next."""

from pipeinfer.core.drafter import Draft, DraftPolicy
from pipeinfer.core.drafting.beam import Beam
from pipeinfer.core.drafting.chain import Chain
from pipeinfer.core.messages import DraftSettings


class ByWidth(DraftPolicy):
    """What `adaptive` needs: it may change its mind between two runs."""

    def __init__(self) -> None:
        self._chain, self._beam = Chain(), Beam()

    def candidates(self, settings: DraftSettings) -> int:
        return settings.width

    def grow(self, draft: Draft) -> None:
        if draft.settings.width > 1:
            self._beam.grow(draft)
            return
        if not draft.leaves:
            draft.resume(max(draft.resting, key=lambda leaf: leaf.score))
        for leaf in sorted(draft.leaves, key=lambda leaf: leaf.score)[:-1]:
            draft.rest(leaf)
        self._chain.grow(draft)
