"""The simulator agrees with the closed forms, under the assumptions that they make.

Unit of time: one traversal of the pipeline. Stages are equal, width and links are free, cancellation arrives at once.
The acceptance trace is stratified: the stretches of accepted drafts are the quantiles of the geometric distribution,
shuffled. Nothing is left to chance but their order, so few rounds are enough. One test uses independent draws instead.
"""

import math

import numpy as np
import pytest

from pipeinfer.core.effects import Request
from pipeinfer.core.generation import Pipeline, Strategy
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.core.strategies.speculative import Speculative
from pipeinfer.modelling import theory
from pipeinfer.results.metrics import tokens_per_second
from pipeinfer.runtime.oracle import Oracle, Trace, independent
from pipeinfer.runtime.sim import Simulation

DEPTHS = (2, 4, 8, 16, 32)
ACCEPTANCES = (0.5, 0.66, 0.79, 0.9)
WIDTHS = (1, 2, 4)
ROUNDS = 48
PROMPT = 4
TOLERANCE = 0.02


class Ideal:
    """Costs of the closed forms: a traversal takes 1 in all, whatever the width; a draft token takes `draft`."""

    def __init__(self, stages: int, draft: float = 0.0) -> None:
        self.stages, self.draft = stages, draft

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return 1 / self.stages

    def draft_s(self, rows: int, context: int) -> float:
        return self.draft

    def row_bytes(self, stage: int) -> int:
        return 0


def stretches(acceptance: float) -> list[int]:
    """ROUNDS lengths of accepted stretches: P(length = L) = (1 - a) a^L by its quantiles, shuffled."""
    quantiles = (np.arange(ROUNDS) + 0.5) / ROUNDS
    lengths = np.floor(np.log1p(-quantiles) / math.log(acceptance)).astype(int)
    return np.random.Generator(np.random.Philox(key=[0, 1])).permutation(lengths).tolist()


def stratified(lengths: list[int]) -> Trace:
    """Draft ranks by position: the prompt and the first token (so that the first round starts afresh), then stretch
    after stretch of right drafts, each ended by a wrong one."""
    ranks = [0] * PROMPT + [-1]
    for length in lengths:
        ranks += [0] * length + [-1]
    return Trace(ranks, [[1.0]] * len(ranks))


def speed(strategy: Strategy, stages: int, oracle: Oracle, tokens: int, draft: float = 0.0) -> float:
    """Tokens per traversal, which is the speedup over iterative decoding."""
    room = 4 * stages + 64
    pipeline = Pipeline(stages, cells=PROMPT + tokens + 8 * room, sequences=room + 1)
    trial = Simulation(pipeline, strategy, Ideal(stages, draft), oracle).generate(Request(tuple(range(PROMPT)), tokens))
    assert list(trial.token_ids) == [oracle.target(PROMPT + i) for i in range(tokens)]
    rate = tokens_per_second(trial)
    assert rate is not None
    return rate


def always_ready(width: int, stages: int) -> PipeInfer:
    """Continuous speculation with so many runs allowed that the draft never waits for one to come back."""
    return PipeInfer(draft=width, in_flight=stages + 16)


@pytest.mark.parametrize("stages", DEPTHS)
def test_iterative_decoding_gives_one_token_per_traversal(stages: int) -> None:
    assert speed(Iterative(), stages, independent(0.5), 16) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("acceptance", ACCEPTANCES)
@pytest.mark.parametrize("stages", DEPTHS)
def test_the_pipelined_chain_follows_its_closed_form(stages: int, acceptance: float) -> None:
    lengths = stretches(acceptance)
    tokens = 1 + sum(lengths) + len(lengths)
    for width in WIDTHS:
        measured = speed(always_ready(width, stages), stages, stratified(lengths), tokens)
        assert measured == pytest.approx(theory.pipelined_chain(acceptance, stages, width), rel=TOLERANCE)
        assert measured <= tokens / len(lengths)


@pytest.mark.parametrize("draft", [0.02, 0.1])
@pytest.mark.parametrize("acceptance", ACCEPTANCES)
@pytest.mark.parametrize("stages", DEPTHS)
def test_synchronous_speculation_follows_its_closed_form(stages: int, acceptance: float, draft: float) -> None:
    lengths = stretches(acceptance)
    tokens = 1 + sum(lengths) + len(lengths)
    for width in WIDTHS:
        measured = speed(Speculative(k=width), stages, stratified(lengths), tokens, draft)
        assert measured == pytest.approx(theory.synchronous(acceptance, width, draft), rel=TOLERANCE)


def test_independent_draws_give_the_same_within_their_noise() -> None:
    chain = speed(always_ready(2, 4), 4, independent(0.66, length=6000), 5000)
    assert chain == pytest.approx(theory.pipelined_chain(0.66, 4, 2), rel=TOLERANCE)
    synchronous = speed(Speculative(k=2), 4, independent(0.66, length=6000), 5000, draft=0.05)
    assert synchronous == pytest.approx(theory.synchronous(0.66, 2, 0.05), rel=TOLERANCE)


@pytest.mark.parametrize("acceptance", ACCEPTANCES)
def test_no_chain_is_faster_than_the_ceiling(acceptance: float) -> None:
    lengths = stretches(acceptance)
    tokens = 1 + sum(lengths) + len(lengths)
    # The ceiling of this very trace: one traversal per rejected token, which is what its stretches cannot avoid.
    ceiling = (tokens - 1) / len(lengths)
    for width in (1, 4, 8):
        assert speed(always_ready(width, 16), 16, stratified(lengths), tokens) < ceiling
    assert ceiling == pytest.approx(theory.chain_ceiling(acceptance), rel=TOLERANCE)


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
