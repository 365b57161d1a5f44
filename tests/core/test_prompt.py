"""The chunks of a prompt: as the closed form of a pipeline has them, and all of the prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeinfer.core.generation import PipelineShape
from pipeinfer.core.prompt import FIXED_ROWS, MOST_ROWS, chunk_size


def seconds(size: int, prompt: int, stages: int, ranks_per_core: float = 1.0) -> float:
    """Of a prompt in chunks of `size`, where a row takes 1 and a chunk FIXED_ROWS besides: as long as the chunks follow
    one another, or as all of them take on the cores that there are."""
    chunks = -(-prompt // size)
    return max(stages + chunks - 1, chunks * ranks_per_core) * (FIXED_ROWS + prompt / chunks)


def chunks(prompt: int, stages: int, ranks_per_core: float) -> int:
    shape = PipelineShape(stages, ranks_per_core=ranks_per_core)
    return -(-prompt // chunk_size("auto", prompt, shape.at_once))


@given(prompt=st.integers(1, 4000), stages=st.integers(1, 64))
def test_it_is_about_as_fast_as_any_size(prompt: int, stages: int) -> None:
    size = chunk_size("auto", prompt, stages)
    assert 1 <= size <= min(prompt, MOST_ROWS)
    best = min(seconds(other, prompt, stages) for other in range(min(FIXED_ROWS, prompt), min(prompt, MOST_ROWS) + 1))
    assert seconds(size, prompt, stages) <= 1.4 * best  # rounding, where there are two or three chunks


@given(prompt=st.integers(1, 4000), stages=st.integers(2, 64))
def test_the_last_chunk_is_no_crumb(prompt: int, stages: int) -> None:
    size = chunk_size("auto", prompt, stages)
    chunks = -(-prompt // size)
    assert prompt / chunks > size - chunks  # of equal chunks, rounded up


@pytest.mark.parametrize(("stages", "chunks"), [(1, 1), (2, 2), (3, 2), (8, 3), (32, 3)])
def test_deeper_pipelines_get_more_chunks(stages: int, chunks: int) -> None:
    assert -(-64 // chunk_size("auto", 64, stages)) == chunks


@pytest.mark.parametrize(
    ("stages", "ranks_per_core", "prompt", "expected"),
    [(3, 1.0, 76, 3), (3, 1.5, 76, 2), (3, 2.0, 76, 1), (3, 2.0, 300, 2), (3, 4.0, 300, 1), (8, 2.25, 300, 6)],
)
def test_chunks_are_as_many_as_can_overlap_on_the_cores(
    stages: int, ranks_per_core: float, prompt: int, expected: int
) -> None:
    assert chunks(prompt, stages, ranks_per_core) == expected


@given(prompt=st.integers(1, 4000), stages=st.integers(1, 64), ranks_per_core=st.floats(1.0, 8.0))
def test_on_shared_cores_it_is_about_as_fast_as_any_size(prompt: int, stages: int, ranks_per_core: float) -> None:
    sizes = range(min(FIXED_ROWS, prompt), min(prompt, MOST_ROWS) + 1)
    best = min(seconds(size, prompt, stages, ranks_per_core) for size in sizes)
    size = chunk_size("auto", prompt, PipelineShape(stages, ranks_per_core=ranks_per_core).at_once)
    assert seconds(size, prompt, stages, ranks_per_core) <= 1.6 * best


def test_short_prompts_go_in_one_piece() -> None:
    assert all(chunk_size("auto", prompt, 32) == prompt for prompt in range(1, FIXED_ROWS + 1))


def test_what_is_asked_for_is_done() -> None:
    assert (chunk_size(7, 100, 4), chunk_size("whole", 100, 4)) == (7, 100)
