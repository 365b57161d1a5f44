"""A draft policy: fixed phrases. Where the text ends in the beginning of one, the rest of it is proposed."""

from collections.abc import Sequence

from pipeinfer.core.text_drafter import TextPolicy

PHRASES = ((1, 2, 3, 4, 5, 6, 7, 8), (219, 219, 219, 219, 33, 132, 132, 132), (132, 132, 132, 224, 224, 219, 219, 219))
"""Token ids: some of this package's model's favourites among them."""


class Phrases(TextPolicy):
    """Knows phrases by heart, and wants to see `least` tokens of one before it says the rest."""

    def __init__(self, least: int = 1) -> None:
        if not 1 <= least <= 7:
            raise ValueError(f"least = {least}: expected 1 to 7")
        self._least = least

    def continuation(self, text: Sequence[int], count: int, unchanged: int = 0) -> Sequence[int]:
        for phrase in PHRASES:
            for seen in range(len(phrase) - 1, self._least - 1, -1):
                if tuple(text[-seen:]) == phrase[:seen]:
                    return phrase[seen : seen + count]
        return ()
