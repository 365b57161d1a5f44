"""What is tried next in a sweep of options."""

from pipeinfer.modelling.sweeps import at_largest, further_options

LADDER = {"k": (1, 2, 4, 8)}


def test_a_sweep_goes_on_where_the_best_is_the_largest() -> None:
    tried = [{"k": 1}, {"k": 2}]
    assert further_options(LADDER, tried, 1) == [{"k": 4}]
    assert further_options(LADDER, tried, 0) == []


def test_it_ends_with_the_last_value_that_there_is() -> None:
    tried = [{"k": 4}, {"k": 8}]
    assert further_options(LADDER, tried, 1) == []
    assert at_largest(tried, 1, "k")


def test_it_goes_on_along_the_best_ones_other_options() -> None:
    tried = [{"k": 1, "cutoff": 0.0}, {"k": 2, "cutoff": 0.0}, {"k": 1, "cutoff": 0.4}, {"k": 2, "cutoff": 0.4}]
    assert further_options(LADDER, tried, 1) == [{"k": 4, "cutoff": 0.0}]
    grown = [*tried, {"k": 4, "cutoff": 0.4}]
    assert further_options(LADDER, grown, 1) == [{"k": 4, "cutoff": 0.0}]
    assert further_options(LADDER, grown, 4) == [{"k": 8, "cutoff": 0.4}]


def test_what_was_not_swept_does_not_grow() -> None:
    assert further_options(LADDER, [{"k": 8}, {}], 0) == []
    assert further_options(LADDER, [{"k": 4}], 0) == []
    assert further_options(LADDER, [{}], 0) == []
