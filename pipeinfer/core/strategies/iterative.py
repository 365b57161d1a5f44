"""Plain decoding: one token per traversal of the pipeline. What every speedup is measured against."""

from pipeinfer.core.head import Head
from pipeinfer.core.tree import Node


class Iterative:
    """Sends a single-token run for each committed token and waits for it."""

    drafts = False
    cancellation = False
    redundant = False
    width = 1

    def draft_options(self) -> dict[str, float | int]:
        return {}

    def started(self, head: Head) -> None:
        """The prompt's last row brings the first token."""

    def advanced(self, head: Head) -> None:
        head.submit([head.tip])

    def proposed(self, head: Head, nodes: list[Node], stalled: bool) -> None:
        """Nobody drafts."""

    def returned(self, head: Head) -> None:
        """Only prompt chunks come back without a token."""
