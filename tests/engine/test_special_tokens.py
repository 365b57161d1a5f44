"""What is put around a text is there once."""

import pytest

from pipeinfer.engine.special_tokens import framed

BOS, EOS, ROLE = 1, 2, 9


@pytest.mark.parametrize(
    ("text", "whole", "ids"),
    [
        ([5, 6], [5, 6], [5, 6]),
        ([5, 6], [BOS, 5, 6, EOS], [BOS, 5, 6, EOS]),
        ([BOS, 5, 6], [BOS, BOS, 5, 6], [BOS, 5, 6]),
        ([5, 6, EOS], [BOS, 5, 6, EOS, EOS], [BOS, 5, 6, EOS]),
        ([5, BOS, 6], [BOS, 5, BOS, 6], [BOS, 5, BOS, 6]),
        ([], [BOS], [BOS]),
        ([BOS], [BOS, BOS], [BOS]),
        ([BOS, BOS, 5], [BOS, BOS, BOS, 5], [BOS, BOS, 5]),
        ([BOS, ROLE, 5], [BOS, ROLE, BOS, ROLE, 5], [BOS, ROLE, 5]),
        ([ROLE, 5], [BOS, ROLE, ROLE, 5], [BOS, ROLE, 5]),
    ],
)
def test_once(text: list[int], whole: list[int], ids: list[int]) -> None:
    assert framed(text, whole).ids == ids
