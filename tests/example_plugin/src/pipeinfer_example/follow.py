"""A strategy: synchronous speculation whose K follows what was accepted."""

import msgspec

from pipeinfer.core.generation import Generation, Order
from pipeinfer.core.strategies.speculative import Speculative

LARGEST = 16


class Follow(Speculative):
    """Drafts one token more after a round in which every draft was accepted, and half as many after any other."""

    def __init__(self, k: int = 2) -> None:
        super().__init__(k=k)

    def next_order(self, generation: Generation) -> Order:
        order = super().next_order(generation)
        return Order(order.until, msgspec.structs.replace(order.settings, micro_batch=LARGEST))

    def advanced(self, generation: Generation) -> None:
        verified = generation.runs[-1] if generation.runs else None
        if verified is not None and verified.drafted:
            all_accepted = verified.accepted == verified.drafted
            self.k = min(LARGEST, self.k + 1) if all_accepted else max(1, self.k // 2)
        super().advanced(generation)
