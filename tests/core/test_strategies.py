"""Options of strategies: what they take, what they refuse, and what they make of them."""

from typing import Any

import pytest

from pipeinfer.core.strategies.flowspec import FlowSpec
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.core.strategies.specpipe import SpecPipe
from pipeinfer.core.strategies.speculative import Speculative
from pipeinfer.core.strategies.swiftspec import SwiftSpec


@pytest.mark.parametrize(
    ("strategy", "option", "value"),
    [
        (Speculative, "k", 0), (Speculative, "cutoff", -0.1), (Speculative, "branches", 9), (Speculative, "split", 1.1),
        (PipeInfer, "draft", 65), (PipeInfer, "cutoff", float("nan")), (PipeInfer, "branches", 0),
        (SwiftSpec, "batch", 1), (SwiftSpec, "width", 0), (SwiftSpec, "depth", 65), (SwiftSpec, "nodes", 0),
        (FlowSpec, "segment", 65), (FlowSpec, "width", 0), (FlowSpec, "depth", 0), (FlowSpec, "nodes", 15),
        (FlowSpec, "in_flight", 1), (SpecPipe, "width", 33), (SpecPipe, "in_flight", 1),
        (PipeInfer, "split", -1), (PipeInfer, "recovery", -0.1), (PipeInfer, "decay", 2), (PipeInfer, "in_flight", -1),
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_named_with_its_range(strategy: Any, option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{option} = {value}: expected \S+ to \S+$"):
        strategy(**{option: value})


@pytest.mark.parametrize("strategy", [Iterative, Speculative, PipeInfer])
def test_an_unknown_option_is_a_type_error(strategy: Any) -> None:
    with pytest.raises(TypeError):
        strategy(speed=11)
