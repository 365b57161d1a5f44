"""The nodes of `limited_nodes.py`: what of a period they have, and that nothing beats its limit there."""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from limited_nodes import COSTS, F16, LimitedNode, ModelCosts, speed


@pytest.mark.parametrize(
    ("began_ms", "work_ms", "ended_ms"),
    [(0.0, 4.5, 4.5), (0.0, 6.0, 11.5), (3.0, 10.0, 21.0), (8.0, 3.0, 11.0)],
)
def test_work_goes_on_until_the_share_of_a_period_is_used_up(began_ms: float, work_ms: float, ended_ms: float) -> None:
    ends: list[float] = []
    LimitedNode(0.45, lambda when, *_: ends.append(when)).start(began_ms * 1e-3, work_ms * 1e-3, print)
    assert ends == [pytest.approx(ended_ms * 1e-3)]


def test_what_was_used_counts_for_the_next_piece_and_what_was_stopped_is_left() -> None:
    ends: list[tuple[float, Callable[..., Any], tuple[Any, ...]]] = []
    node = LimitedNode(0.45, lambda when, action, *arguments: ends.append((when, action, arguments)))
    ticket = node.start(0.0, 9e-3, print)
    assert node.stop(4e-3, ticket) == pytest.approx(5e-3)
    node.start(4e-3, 1e-3, print)
    assert ends[-1][0] == pytest.approx(10.5e-3)
    assert ends[0][1](*ends[0][2]) is None, "what was stopped does not end"


def test_a_steady_node_decodes_as_fast_as_its_stages_add_up_to() -> None:
    found = speed("iterative", {}, ModelCosts(F16, 3, speed=0.45), 1.0, 0)
    assert found == pytest.approx(0.45e3 / F16[1])


@pytest.mark.parametrize("model", COSTS)
def test_on_nodes_of_a_fifth_of_a_core_adaptive_is_near_plain_decoding(model: str) -> None:
    costs = ModelCosts(COSTS[model], 7)
    adaptive, plain = (
        median([speed(name, {}, costs, 0.2, text) for text in range(3)]) for name in ("adaptive", "iterative")
    )
    assert adaptive > 0.93 * plain
