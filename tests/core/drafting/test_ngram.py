"""Prompt lookup: which place it continues from, what it forgets, and that a long text costs no more per token."""

import time

import pytest

from pipeinfer.core.drafting.ngram import NGram
from pipeinfer.core.messages import DraftFrom, Proposal
from pipeinfer.core.text_drafter import TextDrafter


def test_the_longest_suffix_that_stood_before_is_continued() -> None:
    # 3 alone was last followed by 9, but 2, 3 by 4.
    assert list(NGram().continuation([1, 2, 3, 4, 5, 3, 9, 2, 3], 2)) == [4, 5]
    assert list(NGram(longest=1).continuation([1, 2, 3, 4, 5, 3, 9, 2, 3], 2)) == [9, 2]


def test_the_newest_place_counts() -> None:
    assert list(NGram().continuation([1, 2, 7, 1, 2, 8, 1, 2], 1)) == [8]


def test_no_more_than_stood_there_and_nothing_for_what_is_new() -> None:
    assert list(NGram().continuation([1, 2, 1], 5)) == [2, 1]
    assert list(NGram().continuation([1, 2, 3], 5)) == []
    assert list(NGram(shortest=2).continuation([1, 2, 1], 5)) == []
    assert list(NGram().continuation([], 5)) == []


def test_what_a_wrong_guess_had_added_is_forgotten_and_what_stood_before_is_not() -> None:
    policy = NGram()
    text = [1, 2, 7, 5, 1]
    assert list(policy.continuation(text, 3)) == [2, 7, 5]
    policy.continuation([*text, 2, 8], 3, unchanged=5)
    assert list(policy.continuation([*text, 2], 1, unchanged=5)) == [7], "2 was never followed by 8, but by 7"
    assert list(policy.continuation([*text, 9, 8], 1, unchanged=5)) == []


def test_it_finds_the_same_whatever_it_was_asked_before() -> None:
    asked = NGram()
    before: list[int] = []
    for text in ([4, 1], [4, 1, 2, 3, 3, 3], [4, 1, 2, 3, 1, 2], [4], [5, 1, 2, 3], [4, 1, 2, 3, 1, 2, 4, 1, 2]):
        unchanged = next((at for at, (one, other) in enumerate(zip(text, before, strict=False)) if one != other),
                         min(len(text), len(before)))  # fmt: skip
        found = list(asked.continuation(text, 4, unchanged))
        assert found == list(NGram().continuation(text, 4))
        before = text
    assert found == [3, 1, 2, 4]


def test_a_token_costs_the_same_however_long_the_text_is() -> None:
    def seconds(length: int) -> float:
        policy, text = NGram(), [0]
        start = time.process_time()
        for token in range(1, length):
            text.append(token * token % 97)
            policy.continuation(text, 8, token)
        return time.process_time() - start

    # Eight times as long: eight times as much, and 64 times were it quadratic.
    assert min(seconds(4000) for _ in range(3)) < 24 * min(seconds(500) for _ in range(3))


@pytest.mark.parametrize("options", [{"longest": 0}, {"longest": 65}, {"longest": 2, "shortest": 3}, {"shortest": 0}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        NGram(**options)


def test_the_drafter_tells_it_what_is_unchanged() -> None:
    drafter = TextDrafter(lambda _: NGram())
    drafter.handle(0.0, DraftFrom(1, (1, 2, 7, 5, 1), 7))
    (wrong,) = drafter.handle(0.0, DraftFrom(2, (2, 9), 8))
    assert wrong.message == Proposal(2, (), True), "9 is new, and 7 and 5 have become wrong"
    (right,) = drafter.handle(0.0, DraftFrom(3, (1, 2), 11))
    assert [node.token for node in right.message.nodes] == [9, 1, 2], "2 was last followed by 9"
