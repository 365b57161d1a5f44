"""A model whose config.json ties the output matrix to the embedding while another one is stored: the stored one is the
one meant, as in transformers, in every backend and split."""

import json
from itertools import pairwise

import numpy as np
import pytest

from pipeinfer.plugins import open_backend
from pipeinfer.testing import write_llama
from pipeinfer.testing.backends import chain, never

OPTIONS = {"numpy": {}, "torch": {"device": "cpu"}, "llamacpp": {"quantisation": "f32", "kv_type": "f32"}}
ENGINES = {"numpy": "numpy", "torch": "torch", "llamacpp": "llama_cpp"}
TOKENS = [(7 * step * step + 3) % 300 for step in range(12)]


def say_tied(folder, tied):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": tied}))


def logits(name, folder, borders, cache):
    options = OPTIONS[name] | ({"cache": str(cache)} if name == "llamacpp" else {})
    backend, rows = open_backend(name, options), None
    for layers in pairwise(borders):
        stage = backend.load(str(folder), layers, cells=16, sequences=1)
        rows = stage.forward(chain(TOKENS), rows, never)
        stage.close()
    return rows


@pytest.fixture
def folder(tmp_path):
    return write_llama(tmp_path / "model")


@pytest.mark.parametrize("borders", [(0, 4), (0, 2, 4)], ids=["whole", "split"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_stored_output_matrix_is_the_one_meant(tmp_path, folder, name, borders):
    pytest.importorskip(ENGINES[name])
    expected = logits(name, folder, borders, tmp_path)
    say_tied(folder, True)
    np.testing.assert_array_equal(logits(name, folder, borders, tmp_path), expected)


def test_transformers_takes_the_stored_one_too(tmp_path, folder):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    say_tied(folder, True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        theirs = model(torch.tensor([TOKENS])).logits[0].numpy()
    np.testing.assert_allclose(logits("numpy", folder, (0, 4), tmp_path), theirs, rtol=1e-3, atol=1e-3)
