"""Drafting without a model: what comes next is guessed from the text itself, on the head, in no time worth counting."""

from collections.abc import Callable, Sequence

from pipeinfer.core.effects import Forward
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import DraftFrom, DraftNode, DraftSettings, Proposal


class TextPolicy:
    """A draft policy without a model; a plug-in of the group `pipeinfer.drafting`. One object serves one request."""

    model: bool = False

    def continuation(self, text: Sequence[int], count: int, unchanged: int = 0) -> Sequence[int]:
        """Up to `count` tokens that may follow `text`; none where it has no idea. So many tokens at the front are the
        `unchanged` ones of the text before: it ends in guesses, which may have been wrong."""
        raise NotImplementedError


class _Draft:
    """What was guessed for one request: `known` is the text, `committed` tokens of it, and the guesses beyond; `ids`
    are those of the guesses."""

    def __init__(self, policy: TextPolicy) -> None:
        self.policy = policy
        self.settings = DraftSettings()
        self.known: list[int] = []
        self.ids: list[int] = []
        self.committed = 0
        self._unchanged = 0
        self._next_id = 0

    def commit(self, token: int) -> None:
        if self.ids and self.known[self.committed] == token:
            self.ids.pop(0)
        else:
            self.ids = []
            self._unchanged = min(self._unchanged, self.committed)
            del self.known[self.committed :]
            self.known.append(token)
        self.committed += 1

    def guess(self, until: int) -> list[DraftNode]:
        """New tokens up to position `until`, each the child of the one before."""
        count = max(0, until + 1 - len(self.known))
        tokens = list(self.policy.continuation(self.known, count, self._unchanged))
        self._unchanged = len(self.known)
        nodes: list[DraftNode] = []
        for token in tokens:
            nodes.append(DraftNode(self._next_id, self.ids[-1] if self.ids else -1, token, 1.0))
            self.known.append(token)
            self.ids.append(self._next_id)
            self._next_id += 1
        return nodes


class TextDrafter(Machine):
    """The drafter's counterpart without a model: each order is answered at once."""

    def __init__(self, open_policy: Callable[[int], TextPolicy]) -> None:
        super().__init__()
        self.handlers = {DraftFrom: self._redirect}
        self._open_policy = open_policy
        self._drafts: dict[int, _Draft] = {}

    def _redirect(self, event: DraftFrom) -> None:
        if event.until < 0:
            self._drafts.pop(event.request, None)
            return
        draft = self._drafts.get(event.request)
        if draft is None:
            draft = self._drafts[event.request] = _Draft(self._open_policy(event.request))
        draft.settings = event.settings or draft.settings
        for token in event.tokens:
            draft.commit(token)
        size = draft.settings.micro_batch
        reach = min(event.until, draft.committed - 1 + size) if draft.settings.once else event.until
        nodes = draft.guess(reach)
        batches = [nodes[start : start + size] for start in range(0, len(nodes), size)] or [[]]
        for batch in batches:
            last = batch is batches[-1]
            self._effects.append(Forward(Proposal(event.order, tuple(batch), last, event.request)))
