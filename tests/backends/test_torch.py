"""The torch backend: the conformance kit for each family, transformers' own forward, and the models it refuses."""

import gc
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'pipeinfer[torch]'")
pytest.importorskip("transformers", reason="transformers is not installed: pip install 'pipeinfer[torch]'")

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeinfer.backend import Batch
from pipeinfer.testing import BackendConformance
from pipeinfer.testing.models import byte_tokenizer
from pipeinfer_torch import TorchBackend
from pipeinfer_torch.skeleton import GENERIC, LEAN

LAYERS = 4
TOKENS = tuple((7 * step * step + 3) % 300 for step in range(24))
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
FALCON = {"alibi": False, "parallel_attn": True, "bias": False}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
SLIDING = {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
}
VARIANTS = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama with yarn": ("llama", {"rope_parameters": YARN}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama with wide heads": ("llama", {"head_dim": 32}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen2 with windows": ("qwen2", {"use_sliding_window": True, **SLIDING}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "falcon multi-query": ("falcon", {**FALCON, "new_decoder_architecture": False, "multi_query": True}),
    "falcon new": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16, **SLIDING}),
    "gemma3": ("gemma3_text", {"head_dim": 16, **SLIDING}),
    "cohere": ("cohere", {}),
    "granite": ("granite", {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", {}),
    "stablelm": ("stablelm", {}),
    "starcoder2": ("starcoder2", {}),
}


def write_model(folder, kind, dtype=torch.float32, **fields):
    """A random model of transformers' `kind` in `folder`, as sensitive to mistakes as a trained one."""
    config = AutoConfig.for_model(kind, **(SIZES | fields))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.uniform_(-0.5, 0.5) if name.endswith("bias") else parameter.uniform_(0.5, 1.5)
    model.to(dtype).save_pretrained(folder)
    byte_tokenizer(SIZES["vocab_size"]).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def variant(tmp_path_factory):
    """The folder of a variant, written once."""
    written = {}

    def folder(name):
        if name not in written:
            kind, fields = VARIANTS[name]
            written[name] = write_model(tmp_path_factory.mktemp("model"), kind, **fields)
        return written[name]

    return folder


class Conformance(BackendConformance):
    rtol = 1e-5
    family = ""

    def backend(self):
        return TorchBackend(device="cpu")

    @pytest.fixture
    def name(self, variant):
        return str(variant(self.family))

    def loaded_bytes(self, load):
        gc.collect()
        before = tensor_bytes()
        stage = load()
        held = tensor_bytes() - before
        stage.close()
        return held


def tensor_bytes():
    """Memory of all tensors alive. Those in oneDNN's own layout have no storage of their own to ask."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and not thing.is_meta:
            if thing.is_mkldnn:
                storages[id(thing)] = thing.numel() * thing.element_size()
            else:
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


class TestLlama(Conformance):
    family = "llama"


class TestMistral(Conformance):
    family = "mistral"


class TestQwen2(Conformance):
    family = "qwen2"


class TestQwen3(Conformance):
    family = "qwen3"


class TestFalcon(Conformance):
    family = "falcon multi-query"


class TestFalconNew(Conformance):
    family = "falcon new"


class TestGemma(Conformance):
    family = "gemma"


# The forward pass --------------------------------------------------------------------------------------------------


def chunk(start, stop, sequence=0):
    rows = stop - start
    return Batch(TOKENS[start:stop], range(start, stop), ((sequence,),) * rows, rows)


def load(folder, layers=(0, LAYERS), cells=64, sequences=4, **options):
    return TorchBackend(**{"device": "cpu"} | options).load(str(folder), layers, cells=cells, sequences=sequences)


def never():
    return False


def logits(folder, borders=(0, LAYERS), **options):
    """Of TOKENS, [24, 300], in chunks of different sizes through stages between `borders`."""
    stages = [load(folder, layers, **options) for layers in pairwise(borders)]
    rows = []
    for start, stop in ((0, 15), (15, 16), (16, 19), (19, 24)):
        arrived = None
        for stage in stages:
            arrived = stage.forward(chunk(start, stop), arrived, never)
        rows.append(arrived)
    return np.concatenate(rows)


def transformers_logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


def assert_close(came, expected, rtol=1e-5):
    assert np.isfinite(came).all()
    assert np.abs(came - expected).max() < rtol * np.abs(expected).max()


@pytest.mark.parametrize("borders", [(0, 4), (0, 2, 4), (0, 1, 2, 3, 4)], ids=["whole", "halves", "single layers"])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(variant, name, borders):
    assert_close(logits(variant(name), borders), transformers_logits(variant(name)))


def test_every_model_type_is_tested():
    assert {kind for kind, _ in VARIANTS.values()} == {*LEAN, *GENERIC}
