"""The scheduler as a trace: what it is told, and exactly what it wants done, strategy by strategy."""

from typing import Any

import pytest
from told import PROMPT, Told, chain, decode, draft_from, single, started

from pipeinfer.core.effects import Emit, Finish, Request, Start, Stop
from pipeinfer.core.errors import OurError, PeerError
from pipeinfer.core.generation import NOWHERE, PipelineShape
from pipeinfer.core.ledger import CANONICAL
from pipeinfer.core.measured import StageTimes
from pipeinfer.core.messages import CancelRun, Decode, DraftFrom, DraftNode, KvSeqCp, KvSeqRm, Logits, Proposal, RunKind
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.core.strategies.redundant import Redundant
from pipeinfer.core.strategies.speculative import Speculative

REMOVE = -1

# Plain decoding


def test_iterative_takes_one_token_per_traversal() -> None:
    told = Told(Iterative(), max_tokens=2)
    assert told.begun == [decode(0, RunKind.PROMPT, (5, 0, (0,)), (6, 1, (0,)), (7, 2, (0,)), outputs=1)]
    assert told(Logits(0, (8,))) == [Emit((8,)), single(1, 8, 3)]
    assert told(Logits(1, (9,))) == [Emit((9,)), Finish("length")]
    assert told.generation.generated == [8, 9]
    assert told.scheduler.idle


def test_the_prompt_travels_in_chunks() -> None:
    told = Told(Iterative(), prompt_chunk=2)
    assert told.begun == [
        decode(0, RunKind.PROMPT, (5, 0, (0,)), (6, 1, (0,)), outputs=0),
        decode(1, RunKind.PROMPT, (7, 2, (0,)), outputs=1),
    ]
    assert told(Logits(0, ())) == []
    assert told(Logits(1, (8,))) == [Emit((8,)), single(2, 8, 3)]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"max_tokens": 1}, "length"), ({"stop_ids": (8,)}, "eos"), ({"cells": 4}, "context"),
     ({"context": 4}, "context")],
)  # fmt: skip
def test_why_it_ends(settings: dict[str, Any], reason: str) -> None:
    told = Told(Iterative(), **settings)
    assert told(Logits(0, (8,))) == [Emit((8,)), Finish(reason)]
    assert (told.generation.reason, told.generation.generated) == (reason, [8])


def test_a_stop_string_takes_tokens_back() -> None:
    told = Told(Iterative())
    told(Logits(0, (8,), (0.5,)))
    told(Logits(1, (9,), (0.25,)))
    assert told(Stop(1, "stop")) == [Finish("stop"), CancelRun((2,))], "nothing follows its last run"
    assert (told.generation.generated, told.generation.margins) == ([8], [0.5])
    assert told(Stop(0, "again")) == []
    assert not told.scheduler.idle
    assert told(Logits(2, (10,))) == [], "what was on its way drains, and ends nothing twice"
    assert told.scheduler.idle


# The synchronous baseline


def test_speculative_verifies_tip_and_drafts_in_one_run() -> None:
    told = Told(Speculative(k=2))
    assert told.begun[1:] == [draft_from(1, 5, 6, 7, until=2)]
    assert told(Proposal(1, (), True)) == [], "nothing to verify: the prompt is still on its way"
    assert told(Logits(0, (8,))) == [Emit((8,)), draft_from(2, 8, until=5)]
    assert told(chain(2, 0, 9, 10, stalled=True)) == [
        decode(1, RunKind.SPECULATIVE, (8, 3, (0, 1)), (9, 4, (1,)), (10, 5, (1,)), kv=(KvSeqCp(0, 1, 0, 3),))
    ]
    # 9 was right, 10 was not: the target's own 11 takes its place.
    assert told(Logits(1, (9, 11, 12))) == [Emit((9, 11)), draft_from(3, 9, 11, until=7)]
    assert told(Proposal(3, (), True)) == [single(2, 11, 5, KvSeqCp(1, 0, 4, 5), KvSeqRm(1, 0, REMOVE))]


def test_speculative_ignores_the_answer_to_an_older_order() -> None:
    told = Told(Speculative(k=2))
    told(Logits(0, (8,)))
    assert told(Proposal(1, (), True)) == []
    assert told(chain(2, 0, 9, stalled=True))


def test_a_tree_gives_each_leaf_a_sequence_of_its_own() -> None:
    told = started(Speculative(k=4, branches=2))
    nodes = (DraftNode(0, -1, 9, 0.5), DraftNode(1, -1, 10, 0.4), DraftNode(2, 0, 11, 0.9), DraftNode(3, 1, 12, 0.9))
    (sent,) = told(Proposal(2, nodes, True))
    assert isinstance(sent, Decode)
    leaves = sent.sequences
    assert leaves[0][0] == CANONICAL
    assert set(leaves[0][1:]) == {1, 2}
    assert leaves[1] == leaves[3] != leaves[2] == leaves[4]
    # The second branch is the true one, to its end.
    assert told(Logits(1, (10, 0, 12, 0, 13)))[0] == Emit((10, 12, 13))
    promoted = [op for op in told.scheduler.ledger.pending if isinstance(op, KvSeqCp)]
    assert promoted == [KvSeqCp(leaves[2][0], 0, 4, 5), KvSeqCp(leaves[2][0], 0, 5, 6)]


def test_speculative_sends_what_there_are_cells_for() -> None:
    told = started(Speculative(k=4), cells=8)
    (sent,) = told(chain(2, 0, 9, 10, 11, 12, stalled=True))
    assert isinstance(sent, Decode)
    assert sent.tokens == (8, 9, 10, 11)


def test_drafts_that_were_not_sent_are_sent_when_they_came_true() -> None:
    told = started(Speculative(k=2))
    # The draft overshoots: a micro-batch of 4 where 2 fit. 9 and 10 come true, and it goes on from 12.
    told(chain(2, 0, 9, 10, 11, 12, stalled=True))
    assert told(Logits(1, (9, 10, 11)))[0] == Emit((9, 10, 11))
    (sent,) = told(chain(3, 4, 13, parent=3, stalled=True))
    assert isinstance(sent, Decode)
    assert (sent.tokens, sent.positions) == ((11, 12, 13), (6, 7, 8))


# PipeInfer


def test_pipeinfer_speculates_while_the_target_works_and_cancels_what_is_lost() -> None:
    told = Told(PipeInfer(draft=2, in_flight=3))
    assert told.begun[1:] == [draft_from(1, 5, 6, 7, until=8)]
    assert told(Logits(0, (8,))) == [Emit((8,)), single(1, 8, 3), draft_from(2, 8, until=8)]
    # Two micro-batches follow each other, the second in a partition that continues the first.
    assert told(chain(2, 0, 9, 10)) == [
        decode(2, RunKind.SPECULATIVE, (9, 4, (1,)), (10, 5, (1,)), kv=(KvSeqCp(0, 1, 0, 4),))
    ]
    assert told(chain(2, 2, 11, parent=1)) == [decode(3, RunKind.SPECULATIVE, (11, 6, (2,)), kv=(KvSeqCp(1, 2, 0, 6),))]
    # 9 is right and covered by run 2: no single-token run.
    assert told(Logits(1, (9,))) == [Emit((9,)), draft_from(3, 9, until=10)]
    # 10 is right as well, 11 is not: run 3 is lost.
    assert told(Logits(2, (10, 99))) == [
        Emit((10, 99)),
        CancelRun((3,)),
        single(4, 99, 6, KvSeqCp(1, 0, 4, 5), KvSeqCp(1, 0, 5, 6), KvSeqRm(1, 0, REMOVE)),
        draft_from(4, 10, 99, until=12),
    ]
    assert told(Logits(3, (), cancelled_at=1)) == []
    runs = told.generation.runs[2:4]
    assert [(run.drafted, run.accepted, run.cancelled_at) for run in runs] == [(2, 2, -1), (1, 0, 1)]


def test_speculation_may_run_ahead_of_the_prompt() -> None:
    told = Told(PipeInfer(draft=2))
    (sent,) = told(chain(1, 0, 8, 9))
    assert isinstance(sent, Decode)
    assert (sent.positions, sent.kv) == ((3, 4), (KvSeqCp(0, 1, 0, 3),))
    assert told(Logits(0, (8,))) == [Emit((8,)), draft_from(2, 8, until=18)]


def test_runs_wait_for_a_place_in_flight() -> None:
    told = started(PipeInfer(draft=1, in_flight=2))
    assert len(told(chain(2, 0, 9))) == 1
    assert told(chain(2, 1, 10, parent=0)) == []
    assert told(Logits(1, (9,)))[1:] == [
        decode(3, RunKind.SPECULATIVE, (10, 5, (2,)), kv=(KvSeqCp(1, 0, 4, 5), KvSeqCp(0, 2, 0, 5))),
        draft_from(3, 9, until=6),
    ]


def test_runs_wait_for_a_partition() -> None:
    told = started(PipeInfer(draft=1), sequences=2)
    assert len(told(chain(2, 0, 9))) == 1
    assert told(chain(2, 1, 10, parent=0)) == []
    told(Logits(1, (9,)))
    # Run 2 gives its partition back; 10 was right meanwhile, and alone it needs none.
    assert told(Logits(2, (10,)))[1] == single(3, 10, 5, KvSeqCp(1, 0, 4, 5), KvSeqRm(1, 0, REMOVE))


def test_what_is_proposed_too_late_is_dropped() -> None:
    told = started(PipeInfer(draft=2))
    told(Logits(1, (9,)))
    # Order 2 said: after 8. That 9 follows is known, that 20 does not as well, and 10 after 9 is news.
    (sent,) = told(Proposal(2, (DraftNode(0, -1, 9, 1), DraftNode(1, -1, 20, 1), DraftNode(2, 1, 21, 1),
                                DraftNode(3, 0, 10, 1)), False))  # fmt: skip
    assert isinstance(sent, Decode)
    assert sent.tokens == (10,)


def test_without_cancellation_lost_runs_run_on() -> None:
    told = started(PipeInfer(draft=1, cancellation=False))
    told(chain(2, 0, 9))
    assert not any(isinstance(effect, CancelRun) for effect in told(Logits(1, (99,))))
    assert told(Logits(2, (77,))) == [], "the verdict on a dead branch means nothing"
    assert told.generation.generated == [8, 99]


def test_redundant_runs_fill_the_canonical_sequence_themselves() -> None:
    told = started(Redundant(draft=2))
    told(chain(2, 0, 9, 10))
    assert told(Logits(1, (9,)))[:2] == [Emit((9,)), single(3, 9, 4)]
    assert told(Logits(2, (10, 11)))[:2] == [
        Emit((10, 11)),
        decode(4, RunKind.SINGLE, (10, 5, (0,)), (11, 6, (0,)), kv=(KvSeqRm(1, 0, REMOVE),)),
    ]
    assert told(Logits(3, (10,))) == [], "known already"


def test_without_continuous_speculation_one_micro_batch_at_a_time_is_ordered() -> None:
    told = Told(PipeInfer(draft=2, continuous=False))
    assert told.begun[1:] == [draft_from(1, 5, 6, 7, until=4)]
    assert told(Logits(0, (8,)))[2:] == [draft_from(2, 8, until=5)]
    assert len(told(chain(2, 0, 9, 10))) == 1
    assert told(Logits(1, (9,)))[1:] == [draft_from(3, 9, until=4)], "a micro-batch is under way: draft no further"
    assert told(Logits(2, (10, 11)))[2:] == [draft_from(4, 10, 11, until=8)]


def test_of_a_partly_dead_run_the_dead_rows_are_pruned() -> None:
    told = started(PipeInfer(draft=4, branches=2))
    told(Proposal(2, (DraftNode(0, -1, 9, 0.5), DraftNode(1, -1, 10, 0.4), DraftNode(2, 0, 11, 0.5)), False))
    assert CancelRun((), ((2, (1,)),)) in told(Logits(1, (9,)))
    # The target's own word after 11 comes for the rows that were left.
    assert told(Logits(2, (11, 12), kept=(0, 2)))[0] == Emit((11, 12))
    assert (told.generation.runs[2].live, told.generation.runs[2].accepted) == (2, 2)


def test_the_end_cancels_what_is_in_flight_and_brings_the_draft_to_rest() -> None:
    told = started(PipeInfer(draft=1), max_tokens=2)
    told(chain(2, 0, 9))
    told(chain(2, 1, 10, parent=0))
    assert told(Logits(1, (9,))) == [
        Emit((9,)),
        CancelRun((3,)),
        draft_from(3, until=NOWHERE),
        Finish("length"),
    ]
    assert told(chain(2, 2, 11, parent=1)) == []
    assert told(Logits(2, (10,))) == []
    assert told(Logits(3, (), cancelled_at=0)) == []
    assert told.scheduler.idle


def test_proposals_left_over_from_an_earlier_generation_are_ignored() -> None:
    scheduler = Scheduler(PipelineShape(2), lambda _: PipeInfer(), first_run=7, first_order=4)
    prompt, order = scheduler.handle(0.0, Start(Request(PROMPT, 9)))
    assert isinstance(prompt, Decode)
    assert isinstance(order, DraftFrom)
    assert (prompt.run, order.order) == (7, 5)
    assert scheduler.handle(0.0, chain(4, 0, 9)) == []
    assert scheduler.handle(0.0, chain(5, 0, 9)) != []


# What is refused


def test_results_out_of_order() -> None:
    told = started(Iterative())
    with pytest.raises(PeerError, match="the result of run 0 came, expected 1"):
        told(Logits(0, (8,)))
    told = Told(Iterative(), max_tokens=1)
    told(Logits(0, (8,)))
    with pytest.raises(PeerError, match="expected none"):
        told(Logits(1, (8,)))


def test_an_answer_to_an_order_that_was_never_given() -> None:
    with pytest.raises(PeerError, match="order 9, which was not given"):
        started(PipeInfer())(chain(9, 0, 1))


def test_an_event_for_somebody_else() -> None:
    with pytest.raises(PeerError, match="does not take a CancelRun"):
        started(Iterative())(CancelRun((0,)))


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [(Request((), 5), "the prompt is empty"),
     (Request((1,) * 8, 5), "8 tokens and leaves no room in 8 KV cells: shorten it or raise --cells$"),
     (Request((1,), 0), "max_tokens = 0")],
)  # fmt: skip
def test_a_bad_request(request_: Request, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Scheduler(PipelineShape(1, cells=8), lambda _: Iterative()).handle(0.0, Start(request_))


def test_more_cells_are_no_cure_for_a_short_context() -> None:
    for cells in (8, 16):
        scheduler = Scheduler(PipelineShape(1, cells=cells, context=8), lambda _: Iterative())
        with pytest.raises(ValueError, match=r"no room in the model's context of 8 tokens: shorten it$"):
            scheduler.handle(0.0, Start(Request((1,) * 9, 5)))


def test_after_an_error_everything_is_refused() -> None:
    told = started(Iterative())
    with pytest.raises(PeerError) as first:
        told(Logits(0, (8,)))
    assert first.value.side == "peer"
    with pytest.raises(OurError, match="nothing is handled after an error: the result of run 0 came") as then:
        told.scheduler.handle(0.0, Logits(1, (8,)))
    assert then.value.side == "we"


def test_too_few_ids_in_a_result() -> None:
    with pytest.raises(PeerError, match="run 1 came back with 0 ids, expected 1"):
        started(Iterative())(Logits(1, ()))


def test_without_sequence_ids_for_speculation_the_text_goes_on() -> None:
    told = started(PipeInfer(draft=1), sequences=1)
    assert told(chain(2, 0, 9)) == []
    assert told(Logits(1, (9,)))[:2] == [Emit((9,)), single(2, 9, 4)]


# Several requests


def test_two_requests_share_the_pipe_and_not_their_cells() -> None:
    told = Told(Iterative(), cells=300)
    assert told(Start(Request((1,), 9), number=7)) == [
        Decode(1, RunKind.PROMPT, (1,), (0,), ((1,),), 1, requests=(7,))
    ]
    assert told(Logits(0, (8,)))[1:] == [single(2, 8, 3)]
    assert told(Logits(1, (4,))) == [
        Emit((4,), 7),
        Decode(3, RunKind.SINGLE, (4,), (1,), ((1,),), 1, requests=(7,)),
    ]


def test_a_request_waits_until_there_are_cells() -> None:
    told = Told(Iterative(), max_tokens=2, cells=8)
    assert told(Start(Request((1, 2), 3), number=1)) == []
    told(Logits(0, (8,)))
    ended = told(Logits(1, (9,)))
    assert ended[:2] == [Emit((8 + 1,)), Finish("length")]
    assert isinstance(ended[2], Decode)
    assert ended[2].requests == (1,)


def test_committed_tokens_go_before_anyones_drafts() -> None:
    told = started(PipeInfer(draft=1), cells=400)
    told(chain(2, 0, 9))
    told(Start(Request((1,), 9), number=1))
    run = told(Logits(1, (99,)))  # the draft was wrong: its own token goes at once
    sent = [effect.tokens for effect in run if isinstance(effect, Decode)]
    assert sent == [(99,)]


def test_a_request_that_waits_may_be_stopped() -> None:
    told = Told(Iterative(), max_tokens=2, cells=8)
    told(Start(Request((1, 2), 3), number=1))
    assert told(Stop(0, "stop", number=1)) == [Finish("stop", 1)]


# Rows of several requests in one run


def crowded() -> tuple[Told, list[Decode]]:
    """One stage, which has one slot, and three requests whose prompts come back; and what is sent then."""
    told = Told(Iterative(), stages=1, cells=400)
    for number in (1, 2):
        told(Start(Request((1, number), 9), number))
    assert [sent(told(Logits(run, (8 + run,)))) for run in (0, 1)] == [[], []], "the prompts behind fill the pipe"
    return told, sent(told(Logits(2, (10,))))


def sent(effects: list[Any]) -> list[Decode]:
    return [effect for effect in effects if isinstance(effect, Decode)]


def test_tokens_that_wait_for_a_slot_go_as_one_run() -> None:
    told, (message,) = crowded()
    assert (message.run, message.kind, message.outputs) == (3, RunKind.SINGLE, 3)
    assert (message.tokens, message.positions) == ((8, 9, 10), (3, 2, 2))
    assert (message.sequences, message.requests) == (((0,), (1,), (2,)), (0, 1, 2))
    effects = told(Logits(3, (20, 21, 22), requests=(0, 1, 2)))
    assert effects[:3] == [Emit((20,)), Emit((21,), 1), Emit((22,), 2)]
    assert sent(effects)[0].requests == (0, 1, 2)


def test_a_request_that_is_given_up_prunes_its_row_and_the_last_of_them_cancels_the_run() -> None:
    told, _ = crowded()
    assert told(Stop(1, "cancelled", 1)) == [Finish("cancelled", 1), CancelRun((), ((3, (1,)),))]
    assert told(Stop(1, "cancelled", 0)) == [Finish("cancelled"), CancelRun((), ((3, (0,)),))]
    assert told(Stop(1, "cancelled", 2)) == [Finish("cancelled", 2), CancelRun((3,))]
    assert told(Logits(3, (), cancelled_at=0, requests=(0, 1, 2))) == []
    assert told.scheduler.idle


def test_of_pruned_rows_nothing_comes_back() -> None:
    told, _ = crowded()
    told(Stop(1, "cancelled", 1))
    effects = told(Logits(3, (20, 22), requests=(0, 2), kept=(0, 2), computed=(2,)))
    assert effects[:2] == [Emit((20,)), Emit((22,), 2)]
    run = told.scheduler.generations[1].runs[-1]
    assert (run.pruned, run.cancelled_at, run.finished_at) == ((1,), 0, 0.0)


def test_where_a_row_costs_as_much_as_a_run_nobody_waits_for_others() -> None:
    told, _ = crowded()
    measured = told.scheduler.measured
    measured._rows |= {1: StageTimes(1), 3: StageTimes(1)}
    measured._rows[1].add((1.0,))
    measured._rows[3].add((3.0,))
    measured._links = {1: 0.0}
    assert len(sent(told(Logits(3, (20, 21, 22), requests=(0, 1, 2))))) == 1, "it is looked up once per traversal"
    effects = told(Logits(4, (30, 31, 32), requests=(0, 1, 2)))
    assert [message.requests for message in sent(effects)] == [(0,), (1,), (2,)]
