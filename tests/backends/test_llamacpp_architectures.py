"""Any GGUF that llama.cpp runs: small models of many architectures, whole and cut into stages, and the table of them in
docs/models.md, which is made of what comes out here (PIPEINFER_WRITE_DOCS=1 writes it anew)."""

import os
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gguf_architectures import ARCHITECTURES, WINDOW, write_architecture
from llamacpp_stages import backend, chain, close, run

from pipeinfer.core.messages import KvSeqCp, KvSeqRm
from pipeinfer.engine.backend import BadModel, Batch

TABLE = Path(__file__).parents[2] / "docs" / "models.md"
START, END = "<!-- table of architectures -->\n", "<!-- end of the table -->\n"
SPLITS = (1, 2, 3)
TWO_SEQUENCES = Batch([5, 6], [25, 25], [(0,), (1,)], 2)
TREE_BESIDE_ANOTHER = Batch([7, 8, 9, 10], [26, 26, 27, 27], [(0, 2), (1,), (0,), (2,)], 3)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """A function that tries an architecture once: what each number of stages gives, or the line that refuses it."""
    folder = tmp_path_factory.mktemp("architectures")

    @cache
    def try_it(name):
        path = write_architecture(folder / f"{name.replace(', ', '-').replace(' ', '-')}.gguf", name)
        return {stages: logits_of(folder, path, ARCHITECTURES[name].layers, stages) for stages in SPLITS}

    return try_it


def logits_of(folder, path, layers, count):
    """Of a prompt that is longer than the windows, a single row, and rows of several sequences at once."""
    borders = [stage * layers // count for stage in range(count + 1)]
    opener = backend(folder)
    try:
        stages = [opener.load(str(path), share, cells=64, sequences=4) for share in pairwise(borders)]
    except BadModel as error:
        return str(error)
    tokens = [(7 * step * step + 3) % 300 for step in range(25)]
    logits = [run(stages, chain(tokens[:24])), run(stages, chain(tokens[24:], start=24))]
    steps = [
        (KvSeqCp(0, 1, 0, -1), TWO_SEQUENCES),
        (KvSeqCp(0, 2, 0, -1), TREE_BESIDE_ANOTHER),
        (KvSeqRm(1, 0, -1), Batch([11, 12], [28, 29], [(2,), (2,)], 2)),
    ]
    for operation, batch in steps:
        for stage in stages:
            stage.apply(operation)
        logits.append(run(stages, batch))
    close(stages)
    return logits


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_split_is_the_whole_model_to_the_last_bit_or_refused(tried, name):
    results = tried(name)
    refused = [result for result in results.values() if isinstance(result, str)]
    assert bool(refused) == bool(ARCHITECTURES[name].because), refused
    assert not any("\n" in line for line in refused)
    for stages, result in results.items():
        if not isinstance(result, str):
            assert result[0].std() > 0.1
            for came, expected in zip(result, results[1], strict=True):
                np.testing.assert_array_equal(came, expected, err_msg=f"{stages} stages")


def test_a_refusal_says_what_was_expected_what_came_and_what_to_do(tried):
    assert "layers [0, 23)" in tried("gemma2, 27B")[2]
    assert "came other numbers (gemma2): cut elsewhere, or run the model as one stage" in tried("gemma2, 27B")[2]
    assert isinstance(tried("smollm3")[2], list)  # cut before layer 4
    assert "layers [2, 5)" in tried("smollm3")[3]
    assert "came a recurrent one" in tried("mamba")[1]


def test_what_was_refused_is_remembered(tmp_path):
    path = write_architecture(tmp_path / "model.gguf", "baichuan")
    lines = []
    for _ in range(2):
        with pytest.raises(BadModel) as caught:
            backend(tmp_path).load(str(path), (0, 16), cells=8, sequences=1)
        lines.append(str(caught.value))
        (kept,) = (tmp_path / "cache").iterdir()
        assert [file.name for file in kept.iterdir()] == ["found.json"]
    assert lines[0] == lines[1]


ODD = {"rope.dimension_count": 7}
"""Rotations turn pairs of numbers: ggml ends the process where they are not even in number."""


@pytest.mark.parametrize(("threads", "layers"), [(1, 2), (2, 2), (1, 6)])
def test_a_model_that_ggml_ends_the_process_for_is_refused_and_the_process_goes_on(
    tmp_path, monkeypatch, threads, layers
):
    odd = ARCHITECTURES["gptneox"]
    monkeypatch.setitem(ARCHITECTURES, "gptneox", odd._replace(fields=odd.fields | ODD))
    path = write_architecture(tmp_path / "model.gguf", "gptneox")
    code = f"""
from pipeinfer.engine.backend import BadModel
from pipeinfer_llamacpp import LlamaCppBackend
backend = LlamaCppBackend(cache={str(tmp_path / "cache")!r}, threads={threads})
for _ in range(2):
    try:
        backend.load({str(path)!r}, (0, {layers}), cells=8, sequences=1)
    except BadModel as problem:
        print(problem)
print(backend.load({str(sound(tmp_path))!r}, (0, 2), cells=8, sequences=1).forward)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, again, sound_stage = done.stdout.splitlines()
    assert ("came ops.cpp:" if layers == 6 else "came a stage that does not run: ops.cpp:") in first
    assert "GGML_ASSERT(n_dims % 2 == 0) failed (gptneox): " in first
    assert first == again
    assert "LlamaCppStage" in sound_stage


def sound(folder):
    return write_architecture(folder / "sound.gguf", "llama")


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "cohere2", "gpt-oss", "olmo2"])
def test_a_window_by_another_layer_number_would_be_seen(tmp_path, monkeypatch, name):
    """What llama.cpp says of the windows is written into the stage file; without it the trial refuses the stage."""
    monkeypatch.setattr("pipeinfer_llamacpp.probe.windows_in", lambda *_: [])
    path = write_architecture(tmp_path / "model.gguf", name)
    with pytest.raises(BadModel, match="came other numbers"):
        backend(tmp_path).load(str(path), (3, 6), cells=8, sequences=1)


def test_prompts_are_longer_than_the_windows():
    assert WINDOW < 24


def test_the_table_in_the_documentation_is_what_came_out(tried):
    table = "| architecture | models | stages tried | |\n|---|---|---|---|\n"
    for name, architecture in ARCHITECTURES.items():
        works = [str(stages) for stages, result in tried(name).items() if not isinstance(result, str)]
        table += f"| `{name}` | {architecture.models} | {', '.join(works) or 'none'} | {architecture.because} |\n"
    text = TABLE.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    made = before + START + table + END + after
    if os.environ.get("PIPEINFER_WRITE_DOCS"):
        TABLE.write_text(made)
    assert TABLE.read_text() == made, "the table is stale: run this test with PIPEINFER_WRITE_DOCS=1"
