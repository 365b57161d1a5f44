"""Traces of the built-in pair: recorded, written, read, and played back to the same acceptance."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from pipeinfer.core.effects import Request
from pipeinfer.core.generation import PipelineShape
from pipeinfer.core.strategies.speculative import Speculative
from pipeinfer.engine.sampling import Sampling
from pipeinfer.modelling.trace_recording import load_whole, record
from pipeinfer.runtime.oracle import RANKS, Trace, independent, read_trace
from pipeinfer.runtime.sim import Simulation
from pipeinfer_numpy import NumpyBackend


class Flat:
    """Every forward takes a second."""

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return 1.0

    def draft_s(self, rows: int, context: int) -> float:
        return 1.0

    def row_bytes(self, stage: int) -> int:
        return 0


def recorded(draft: str, temperature: float, top_p: float = 1.0) -> Trace:
    backend = NumpyBackend()
    models = [
        backend.load(name, (0, backend.info(name).layers), cells=256, sequences=1) for name in ("builtin:target", draft)
    ]
    prompt = backend.tokenizer("builtin:target").encode("def add(first, second):\n")
    return record(*models, [prompt], 48, Sampling(temperature, 0, top_p, 5), limit=256, source="test")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_model_that_drafts_for_itself_is_always_right(temperature: float) -> None:
    trace = recorded("builtin:target", temperature)
    assert trace.acceptance == 1.0
    assert all(confidences == sorted(confidences, reverse=True) for confidences in trace.confidences)


def test_the_draft_is_right_sometimes() -> None:
    trace = recorded("builtin:draft", 0.0)
    assert len(trace.ranks) == 48
    assert set(trace.ranks) <= set(range(-1, RANKS))
    assert trace.acceptance < 1


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_texts_at_once_are_those_of_one_after_another(temperature: float) -> None:
    """The second one ends earlier, where the models hold no more."""
    backend = NumpyBackend()
    encode = backend.tokenizer("builtin:target").encode
    prompts = [encode("def add(first, second):\n"), encode("import os\n" * 12), encode("class Stack:\n")]
    limit = len(prompts[1]) + 20

    def found(at_once: int) -> Trace:
        target = load_whole(backend, "builtin:target", limit, texts=at_once)
        draft = load_whole(backend, "builtin:draft", limit)
        how = Sampling(temperature, 0, 1.0, 5)
        return record(target, draft, prompts, 40, how, limit=limit, source="test", at_once=at_once)

    alone, together = found(1), found(2)
    assert together.lengths == alone.lengths == [40, 20, 40]
    assert together.ranks == alone.ranks
    assert np.allclose(together.confidences, alone.confidences, atol=2e-4)


def test_what_the_drafts_filter_leaves_out_has_no_confidence(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(msgspec.json.encode(recorded("builtin:draft", 0.8, top_p=0.5)))
    trace = read_trace(path)
    assert {len(confidences) for confidences in trace.confidences} == {RANKS}
    assert any(confidences[-1] == 0 < confidences[0] for confidences in trace.confidences)


def test_playing_a_trace_back_accepts_what_was_accepted(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(msgspec.json.encode(independent(0.6, seed=3, length=64)))
    trace = read_trace(path)
    simulation = Simulation(PipelineShape(2), Speculative(k=1), Flat(), trace)
    trial = simulation.generate(Request((0,), 200))
    rounds = [run for run in trial.runs if run.kind == "speculative" and run.judged]
    followed = sum(run.accepted for run in rounds) / len(rounds)
    assert followed == pytest.approx(trace.acceptance, abs=0.12)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"ranks": [0], "confidences": []}', '{"ranks": [0], "confidences": [[1]]}']
)
def test_what_is_no_trace_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"trace\.json") as problem:
        read_trace(path)
    assert "\n" not in str(problem.value)
