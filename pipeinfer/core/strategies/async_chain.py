"""Asynchronous chain: the draft never stops, and the target verifies all that waits in one forward.

Source: PipeSpec (arXiv 2505.01572) and AMUSD (arXiv 2410.17375), with one draft model before the target.
"""

from collections.abc import Sequence

from pipeinfer.core import theory
from pipeinfer.core.generation import Generation, Order, Strategy
from pipeinfer.core.messages import DraftSettings
from pipeinfer.core.strategies.drafted_chain import DraftedChain
from pipeinfer.core.strategies.options import require
from pipeinfer.core.tree import Node


class AsyncChain(Strategy):
    """Whenever the target is free it is sent the last committed token and every draft that waits, so that the batch
    adapts itself to the speeds of both: few drafts beside a fast target, many beside a slow one.

    The draft is let on up to `ahead` tokens beyond the text, which bounds the batch as well. It is sent on its way
    again by the first token that is not its own.
    """

    drafting = "chain"
    sends_all = True
    sweeps = {"ahead": (4, 8, 16, 32, 64)}  # noqa: RUF012 - replaced, never changed

    def __init__(self, ahead: int = 32) -> None:
        require("ahead", ahead, 1, 256)
        self.ahead = ahead
        self._settings = DraftSettings(micro_batch=1)
        self._chain = DraftedChain()

    def next_run(self, generation: Generation) -> Sequence[Node] | None:
        if generation.covered() or generation.in_flight:
            return None
        return self._chain.run(generation, self.ahead)

    def next_order(self, generation: Generation) -> Order:
        return Order(generation.tip.position + self.ahead, self._settings)

    def proposed(self, generation: Generation, nodes: list[Node]) -> None:
        self._chain.add(nodes)

    def advanced(self, generation: Generation) -> None:
        self._chain.advance(generation.tip)

    def limit(self, a: float, stages: int, draft: float) -> float | None:
        return theory.asynchronous_chain(a, 1 / draft) if 0 < draft <= 1 else None
