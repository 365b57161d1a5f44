"""Texts whose cells stay after their generations, so that a prompt which begins like one of them need not be computed.

Each is held by a sequence id of its own. Which is given up is for the scheduler to decide; the order here is that of
use, so all stages hold the same.
"""

from collections.abc import Sequence


class HeldTexts:
    """Sequence ids and the tokens that their cells are of, the least recently used first."""

    def __init__(self) -> None:
        self._texts: dict[int, tuple[int, ...]] = {}
        self._asked: tuple[Sequence[int], tuple[int, int]] | None = None
        """The prompt that was looked up last, and what was found: whoever waits is looked up at every event. It is
        known again by its tokens: in a replay each prompt is an object of its own, and must begin after the same
        text."""

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def sequences(self) -> list[int]:
        """The least recently used first."""
        return list(self._texts)

    def add(self, sequence: int, text: Sequence[int]) -> list[int]:
        """Hold one more. Gives the sequences that nobody needs beside it: of texts that it continues, or its own."""
        new = tuple(text)
        for other, held in self._texts.items():
            if held[: len(new)] == new:
                self.use(other)
                return [sequence]
        within = [other for other, held in self._texts.items() if new[: len(held)] == held]
        for other in within:
            del self._texts[other]
        self._texts[sequence] = new
        self._asked = None
        return within

    def longest(self, prompt: Sequence[int]) -> tuple[int, int]:
        """The sequence that holds most of the beginning of `prompt`, and how many tokens of it; (-1, 0): none does."""
        if self._asked is not None and (self._asked[0] is prompt or self._asked[0] == prompt):
            return self._asked[1]
        best = (-1, 0)
        for sequence, text in self._texts.items():
            shared = common_length(text, prompt)
            if shared > best[1]:
                best = (sequence, shared)
        self._asked = (prompt, best)
        return best

    def use(self, sequence: int) -> None:
        """It was of use: it is the last to be given up."""
        self._texts[sequence] = self._texts.pop(sequence)

    def drop(self, sequence: int) -> None:
        """It is held no more."""
        del self._texts[sequence]
        self._asked = None


class Alike:
    """How far texts that grow are like the beginning of one prompt. A token that was compared is not compared again."""

    def __init__(self) -> None:
        self._prompt: Sequence[int] = ()
        self._lengths: dict[int, int] = {}

    def length(self, number: int, text: Sequence[int], prompt: Sequence[int]) -> int:
        """In tokens, of the text of request `number`."""
        if prompt is not self._prompt:
            self._prompt, self._lengths = prompt, {}
        length = self._lengths[number] = common_length(text, prompt, self._lengths.get(number, 0))
        return length


def common_length(one: Sequence[int], other: Sequence[int], known: int = 0) -> int:
    """How many tokens two texts have in common at their beginning, where so many are known to be."""
    most = min(len(one), len(other))
    return next((at for at in range(known, most) if one[at] != other[at]), most)
