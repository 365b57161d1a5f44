"""A strategy: synchronous speculation whose K follows what was accepted."""

from pipeinfer.core.head import Head
from pipeinfer.core.strategies.speculative import Speculative

LARGEST = 16


class Adaptive(Speculative):
    """Drafts one token more after a round in which every draft was accepted, and half as many after any other."""

    def __init__(self, k: int = 2) -> None:
        super().__init__(k=k)

    def draft_options(self) -> dict[str, float | int]:
        return {**super().draft_options(), "micro_batch": LARGEST}

    def advanced(self, head: Head) -> None:
        verified = head.runs[-1] if head.runs else None
        if verified is not None and verified.drafted:
            all_accepted = verified.accepted == verified.drafted
            self.k = min(LARGEST, self.k + 1) if all_accepted else max(1, self.k // 2)
        super().advanced(head)
