"""Texts that are kept: which are, who begins after them, and who is given up first."""

from typing import Any

from pipeinfer.core.effects import Finish, Request, Start, Stop
from pipeinfer.core.generation import PipelineShape
from pipeinfer.core.messages import CancelRun, Decode, KvSeqCp, KvSeqRm, Logits
from pipeinfer.core.prefixes import HeldTexts
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.core.strategies.iterative import Iterative


class Kept:
    """A scheduler that keeps texts, with requests of two tokens."""

    def __init__(self, **shape: Any) -> None:
        self.scheduler = Scheduler(PipelineShape(1, keeps_texts=True, **shape), lambda _: Iterative())
        self.sent: list[Decode] = []
        self.next = 0

    def __call__(self, event: Any) -> list[Any]:
        effects = self.scheduler.handle(0.0, event)
        self.scheduler.validate()
        self.sent += [effect for effect in effects if isinstance(effect, Decode)]
        return effects

    def answer(self, *prompt: int) -> Decode:
        """Begin a request and see it end with the tokens 50 and 51. Gives what was sent of its prompt."""
        number, self.next = self.next, self.next + 1
        before = len(self.sent)
        self(Start(Request(prompt, 2), number))
        first = self.sent[before]
        self(Logits(first.run, (50,)))
        assert self(Logits(self.sent[-1].run, (51,)))[-1] == Finish("length", number)
        return first


def test_a_prompt_begins_after_what_is_held_of_it() -> None:
    kept = Kept()
    kept.answer(1, 2, 3)
    again = kept.answer(1, 2, 3, 50, 60)
    assert (again.tokens, again.positions) == ((60,), (4,)), "prompt and answer are there, but for the last token"
    assert again.kv == (KvSeqCp(0, 1, 0, 4),)
    assert kept.scheduler.generations[1].cached == 4
    assert kept.answer(9, 9).tokens == (9, 9)


def test_of_a_prompt_that_is_held_whole_the_last_token_is_computed_again() -> None:
    kept = Kept()
    kept.answer(1, 2, 3)
    assert kept.answer(1, 2, 3).tokens == (3,)


def test_a_text_that_another_continues_is_held_by_that_one() -> None:
    kept = Kept()
    kept.answer(1, 2, 3)
    kept.answer(1, 2, 3, 50, 60)
    assert kept.scheduler.room.held.sequences == [1]
    assert kept.scheduler.ledger.used == 6
    kept.answer(1, 2)
    assert len(kept.scheduler.room.held) == 2, "it went on another way"


def test_whoever_runs_needs_no_cells_that_are_held_and_the_oldest_goes_first() -> None:
    kept = Kept(cells=12)
    kept.answer(1, 2, 3)
    kept.answer(4, 5, 6)
    kept.answer(1, 2, 3)
    assert kept.answer(7, 7, 7, 7).kv[-1] == KvSeqRm(1, 0, -1), "4, 5, 6 was used longest ago"
    assert kept.answer(1, 2, 3).tokens == (3,)


def test_the_text_itself_is_given_up_where_there_is_no_room_beside_it() -> None:
    kept = Kept(cells=6, sequences=1)
    kept.answer(1, 2, 3)
    assert kept.answer(1, 2, 3).tokens == (1, 2, 3)


def test_of_several_requests_with_the_same_prompt_the_first_computes_it() -> None:
    kept = Kept(prompt_chunk=2)
    for number in range(3):
        kept(Start(Request((1, 2, 3, 4, 5), 9), number))
    assert [decode.tokens for decode in kept.sent] == [(1, 2), (3, 4), (5,), (5,), (5,)]
    assert kept.scheduler.ledger.used == 4 + 3


def test_what_others_begin_with_is_computed_though_its_own_request_was_cancelled() -> None:
    kept = Kept(prompt_chunk=2)
    kept(Start(Request((1, 2, 3, 4, 5, 6), 9), 0))
    kept(Start(Request((1, 2, 3, 9), 9), 1))
    assert kept.sent[-1].tokens == (9,)
    assert CancelRun((2,)) in kept(Stop(0, "cancelled", 0)), "of three chunks the last alone"


def test_what_was_not_sent_of_a_text_is_not_shared() -> None:
    kept = Kept(prompt_chunk=2)
    kept(Start(Request((9,), 9), 0))
    kept(Logits(0, (50,)))
    kept(Start(Request((1, 2, 3, 4), 9), 1))
    kept(Start(Request((1, 2, 3, 4), 9), 2))
    assert [decode.tokens for decode in kept.sent] == [(9,), (50,), (1, 2)], "the second chunk waits for the first"
    assert kept.scheduler.generations[2].cached == 2


def test_what_a_cancelled_request_had_computed_stays() -> None:
    kept = Kept(prompt_chunk=2)
    kept(Start(Request((1, 2, 3, 4), 9), 0))
    kept(Logits(0, ()))
    kept(Stop(0, "cancelled", 0))
    kept(Logits(1, (), cancelled_at=0))
    assert kept.scheduler.ledger.used == 2
    kept.next = 1
    assert kept.answer(1, 2, 3, 4).tokens == (3, 4)


def test_the_longest_beginning_is_found() -> None:
    held = HeldTexts()
    held.add(0, (1, 2, 3))
    held.add(1, (1, 2, 4, 5))
    assert held.longest((1, 2, 4, 9)) == (1, 3)
    assert held.longest((7,)) == (-1, 0)
    assert held.add(2, (1, 2)) == [2], "it is the beginning of one that is held"
    assert held.add(3, (1, 2, 4, 5, 6)) == [1]
    held.use(0)
    assert held.sequences == [3, 0]


def test_of_equal_texts_the_same_is_found_whether_a_prompt_is_the_same_object_or_not() -> None:
    found = []
    prompt = (1, 2, 6)
    for equal in (prompt, (*prompt[:2], 6)):
        held = HeldTexts()
        held.add(0, (1, 2, 3))
        held.add(1, (1, 2, 4))
        first = held.longest(prompt)
        held.use(first[0])
        found.append((first, held.longest(equal)))
    assert found[0] == found[1] == ((0, 2), (0, 2))


class Counted(int):
    """A token that counts how often it is compared."""

    comparisons = 0

    def __ne__(self, other: object) -> bool:
        Counted.comparisons += 1
        return int(self) != other

    __hash__ = int.__hash__


def test_who_waits_takes_no_text_away_where_that_does_not_help() -> None:
    kept = Kept(cells=60)
    kept.answer(1, 2, 3)
    kept.answer(4, 5, 6)
    kept(Start(Request((7, 7), 40), 2))
    Counted.comparisons = 0
    kept(Start(Request(tuple(map(Counted, (1, 2, 3, 8, 8))), 40), 3))
    looked_up = Counted.comparisons
    for _ in range(9):
        kept(Logits(kept.sent[-1].run, (50,)))
    assert kept.scheduler.waiting == 1
    assert len(kept.scheduler.room.held) == 2
    assert Counted.comparisons - looked_up <= 9, "one token of the text under way at every event"
    kept(Stop(9, "stop", 2))
    assert kept.scheduler.generations[3].cached == 3


def test_who_waits_is_compared_with_each_token_once_and_not_at_every_event() -> None:
    texts, shared, events = 6, 100, 40
    kept = Kept(cells=(texts + 1) * 100 + 50, prompt_chunk=shared)
    for number in range(texts):
        kept(Start(Request((*range(shared), number), 99), number))
    prompt = tuple(map(Counted, range(shared)))
    Counted.comparisons = 0
    kept(Start(Request((*prompt, 77), 90), texts))
    assert kept.scheduler.waiting == 1
    first = Counted.comparisons
    assert first >= texts * shared
    for _ in range(events):
        runs = kept.scheduler.in_flight[0]
        kept(Logits(runs[0].id, (50,) * sum(run.outputs for run in runs)))
    assert Counted.comparisons - first <= texts * events
    kept(Stop(0, "cancelled", 0))
    assert kept.scheduler.generations[texts].cached == shared, "and it is found when there is room"
