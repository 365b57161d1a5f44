"""The public Python interface: what it is called, what it gives, and that its documentation runs."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeinfer
from pipeinfer import Pipeline
from pipeinfer.cluster.settings import Settings, SettingsFields

ROOT = Path(__file__).parents[1]
EMULATED = {"backend": "emulated", "backend_options": {"layers": 4, "layer_s": 0.001}, "transport": "inproc"}


def test_the_public_names_are_these() -> None:
    assert set(pipeinfer.__all__) == {
        "GeneratedText", "Pipeline", "SideBySide", "TextPieces", "__version__", "errors", "results", "simulate",
    }  # fmt: skip
    for name in pipeinfer.__all__:
        assert name in dir(pipeinfer)
        assert getattr(pipeinfer, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        _ = pipeinfer.Pipelines
    assert (ROOT / "pipeinfer" / "py.typed").exists()


def test_keywords_are_those_of_the_cluster_file() -> None:
    assert SettingsFields.__annotations__.keys() == set(Settings.__struct_fields__) - {"draft"}
    stream, generate = (inspect.signature(method).parameters for method in (Pipeline.stream, Pipeline.generate))
    assert list(stream.items()) == list(generate.items())


HEAVY = {"torch", "llama_cpp", "mpi4py", "zmq", "pandas", "numpy"}


def test_public_modules_need_no_import_of_their_own() -> None:
    code = "import pipeinfer; print(pipeinfer.results.load.__doc__, pipeinfer.errors.RankLost.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "data frames" in done.stdout
    assert "RankLost" in done.stdout


def test_a_simulation_loads_no_engine() -> None:
    code = "import pipeinfer, sys; pipeinfer.simulate(nodes=2, tokens=4, sweep=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (HEAVY - {"numpy"}).isdisjoint(done.stdout.split())


def test_the_page_s_code_runs() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tokens/s, first token after" in done.stdout


def test_the_pieces_are_the_text() -> None:
    with Pipeline(nodes=3, **EMULATED) as pipeline:
        pieces = pipeline.stream("a b c", tokens=20)
        text = "".join(pieces)
        assert text == pieces.result.text
        assert len(pieces.result.token_ids) == 20
        assert pieces.result.reason == "length"
        assert list(pieces) == []
        again = pipeline.generate("a b c", tokens=20, strategy="speculative", options={"k": 2})
        assert (again.text, again.prompt_ids) == (text, pieces.result.prompt_ids)
        assert again.metrics["strategy"] == "speculative"


def test_a_reader_may_leave_off() -> None:
    with Pipeline(nodes=2, draft=None, **EMULATED) as pipeline:
        with pipeline.stream("a b c", tokens=2000) as pieces:
            next(pieces)
        assert pieces.result.reason == "closed"
        assert len(pieces.result.token_ids) < 2000
        assert len(pipeline.generate("a b c", tokens=3).token_ids) == 3
        unread = pipeline.stream("a b c", tokens=2000)
    assert unread.result.reason == "closed"


def test_what_is_wrong_is_raised_where_the_text_is_asked_for() -> None:
    pipeline = Pipeline(nodes=2, **EMULATED)
    with pytest.raises(ValueError, match="the ranks are not running"):
        pipeline.generate("x")
    with pipeline:
        for wrong in ({"tokens": 0}, {"temperature": -1.0}, {"seed": 2**64}, {"options": {"k": 3}}):
            with pytest.raises(ValueError, match=next(iter(wrong)) if "options" not in wrong else "no option"):
                pipeline.generate("x", **wrong)
        with pytest.raises(ValueError, match="the prompt is empty"):
            pipeline.generate("")
        assert len(pipeline.generate("x", tokens=2).token_ids) == 2


def test_a_pipeline_is_refused_before_it_starts() -> None:
    with pytest.raises(ValueError, match="launcher"):
        Pipeline(launcher="mpi")
    with pytest.raises(TypeError, match="stages"):
        Pipeline(stages=3)
    with pytest.raises(ValueError, match="nodes = 0"):
        Pipeline(nodes=0)
