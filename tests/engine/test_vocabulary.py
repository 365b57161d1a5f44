"""Where two vocabularies differ, and what becomes of ids that only one model has."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeinfer.core.messages import KvOp, KvSeqRm
from pipeinfer.engine.backend import AbortCheck, Batch, Hidden, Token
from pipeinfer.engine.vocabulary import SUBSTITUTE, Differences, SharedVocabulary, differences

PIECES = {0: Token("<s>", special=True), 1: Token("a", special=False), 2: Token("b", special=False)}


def test_equal_vocabularies_have_no_differences() -> None:
    assert differences(PIECES, dict(PIECES)) == Differences([], [])


def test_an_added_token_that_one_of_them_lacks_is_named() -> None:
    more = PIECES | {3: Token("<tool>", special=True)}
    assert differences(more, PIECES) == Differences([], ["token 3 is '<tool>' in the target and none in the draft"])
    assert differences(PIECES, more) == Differences([], ["token 3 is none in the target and '<tool>' in the draft"])
    other = PIECES | {0: Token("<bos>", special=True)}
    assert differences(other, PIECES).added == ["token 0 is '<bos>' in the target and '<s>' in the draft"]


@pytest.mark.parametrize(
    "change", [{2: Token("c", special=False)}, {3: Token("c", special=False)}, {2: Token("<b>", special=True)}]
)
def test_a_piece_of_text_that_differs_is_another_matter(change: dict[int, Token]) -> None:
    found = differences(PIECES | change, PIECES)
    assert len(found.pieces) == 1
    assert not found.added


class Recorded:
    """A stage that notes what it is given, and gives a row of 8 numbers for each output."""

    def __init__(self) -> None:
        self.tokens: Sequence[int] = ()
        self.done: list[object] = []

    def forward(self, batch: Batch, hidden: Hidden | None, abort: AbortCheck) -> NDArray[np.float32] | None:
        self.tokens = batch.tokens
        return None if abort() else np.tile(np.arange(8, dtype=np.float32), (batch.outputs, 1))

    def apply(self, op: KvOp) -> None:
        self.done.append(op)

    def clear(self) -> None:
        self.done.append("clear")

    def close(self) -> None:
        self.done.append("close")


def batch(*tokens: int) -> Batch:
    return Batch(tokens, range(len(tokens)), [(0,)] * len(tokens), 1)


def test_ids_that_the_draft_lacks_are_not_read_and_those_that_the_target_lacks_not_proposed() -> None:
    stage = Recorded()
    draft = SharedVocabulary(stage, 6, gives_logits=True)
    logits = draft.forward(batch(5, 6, 7, 0), None, lambda: False)
    assert tuple(stage.tokens) == (5, SUBSTITUTE, SUBSTITUTE, 0)
    assert logits is not None
    np.testing.assert_array_equal(logits, [[0, 1, 2, 3, 4, 5]])
    assert draft.forward(batch(7), None, lambda: True) is None


def test_hidden_states_stay_as_they_are() -> None:
    hidden = SharedVocabulary(Recorded(), 6, gives_logits=False).forward(batch(1), None, lambda: False)
    assert hidden is not None
    assert hidden.shape == (1, 8)


def test_everything_else_is_the_stage_s_own() -> None:
    stage = Recorded()
    draft, op = SharedVocabulary(stage, 6, gives_logits=True), KvSeqRm(0, 0, 1)
    draft.apply(op)
    draft.clear()
    draft.close()
    assert stage.done == [op, "clear", "close"]
