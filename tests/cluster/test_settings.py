"""What is said of the ranks, in words of the command line."""

import pytest

from pipeinfer.cluster.settings import parse_chunk
from pipeinfer.core.prompt import PromptChunk


@pytest.mark.parametrize(("text", "chunk"), [("auto", "auto"), ("whole", "whole"), ("64", 64)])
def test_a_word_or_a_number(text: str, chunk: PromptChunk) -> None:
    assert parse_chunk(text) == chunk


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "all", ""])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="auto or whole"):
        parse_chunk(text)
