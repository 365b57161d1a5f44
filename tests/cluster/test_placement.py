"""Which layers lie on which rank."""

from collections.abc import Callable
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeinfer.cluster.placement import BadSplit, LayerRange, even_split, fastest_split, parse_split


def assert_covers(ranges: list[LayerRange], layers: int) -> None:
    """In order, without a gap, and nobody goes empty."""
    assert ranges[0][0] == 0
    assert ranges[-1][1] == layers
    assert all(end == start for (_, end), (start, _) in pairwise(ranges))
    assert all(start < end for start, end in ranges)


@given(st.integers(1, 200).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers))))
def test_an_even_split_is_even(case: tuple[int, int]) -> None:
    layers, stages = case
    ranges = even_split(layers, stages)
    sizes = [end - start for start, end in ranges]
    assert_covers(ranges, layers)
    assert len(ranges) == stages
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("layers", "stages"), [(4, 5), (4, 0), (0, 1)])
def test_a_stage_needs_a_layer(layers: int, stages: int) -> None:
    with pytest.raises(BadSplit, match="layers cannot be split over"):
        even_split(layers, stages)


@pytest.mark.parametrize(
    ("text", "layers", "expected"),
    [
        ("1", 8, [(0, 8)]),
        ("8", 8, [(0, 8)]),
        ("0.5,0.5", 8, [(0, 4), (4, 8)]),
        ("0.25,0.25,0.5", 8, [(0, 2), (2, 4), (4, 8)]),
        ("2,2,4", 8, [(0, 2), (2, 4), (4, 8)]),
        ("0.1,0.4,0.5", 80, [(0, 8), (8, 40), (40, 80)]),
        ("0.01,0.99", 8, [(0, 1), (1, 8)]),
        ("0.34,0.33,0.33", 10, [(0, 4), (4, 7), (7, 10)]),
        (" 4 , 4 ", 8, [(0, 4), (4, 8)]),
    ],
)
def test_a_split_by_hand(text: str, layers: int, expected: list[LayerRange]) -> None:
    assert parse_split(text, layers) == expected


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 60))
def test_fractions_cover_every_layer(weights: list[int], more: int) -> None:
    layers = len(weights) + more
    shares = [weight / sum(weights) for weight in weights]
    ranges = parse_split(",".join(map(repr, shares)), layers)
    assert_covers(ranges, layers)
    assert len(ranges) == len(weights)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected numbers with commas"),
        ("a,b", "expected numbers with commas"),
        ("4,4,", "expected numbers with commas"),
        ("nan,1", "adds up to nan"),
        ("inf,1", "adds up to inf"),
        ("0,8", "above 0"),
        ("-1,9", "above 0"),
        ("4,5", "adds up to 9: expected fractions of 1 or counts of 8"),
        ("0.5,0.6", "adds up to 1.1"),
        ("3.5,4.5", "adds up to 8"),
        (",".join(["1"] * 9), "9 stages for 8 layers"),
    ],
)
def test_what_is_no_split(text: str, said: str) -> None:
    with pytest.raises(BadSplit) as refused:
        parse_split(text, 8)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def per_layer(*speeds: float, head: float = 0.0) -> Callable[[int, int], float]:
    """What stages take on ranks of these seconds per layer, with an output head on the last."""
    return lambda rank, count: speeds[rank] * count + head * (rank == len(speeds) - 1)


@pytest.mark.parametrize(
    ("seconds", "most", "expected"),
    [
        (per_layer(1, 1), (8, 8), [(0, 4), (4, 8)]),
        (per_layer(1, 3), (8, 8), [(0, 6), (6, 8)]),
        (per_layer(1, 1, head=2), (8, 8), [(0, 5), (5, 8)]),
        (per_layer(1, 1, 1, head=5), (8, 8, 8), [(0, 4), (4, 7), (7, 8)]),
        (per_layer(1, 3), (5, 8), [(0, 5), (5, 8)]),
        (per_layer(1), (8,), [(0, 8)]),
        (per_layer(2, 1, 1), (8, 8, 8), [(0, 1), (1, 5), (5, 8)]),
    ],
)
def test_the_fastest_split(
    seconds: Callable[[int, int], float], most: tuple[int, ...], expected: list[LayerRange]
) -> None:
    assert fastest_split(8, seconds, most) == expected


def test_of_equally_slow_splits_the_most_even_one() -> None:
    # Rank 0 takes 4 s for its one layer whatever the rest do; rank 1 is faster than rank 2.
    assert fastest_split(5, per_layer(4, 1, 2), (1, 8, 8)) == [(0, 1), (1, 4), (4, 5)]


@given(
    st.integers(1, 4).flatmap(
        lambda ranks: st.tuples(
            st.lists(st.floats(0.1, 10), min_size=ranks, max_size=ranks),
            st.lists(st.integers(1, 9), min_size=ranks, max_size=ranks),
            st.floats(0, 20),
            st.integers(ranks, 9),
        )
    )
)
def test_no_split_is_faster(case: tuple[list[float], list[int], float, int]) -> None:
    speeds, most, head, layers = case
    seconds = per_layer(*speeds, head=head)
    if sum(most) < layers:
        with pytest.raises(BadSplit, match="cannot be split over ranks with room for"):
            fastest_split(layers, seconds, most)
        return
    found = fastest_split(layers, seconds, most)
    assert_covers(found, layers)
    counts = [stop - start for start, stop in found]
    assert all(count <= room for count, room in zip(counts, most, strict=True))
    others = [one for one in product(*(range(1, room + 1) for room in most)) if sum(one) == layers]
    assert slowest(seconds, counts) == pytest.approx(min(slowest(seconds, one) for one in others))


def slowest(seconds: Callable[[int, int], float], counts: list[int] | tuple[int, ...]) -> float:
    return max(seconds(rank, count) for rank, count in enumerate(counts))
