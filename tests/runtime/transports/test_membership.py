"""Who is there, told as sequences of what sockets report."""

import pytest

from pipeinfer.runtime.transports.membership import LAST_WORDS_S, Peer, Roster, Standing


@pytest.fixture
def roster() -> Roster:
    return Roster(rank=0, silence_s=2.5)


def linked(roster: Roster, rank: int) -> Peer:
    """A peer that answered on our link."""
    peer = roster.peer(rank)
    roster.connecting(peer, f"tcp://host{rank}:1", deadline=10.0)
    roster.link_up(peer)
    return peer


def test_a_peer_without_a_stream_ends_with_our_link(roster: Roster) -> None:
    peer = linked(roster, 1)
    roster.link_down(peer, now=1.0)
    assert list(roster.ended) == [peer]
    assert peer.fate == "rank 1 at tcp://host1:1 is gone: it closed its end or was silent for 2.5 s"


def test_a_peer_with_a_stream_may_finish_it(roster: Roster) -> None:
    peer = linked(roster, 1)
    roster.accepted(20)
    assert roster.bind(20, 1) is peer
    roster.link_down(peer, now=1.0)
    assert peer.standing is Standing.LEAVING
    roster.disconnected(20)
    assert list(roster.ended) == [peer]


def test_the_wait_for_a_stream_to_finish_has_an_end(roster: Roster) -> None:
    peer = linked(roster, 1)
    roster.accepted(20)  # not introduced yet: may be this peer's
    roster.link_down(peer, now=1.0)
    assert roster.next_deadline() == 1.0 + LAST_WORDS_S
    roster.expire(now=1.0 + LAST_WORDS_S)
    assert list(roster.ended) == [peer]
    assert "is gone" in peer.fate


def test_who_has_ended_is_waited_for_no_more(roster: Roster) -> None:
    peer = linked(roster, 1)
    roster.accepted(20)
    roster.bind(20, 1)
    roster.disconnected(20)
    roster.accepted(21)  # not introduced yet: no reason to wait for a peer that is known to be gone
    roster.link_down(peer, now=1.0)
    roster.refused(peer, now=1.0)
    assert list(roster.ended) == [peer]
    roster.lose(peer)
    assert roster.next_deadline() == float("inf")


def test_a_stream_that_ends_ends_its_peer_once(roster: Roster) -> None:
    peer = linked(roster, 1)
    roster.accepted(20)
    roster.bind(20, 1)
    roster.disconnected(20)
    roster.link_down(peer, now=1.0)
    assert list(roster.ended) == [peer]
    roster.lose(peer)
    assert peer.standing is Standing.LOST
    assert not roster.ended


def test_a_rank_has_one_stream_ever(roster: Roster) -> None:
    for fd in (20, 21, 22):
        roster.accepted(fd)
    peer = roster.bind(20, 1)
    assert peer is not None
    assert roster.bind(21, 1) is None
    roster.disconnected(20)
    assert roster.bind(22, 1) is None
    roster.lose(peer)
    assert roster.bind(22, 1) is None
    assert roster.bind(22, 0) is None


def test_a_stranger_that_leaves_ends_nobody(roster: Roster) -> None:
    roster.accepted(20)
    roster.disconnected(20)
    assert not roster.ended


def test_a_peer_that_left_before_it_was_introduced_ends_after_its_messages(roster: Roster) -> None:
    roster.accepted(20)
    roster.disconnected(20)
    peer = roster.bind(20, 1)
    assert list(roster.ended) == [peer]


def test_a_reused_descriptor_means_that_its_first_owner_left(roster: Roster) -> None:
    roster.accepted(20)
    first = roster.bind(20, 1)
    second = roster.bind(20, 2)
    assert list(roster.ended) == [first]
    roster.disconnected(20)
    assert list(roster.ended) == [first, second]


def test_attempts_that_fail_before_the_first_answer_are_tried_until_the_deadline(roster: Roster) -> None:
    silent, hostile = roster.peer(1), roster.peer(2)
    roster.connecting(silent, "tcp://host1:1", deadline=10.0)
    roster.connecting(hostile, "tcp://host2:1", deadline=11.0)
    roster.link_down(hostile, now=1.0)
    roster.expire(now=9.9)
    assert not roster.ended
    assert roster.next_deadline() == 10.0
    roster.expire(now=11.0)
    assert [peer.rank for peer in roster.ended] == [1, 2]
    assert "never answered" in silent.fate
    assert "same key file" in hostile.fate


def test_a_peer_whose_pulse_was_felt_is_lost_when_it_is_still_for_long() -> None:
    roster = Roster(rank=-1, silence_s=2.5, still_s=10.0)
    felt, never = linked(roster, 0), linked(roster, 1)
    roster.felt(felt, now=1.0)
    roster.felt(felt, now=2.0)
    roster.postpone(3.0)
    assert roster.next_deadline() == 15.0
    roster.expire(now=14.9)
    assert not roster.ended
    roster.expire(now=15.0)
    assert list(roster.ended) == [felt]
    assert "no sign of life for 10 s" in felt.fate
    assert roster.next_deadline() == float("inf")
    assert never.standing is Standing.HERE


def test_the_pulse_of_who_hangs_up_is_not_waited_for() -> None:
    roster = Roster(rank=-1, silence_s=2.5, again_s=5.0, still_s=10.0)
    left, refused = linked(roster, 0), linked(roster, 1)
    for peer in (left, refused):
        roster.felt(peer, now=1.0)
    roster.link_down(left, now=2.0)
    roster.refused(refused, now=2.0)
    assert {peer.still_at for peer in (left, refused)} == {float("inf")}
    assert {peer.standing for peer in (left, refused)} == {Standing.AWAY}


@pytest.fixture
def patient() -> Roster:
    """Tries a peer again for 5 s."""
    return Roster(rank=-1, silence_s=2.5, again_s=5.0)


def test_who_was_leaving_another_session_is_tried_again(patient: Roster) -> None:
    peer = linked(patient, 0)
    patient.link_down(peer, now=1.0)
    assert peer.standing is Standing.AWAY
    assert patient.expire(now=1.0) == []
    assert patient.expire(patient.next_deadline()) == [peer]
    assert peer.standing is Standing.HERE
    patient.connecting(peer, peer.address, deadline=11.0)
    patient.link_up(peer)
    patient.accepted(20)
    patient.bind(20, 0)
    patient.disconnected(20)
    assert list(patient.ended) == [peer]
    assert "is gone" in peer.fate


def test_trying_again_has_an_end(patient: Roster) -> None:
    peer = linked(patient, 0)
    patient.refused(peer, now=1.0)
    assert patient.expire(now=1.1) == [peer]
    patient.connecting(peer, peer.address, deadline=11.1)
    assert patient.expire(now=5.9) == []
    assert patient.expire(now=6.0) == []
    assert list(patient.ended) == [peer]
    assert peer.fate == "rank 0 at tcp://host0:1 is busy with another session: it has a head already"


def test_a_first_word_that_was_on_its_way_is_waited_for_before_another_try(patient: Roster) -> None:
    peer = linked(patient, 0)
    patient.accepted(20)
    patient.link_down(peer, now=1.0)
    assert peer.standing is Standing.LEAVING
    patient.bind(20, 0)
    patient.disconnected(20)
    assert list(patient.ended) == [peer]


def test_who_said_a_word_is_not_tried_again(patient: Roster) -> None:
    peer = linked(patient, 0)
    patient.accepted(20)
    patient.bind(20, 0)
    patient.refused(peer, now=1.0)
    assert list(patient.ended) == [peer]
