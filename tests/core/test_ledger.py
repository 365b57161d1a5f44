"""The ledger knows what every stage holds, and refuses what would break it before anything is sent."""

import pytest

from pipeinfer.core.ledger import CANONICAL, Ledger, LedgerError
from pipeinfer.core.messages import TO_THE_END, KvSeqCp, KvSeqRm


def begun(capacity: int, sequences: int) -> Ledger:
    """A ledger whose first sequence is the text's."""
    ledger = Ledger(capacity, sequences)
    ledger.begin(CANONICAL)
    return ledger


def text_of(length: int, capacity: int = 16, sequences: int = 4) -> Ledger:
    """A ledger whose canonical sequence holds `length` cells."""
    ledger = begun(capacity, sequences)
    for position in range(length):
        ledger.extend((CANONICAL,), position)
    return ledger


def test_a_drafted_token_becomes_text() -> None:
    ledger = text_of(3)
    ledger.fork(CANONICAL, 1, 3)
    ledger.extend((1,), 3)
    ledger.extend((1,), 4)
    assert (ledger.used, ledger.length(CANONICAL), ledger.length(1)) == (5, 3, 5)

    ledger.promote(1, 3, CANONICAL)
    ledger.release(1)
    assert (ledger.used, ledger.length(CANONICAL)) == (4, 4)
    assert ledger.take_pending() == (KvSeqCp(0, 1, 0, 3), KvSeqCp(1, 0, 3, 4), KvSeqRm(1, 0, TO_THE_END))
    assert ledger.take_pending() == ()
    ledger.validate()


def test_branches_share_the_cells_of_their_stem() -> None:
    ledger = text_of(2)
    ledger.fork(CANONICAL, 1, 2)
    ledger.fork(CANONICAL, 2, 2)
    ledger.extend((1, 2), 2)
    ledger.extend((1,), 3)
    ledger.extend((2,), 3)
    assert ledger.used == 5
    ledger.release(1)
    assert ledger.used == 4
    ledger.release(2)
    assert ledger.used == 2
    ledger.validate()


def test_a_continuation_outlives_what_it_continues() -> None:
    ledger = text_of(1)
    ledger.fork(CANONICAL, 1, 1)
    ledger.extend((1,), 1)
    ledger.fork(1, 2, 2)
    ledger.extend((2,), 2)
    ledger.release(1)
    assert (ledger.used, ledger.length(2)) == (3, 3)
    ledger.validate()


def test_an_empty_prefix_needs_no_copy() -> None:
    ledger = begun(4, 2)
    ledger.fork(CANONICAL, 1, 0)
    assert ledger.pending == []
    ledger.extend((1,), 0)
    assert ledger.length(1) == 1


def test_forking_from_the_middle() -> None:
    ledger = text_of(5)
    ledger.fork(CANONICAL, 3, 2)
    assert ledger.length(3) == 2


@pytest.mark.parametrize(
    ("sequence", "position", "complaint"),
    [((0,), 2, "does not continue"), ((0,), 4, "does not continue"), ((0, 1), 3, "does not continue"),
     ((2,), 3, "sequence 2 is not in use")],
)  # fmt: skip
def test_a_row_must_continue_all_its_sequences(sequence: tuple[int, ...], position: int, complaint: str) -> None:
    ledger = text_of(3)
    ledger.fork(CANONICAL, 1, 2)
    with pytest.raises(LedgerError, match=complaint):
        ledger.extend(sequence, position)
    assert ledger.used == 3


def test_the_cells_run_out() -> None:
    ledger = text_of(3, capacity=3)
    assert ledger.free == 0
    with pytest.raises(LedgerError, match="all 3 cells are in use"):
        ledger.extend((CANONICAL,), 3)


@pytest.mark.parametrize("target", [CANONICAL, 1, 4, -1])
def test_a_fork_needs_an_unused_id(target: int) -> None:
    ledger = text_of(2)
    ledger.fork(CANONICAL, 1, 2)
    with pytest.raises(LedgerError, match="in use or outside"):
        ledger.fork(CANONICAL, target, 1)


def test_nothing_is_forked_beyond_the_end() -> None:
    with pytest.raises(LedgerError, match="ends at 1"):
        text_of(2).fork(CANONICAL, 1, 3)


def test_only_the_next_token_is_promoted() -> None:
    ledger = text_of(2)
    ledger.fork(CANONICAL, 1, 2)
    ledger.extend((1,), 2)
    ledger.extend((1,), 3)
    for wrong in (1, 3, 4):
        with pytest.raises(LedgerError, match="does not continue sequence 0"):
            ledger.promote(1, wrong, CANONICAL)


def test_a_rival_of_the_text_is_not_promoted() -> None:
    ledger = text_of(2)
    ledger.fork(CANONICAL, 1, 1)
    ledger.extend((1,), 1)
    ledger.extend((1,), 2)
    with pytest.raises(LedgerError, match="does not continue sequence 0"):
        ledger.promote(1, 2, CANONICAL)


def test_nothing_is_released_twice() -> None:
    ledger = text_of(1)
    ledger.fork(CANONICAL, 1, 1)
    ledger.release(1)
    assert not ledger.holds(1)
    with pytest.raises(LedgerError, match="not in use"):
        ledger.release(1)


def test_a_text_that_has_ended_leaves_no_cell() -> None:
    ledger = text_of(3)
    ledger.release(CANONICAL)
    assert ledger.used == 0
    ledger.begin(CANONICAL)
    ledger.release(CANONICAL)
    assert ledger.take_pending() == (KvSeqRm(0, 0, TO_THE_END),), "an empty one needs no message"


def test_two_texts_have_cells_of_their_own() -> None:
    ledger = text_of(2)
    ledger.begin(3)
    ledger.extend((3,), 0)
    assert (ledger.used, ledger.length(CANONICAL), ledger.length(3)) == (3, 2, 1)
    with pytest.raises(LedgerError, match="in use or outside"):
        ledger.begin(3)


def test_validate_counts_for_itself() -> None:
    ledger = text_of(3)
    ledger.free += 1
    with pytest.raises(LedgerError, match="3 cells are reachable, 2 counted"):
        ledger.validate()
