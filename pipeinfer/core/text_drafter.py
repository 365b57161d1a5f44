"""Drafting without a model: what comes next is guessed from the text itself, on the head, in no time worth counting."""

from collections.abc import Callable, Sequence
from typing import Any

from pipeinfer.core.effects import Forward
from pipeinfer.core.errors import PeerError
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import DraftFrom, DraftNode, DraftSettings, Proposal


class TextPolicy:
    """A draft policy without a model; a plug-in of the group `pipeinfer.drafting`. One object serves one request."""

    model: bool = False

    def continuation(self, text: Sequence[int], count: int) -> Sequence[int]:
        """Up to `count` tokens that may follow `text`; none where it has no idea."""
        raise NotImplementedError


class _Draft:
    """What was guessed for one request: tokens beyond the committed text, each with its id."""

    def __init__(self, policy: TextPolicy) -> None:
        self.policy = policy
        self.settings = DraftSettings()
        self.text: list[int] = []
        self.guessed: list[tuple[int, int]] = []
        self.next_id = 0

    def commit(self, token: int) -> None:
        self.text.append(token)
        if self.guessed and self.guessed[0][1] == token:
            self.guessed.pop(0)
        else:
            self.guessed = []

    def guess(self, until: int) -> list[DraftNode]:
        """New tokens up to position `until`, each the child of the one before."""
        known = self.text + [token for _, token in self.guessed]
        nodes: list[DraftNode] = []
        for token in self.policy.continuation(known, max(0, until + 1 - len(known))):
            parent = self.guessed[-1][0] if self.guessed else -1
            nodes.append(DraftNode(self.next_id, parent, token, 1.0))
            self.guessed.append((self.next_id, token))
            self.next_id += 1
        return nodes


class TextDrafter(Machine):
    """The drafter's counterpart without a model: each order is answered at once."""

    def __init__(self, open_policy: Callable[[], TextPolicy]) -> None:
        super().__init__()
        self._open_policy = open_policy
        self._drafts: dict[int, _Draft] = {}

    def _take(self, event: Any) -> None:
        if not isinstance(event, DraftFrom):
            raise PeerError(f"a drafter without a model does not take a {type(event).__name__}")
        if event.until < 0:
            self._drafts.pop(event.request, None)
            return
        draft = self._drafts.get(event.request)
        if draft is None:
            draft = self._drafts[event.request] = _Draft(self._open_policy())
        draft.settings = event.settings or draft.settings
        for token in event.tokens:
            draft.commit(token)
        size = draft.settings.micro_batch
        reach = min(event.until, len(draft.text) - 1 + size) if draft.settings.once else event.until
        nodes = draft.guess(reach)
        batches = [nodes[start : start + size] for start in range(0, len(nodes), size)] or [[]]
        for batch in batches:
            last = batch is batches[-1]
            self._effects.append(Forward(Proposal(event.order, tuple(batch), last, event.request)))
