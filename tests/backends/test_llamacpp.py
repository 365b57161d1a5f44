"""llama.cpp as pipeline stages: the conformance kit, how exact it is, exports from Hugging Face folders."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_models import Type, add_sentencepiece, write_gguf
from llamacpp_stages import backend, chain, close, logits, open_stages, run

from pipeinfer.assets import asset
from pipeinfer.engine.backend import BadModel
from pipeinfer.testing import BackendConformance, write_llama
from pipeinfer_llamacpp.export import export_gguf, exported
from pipeinfer_llamacpp.gguf_file import GgufFile
from pipeinfer_llamacpp.library import llama
from pipeinfer_numpy import NumpyBackend


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


def test_a_stage_has_no_vocabulary_in_memory(shared, small):
    stage = backend(shared).load(str(small), (0, 4), cells=8, sequences=1)
    vocabulary = llama().llama_model_get_vocab(stage._model.handle)
    assert llama().llama_vocab_type(vocabulary) == llama().LLAMA_VOCAB_TYPE_NONE
    assert llama().llama_vocab_n_tokens(vocabulary) == backend(shared).info(str(small)).vocabulary
    stage.close()


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


def test_the_library_leaves_no_file_open_at_the_end_of_the_process():
    code = "from pipeinfer_llamacpp.library import llama; llama()"
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stderr == ""
