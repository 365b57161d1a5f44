"""llama.cpp as pipeline stages: the conformance kit, architectures and quantisations, aborts, exports, bad files."""

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")
pytest.importorskip("gguf", reason="needs gguf: pip install pipeinfer[llamacpp]")

import llama_cpp
from gguf_models import Type, add_sentencepiece, write_gguf

from pipeinfer.assets import asset
from pipeinfer.cluster.launch import Cluster, Plan
from pipeinfer.core.messages import KvSeqCp, KvSeqKeep, KvSeqRm, Sampling
from pipeinfer.engine.backend import BadModel, Batch, CellsFull
from pipeinfer.engine.kv_cells import Cells as KeptCells
from pipeinfer.engine.sampling import sample
from pipeinfer.plugins import open_strategy
from pipeinfer.testing import BackendConformance, write_llama
from pipeinfer.testing.backends import chain, never
from pipeinfer_llamacpp import LlamaCppBackend
from pipeinfer_llamacpp.cells import Cells
from pipeinfer_llamacpp.export import export_gguf, exported
from pipeinfer_llamacpp.gguf_file import GgufFile
from pipeinfer_llamacpp.library import llama
from pipeinfer_llamacpp.rows import needed_tags
from pipeinfer_llamacpp.watcher import AbortWatcher, new_flag
from pipeinfer_numpy import NumpyBackend

TOKENS = tuple((7 * step * step + 3) % 300 for step in range(24))


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder for models and stage files that several tests use."""
    return tmp_path_factory.mktemp("llamacpp")


@pytest.fixture(scope="session")
def small(shared):
    return write_gguf(shared / "small.gguf")


def backend(shared, **options):
    return LlamaCppBackend(cache=str(shared / "cache"), **options)


def open_stages(opener, path, count=1, *, cells=64, sequences=8):
    layers = opener.info(str(path)).layers
    borders = [stage * layers // count for stage in range(count + 1)]
    return [opener.load(str(path), share, cells=cells, sequences=sequences) for share in pairwise(borders)]


def run(stages, batch):
    """Through the stages one after another."""
    arrived = None
    for stage in stages:
        arrived = stage.forward(batch, arrived, never)
    return arrived


def close(*groups):
    for stages in groups:
        for stage in stages:
            stage.close()


def logits(opener, path, tokens=TOKENS):
    stages = open_stages(opener, path)
    rows = run(stages, chain(tokens))
    close(stages)
    return rows


class Conformance(BackendConformance):
    rtol = 1e-5
    architecture = ""

    @pytest.fixture(autouse=True)
    def shared_folder(self, shared):
        self._shared = shared

    def backend(self):
        return backend(self._shared, kv_type="f32")

    def model(self, tmp_path):
        path = self._shared / f"conformance-{self.architecture}.gguf"
        return str(path if path.exists() else write_gguf(path, self.architecture))

    def loaded_bytes(self, load):
        stage = load()
        held = llama().llama_model_size(stage._model.handle)
        stage.close()
        return held


class TestLlama(Conformance):
    def model(self, tmp_path):
        path = self._shared / "conformance.gguf"
        if not path.exists():
            export_gguf(write_llama(tmp_path / "model"), path, "f32")
        return str(path)


class TestQwen2(Conformance):
    architecture = "qwen2"


class TestQwen3(Conformance):
    architecture = "qwen3"


class TestFalcon(Conformance):
    rtol = 1e-3  # ggml's GELU is a table of float16
    architecture = "falcon"


@pytest.mark.parametrize(
    ("model", "kind", "options", "precision"),
    [
        ("llama", Type.F32, {"kv_type": "f32"}, "float32"),
        ("llama", Type.F32, {"kv_type": "f32", "gpu_layers": 4}, "tf32"),
        ("llama", Type.F32, {}, "float16"),
        ("llama", Type.F16, {"kv_type": "f32"}, "float16"),
        ("falcon", Type.F32, {"kv_type": "f32"}, "float16"),
        ("qwen2", Type.BF16, {}, "bf16"),
        ("qwen3", Type.Q8_0, {}, "q8_0"),
    ],
)
def test_how_exact_it_is_depends_on_weights_cells_and_architecture(tmp_path, model, kind, options, precision):
    path = write_gguf(tmp_path / "model.gguf", model, kind)
    assert backend(tmp_path, **options).info(str(path)).precision == precision


# Splits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_K, Type.Q6_K], ids=lambda kind: kind.name
)
@pytest.mark.parametrize("model", ["llama", "mixtral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "falcon"])
def test_a_split_changes_no_bit(tmp_path, model, kind):
    path = write_gguf(tmp_path / "model.gguf", model, kind, hidden=256 if kind.name.endswith("K") else 64)
    opener = backend(tmp_path)
    whole, split = open_stages(opener, path), open_stages(opener, path, 4)
    for batch in (chain(TOKENS), chain([5], start=24), chain([6, 7, 8], start=25, outputs=1)):
        expected = run(whole, batch)
        assert expected.std() > 0.1
        np.testing.assert_array_equal(run(split, batch), expected)
    close(whole, split)


@pytest.mark.parametrize("form", [{"tied": True}, {"per_layer": True}, {"layers": 1}, {"layers": 7}], ids=str)
def test_other_forms_of_a_model_are_split_as_well(tmp_path, form):
    path = write_gguf(tmp_path / "model.gguf", **form)
    opener = backend(tmp_path)
    split = open_stages(opener, path, min(form.get("layers", 4), 3))
    np.testing.assert_array_equal(run(split, chain(TOKENS)), logits(opener, path))
    close(split)


def test_a_prompt_of_several_micro_batches_is_split(shared, small):
    tokens = [step % 300 for step in range(1100)]
    whole, split = (open_stages(backend(shared), small, count, cells=1100) for count in (1, 2))
    np.testing.assert_array_equal(run(split, chain(tokens)), run(whole, chain(tokens)))
    close(whole, split)


def test_a_whole_model_is_its_own_stage_file(tmp_path, small):
    close(open_stages(backend(tmp_path), small))
    assert not (tmp_path / "cache").exists()


def test_logits_are_those_of_llama_cpp_python(shared, small):
    model = llama_cpp.Llama(str(small), n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
    model.eval(TOKENS)
    np.testing.assert_array_equal(logits(backend(shared), small), model.scores[: len(TOKENS)])
    model.close()


def test_hidden_states_are_found_again_wherever_they_are(shared, small):
    stages = open_stages(backend(shared), small, 2)
    expected = run(stages, chain(TOKENS))
    output = stages[0]._hidden
    found = output._tensor
    for wrong in (1, found - 336, found + 336):  # nothing, and neighbours in the graph
        output._tensor = wrong
        for stage in stages:
            stage.clear()
        np.testing.assert_array_equal(run(stages, chain(TOKENS)), expected)
        assert output._tensor == found
    close(stages)


def test_the_library_is_silent(tmp_path, capfd, small):
    stages = open_stages(backend(tmp_path), small, 2)
    run(stages, chain(TOKENS))
    stages[0].forward(chain([1], start=24), None, flag_on_second_look())
    backend(tmp_path).tokenizer(str(small)).encode("x")
    close(stages)
    assert capfd.readouterr() == ("", "")


def test_describing_a_folder_loads_no_engine(tmp_path):
    folder = write_llama(tmp_path / "model")
    code = f"""
import sys
from pipeinfer_llamacpp import LlamaCppBackend
LlamaCppBackend(cache={str(tmp_path)!r}).info({str(folder)!r})
assert "llama_cpp" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


# Rows and cells ----------------------------------------------------------------------------------------------------


def test_a_row_enters_with_the_tags_that_rows_after_it_see_it_by():
    assert needed_tags([(1,), (2,)]) == [(1,), (2,)]
    assert needed_tags([(0, 1)]) == [(0,)]
    assert needed_tags([(1, 2, 3), (1, 2), (3,)]) == [(1, 3), (1,), (3,)]


OPERATIONS = st.one_of(
    st.builds(KvSeqCp, st.integers(0, 3), st.integers(0, 3), st.integers(0, 5), st.sampled_from([-1, 2, 9])),
    st.builds(KvSeqRm, st.integers(0, 3), st.integers(0, 5), st.sampled_from([-1, 2, 9])),
    st.builds(KvSeqKeep, st.integers(0, 3)),
    st.lists(st.sets(st.integers(0, 3), min_size=1).map(tuple), min_size=1, max_size=5),
    st.just("clear"),
)


@given(st.lists(OPERATIONS, max_size=200), st.data())
def test_cells_run_out_exactly_when_they_are_in_use(operations, data):
    counted, kept = Cells(12, 4), KeptCells(12, 4)
    for operation in operations:
        if operation == "clear":
            counted.clear()
            kept.clear()
        elif not isinstance(operation, list):
            counted.apply(operation)
            kept.apply(operation)
        else:
            start = data.draw(st.integers(0, 5))
            take_from_both(counted, kept, range(start, start + len(operation)), operation)


def take_from_both(counted, kept, positions, sequences):
    try:
        kept.take(positions, sequences)
    except CellsFull:
        with pytest.raises(CellsFull):
            counted.take(positions, sequences)
        return
    counted.take(positions, sequences)
    counted.give_back()
    counted.take(positions, sequences)


@pytest.mark.parametrize("op", [KvSeqCp(0, 8, 0, -1), KvSeqCp(-1, 0, 0, -1), KvSeqRm(8, 0, -1), KvSeqKeep(-1)])
def test_operations_on_sequences_that_do_not_exist_are_refused(shared, small, op):
    (stage,) = open_stages(backend(shared), small)
    with pytest.raises(ValueError, match=r"sequence ids 0\.\.7"):
        stage.apply(op)
    stage.close()


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (Batch([], [], [], 0), "> 0 tokens"),
        (Batch([1, 2], [24], [(0,), (0,)], 1), "1 positions"),
        (Batch([1], [24], [()], 1), "sequence id"),
        (Batch([1], [-1], [(0,)], 1), "positions from 0"),
        (Batch([1], [24], [(8,)], 1), r"sequence ids 0\.\.7"),
        (Batch([320], [24], [(0,)], 1), r"token ids 0\.\.319"),
        (Batch([-1], [24], [(0,)], 1), r"token ids 0\.\.319"),
        (Batch([1], [24], [(0,)], 2), "output rows"),
        (Batch([1], [26], [(0,)], 1), "inconsistent sequence positions"),
        (Batch([1], [20], [(0,)], 1), "inconsistent sequence positions"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_that_does_not_fit_changes_nothing(shared, small, batch, expected, count):
    stages, untouched = (open_stages(backend(shared), small, count, cells=25) for _ in range(2))
    run(stages, chain(TOKENS))
    run(untouched, chain(TOKENS))
    with pytest.raises(ValueError, match=expected):
        stages[0].forward(batch, None, never)
    np.testing.assert_array_equal(run(stages, chain([9], start=24)), run(untouched, chain([9], start=24)))
    close(stages, untouched)


@pytest.mark.parametrize("hidden", [None, np.zeros((2, 64), np.float32), np.zeros((1, 63), np.float32)])
def test_hidden_states_of_another_shape_are_refused(shared, small, hidden):
    stage = backend(shared).load(str(small), (1, 4), cells=8, sequences=1)
    with pytest.raises(ValueError, match="hidden states of shape"):
        stage.forward(chain([1]), hidden, never)
    stage.close()


# Aborts ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def slow(shared):
    """A model and a prompt that take some hundred milliseconds."""
    return write_gguf(shared / "slow.gguf", hidden=512, layers=6)


def flag_on_second_look():
    """An abort check that is true from its second call on: the first is before the computation."""
    looks = iter([False])
    return lambda: next(looks, True)


@pytest.mark.parametrize("share", [(0, 6), (0, 3), (3, 6)], ids=["whole", "first", "last"])
def test_an_abort_in_mid_compute_comes_soon_and_leaves_the_cells_as_they_were(shared, slow, share):
    stage, undisturbed = (backend(shared).load(str(slow), share, cells=700, sequences=4) for _ in range(2))
    hidden = np.random.default_rng(0).standard_normal((620, 512), np.float32)
    batch = Batch([5] * 620, range(8, 628), [(0, 2)] * 310 + [(0,)] * 310, 1)  # more rows than a micro-batch
    for each in (stage, undisturbed):
        each.forward(chain(range(8)), hidden[:8], never)
        each.apply(KvSeqCp(0, 2, 0, -1))

    start = time.perf_counter()
    expected = undisturbed.forward(batch, hidden, never)
    full = time.perf_counter() - start
    for fraction in (0, 0.2, 0.4):
        stop = threading.Event()
        timer = threading.Timer(fraction * full, stop.set)
        start = time.perf_counter()
        timer.start()
        assert stage.forward(batch, hidden, stop.is_set) is None
        assert time.perf_counter() - start < (fraction + 0.25) * full + 0.1
        timer.join()
    np.testing.assert_array_equal(stage.forward(batch, hidden, never), expected)
    close([stage, undisturbed])


def test_an_abort_check_that_fails_fails_the_forward(shared, slow):
    (stage,) = open_stages(backend(shared), slow, cells=400)

    def fail():
        raise ZeroDivisionError

    checks = iter([never, fail])
    with pytest.raises(ZeroDivisionError):
        stage.forward(chain([5] * 400), None, lambda: next(checks, fail)())
    assert stage.forward(chain([5] * 400, outputs=1), None, never) is not None
    stage.close()


def test_the_abort_check_is_not_called_outside_of_a_forward(shared, small):
    (stage,) = open_stages(backend(shared), small)
    calls = []
    stage.forward(chain(TOKENS), None, lambda: bool(calls.append(1)))
    count = len(calls)
    time.sleep(0.05)
    assert len(calls) == count > 0
    stage.close()


@pytest.mark.parametrize(
    ("rows", "seconds", "computed", "watched"),
    [
        (1, 0.0, True, False),  # and so is the next
        (256, 0.3, True, True),  # one row may take as long
        (1, 0.001, True, True),  # a hundred may not be as short
        (1, 0.0, False, True),  # says nothing: it did not work
    ],
)
def test_what_may_take_long_is_watched(rows, seconds, computed, watched):
    watcher = AbortWatcher(new_flag())
    watcher.start(never, rows)
    time.sleep(seconds)
    assert not watcher.stop(computed=computed)
    watcher.start(lambda: True, 100 if seconds == 0.001 else 1)
    time.sleep(0.1)
    assert watcher.stop(computed=True) == watched
    watcher.close()


def test_closing_ends_the_watcher(shared, small):
    before = threading.active_count()
    stages = open_stages(backend(shared), small, 2)
    assert threading.active_count() == before + 2
    close(stages)
    assert threading.active_count() == before


# Pipelines ---------------------------------------------------------------------------------------------------------


STRATEGIES = {
    "iterative": ("iterative", {}),
    "speculative tree": ("speculative", {"k": 6, "branches": 3, "split": 0.05}),
    "pipeinfer": ("pipeinfer", {}),
    "pipeinfer tree": ("pipeinfer", {"draft": 4, "branches": 3, "split": 0.05}),
    "redundant runs": ("pipeinfer", {"redundant_runs": True}),
}


@pytest.fixture(scope="module")
def pair(shared):
    """A copy of the built-in pair."""
    for name in ("target", "draft"):
        shutil.copytree(asset(f"workloads/builtin/{name}"), shared / name)
    return str(shared / "target"), str(shared / "draft")


@pytest.fixture(scope="module")
def cluster(shared, pair):
    """Three stages of the target in llama.cpp. The draft is NumPy's: digests say that it fits."""
    target, draft = pair
    options = {"kv_type": "f32", "quantisation": "f32", "cache": str(shared / "cache")}
    cluster = Cluster(
        Plan(
            backend="llamacpp",
            backend_options=options,
            draft_backend="numpy",
            target=target,
            draft=draft,
            stages=3,
            transport="inproc",
        )
    )
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def whole(shared, pair):
    (stage,) = open_stages(backend(shared, kv_type="f32", quantisation="f32"), pair[0], cells=256)
    yield stage
    stage.close()


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=0.8, top_p=0.95, seed=7)], ids=["T=0", "T=0.8"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_says_what_a_single_stage_says(shared, pair, cluster, whole, strategy, how):
    name, options = STRATEGIES[strategy]
    prompt = backend(shared).tokenizer(pair[0]).encode("def merge(left, right):\n    result = []\n")
    trial = cluster.generate(prompt, open_strategy(name, options), max_tokens=96, sampling=how, stop_ids=())
    assert list(trial.token_ids) == plain_loop(whole, prompt, how, 96)


def plain_loop(stage, prompt, how, count):
    stage.clear()
    rows, text = prompt, []
    for position in range(len(prompt) - 1, len(prompt) - 1 + count):
        logits = stage.forward(chain(rows, start=position + 1 - len(rows), outputs=1), None, never)
        rows = [sample(logits[-1], position + 1, how)]
        text += rows
    return text


# Stage files -------------------------------------------------------------------------------------------------------


def stage_files(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cache").iterdir()}


def test_a_stage_file_is_cut_once_and_anew_when_the_model_changes(tmp_path):
    path = write_gguf(tmp_path / "model.gguf")
    close(open_stages(backend(tmp_path), path, 2))
    first = stage_files(tmp_path)
    assert len(first) == 2
    close(open_stages(backend(tmp_path), path, 2))
    assert stage_files(tmp_path) == first

    status = path.stat()
    write_gguf(path, change=lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    close(open_stages(backend(tmp_path), path, 2))
    assert len(stage_files(tmp_path)) == 4
    np.testing.assert_array_equal(run(open_stages(backend(tmp_path), path, 3), chain(TOKENS)),
                                  logits(backend(tmp_path), path))


def test_ranks_that_cut_the_same_file_at_once_get_whole_ones(tmp_path, small):
    with ThreadPoolExecutor(8) as pool:
        stages = list(pool.map(lambda _: backend(tmp_path).load(str(small), (1, 3), cells=8, sequences=1), range(8)))
    close(stages)
    assert len(stage_files(tmp_path)) == 1


def test_the_cache_is_where_the_environment_says(tmp_path, small, monkeypatch):
    monkeypatch.delenv("PIPEINFER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    LlamaCppBackend().load(str(small), (0, 1), cells=8, sequences=1).close()
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path / "own"))
    LlamaCppBackend().load(str(small), (0, 1), cells=8, sequences=1).close()
    for folder in ("xdg/pipeinfer", "own"):
        assert len(list((tmp_path / folder / "llamacpp").iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path, small):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(BadModel, match=r"expected to write .*cache.*PIPEINFER_CACHE"):
        open_stages(backend(tmp_path), small, 2)


# Exports -----------------------------------------------------------------------------------------------------------


TEXTS = (
    "",
    " ",
    "def double(x):\n    return 2 * x  # naïve",
    "I'll say: they've 12,345 reasons (and 6.78% more)!",
    "Ünïcödé — “quotes”, emoji 🦙🦙, 漢字かな, العربية\u200b",
    "tabs\t\tand   spaces   \n\n\n  newlines\r\n",
    "before<|endoftext|>after <|endoftext|>",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \x00\x01\x7f control",
)


def folders(tmp_path):
    """A folder of byte tokens, and the built-in pair where it is there: it has merges."""
    yield write_llama(tmp_path / "bytes")
    for name in ("target", "draft"):
        try:
            yield asset(f"workloads/builtin/{name}")
        except FileNotFoundError:
            continue


def test_token_ids_and_texts_of_an_export_are_those_of_tokenizer_json(tmp_path, shared):
    for folder in folders(tmp_path):
        theirs = NumpyBackend().tokenizer(str(folder))
        ours = backend(shared).tokenizer(str(exported(folder, "f16", shared)))
        for text in (*TEXTS, Path(__file__).read_text(), Path(np.__file__).read_text()):
            ids = theirs.encode(text)
            assert ours.encode(text) == ids
            assert ours.decode(ids) == theirs.decode(ids) == text
        for cut in range(len(ids := theirs.encode(TEXTS[4]))):  # characters cut in two
            assert ours.decode(ids[:cut]) == theirs.decode(ids[:cut])
        described, expected = backend(shared).info(str(folder)), NumpyBackend().info(str(folder))
        assert described.vocabulary_digest == expected.vocabulary_digest
        assert (described.layers, described.eos, described.context) == (expected.layers, expected.eos, expected.context)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ({}, {}),
        ({"tied": True, "heads": 8, "kv_heads": 1}, {}),
        ({"hidden": 96, "heads": 6, "kv_heads": 3, "ffn": 200, "vocab": 400}, {}),
        ({}, {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}, "rope_theta": 5000.0}),
    ],
    ids=["plain", "tied, one key head", "odd sizes", "llama3 rope"],
)
def test_an_export_gives_the_logits_of_its_folder(tmp_path, shape, fields):
    folder = write_llama(tmp_path / "model", **shape)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    expected = logits(NumpyBackend(), folder)
    for quantisation, tolerance in (("f32", 1e-5), ("f16", 0.02), ("q8_0", 0.3)):
        came = logits(backend(tmp_path, kv_type="f32", quantisation=quantisation), folder)
        assert np.abs(came - expected).max() < tolerance * np.abs(expected).max(), quantisation


def test_an_untied_export_says_the_same_with_a_matrix_of_its_own(tmp_path):
    folder, path = write_llama(tmp_path / "model", tied=True), tmp_path / "untied.gguf"
    export_gguf(folder, path, "f32", untied=True)
    assert "output.weight" in GgufFile(path).tensors
    tied, untied = (logits(backend(tmp_path, kv_type="f32", quantisation="f32"), model) for model in (folder, path))
    assert np.array_equal(tied, untied)


@pytest.mark.parametrize(("quantisation", "agreement"), [("f16", 0.99), ("q8_0", 0.95)])
def test_the_builtin_pair_runs_under_its_own_names(shared, quantisation, agreement):
    for name in ("builtin:target", "builtin:draft"):
        try:
            tokens = NumpyBackend().tokenizer(name).encode(Path(__file__).read_text())[:256]
        except BadModel:
            pytest.skip("the built-in pair is not there")
        opener = backend(shared, quantisation=quantisation)
        stages, expected = open_stages(opener, name, 2, cells=256), open_stages(NumpyBackend(), name, cells=256)
        came, reference = (run(each, chain(tokens)).argmax(axis=1) for each in (stages, expected))
        assert (came == reference).mean() >= agreement
        close(stages, expected)


def test_a_sentencepiece_vocabulary_gives_texts_back(tmp_path):
    tokenizer = backend(tmp_path).tokenizer(str(write_gguf(tmp_path / "model.gguf", tokenizer=add_sentencepiece)))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


def test_several_ends_and_unused_tokens_are_exported(tmp_path):
    folder = write_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [0, 3]}))
    info = backend(tmp_path).info(str(folder))
    assert info.eos == (0, 3)

    del tokenizer["model"]["vocab"]["<|unused 42|>"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    fewer = backend(tmp_path).info(str(folder))
    assert fewer.vocabulary == info.vocabulary == 300
    assert fewer.vocabulary_digest == NumpyBackend().info(str(folder)).vocabulary_digest != info.vocabulary_digest


def edit(name, change):
    def apply(folder):
        path = folder / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


BAD_FOLDERS = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    "tokenizer cut off": (lambda folder: (folder / "tokenizer.json").write_text("{"), "BPE tokenizer"),
    "another tokenizer": (edit("tokenizer.json", lambda t: t["model"].update(type="Unigram")), "Unigram"),
    "another pre-tokenizer": (edit("tokenizer.json", lambda t: t.update(pre_tokenizer={"type": "Split"})), "Split"),
    "normalised": (edit("tokenizer.json", lambda t: t.update(normalizer={"type": "NFC"})), "byte-level BPE"),
    "too many tokens": (edit("tokenizer.json", lambda t: t["model"]["vocab"].update(more=300)), "came 300"),
    "another architecture": (edit("config.json", lambda c: c.update(architectures=["Gemma"])), "Gemma"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "expected weights"),
}


@pytest.mark.parametrize(("spoil", "expected"), BAD_FOLDERS.values(), ids=BAD_FOLDERS.keys())
def test_a_folder_that_cannot_be_exported_is_named_in_one_line(tmp_path, spoil, expected):
    folder = write_llama(tmp_path / "model")
    spoil(folder)
    with pytest.raises(BadModel, match=expected) as caught:
        backend(tmp_path).info(str(folder))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


# Models it refuses -------------------------------------------------------------------------------------------------


def without(name):
    return {"change": lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}}


def replaced(name, tensor):
    return {"change": lambda tensors: tensors | {name: tensor}}


BAD_MODELS = {
    "no embedding": (without("token_embd.weight"), "token_embd.weight"),
    "no norm": (without("output_norm.weight"), "output_norm.weight"),
    "no projection": (without("blk.3.ffn_up.weight"), r"blk\.3\.ffn_up\.weight"),
    "another shape": (replaced("blk.1.attn_v.weight", np.zeros((31, 64), np.float32)), r"attn_v\.weight"),
}


@pytest.mark.parametrize("share", [(0, 4), (1, 4)], ids=["whole", "stage"])
@pytest.mark.parametrize(("form", "expected"), BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_a_model_with_wrong_tensors_is_named_in_one_line(tmp_path, form, expected, share):
    path = write_gguf(tmp_path / "model.gguf", **form)
    with pytest.raises(BadModel, match=expected) as caught:
        backend(tmp_path).load(str(path), share, cells=8, sequences=1)
    assert "\n" not in str(caught.value)


def test_a_model_without_kv_cells_is_refused(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", "mamba", tied=True)
    with pytest.raises(BadModel, match="came a recurrent one"):
        open_stages(backend(tmp_path), path)


def test_an_architecture_that_cannot_be_split_runs_whole(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", "gemma", tied=True)
    assert logits(backend(tmp_path), path).shape == (24, 320)
    with pytest.raises(BadModel, match=r"can be split \(llama, qwen2, .* came gemma .* as one stage"):
        open_stages(backend(tmp_path), path, 2)


def header(version=3, tensors=1, fields=b"", count=0):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + fields


def field(key, kind, value):
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


BAD_FILES = {
    "empty": (b"", "empty"),
    "of another kind": (b"PK\3\4" + bytes(100), r"starts with b'PK"),
    "version 1": (header(version=1), "came 1:"),
    "big-endian": (header(version=3 << 24), "little-endian"),
    "cut off in the counts": (header()[:12], "cut off"),
    "cut off in a field": (header(count=1, fields=field("a", 8, struct.pack("<Q", 99))), "cut off"),
    "a field of no type": (header(count=1, fields=field("a", 77, bytes(8))), "unknown type 77"),
    "more fields than there are": (header(count=1 << 60), "cut off"),
    "no tensors": (header(tensors=0), "expected tensors"),
    "a shard": (header(count=1, fields=field("split.count", 2, struct.pack("<H", 3))), "one of 3 shards"),
    "no alignment": (header(count=1, fields=field("general.alignment", 4, bytes(4))) + bytes(64), "general.alignment"),
}


@pytest.mark.parametrize(("content", "expected"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_named_in_one_line(tmp_path, content, expected):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    for ask in (backend(tmp_path).info, backend(tmp_path).tokenizer):
        with pytest.raises(BadModel, match=expected) as caught:
            ask(str(path))
        assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere_is_a_bad_model(small, share):
    whole = small.read_bytes()
    path = small.with_name("cut.gguf")
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BadModel, match=r"cut off|empty|starts with"):
        GgufFile(path)


@settings(deadline=None)
@given(at=st.integers(0, 1400), value=st.binary(min_size=1, max_size=9))
def test_a_damaged_header_raises_nothing_but_bad_model(small, at, value):
    content = bytearray(small.read_bytes())
    content[at : at + len(value)] = value
    path = small.with_name("damaged.gguf")
    path.write_bytes(content)
    with suppress(BadModel):
        GgufFile(path)


@pytest.mark.parametrize("name", ["builtin:other", "builtin:", "builtin:../../tests"])
def test_an_unknown_builtin_names_the_two_there_are(shared, name):
    with pytest.raises(BadModel, match="builtin:target, builtin:draft"):
        backend(shared).info(name)


@pytest.mark.parametrize("options", [{"threads": 0}, {"gpu_layers": -1}, {"kv_type": "q4"}, {"quantisation": "q9"}])
def test_an_option_out_of_range_is_a_value_error(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        LlamaCppBackend(**options)


@pytest.mark.parametrize(("cells", "sequences"), [(0, 1), (1, 0), (1, 257)])
def test_a_stage_without_room_is_refused(shared, small, cells, sequences):
    with pytest.raises(ValueError, match="at least 1 cell and 1 to 256 sequences"):
        backend(shared).load(str(small), (0, 4), cells=cells, sequences=sequences)
