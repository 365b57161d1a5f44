"""Text from tokens as they are committed: whole characters, and nothing after a stop string."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeinfer.core.effects import Stop
from pipeinfer.engine.backend import Token
from pipeinfer.engine.text_stream import TextStream


class Bytes:
    """A tokenizer of one token per byte, so that a character may take four of them."""

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def tokens(self) -> Mapping[int, Token]:
        return {byte: Token(chr(byte), special=False) for byte in range(256)}

    def chat_template(self) -> None:
        """There is none."""


def groups(text: str, cuts: Sequence[int]) -> list[list[int]]:
    """The text's tokens, cut into groups at the given places."""
    ids = Bytes().encode(text)
    places = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    return [ids[start:stop] for start, stop in pairwise(places)]


@given(st.text(), st.lists(st.integers(0, 400)))
def test_the_text_only_grows_and_ends_whole(text: str, cuts: list[int]) -> None:
    stream = TextStream(Bytes())
    for group in groups(text, cuts):
        before = stream.text
        assert stream.feed(group) is None
        assert stream.text.startswith(before)
    stream.finish()
    assert stream.text == text.rstrip("\ufffd")


@given(st.text("abc é"), st.lists(st.integers(0, 400)), st.lists(st.text("abc é", min_size=1, max_size=3), max_size=3))
def test_a_stop_string_ends_the_text_wherever_the_groups_are_cut(text: str, cuts: list[int], stops: list[str]) -> None:
    """The same tokens and the same text, whether tokens come one by one or many at a time."""
    one_by_one, grouped = TextStream(Bytes(), stops), TextStream(Bytes(), stops)
    first = next((stop for token in Bytes().encode(text) if (stop := one_by_one.feed([token])) is not None), None)
    stop = None
    for group in groups(text, cuts):
        shown = grouped.text
        stop = stop or grouped.feed(group)
        assert grouped.text.startswith(shown)
    one_by_one.finish()
    grouped.finish()
    assert stop == first
    assert (grouped.tokens, grouped.text) == (one_by_one.tokens, one_by_one.text)
    assert not any(each in grouped.text for each in stops)
    if stop is not None:
        assert len(grouped.tokens) == stop.length
    else:
        assert grouped.text == text


def test_half_a_character_waits_for_the_rest() -> None:
    stream = TextStream(Bytes())
    first, second = "é".encode()
    stream.feed([first])
    assert stream.text == ""
    stream.feed([second])
    assert stream.text == "é"


def test_the_stop_says_how_many_tokens_reached_it() -> None:
    stream = TextStream(Bytes(), ["\n\n"])
    assert stream.feed(b"one\n") is None
    assert stream.feed(b"\ntwo") == Stop(5, "stop")
    assert stream.text == "one"
    assert stream.tokens == list(b"one\n\n")


def test_tokens_after_the_stop_are_nothing() -> None:
    stream = TextStream(Bytes(), ["."])
    assert stream.feed(b"end.") == Stop(4, "stop")
    assert stream.feed(b" more.") is None
    assert stream.text == "end"
    assert stream.tokens == list(b"end.")


def test_text_that_could_become_a_stop_string_is_not_shown_yet() -> None:
    """What has been written to a terminal cannot be taken back."""
    stream = TextStream(Bytes(), ["STOP"])
    stream.feed(b"go ST")
    assert stream.text == "go "
    stream.feed(b"ART")
    assert stream.text == "go START"


@pytest.mark.parametrize("stops", [[], [""]])
def test_no_stop_string_stops_nothing(stops: list[str]) -> None:
    stream = TextStream(Bytes(), stops)
    assert stream.feed(b"anything") is None
    assert stream.text == "anything"


def test_the_token_that_ends_a_text_is_no_part_of_it() -> None:
    stream = TextStream(Bytes(), ends=[0])
    stream.feed(b"the end\0")
    stream.finish()
    assert stream.text == "the end"
    assert stream.tokens == list(b"the end\0")
