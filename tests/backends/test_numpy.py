"""The embedded backend: the conformance kit, a plain reference, the formats it reads and the models it refuses."""

import json
import math
import tracemalloc

import numpy as np
import plain_llama
import pytest
from safetensors.numpy import load_file, save_file

from pipeinfer.core.messages import KvSeqCp, KvSeqRm
from pipeinfer.engine.backend import BadModel, Batch
from pipeinfer.engine.kv_cells import Cells
from pipeinfer.testing import BackendConformance, write_llama
from pipeinfer_numpy import NumpyBackend

TOKENS = tuple((7 * step * step + 3) % 300 for step in range(24))


class TestConformance(BackendConformance):
    rtol = 1e-5

    def backend(self):
        return NumpyBackend()

    def loaded_bytes(self, load):
        tracemalloc.start()
        try:
            stage = load()
            held, _ = tracemalloc.get_traced_memory()
            stage.close()
            return held
        finally:
            tracemalloc.stop()


@pytest.fixture
def folder(tmp_path):
    return write_llama(tmp_path / "model")


def rewrite_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite_tensors(folder, change):
    """Save `change(tensors)` in place of the model's tensors."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def load(folder, layers=(0, 4), cells=64, sequences=4):
    return NumpyBackend().load(str(folder), layers, cells=cells, sequences=sequences)


def logits(folder, tokens=TOKENS):
    rows = len(tokens)
    return load(folder).forward(Batch(tokens, range(rows), [(0,)] * rows, rows), None, lambda: False)


def assert_close(came, expected):
    assert np.abs(came - expected).max() < 1e-5 * np.abs(expected).max()


# The forward pass --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        {"tied": True},
        {"heads": 4, "kv_heads": 4},
        {"heads": 8, "kv_heads": 1, "seed": 3},
        {"hidden": 96, "heads": 6, "kv_heads": 3, "ffn": 200, "vocab": 400},
    ],
    ids=["tied", "one key head per query head", "one key head", "odd sizes"],
)
def test_logits_are_those_of_a_plain_implementation(tmp_path, shape):
    folder = write_llama(tmp_path / "model", **shape)
    assert_close(logits(folder), plain_llama.logits(folder, TOKENS))


def test_large_activations_stay_finite(folder):
    rewrite_tensors(folder, lambda tensors: {name: 30 * tensor for name, tensor in tensors.items()})
    assert np.isfinite(logits(folder)).all()


@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_llama3_rope_stretches_long_wavelengths(folder, field):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rewrite_config(folder, **{field: {**scaling, "original_max_position_embeddings": 64, "rope_theta": 10000.0}})

    def stretched(frequency):
        turns = 64 * frequency / (2 * math.pi)
        if turns < 1:
            return frequency / 8
        share = min((turns - 1) / 3, 1)
        return share * frequency + (1 - share) * frequency / 8

    frequencies = [stretched(10000.0 ** (-pair / 8)) for pair in range(8)]
    assert frequencies[0] == 1
    assert frequencies[-1] < 10000.0 ** (-7 / 8) / 7
    assert_close(logits(folder), plain_llama.logits(folder, TOKENS, frequencies))


def test_abort_is_looked_at_before_every_layer_and_the_head(folder):
    looks = []
    stage = load(folder, layers=(0, 4))
    stage.forward(Batch([5], [0], [(0,)], 1), None, lambda: bool(looks.append(1)))
    assert len(looks) == 4 + 1


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (Batch([], [], [], 0), "> 0 tokens"),
        (Batch([1, 2], [0], [(0,), (0,)], 1), "1 positions"),
        (Batch([1], [0], [()], 1), "sequence id"),
        (Batch([1], [-1], [(0,)], 1), "positions from 0"),
        (Batch([1], [0], [(4,)], 1), "sequence ids 0..3"),
        (Batch([1], [0], [(-1,)], 1), "sequence ids 0..3"),
        (Batch([300], [0], [(0,)], 1), "token ids 0..299"),
        (Batch([-1], [0], [(0,)], 1), "token ids 0..299"),
        (Batch([1], [0], [(0,)], 2), "output rows"),
    ],
)
def test_a_batch_that_does_not_fit_changes_nothing(folder, batch, expected):
    stage = load(folder, cells=2)
    with pytest.raises(ValueError, match=expected):
        stage.forward(batch, None, lambda: False)
    stage.forward(Batch([1, 2], [0, 1], [(0,), (0,)], 0), None, lambda: False)


@pytest.mark.parametrize("hidden", [None, np.zeros((2, 64), np.float32), np.zeros((1, 63), np.float32)])
def test_hidden_states_of_another_shape_are_refused(folder, hidden):
    with pytest.raises(ValueError, match="hidden states of shape"):
        load(folder, layers=(1, 4)).forward(Batch([1], [0], [(0,)], 1), hidden, lambda: False)


def test_an_error_in_the_middle_gives_the_cells_back(folder):
    stage = load(folder, cells=1)
    with pytest.raises(ZeroDivisionError):
        stage.forward(Batch([1], [0], [(0,)], 1), None, lambda: 1 // 0)
    stage.forward(Batch([1], [0], [(0,)], 1), None, lambda: False)


# Cells -------------------------------------------------------------------------------------------------------------


def test_the_lowest_free_cells_are_taken_and_the_window_stays_tight():
    cells = Cells(cells=10, sequences=3)
    assert cells.take([0, 1, 2, 3], [(0,)] * 4) == slice(0, 4)
    cells.apply(KvSeqRm(0, 1, 3))
    assert cells.window == 4
    np.testing.assert_array_equal(cells.take([1, 2, 4], [(1,)] * 3), [1, 2, 4])
    assert cells.window == 5
    cells.apply(KvSeqRm(1, 4, -1))
    assert cells.window == 4
    cells.apply(KvSeqRm(0, 0, -1))
    assert cells.window == 3
    cells.apply(KvSeqRm(1, 0, -1))
    assert cells.window == 0


def test_a_row_sees_its_first_sequence_up_to_its_own_position():
    cells = Cells(cells=8, sequences=3)
    cells.take([0, 1], [(0,), (0,)])
    cells.apply(KvSeqCp(0, 1, 0, 1))
    cells.take([2, 3, 2], [(0, 2), (0,), (1,)])
    seen = cells.mask([2, 3, 2], [(0, 2), (0,), (1,)]) == 0
    np.testing.assert_array_equal(seen, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 0, 0, 0, 1]])


@pytest.mark.parametrize("op", [KvSeqCp(0, 3, 0, -1), KvSeqCp(-1, 0, 0, -1), KvSeqRm(3, 0, -1)])
def test_operations_on_sequences_that_do_not_exist_are_refused(op):
    with pytest.raises(ValueError, match=r"sequence ids 0\.\.2"):
        Cells(cells=8, sequences=3).apply(op)


# Reading models ----------------------------------------------------------------------------------------------------


def bfloat16_file(tensors):
    """A safetensors file by hand; NumPy knows no bfloat16, so a library for NumPy cannot write one."""
    data, header = b"", {}
    for name, tensor in tensors.items():
        raw = (tensor.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text + data


def truncate_to_bfloat16(tensor):
    return (tensor.view(np.uint32) & 0xFFFF0000).view(np.float32)


def test_float16_is_widened(folder):
    rewrite_tensors(folder, lambda tensors: {name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    assert_close(logits(folder), plain_llama.logits(folder, TOKENS))


def test_bfloat16_is_widened(folder):
    tensors = load_file(folder / "model.safetensors")
    rewrite_tensors(folder, lambda _: {name: truncate_to_bfloat16(tensor) for name, tensor in tensors.items()})
    expected = logits(folder)
    (folder / "model.safetensors").write_bytes(bfloat16_file(tensors))
    np.testing.assert_array_equal(logits(folder), expected)


def shard(folder):
    """Spread the tensors over three files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    home = {name: f"model-{number % 3}.safetensors" for number, name in enumerate(tensors)}
    for file in set(home.values()):
        save_file({name: tensor for name, tensor in tensors.items() if home[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))


def test_shards_are_one_model(folder):
    expected = logits(folder)
    shard(folder)
    np.testing.assert_array_equal(logits(folder), expected)


def test_a_stage_reads_only_its_own_tensors(folder):
    def only_the_second_layer(tensors):
        return {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.1.")}

    rewrite_tensors(folder, only_the_second_layer)
    load(folder, layers=(1, 2))
    for missing in ((0, 1), (2, 3), (3, 4)):
        with pytest.raises(BadModel, match="expected a tensor"):
            load(folder, layers=missing)


def test_info_counts_bytes_and_ends(folder):
    rewrite_config(folder, eos_token_id=[3, 4])
    info = NumpyBackend().info(str(folder))
    tensors = load_file(folder / "model.safetensors")
    assert info.layer_bytes == sum(t.nbytes for name, t in tensors.items() if name.startswith("model.layers.2."))
    assert info.head_bytes == tensors["lm_head.weight"].nbytes + tensors["model.norm.weight"].nbytes
    assert (info.architecture, info.layers, info.context, info.eos) == ("LlamaForCausalLM", 4, 2048, (3, 4))


def test_the_digest_tells_vocabularies_apart(tmp_path, folder):
    same_words = write_llama(tmp_path / "draft", layers=1, hidden=32, seed=9)
    more_words = write_llama(tmp_path / "other", vocab=301)
    digest, same, other = (
        NumpyBackend().info(str(path)).vocabulary_digest for path in (folder, same_words, more_words)
    )
    assert digest == same != other


# Models it refuses -------------------------------------------------------------------------------------------------


def without(name):
    return lambda folder: rewrite_tensors(folder, lambda tensors: {k: v for k, v in tensors.items() if k != name})


def reshaped(name):
    return lambda folder: rewrite_tensors(folder, lambda tensors: tensors | {name: tensors[name][:-1].copy()})


def config(**fields):
    return lambda folder: rewrite_config(folder, **fields)


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def cut(count):
    def apply(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:count])

    return apply


def integers(folder):
    rewrite_tensors(folder, lambda tensors: {name: tensor.astype(np.int8) for name, tensor in tensors.items()})


def wrong_range(folder):
    header = json.dumps({"model.embed_tokens.weight": {"dtype": "F32", "shape": [300, 64], "data_offsets": [0, 8]}})
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))


LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}
BAD = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json, came No such file"),
    "no JSON": (text("config.json", "{hidden"), "expected JSON"),
    "no UTF-8": (lambda folder: (folder / "config.json").write_bytes(b'{"hidden_act": "\xff"}'), "expected JSON"),
    "JSON of something else": (text("config.json", "[1]"), "no Llama configuration"),
    "field missing": (text("config.json", '{"architectures": ["LlamaForCausalLM"]}'), "hidden_size"),
    "field of another type": (config(hidden_size="64"), "hidden_size"),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers"),
    "another architecture": (config(architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
    "no architecture": (config(architectures=[]), "architectures"),
    "another activation": (config(hidden_act="gelu"), "hidden_act"),
    "biases": (config(attention_bias=True), "attention_bias"),
    "key heads that do not divide": (config(num_key_value_heads=3), "key-value heads"),
    "heads that do not divide": (config(num_attention_heads=6), "attention heads that divide"),
    "odd heads": (config(head_dim=17), "even head size"),
    "unknown rope": (config(rope_scaling={"type": "yarn", "factor": 4}), "yarn"),
    "rope with a part missing": (config(rope_scaling=LLAMA3), "original_max_position_embeddings"),
    "rope without a blend": (
        config(rope_scaling={**LLAMA3, "original_max_position_embeddings": 64}),
        "low_freq_factor below",
    ),
    "rope base": (config(rope_theta=1.0), "rope_theta above 1"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "expected weights"),
    "no embedding": (without("model.embed_tokens.weight"), "model.embed_tokens.weight"),
    "no head": (without("lm_head.weight"), "lm_head.weight"),
    "no norm": (without("model.norm.weight"), "model.norm.weight"),
    "no projection": (without("model.layers.3.mlp.up_proj.weight"), "model.layers.3.mlp.up_proj.weight"),
    "another shape": (reshaped("model.layers.0.self_attn.k_proj.weight"), r"\[32, 64\].* came \[31, 64\]"),
    "another vocabulary": (config(vocab_size=301), r"\[301, 64\]"),
    "another type": (integers, "came I8"),
    "another range": (wrong_range, "76800 bytes"),
    "data cut off": (cut(50_000), "cut off"),
    "header cut off": (cut(100), "safetensors header"),
    "length cut off": (cut(4), "safetensors header"),
    "empty": (cut(0), "safetensors header"),
    "no index": (text("model.safetensors.index.json", "{}"), "index of tensors"),
    "a tensor not in the index": (
        text("model.safetensors.index.json", '{"weight_map": {"lm_head.weight": "model.safetensors"}}'),
        "index.json, came none",
    ),
    "a shard missing": (
        text("model.safetensors.index.json", '{"weight_map": {"model.embed_tokens.weight": "gone.safetensors"}}'),
        "gone.safetensors",
    ),
}


@pytest.mark.parametrize(("spoil", "expected"), BAD.values(), ids=BAD.keys())
def test_a_bad_model_is_named_in_one_line(folder, spoil, expected):
    spoil(folder)
    with pytest.raises(BadModel, match=expected) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", '{"model": {"type": "Nothing"}}'])
def test_a_bad_tokenizer_is_named_in_one_line(folder, content):
    path = folder / "tokenizer.json"
    path.unlink() if content is None else path.write_text(content)
    for ask in (NumpyBackend().info, NumpyBackend().tokenizer):
        with pytest.raises(BadModel, match=r"tokenizer\.json") as caught:
            ask(str(folder))
        assert "\n" not in str(caught.value)


def test_the_builtin_pair_has_one_vocabulary():
    target, draft = (NumpyBackend().info(name) for name in ("builtin:target", "builtin:draft"))
    assert target.vocabulary_digest == draft.vocabulary_digest
    assert draft.layers < target.layers


@pytest.mark.parametrize("name", ["builtin:other", "builtin:", "builtin:../../tests"])
def test_an_unknown_builtin_names_the_two_there_are(name):
    with pytest.raises(BadModel, match="builtin:target, builtin:draft"):
        NumpyBackend().info(name)


@pytest.mark.parametrize("room", [{"cells": 0, "sequences": 1}, {"cells": 1, "sequences": 0}])
def test_a_stage_without_room_is_refused(folder, room):
    with pytest.raises(ValueError, match="at least 1 cell"):
        load(folder, **room)
