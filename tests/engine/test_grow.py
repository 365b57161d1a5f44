"""A grown model says what the small one says, at its own size, whichever engine computes it."""

import json
from itertools import pairwise

import numpy as np
import pytest

from pipeinfer.engine.backend import BadModel, Batch
from pipeinfer.engine.huggingface.folder import GROWN, find_folder
from pipeinfer.engine.huggingface.grow import grow
from pipeinfer.plugins import open_backend
from pipeinfer.testing import write_llama

TOKENS = tuple((7 * step * step + 3) % 300 for step in range(24))
PARAMETERS = 106_557_440


def logits(model, backend="numpy", layers=None, tokens=TOKENS):
    engine = open_backend(backend, {})
    count = engine.info(str(model)).layers
    values = None
    for share in pairwise(layers or (0, count)):
        stage = engine.load(str(model), share, cells=64, sequences=2)
        rows = len(tokens)
        values = stage.forward(Batch(tokens, range(rows), [(0,)] * rows, rows), values, lambda: False)
        stage.close()
    return values


def largest_difference(came, expected):
    return np.abs(came - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("width", "layers"), [(1, 4), (2, 4), (3, 4), (1, 7), (4, 9)])
def test_wider_and_deeper_models_give_the_same_logits(tmp_path, width, layers, tied):
    small = write_llama(tmp_path / "small", tied=tied)
    grow(small, tmp_path / "grown", width=width, layers=layers)
    assert largest_difference(logits(tmp_path / "grown"), logits(small)) < 1e-5
    config = json.loads((tmp_path / "grown" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (width * 64, layers)


def test_every_layer_of_the_small_model_counts(tmp_path):
    small = write_llama(tmp_path / "small")
    grow(small, tmp_path / "grown", width=1, layers=7)
    changed = find_folder(str(tmp_path / "grown"))
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    assert largest_difference(logits(changed), logits(small)) > 1e-2


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPEINFER_CACHE", str(folder))
        yield folder


def test_the_grown_target_is_made_once_and_has_its_size(cache):
    folder = find_folder(GROWN)
    assert folder.parent == cache / "models"
    made = (folder / "model.safetensors").stat()
    find_folder(GROWN)
    assert (folder / "model.safetensors").stat().st_mtime_ns == made.st_mtime_ns
    assert made.st_size == pytest.approx(2 * PARAMETERS, rel=1e-3)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("backend", "tolerance"), [("numpy", 1e-5), ("torch", 1e-5), ("llamacpp", 1e-2)])
def test_the_grown_target_gives_the_built_in_targets_logits(backend, tolerance):
    pytest.importorskip({"llamacpp": "llama_cpp"}.get(backend, backend))
    expected = logits("builtin:target")
    came = logits(GROWN, backend, layers=(0, 3, 6, 9))
    assert largest_difference(came, expected) < tolerance
    assert (came.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_a_builtin_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(BadModel, match=r"builtin:target, builtin:draft, builtin:target-100m, came 'builtin:tarket'"):
        find_folder("builtin:tarket")
