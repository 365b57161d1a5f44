"""Where two models' vocabularies differ, and a draft that keeps to the ids which both have."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeinfer.core.messages import KvOp
from pipeinfer.engine.backend import AbortCheck, Batch, Hidden, ModelStage, Token

SUBSTITUTE = 0
"""What a draft reads in place of an id that it has not: its guesses get worse, no token of the text does."""


class Differences(NamedTuple):
    """A line for each id that means two things, among pieces of text and among tokens added to them."""

    pieces: list[str]
    added: list[str]


def differences(target: Mapping[int, Token], draft: Mapping[int, Token]) -> Differences:
    """Of a target and its draft, in the order of ids."""
    found = Differences([], [])
    for number in sorted({*target, *draft}):
        entries = [entry for entry in (target.get(number), draft.get(number)) if entry is not None]
        if len(entries) == 2 and entries[0].text == entries[1].text:
            continue
        theirs, ours = _named(target.get(number)), _named(draft.get(number))
        line = f"token {number} is {theirs} in the target and {ours} in the draft"
        (found.added if all(entry.special for entry in entries) else found.pieces).append(line)
    return found


def _named(entry: Token | None) -> str:
    return "none" if entry is None else repr(entry.text)


class SharedVocabulary:
    """A stage of a draft model whose rows of the embedding or of the output are not as many as the target's: models of
    one family fill their vocabularies up to different round numbers. It reads ids below `shared` alone, and the last
    stage, which `gives_logits`, gives them for those alone."""

    def __init__(self, stage: ModelStage, shared: int, *, gives_logits: bool) -> None:
        self._stage = stage
        self._shared = shared
        self._gives_logits = gives_logits

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> NDArray[np.float32] | None:
        if max(batch.tokens, default=0) >= self._shared:
            known = tuple([token if token < self._shared else SUBSTITUTE for token in batch.tokens])
            batch = msgspec.structs.replace(batch, tokens=known)
        output = self._stage.forward(batch, hidden, abort)
        return output[:, : self._shared] if output is not None and self._gives_logits else output

    def apply(self, op: KvOp) -> None:
        self._stage.apply(op)

    def clear(self) -> None:
        self._stage.clear()

    def close(self) -> None:
        self._stage.close()
