"""Sampling is exact, filtered as asked, and the same for everybody who asks for the same position."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeinfer.engine.sampling import (
    FAR,
    Floats,
    NotFinite,
    Sampling,
    candidates,
    gumbel,
    sample,
    sample_and_margin,
    scores,
)

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 2.5, 0.0, -4.0, 1.5], np.float32)
DRAWS = 20_000


@pytest.fixture(scope="module")
def stats() -> Any:
    """SciPy's, which take longer to load than these tests to run: not in the workers that have other files."""
    return pytest.importorskip("scipy.stats")


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    weights = np.exp(logits.astype(np.float64) / temperature)
    return np.asarray(weights / weights.sum(), np.float32)


def counts(how: Sampling) -> Floats:
    """How often each token was sampled over many positions."""
    drawn = [sample(LOGITS, position, how) for position in range(DRAWS)]
    return np.bincount(drawn, minlength=len(LOGITS)).astype(np.float32)


def kept(logits: Floats, how: Sampling) -> list[int]:
    """The tokens that may be chosen."""
    tokens = scores(logits, 0, how).tokens
    return list(range(len(logits))) if tokens is None else [int(token) for token in tokens]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_gumbel_sampling_is_an_exact_sample_of_softmax(stats: Any, temperature: float) -> None:
    observed = counts(Sampling(temperature, seed=1))
    expected = softmax(LOGITS, temperature) * (DRAWS / softmax(LOGITS, temperature).sum())
    assert stats.chisquare(observed, expected, sum_check=False).pvalue > 0.01
    # The test can tell: another temperature is no such sample.
    other = softmax(LOGITS, 1.1 * temperature) * DRAWS
    assert stats.chisquare(observed, other, sum_check=False).pvalue < 0.001


def test_the_noise_is_standard_gumbel_and_independent_between_positions(stats: Any) -> None:
    noise = [gumbel(7, position, 5000) for position in (0, 1)]
    assert stats.kstest(noise[0], "gumbel_r").pvalue > 0.01
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 0.05


def test_top_k_keeps_k_and_their_proportions(stats: Any) -> None:
    observed = counts(Sampling(1.0, top_k=3, seed=2))
    assert set(np.flatnonzero(observed)) == {1, 4, 2}
    kept = softmax(LOGITS)[[1, 4, 2]]
    assert stats.chisquare(observed[[1, 4, 2]], kept / kept.sum() * DRAWS, sum_check=False).pvalue > 0.01


@pytest.mark.parametrize(("top_p", "nucleus"), [(0.4, {1}), (0.6, {1, 4}), (0.7, {1, 4, 2}), (1e-9, {1}), (0.0, {1})])
def test_top_p_keeps_the_smallest_nucleus(top_p: float, nucleus: set[int]) -> None:
    # Softmax gives token 1 .42, token 4 .25, token 2 .15.
    assert kept(LOGITS, Sampling(1.0, top_p=top_p)) == sorted(nucleus)


def test_the_nucleus_is_that_of_the_top_k() -> None:
    # Of {1, 4} alone token 1 has .62, so a nucleus of .6 is token 1 alone; of all tokens it would be both.
    both = Sampling(1.0, top_k=2, top_p=0.6)
    assert kept(LOGITS, both) == [1]


def plainly(logits: Floats, position: int, how: Sampling) -> Floats:
    """What the filters mean, with the whole vocabulary in hand: probabilities sorted, those outside at -inf."""
    scaled = logits / np.float32(how.temperature)
    if 0 < how.top_k < len(scaled):
        scaled = np.where(np.argsort(np.argsort(-scaled, kind="stable"), kind="stable") < how.top_k, scaled, -np.inf)
    if how.top_p < 1:
        order = np.argsort(-scaled, kind="stable")
        share = np.exp(scaled[order].astype(np.float64) - scaled.max())
        outside = order[(np.cumsum(share) - share) / share.sum() >= how.top_p]
        scaled[outside[outside != order[0]]] = -np.inf
    return scaled + gumbel(how.seed, position, len(logits))


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0.05, 1.0, 4.0]), st.sampled_from([0, 1, 7, 300]),
    st.sampled_from([0.0, 0.3, 0.95, 1 - 1e-9, 1.0]), st.sampled_from([2, 40, 3000]),
)  # fmt: skip
@settings(max_examples=300, derandomize=True, database=None)
def test_what_is_left_out_early_would_have_been_left_out(
    seed: int, spread: float, top_k: int, top_p: float, vocabulary: int
) -> None:
    logits = spread * np.random.default_rng(seed).standard_normal(vocabulary, np.float32)
    how = Sampling(0.8, top_k, top_p, seed)
    expected = plainly(logits, 3, how)
    choice = scores(logits, 3, how)
    assert kept(logits, how) == list(np.flatnonzero(np.isfinite(expected)))
    np.testing.assert_array_equal(choice.values, expected[np.isfinite(expected)])
    assert sample(logits, 3, how) == int(np.argmax(expected))


def margin(logits: Floats, position: int, how: Sampling) -> float:
    return sample_and_margin(logits, position, how)[1]


def plain_margin(logits: Floats, position: int, how: Sampling) -> float:
    """What a margin means, with the whole vocabulary in hand."""
    values = plainly(logits, position, how)
    kept = np.isfinite(values)
    scaled = logits / np.float32(how.temperature)
    edge = np.full(len(scaled), np.inf)
    if not kept.all():
        edge[kept] = scaled[kept] - scaled[~kept].max()
        edge[~kept] = scaled[kept].min() - scaled[~kept]
        if how.top_p < 1:
            order = np.argsort(-scaled, kind="stable")[: how.top_k or None]
            share = np.exp(scaled[order].astype(np.float64) - scaled.max())
            before = (np.cumsum(share) - share) / share.sum()
            with np.errstate(divide="ignore"):
                odds = np.log(before) - np.log(np.maximum(0, 1 - before))
            edge[order] = np.minimum(edge[order], np.abs(odds - np.log(how.top_p) + np.log(1 - how.top_p)))
    chosen = int(np.argmax(values))
    behind = values[chosen] - (scaled + gumbel(how.seed, position, len(logits)))
    behind[~kept] = np.maximum(behind, edge)[~kept]
    behind[chosen] = edge[chosen]
    return float(behind.min()) * how.temperature


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0.3, 1.0, 4.0]), st.sampled_from([0, 7, 300]),
    st.sampled_from([0.3, 0.95, 0.9999, 1.0]), st.sampled_from([5, 40, 3000]), st.sampled_from([0.3, 0.8, 2.0]),
)  # fmt: skip
@settings(max_examples=400, derandomize=True, database=None)
def test_margins_are_told_as_far_as_they_matter(
    seed: int, spread: float, top_k: int, top_p: float, vocabulary: int, temperature: float
) -> None:
    logits = spread * np.random.default_rng(seed).standard_normal(vocabulary, np.float32)
    how = Sampling(temperature, min(top_k, vocabulary - 1), top_p, seed)
    token, found = sample_and_margin(logits, 3, how)
    assert token == sample(logits, 3, how)
    expected = plain_margin(logits, 3, how)
    assert found == pytest.approx(min(FAR, expected) if top_p < 1 or top_k else expected, rel=1e-4, abs=1e-6)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.sets(st.integers(0, 9999), min_size=1, max_size=30))
@settings(max_examples=100, derandomize=True, database=None)
def test_the_noise_of_a_few_tokens_is_that_of_all(seed: int, position: int, some: set[int]) -> None:
    tokens = np.array(sorted(some))
    np.testing.assert_array_equal(gumbel(seed, position, 10_000, tokens), gumbel(seed, position, 10_000)[tokens])


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
@settings(max_examples=50, derandomize=True, database=None)
def test_same_seed_and_position_same_token(seed: int, position: int) -> None:
    how = Sampling(0.8, top_p=0.9, seed=seed)
    assert sample(LOGITS, position, how) == sample(LOGITS.copy(), position, how)
    assert np.array_equal(gumbel(seed, position, 8), gumbel(seed, position, 8))


def test_seeds_and_positions_differ() -> None:
    draws = {(seed, position): gumbel(seed, position, 4).tobytes() for seed in range(4) for position in range(4)}
    assert len(set(draws.values())) == 16


def test_greedy_takes_the_best_and_the_lowest_id_wins_a_tie() -> None:
    greedy = Sampling(0.0, top_k=1, seed=9)
    assert sample(LOGITS, 3, greedy) == 1
    assert sample(np.array([0, 5, 2, 5], np.float32), 0, greedy) == 1
    assert candidates(np.array([0, 5, 2, 5], np.float32), 0, greedy, 3)[0][0] == 1


def test_the_margin_is_the_distance_to_another_choice() -> None:
    assert margin(LOGITS, 0, Sampling()) == pytest.approx(0.5)
    assert margin(np.array([5, 0, 5], np.float32), 0, Sampling()) == 0
    warm = Sampling(0.5, seed=3)
    values = np.sort(scores(LOGITS, 4, warm).values)
    assert margin(LOGITS, 4, warm) == pytest.approx((values[-1] - values[-2]) * 0.5)


def test_the_margin_sees_the_edge_of_what_is_kept() -> None:
    logits = np.array([5.0, 4.0, 4.0 - 1e-3, -9.0], np.float32)
    freely = [sample(logits, 0, Sampling(1.0, seed=seed)) for seed in range(99)]
    # Token 2 would be chosen, is not among the two that are kept, and is nearly as likely as the second.
    left_out = Sampling(1.0, top_k=2, seed=freely.index(2))
    assert margin(logits, 0, left_out) == pytest.approx(1e-3, rel=1e-3)
    # Token 1 is chosen, with a probability of .5763 before it: a nucleus of .5764 only just keeps it.
    before = softmax(logits)[0]
    only_just = Sampling(1.0, top_p=float(before) + 1e-4, seed=freely.index(1))
    assert sample(logits, 0, only_just) == 1
    assert margin(logits, 0, only_just) == pytest.approx(1e-4 / (before * (1 - before)), rel=0.01)


HOW = st.builds(
    Sampling, st.sampled_from([0.0, 0.5, 1.5]), st.sampled_from([0, 5]), st.sampled_from([1.0, 0.95, 0.5]),
    st.integers(0, 99),
)  # fmt: skip


@given(HOW, st.integers(0, 2**32 - 1))
@settings(max_examples=300, derandomize=True, database=None)
def test_logits_that_move_by_less_than_the_margin_change_nothing(how: Sampling, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = 3 * random.standard_normal(40, np.float32)
    distance = margin(logits, 0, how)
    signs = random.choice([-0.5, 0.5], len(logits)).astype(np.float32)
    assert sample(logits + 0.5 * distance * signs, 0, how) == sample(logits, 0, how)


@pytest.mark.parametrize("how", [Sampling(), Sampling(0.7, top_p=0.9, seed=5)], ids=["greedy", "warm"])
@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_candidates_are_ranked_and_the_first_is_the_sample(how: Sampling, count: int) -> None:
    for position in range(20):
        found = candidates(LOGITS, position, how, count)
        assert len(found) == min(count, len(kept(LOGITS, how)))
        assert found[0][0] == sample(LOGITS, position, how)
        confidences = [confidence for _, confidence in found]
        assert confidences == sorted(confidences, reverse=True)
        assert len({token for token, _ in found}) == len(found)


def test_greedy_confidence_is_the_models_own_probability() -> None:
    found = candidates(LOGITS, 0, Sampling(), 8)
    for token, confidence in found:
        assert confidence == pytest.approx(softmax(LOGITS)[token], rel=1e-5)


def test_confidence_without_all_candidates_is_the_same() -> None:
    how = Sampling(0.7, seed=5)
    assert candidates(LOGITS, 2, how, 2) == candidates(LOGITS, 2, how, 8)[:2]


BROKEN = {
    "a NaN": [1.0, np.nan, 3.0, 2.0],
    "+inf": [1.0, np.inf, 3.0, 2.0],
    "nothing that can be chosen": [-np.inf] * 4,
}
WAYS = {
    "greedy": Sampling(),
    "warm": Sampling(0.7, seed=5),
    "top-k": Sampling(0.7, top_k=2, seed=5),
    "top-p": Sampling(0.7, top_p=0.9, seed=5),
    "both": Sampling(0.7, 2, 0.9, 5),
}


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("row", BROKEN.values(), ids=BROKEN)
def test_logits_that_are_not_finite_have_no_sample(row: list[float], how: Sampling) -> None:
    logits = np.array(row, np.float32)
    with pytest.raises(NotFinite, match="the logits for position 7 are not finite") as problem:
        sample(logits, 7, how)
    assert problem.value.position == 7
    assert candidates(logits, 7, how, 2) == [(0, 0.0)]


@pytest.mark.parametrize("mask", [-np.inf, np.finfo(np.float32).min], ids=["-inf", "the lowest float32"])
@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_a_masked_token_is_never_chosen(how: Sampling, mask: float) -> None:
    logits = np.array([mask, 1.0, mask, mask, mask], np.float32)
    for position in range(20):
        assert sample(logits, position, how) == 1
        assert margin(logits, position, how) >= (1e30 if how.top_p == 1 and not how.top_k else FAR)
    two = np.array([mask, 1.0, mask, 0.9, mask], np.float32)
    assert {sample(two, position, Sampling(1.0, top_k=4, seed=5)) for position in range(40)} == {1, 3}
    assert np.isfinite(margin(two, 0, Sampling(1.0, top_k=4, seed=5)))


@pytest.mark.parametrize("temperature", [1e-19, 1e-21, 1e-38, 1e-45, 1e-300])
@pytest.mark.parametrize("row", [[0, 5, 2, 5], [-9, -5, -7, -5], [-80, 900, 900, 30]], ids=str)
def test_a_temperature_near_zero_is_greedy(row: list[float], temperature: float) -> None:
    logits = np.array(row, np.float32)
    for position in range(20):
        for filtered in (Sampling(temperature, seed=3), Sampling(temperature, 3, 0.9, 3)):
            assert sample(logits, position, filtered) == 1
            assert candidates(logits, position, filtered, 1)[0][0] == 1
