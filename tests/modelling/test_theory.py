"""The simulator agrees with the closed forms, under the assumptions that they make.

Unit of time: one traversal of the pipeline. Stages are equal, width and links are free, cancellation arrives at once.
The acceptance trace is stratified: the stretches of accepted drafts are the quantiles of the geometric distribution,
shuffled. Nothing is left to chance but their order, so few rounds are enough. One test uses independent draws instead.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeinfer.core import theory
from pipeinfer.core.draft import DraftPolicy
from pipeinfer.core.drafting.outcomes import Outcomes
from pipeinfer.core.effects import Request
from pipeinfer.core.generation import PipelineShape, Strategy
from pipeinfer.core.strategies.async_chain import AsyncChain
from pipeinfer.core.strategies.dsi import Dsi
from pipeinfer.core.strategies.flowspec import FlowSpec
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.core.strategies.pearl import Pearl
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.core.strategies.specpipe import SpecPipe
from pipeinfer.core.strategies.speculative import Speculative
from pipeinfer.core.strategies.ssd import Ssd
from pipeinfer.core.strategies.swiftspec import SwiftSpec
from pipeinfer.results.metrics import tokens_per_second
from pipeinfer.runtime.oracle import RANKS, Oracle, Trace, independent
from pipeinfer.runtime.sim import SimulatedLink, Simulation
from pipeinfer.runtime.transports import HEAD

DEPTHS = (2, 4, 8, 32)
ACCEPTANCES = (0.5, 0.66, 0.79, 0.9)
WIDTHS = (1, 2, 4)
ROUNDS = 48
CHAIN_ROUNDS = {0.5: 15, 0.66: 14, 0.79: 30, 0.9: 18}
"""By acceptance, for pipelined chains and trees: few rounds whose quantiles come as near the closed form of the chain
as those of ROUNDS do, with runs of any of WIDTHS: to 0.6 %."""

ROUNDS_IN_TURN = {0.5: 28, 0.66: 22, 0.79: 16, 0.9: 30}
"""Also few, where a run is sent when the one before has come back, whatever is drafted meanwhile: to 1.1 %."""

PROMPT = 4
TOLERANCE = 0.02


def pipelined_chain_over_links(a: float, stages: int, links: float) -> float:
    """The chain of single-token runs where all links of a traversal take `links` * T together, over iterative decoding
    on the same links: each right token costs one stage time, each wrong one a traversal."""
    return 1 / (a / (stages * (1 + links)) + 1 - a)


class Ideal:
    """Costs of the closed forms: a traversal of one row takes 1 in all, each further row adds `row`; a token drafted
    takes `draft`."""

    def __init__(self, stages: int, draft: float = 0.0, row: float = 0.0) -> None:
        self.stages, self.draft, self.row = stages, draft, row

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return (1 + self.row * (rows - 1)) / self.stages

    def draft_s(self, rows: int, context: int) -> float:
        return self.draft

    def row_bytes(self, stage: int) -> int:
        return 0


def stretches(acceptance: float, rounds: int = ROUNDS) -> list[int]:
    """That many lengths of accepted stretches: P(length = L) = (1 - a) a^L by its quantiles, shuffled."""
    quantiles = (np.arange(rounds) + 0.5) / rounds
    lengths = np.floor(np.log1p(-quantiles) / math.log(acceptance)).astype(int)
    return np.random.Generator(np.random.Philox(key=[0, 1])).permutation(lengths).tolist()


def stratified(lengths: list[int], wrong: int = -1) -> Trace:
    """Draft ranks by position: the prompt and the first token (so that the first round starts afresh), then stretch
    after stretch of right drafts, each ended by one that is not the first candidate but the `wrong`-th (-1: none)."""
    ranks = [0] * PROMPT + [-1]
    for length in lengths:
        ranks += [0] * length + [wrong]
    return Trace(ranks, [[1.0, *[0.0] * 7]] * len(ranks))


def free(_source: int, _target: int) -> SimulatedLink:
    return SimulatedLink()


def speed(
    strategy: Strategy,
    stages: int,
    oracle: Oracle,
    tokens: int,
    draft: float = 0.0,
    row: float = 0.0,
    link: Callable[[int, int], SimulatedLink] = free,
    policy: DraftPolicy | None = None,
) -> float:
    """Tokens per traversal of one row without links, which is the speedup over iterative decoding on free links."""
    room = 8 * stages + 64
    pipeline = PipelineShape(stages, cells=PROMPT + tokens + 8 * room, sequences=8 * room)
    simulation = Simulation(pipeline, strategy, Ideal(stages, draft, row), oracle, link, policy=policy)
    trial = simulation.generate(Request(tuple(range(PROMPT)), tokens))
    assert list(trial.token_ids) == [oracle.target(PROMPT + i) for i in range(tokens)]
    rate = tokens_per_second(trial)
    assert rate is not None
    return rate


def always_ready(width: int, stages: int) -> PipeInfer:
    """Continuous speculation with so many runs allowed that the draft never waits for one to come back: where each has
    one token, one per stage and those whose results and tokens are just being handled."""
    return PipeInfer(draft=width, in_flight=stages + (2 if width == 1 else 16))


@pytest.mark.parametrize("stages", DEPTHS)
def test_iterative_decoding_gives_one_token_per_traversal(stages: int) -> None:
    assert speed(Iterative(), stages, independent(0.5), 16) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("acceptance", ACCEPTANCES)
@pytest.mark.parametrize("stages", DEPTHS)
def test_the_pipelined_chain_follows_its_closed_form(stages: int, acceptance: float) -> None:
    lengths = stretches(acceptance, CHAIN_ROUNDS[acceptance])
    tokens = 1 + sum(lengths) + len(lengths)
    for width in WIDTHS:
        measured = speed(always_ready(width, stages), stages, stratified(lengths), tokens)
        assert measured == pytest.approx(theory.pipelined_chain(acceptance, stages, width), rel=TOLERANCE)
        # Of this very trace: one traversal per rejected token, which is what its stretches cannot avoid.
        assert measured < (tokens - 1) / len(lengths)


@pytest.mark.parametrize("draft", [0.02, 0.1])
@pytest.mark.parametrize("acceptance", ACCEPTANCES)
@pytest.mark.parametrize("stages", DEPTHS)
def test_synchronous_speculation_follows_its_closed_form(stages: int, acceptance: float, draft: float) -> None:
    lengths = stretches(acceptance, ROUNDS_IN_TURN[acceptance])
    tokens = 1 + sum(lengths) + len(lengths)
    for width in WIDTHS:
        measured = speed(Speculative(k=width), stages, stratified(lengths), tokens, draft)
        assert measured == pytest.approx(theory.synchronous(acceptance, width, draft), rel=TOLERANCE)


@pytest.mark.parametrize("fixed", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("row", [0.0, 0.1, 0.8])
def test_synchronous_speculation_with_dear_rows_and_a_fixed_cost_per_round(row: float, fixed: float) -> None:
    def link(source: int, target: int) -> SimulatedLink:
        return SimulatedLink(fixed if (source, target) == (3, HEAD) else 0.0)

    lengths = stretches(0.79)
    tokens = 1 + sum(lengths) + len(lengths)
    iterative = speed(Iterative(), 4, independent(0.5), 16, link=link)
    for k in (1, 4, 12):
        measured = speed(Speculative(k=k), 4, stratified(lengths), tokens, 0.02, row, link) / iterative
        assert measured == pytest.approx(theory.synchronous(0.79, k, 0.02, row, fixed), rel=TOLERANCE)


@pytest.mark.parametrize("links", [0.25, 4.0])
@pytest.mark.parametrize("stages", DEPTHS)
def test_the_chain_of_single_tokens_over_slow_links(stages: int, links: float) -> None:
    def link(source: int, _target: int) -> SimulatedLink:
        return SimulatedLink(links / stages if source != HEAD and source < stages else 0.0)

    lengths = stretches(0.79, CHAIN_ROUNDS[0.79])
    tokens = 1 + sum(lengths) + len(lengths)
    iterative = speed(Iterative(), stages, independent(0.5), 16, link=link)
    chain = always_ready(1, math.ceil(stages * (1 + links)))
    measured = speed(chain, stages, stratified(lengths), tokens, link=link) / iterative
    assert measured == pytest.approx(pipelined_chain_over_links(0.79, stages, links), rel=TOLERANCE)


@pytest.mark.parametrize("gamma", [2, 10])
@pytest.mark.parametrize("acceptance", [0.66, 0.9])
@pytest.mark.parametrize("stages", DEPTHS)
def test_pearl_follows_its_closed_form(stages: int, acceptance: float, gamma: int) -> None:
    lengths = stretches(acceptance, ROUNDS_IN_TURN[acceptance])
    tokens = 1 + sum(lengths) + len(lengths)
    # A hair faster than a round: the last draft is there when the verdicts are.
    measured = speed(Pearl(gamma), stages, stratified(lengths), tokens, 0.999 / gamma)
    assert measured == pytest.approx(theory.asynchronous_chain(acceptance, gamma), rel=TOLERANCE)


def test_pearl_finds_the_drafts_of_a_round_by_measuring() -> None:
    lengths = stretches(0.9)
    tokens = 1 + sum(lengths) + len(lengths)
    measured = speed(Pearl(), 4, stratified(lengths), tokens, 0.999 / 12)
    assert measured == pytest.approx(theory.asynchronous_chain(0.9, 12), rel=TOLERANCE)
    assert measured > 1.1 * theory.asynchronous_chain(0.9, 4)


@pytest.mark.parametrize("wrong", [-1, 1])
@pytest.mark.parametrize("acceptance", [0.66, 0.9])
@pytest.mark.parametrize("stages", DEPTHS)
def test_speculation_on_the_outcome_hides_drafting_where_it_was_foreseen(
    stages: int, acceptance: float, wrong: int
) -> None:
    lengths = stretches(acceptance, ROUNDS_IN_TURN[acceptance])
    tokens = 1 + sum(lengths) + len(lengths)
    measured = speed(Ssd(k=4, alternatives=1 + wrong % 2), stages, stratified(lengths, wrong), tokens, 0.1)
    assert measured == pytest.approx(theory.ssd(acceptance, 4, 0.1, foreseen=float(wrong == 1)), rel=TOLERANCE)


def test_prepared_outcomes_hide_the_draft_s_restart_from_pipeinfer() -> None:
    lengths = stretches(0.66)
    tokens = 1 + sum(lengths) + len(lengths)
    found = [
        speed(PipeInfer(draft=4, in_flight=2), 8, stratified(lengths, 1), tokens, 0.08, policy=policy)
        for policy in (None, Outcomes(alternatives=1, length=4))
    ]
    assert found[1] > 1.02 * found[0]
    assert found[1] < theory.pipelined_chain(0.66, 8, 4)


@pytest.mark.parametrize("draft", [0.02, 0.3])
@pytest.mark.parametrize("stages", DEPTHS)
def test_the_oracle_of_endless_hardware_follows_its_closed_form(stages: int, draft: float) -> None:
    lengths = stretches(0.79, CHAIN_ROUNDS[0.79])
    tokens = 1 + sum(lengths) + len(lengths)
    measured = speed(Dsi(), stages, stratified(lengths), tokens, draft)
    assert measured == pytest.approx(theory.unbounded(0.79, draft), rel=TOLERANCE)


@pytest.mark.parametrize("ratio", [1.3, 2.6, 9.7])
@pytest.mark.parametrize("acceptance", [0.66, 0.9])
@pytest.mark.parametrize("stages", DEPTHS)
def test_the_asynchronous_chain_follows_its_closed_form(stages: int, acceptance: float, ratio: float) -> None:
    lengths = stretches(acceptance, ROUNDS_IN_TURN[acceptance])
    tokens = 1 + sum(lengths) + len(lengths)
    measured = speed(AsyncChain(ahead=128), stages, stratified(lengths), tokens, 1 / ratio)
    assert measured == pytest.approx(theory.asynchronous_chain(acceptance, ratio), rel=TOLERANCE)


def test_independent_draws_give_the_same_within_their_noise() -> None:
    """How many of so few drafts are right is chance too: the closed forms are asked about as many."""
    tokens, draws = 1500, independent(0.66)
    right = draws.ranks[PROMPT + 1 : PROMPT + tokens].count(0) / (tokens - 1)
    chain = speed(always_ready(2, 4), 4, draws, tokens)
    assert chain == pytest.approx(theory.pipelined_chain(right, 4, 2), rel=TOLERANCE)
    synchronous = speed(Speculative(k=2), 4, draws, tokens, draft=0.05)
    assert synchronous == pytest.approx(theory.synchronous(right, 2, 0.05), rel=TOLERANCE)


@pytest.mark.parametrize("acceptance", ACCEPTANCES)
def test_nor_is_a_wider_chain_faster_than_the_ceiling(acceptance: float) -> None:
    lengths = stretches(acceptance, CHAIN_ROUNDS[acceptance])
    tokens = 1 + sum(lengths) + len(lengths)
    ceiling = (tokens - 1) / len(lengths)
    assert speed(always_ready(8, 16), 16, stratified(lengths), tokens) < ceiling
    assert ceiling == pytest.approx(1 / (1 - acceptance), rel=TOLERANCE)


@pytest.mark.parametrize(
    ("stages", "acceptance", "synchronous", "pipelined"),
    [(4, 0.52, (1.86, 1.68, 1.49), (1.64, 1.77, 1.83)), (8, 0.79, (3.61, 2.99, 2.40), (3.24, 3.77, 4.10))],
)
def test_the_closed_forms_give_the_table_of_the_docs(
    stages: int, acceptance: float, synchronous: tuple[float, ...], pipelined: tuple[float, ...]
) -> None:
    for draft, expected in zip((0.02, 0.05, 0.10), synchronous, strict=True):
        assert theory.best_synchronous(acceptance, draft)[1] == pytest.approx(expected, abs=0.005)
    for width, expected in zip(WIDTHS, pipelined, strict=True):
        assert theory.pipelined_chain(acceptance, stages, width) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("acceptance", "row", "at_once", "one_traversal", "four_traversals"),
    [(0.52, 0.0, (5, 1.86), (6, 1.95), (7, 2.02)), (0.52, 0.8, (0, 1.00), (1, 1.08), (2, 1.35)),
     (0.79, 0.1, (5, 2.25), (7, 2.84), (10, 3.55)), (0.9, 0.0, (19, 6.37), (24, 7.49), (31, 8.59)),
     (0.9, 0.8, (1, 1.04), (4, 1.55), (7, 2.65))],
)  # fmt: skip
def test_the_best_synchronous_k_grows_with_slow_links_and_falls_with_dear_rows(
    acceptance: float, row: float, at_once: Any, one_traversal: Any, four_traversals: Any
) -> None:
    for fixed, (k, expected) in zip((0, 1, 4), (at_once, one_traversal, four_traversals), strict=True):
        best, found = theory.best_synchronous(acceptance, 0.02, 64, row, fixed, least=0)
        assert (best, found) == (k, pytest.approx(expected, abs=0.006))


def forked(lengths: list[int], every: int) -> Trace:
    """Stretch after stretch of tokens that are among the draft's best two, each ended by one that is not among its
    candidates. One in `every` tokens is an even toss between the two, which nobody can foresee."""
    trace = stratified(lengths)
    ranks, confidences = list(trace.ranks), []
    for position, rank in enumerate(ranks):
        toss = position % every == 0
        confidences.append([0.5, 0.5, *[1e-9] * 6] if toss else [1.0, *[1e-9] * 7])
        if toss and rank == 0:
            ranks[position] = position // every % 2
    return Trace(ranks, confidences)


@pytest.mark.parametrize("hit_rate", ACCEPTANCES)
@pytest.mark.parametrize("stages", DEPTHS)
def test_a_pipelined_tree_follows_its_closed_form(stages: int, hit_rate: float) -> None:
    lengths = stretches(hit_rate, CHAIN_ROUNDS[hit_rate])
    tokens = 1 + sum(lengths) + len(lengths)
    # As many tosses as three are open at once: eight branches hold all that can come of them.
    trace = forked(lengths, every=max(2, (stages + 4) // 3 + 1))
    measured = speed(SpecPipe(width=8), stages, trace, tokens)
    assert measured == pytest.approx(theory.pipelined_tree(hit_rate, stages), rel=TOLERANCE)


@pytest.mark.parametrize("stages", DEPTHS)
def test_a_pipelined_tree_of_width_one_is_the_chain(stages: int) -> None:
    lengths = stretches(0.79, CHAIN_ROUNDS[0.79])
    tokens = 1 + sum(lengths) + len(lengths)
    measured = speed(SpecPipe(width=1), stages, stratified(lengths), tokens)
    assert measured == pytest.approx(theory.pipelined_chain(0.79, stages, 1), rel=TOLERANCE)
    assert theory.pipelined_tree(0.79, stages) == pytest.approx(theory.pipelined_chain(0.79, stages, 1))


def chances_of(acceptance: float) -> list[float]:
    """That the k-th of the draft's candidates is right, in `independent` traces."""
    return [acceptance * (1 - acceptance) ** rank for rank in range(RANKS)]


def knowing(acceptance: float, length: int) -> Trace:
    """Independent draws by a draft that knows how good its candidates are."""
    trace = independent(acceptance, length=length)
    return msgspec.structs.replace(trace, confidences=[chances_of(acceptance)] * length)


def best_tree(chances: list[float], nodes: int) -> set[tuple[int, ...]]:
    """The most probable connected tree, each node as the ranks on the way to it."""
    tree: dict[tuple[int, ...], float] = {(): 1.0}
    while len(tree) <= nodes:
        options = {
            (*path, rank): p * q for path, p in tree.items() for rank, q in enumerate(chances)
            if (*path, rank) not in tree
        }  # fmt: skip
        best = max(options, key=lambda path: options[path])
        tree[best] = options[best]
    return set(tree)


def rounds(ranks: Sequence[int], tree: set[tuple[int, ...]]) -> list[int]:
    """Tokens of each verification where the target's tokens have these ranks."""
    lengths, path = [], []
    for rank in ranks:
        path.append(rank)
        if tuple(path) not in tree:
            lengths.append(len(path))
            path = []
    return lengths


@pytest.mark.parametrize("acceptance", ACCEPTANCES)
def test_an_asynchronous_tree_follows_its_closed_form(acceptance: float) -> None:
    tree = best_tree(chances_of(acceptance), 7)
    expected = theory.expected_tree_lengths(chances_of(acceptance), 7)[-1]
    many = rounds(independent(acceptance, length=100_000).ranks, tree)
    assert sum(many) / len(many) == pytest.approx(expected, rel=TOLERANCE)
    # The simulator makes exactly these rounds, 32 of them, if the tree has grown beyond what is sent of it.
    trace = knowing(acceptance, 2000)
    lengths = rounds(trace.ranks[PROMPT + 1 :], tree)[:32]
    measured = speed(SwiftSpec(batch=8, width=8, depth=12, nodes=200), 4, trace, 1 + sum(lengths))
    assert measured == pytest.approx(sum(lengths) / len(lengths), rel=1e-6)


def test_an_asynchronous_tree_of_width_one_is_a_synchronous_chain_whose_drafts_cost_nothing() -> None:
    assert theory.expected_tree_lengths([0.79], 7)[-1] == pytest.approx(theory.synchronous(0.79, 7))


@pytest.mark.parametrize("acceptance", ACCEPTANCES)
@pytest.mark.parametrize("stages", [2, 4, 8])
def test_segments_of_a_tree_of_width_one_are_the_chain(stages: int, acceptance: float) -> None:
    lengths = stretches(acceptance, CHAIN_ROUNDS[acceptance])
    tokens = 1 + sum(lengths) + len(lengths)
    for segment in WIDTHS:
        strategy = FlowSpec(segment=segment, width=1, depth=64, nodes=64)
        measured = speed(strategy, stages, stratified(lengths), tokens)
        assert measured == pytest.approx(theory.segmented_chain(acceptance, stages, segment), rel=TOLERANCE)
    assert theory.segmented_chain(0.79, stages, 1) == pytest.approx(theory.pipelined_chain(0.79, stages, 1))
