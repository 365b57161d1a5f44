"""The torch backend: the conformance kit for each family, transformers' own forward, and the models it refuses."""

import gc
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeinfer.engine.backend import BadModel, Batch
from pipeinfer.engine.huggingface.folder import builtin_folder
from pipeinfer.testing import BackendConformance, write_llama
from pipeinfer.testing.models import byte_tokenizer
from pipeinfer_numpy import NumpyBackend
from pipeinfer_torch import TorchBackend

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
    "llama with another activation": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama with wide heads": ("llama", {"head_dim": 32}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen2 with windows": ("qwen2", {"use_sliding_window": True, **SLIDING}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3 with biases": ("qwen3", {"head_dim": 32, "attention_bias": True}),
    "falcon multi-query": ("falcon", {**FALCON, "new_decoder_architecture": False, "multi_query": True}),
    "falcon new": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16, **SLIDING}),
    "gemma3": ("gemma3_text", {"head_dim": 16, **SLIDING}),
    "cohere": ("cohere", {}),
    "cohere2": ("cohere2", SLIDING),
    "ernie4_5": ("ernie4_5", {}),
    "exaone4": ("exaone4", SLIDING),
    "glm": ("glm", {"head_dim": 16}),
    "glm4": ("glm4", {"head_dim": 16}),
    "granite": ("granite", {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}),
    "nemotron": ("nemotron", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", SLIDING),
    "phi": ("phi", {}),
    "phi3": ("phi3", {}),
    "phi3 with a window": ("phi3", {"sliding_window": 5}),
    "seed_oss": ("seed_oss", {"head_dim": 16}),
    "smollm3": ("smollm3", {}),
    "stablelm": ("stablelm", {}),
    "starcoder2": ("starcoder2", {}),
}


def torch():
    """Imported by the tests that use it, not by every worker of a run: it is large."""
    return pytest.importorskip("torch", reason="torch is not installed: pip install 'pipeinfer[torch]'")


def transformers():
    """Larger still."""
    return pytest.importorskip("transformers", reason="transformers is not installed: pip install 'pipeinfer[torch]'")


@pytest.fixture(scope="module", autouse=True)
def torch_is_installed():
    torch()


def write_model(folder, kind, **fields):
    """A random model of transformers' `kind` in `folder`, as sensitive to mistakes as a trained one."""
    config = transformers().AutoConfig.for_model(kind, **(SIZES | fields))
    torch().manual_seed(0)
    model = transformers().AutoModelForCausalLM.from_config(config, dtype=torch().float32).eval()
    with torch().no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.uniform_(-0.5, 0.5) if name.endswith("bias") else parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
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
        forget_tensors()
        stage = load()
        came = tensor_bytes()
        stage.close()
        return came


def forget_tensors():
    """From here on `tensor_bytes` counts those alone that are made."""
    gc.collect()
    gc.freeze()


def tensor_bytes():
    """Memory of all tensors that are not frozen. Those in oneDNN's own layout have no storage of their own to ask."""
    storages, kinds = {}, (torch().Tensor, torch().nn.Parameter)
    for thing in gc.get_objects():
        if type(thing) in kinds and not thing.is_meta:
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


@cache
def transformers_logits(folder):
    made_by = transformers().AutoModelForCausalLM
    model = made_by.from_pretrained(folder, dtype=torch().float32, attn_implementation="eager")
    with torch().inference_mode():
        return model(torch().tensor([TOKENS])).logits[0].numpy()


def assert_close(came, expected, rtol=1e-5):
    assert np.isfinite(came).all()
    assert np.abs(came - expected).max() < rtol * np.abs(expected).max()


@pytest.mark.parametrize("borders", [(0, 4), (0, 2, 4), (0, 1, 2, 3, 4)], ids=["whole", "halves", "single layers"])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(variant, name, borders):
    assert_close(logits(variant(name), borders), transformers_logits(variant(name)))


def test_every_model_type_is_tested():
    from pipeinfer_torch.config import FUSED, GENERIC

    assert {kind for kind, _ in VARIANTS.values()} == {*FUSED, *GENERIC}


@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon multi-query"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_roughly_agrees(variant, name, dtype):
    came = logits(variant(name), (0, 1, 4), dtype=dtype)
    assert_close(came, transformers_logits(variant(name)), rtol=0.05 if dtype == "bfloat16" else 0.01)


@pytest.mark.parametrize("name", ["llama", "qwen2", "falcon new"])
def test_processors_without_packed_products_give_the_same(variant, name, monkeypatch):
    monkeypatch.setattr("pipeinfer_torch.linear.pack", lambda _weight: None)
    assert_close(logits(variant(name), (0, 2, 4)), transformers_logits(variant(name)))


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_abort_is_looked_at_before_every_layer_and_the_head(variant, name):
    looks = []
    load(variant(name)).forward(chunk(0, 1), None, lambda: bool(looks.append(1)))
    assert len(looks) == LAYERS + 1


def test_a_sliding_window_holds_in_a_tree(variant):
    """Two branches of six tokens each, longer than the window of five, in one batch and one after the other."""
    together, apart = load(variant("mistral with a window")), load(variant("mistral with a window"))
    branch = TOKENS[:6]
    tree = Batch(branch + branch[::-1], [*range(6), *range(6)], [(0,)] * 6 + [(1,)] * 6, 12)
    came = together.forward(tree, None, never)
    for sequence, tokens in enumerate((branch, branch[::-1])):
        alone = apart.forward(Batch(tokens, range(6), [(sequence,)] * 6, 6), None, never)
        assert_close(came[6 * sequence : 6 * sequence + 6], alone)


def test_an_error_in_the_middle_gives_the_cells_back(variant):
    for name in ("llama", "gemma"):
        stage = load(variant(name), cells=1)
        with pytest.raises(ZeroDivisionError):
            stage.forward(chunk(0, 1), None, lambda: 1 // 0)
        stage.forward(chunk(0, 1), None, never)


def test_threads_hold_for_threads_that_compute(variant):
    before = torch().get_num_threads()
    load(variant("llama"), threads=2)
    assert in_a_thread(torch().get_num_threads) == 2
    load(variant("llama"))
    assert in_a_thread(torch().get_num_threads) == 1
    torch().set_num_threads(before)


def in_a_thread(function):
    with ThreadPoolExecutor() as executor:
        return executor.submit(function).result()


def test_ranks_that_load_at_once_do_not_mix_their_dtypes(variant):
    """As threads of one process do."""

    def first_logits(dtype):
        return load(variant("llama"), dtype=dtype).forward(chunk(0, 8), None, never)

    dtypes = ["float32", "bfloat16"] * 6
    alone = {dtype: first_logits(dtype) for dtype in dtypes}
    with ThreadPoolExecutor(len(dtypes)) as executor:
        for dtype, came in zip(dtypes, executor.map(first_logits, dtypes), strict=True):
            np.testing.assert_array_equal(came, alone[dtype])


@pytest.fixture(scope="session")
def cuda_device():
    if not torch().cuda.is_available():
        pytest.skip("no CUDA device")


cuda = pytest.mark.usefixtures("cuda_device")


@cuda
class TestLlamaOnCuda(Conformance):
    family = "llama"

    def backend(self):
        return TorchBackend(device="cuda", dtype="float32")


@cuda
class TestFalconOnCuda(TestLlamaOnCuda):
    family = "falcon multi-query"


@cuda
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_on_cuda_are_those_of_transformers(variant, name):
    assert_close(logits(variant(name), (0, 2, 4), device="cuda", dtype="float32"), transformers_logits(variant(name)))


# Options -----------------------------------------------------------------------------------------------------------


def test_importing_the_plugin_imports_no_torch():
    code = "import sys, pipeinfer_torch; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


NEEDED = {
    "llama": [],
    "qwen2": ["transformers"],
    "falcon new": ["torch._dynamo", "transformers", "transformers.modeling_utils"],
}
"""What has been imported once a model of each has been loaded, one after another in one process."""


def test_only_models_that_need_them_import_transformers_and_its_modelling_code(variant):
    """They take two seconds to import, and one more with torch's compiler: each rank would pay for it as it starts."""
    load_it = "TorchBackend(device='cpu').load(folder, (0, 1), cells=8, sequences=1)"
    heavy = "{'transformers', 'transformers.modeling_utils', 'torch._dynamo'} & set(sys.modules)"
    each = f"for folder in sys.argv[1:]:\n    {load_it}\n    print(*sorted({heavy}))"
    code = f"import sys\nfrom pipeinfer_torch import TorchBackend\n{each}"
    command = [sys.executable, "-c", code, *(str(variant(name)) for name in NEEDED)]
    imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split() for line in imported] == list(NEEDED.values())


USED = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings", "eos_token_id",
    "attention_bias", "mlp_bias", "rope_parameters", "dtype",
)  # fmt: skip
"""Fields of a configuration that stages are made by, but for the size of a head, which others may give."""


def test_a_plain_configuration_is_read_as_transformers_reads_it(variant, tmp_path):
    from pipeinfer_torch.plain_config import read_plain

    folders = [variant(name) for name in ("llama", "llama with biases", "llama tied", "llama with wide heads")]
    folders += [write_llama(tmp_path / "old"), *map(builtin_folder, ("builtin:target", "builtin:draft"))]
    for folder in folders:
        plain, whole = read_plain(folder), transformers().AutoConfig.from_pretrained(folder, local_files_only=True)
        for field in USED:
            assert getattr(plain, field) == getattr(whole, field), field
        assert plain.head_dim in (whole.head_dim, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "qwen2"},
        {"sliding_window": 4},
        {"quantization_config": {}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"hidden_act": "gelu"},
        {"num_attention_heads": 7},
        {"num_key_value_heads": None},
    ],
)
def test_what_is_not_plain_is_left_to_transformers(folder, fields):
    from pipeinfer_torch.plain_config import read_plain

    assert read_plain(folder) is not None
    rewrite_config(folder, **fields)
    assert read_plain(folder) is None


@pytest.mark.parametrize(
    "option", [{"device": "tpu"}, {"device": "cuda:99"}, {"device": "cuda:x"}, {"dtype": "int8"}, {"threads": 0}]
)
def test_options_out_of_range_are_value_errors(option):
    with pytest.raises(ValueError, match="expected"):
        TorchBackend(**option)


@pytest.mark.parametrize("room", [{"cells": 0, "sequences": 1}, {"cells": 1, "sequences": 0}])
def test_a_stage_without_room_is_refused(variant, room):
    with pytest.raises(ValueError, match="at least 1 cell"):
        load(variant("llama"), **room)


# Reading models ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return write_llama(tmp_path / "model")


def rewrite_tensors(folder, change):
    """Save `change(tensors)` in place of the model's tensors."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def rewrite_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def shard(folder):
    """One file per layer and one for the rest, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    home = {name: f"part-{name.split('.')[2] if 'layers' in name else 'rest'}.safetensors" for name in tensors}
    for file in set(home.values()):
        save_file({name: tensor for name, tensor in tensors.items() if home[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))


def test_shards_are_one_model(folder):
    expected = logits(folder)
    shard(folder)
    np.testing.assert_array_equal(logits(folder), expected)


def test_a_stage_reads_only_its_own_tensors(folder):
    shard(folder)
    for file in ("part-0", "part-1", "part-3", "part-rest"):
        (folder / f"{file}.safetensors").unlink()
    load(folder, (2, 3))
    for missing in ((0, 1), (1, 2), (3, 4)):
        with pytest.raises(BadModel, match="expected weights"):
            load(folder, missing)


@pytest.mark.parametrize("tied", [False, True])
def test_half_a_model_holds_half_the_weights(tmp_path, tied):
    folder = write_llama(tmp_path / "model", layers=8, hidden=128, ffn=256, tied=tied)
    weights = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    for layers in ((0, 4), (4, 8)):
        forget_tensors()
        stage = load(folder, layers, cells=1, dtype="bfloat16")
        assert tensor_bytes() < 0.6 * weights / 2
        stage.close()


def test_info_counts_bytes_in_the_dtype_that_is_loaded(folder):
    tensors = load_file(folder / "model.safetensors")
    layer = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("model.layers.2."))
    head = tensors["lm_head.weight"].nbytes + tensors["model.norm.weight"].nbytes
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        info = TorchBackend(device="cpu", dtype=dtype).info(str(folder))
        assert (info.layer_bytes, info.head_bytes) == (layer * size // 4, head * size // 4)
    assert (info.architecture, info.layers, info.hidden_size, info.vocabulary) == ("LlamaForCausalLM", 4, 64, 300)
    assert (info.context, info.eos) == (2048, (0,))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_how_exact_it_is_depends_on_the_dtype(folder, dtype):
    assert TorchBackend(device="cpu", dtype=dtype).info(str(folder)).precision == dtype


def test_the_vocabulary_is_that_of_the_numpy_backend(folder):
    digests = {type(backend)().info(str(folder)).vocabulary_digest for backend in (TorchBackend(), NumpyBackend())}
    assert len(digests) == 1


def test_the_builtin_pair_is_known():
    for name in ("builtin:target", "builtin:draft"):
        torch_info, numpy_info = TorchBackend(device="cpu").info(name), NumpyBackend().info(name)
        assert (torch_info.layers, torch_info.hidden_size) == (numpy_info.layers, numpy_info.hidden_size)


# The hub -----------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network, and an empty cache of downloads, whose folder this gives."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.usefixtures("offline")
def test_a_hub_model_without_network_is_named_in_one_line():
    with pytest.raises(BadModel, match="cannot be reached") as caught:
        TorchBackend().info("org/name@main")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_a_hub_model_without_a_revision_is_refused():
    with pytest.raises(BadModel, match="org/name@<commit>"):
        TorchBackend().info("org/name")


def test_a_downloaded_revision_needs_no_network(offline):
    snapshot = offline / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shard(write_llama(snapshot))
    assert TorchBackend(device="cpu").info(f"org/name@{COMMIT}").layers == LAYERS
    load(f"org/name@{COMMIT}", (1, 3))


def test_from_the_hub_come_only_the_stages_files(folder, monkeypatch):
    shard(folder)
    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, revision, sorted(allow_patterns)))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    load("org/name@v1", (1, 3))
    assert [files for _, _, files in asked] == [
        ["*.jinja", "*.json"],
        ["model.safetensors.index.json"],
        ["part-1.safetensors", "part-2.safetensors"],
    ]
    assert {(name, revision) for name, revision, _ in asked} == {("org/name", "v1")}


# Models it refuses -------------------------------------------------------------------------------------------------


def without(name):
    return lambda folder: rewrite_tensors(folder, lambda tensors: {k: v for k, v in tensors.items() if k != name})


def config(**fields):
    return lambda folder: rewrite_config(folder, **fields)


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50_000])


def no_memory(folder):
    rewrite_config(folder, hidden_size=2**20, intermediate_size=2**22)


BAD = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "no JSON": (text("config.json", "{hidden"), "config.json"),
    "JSON of something else": (text("config.json", "[1]"), "config.json"),
    "field of another type": (config(hidden_size="64"), "hidden_size"),
    "unknown model": (config(model_type="nothing"), "nothing"),
    "an encoder": (config(model_type="bert", architectures=["BertModel"]), "'bert', which is not split"),
    "learned positions": (config(model_type="gpt2"), "'gpt2', which is not split"),
    "quantised": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised"),
    "ALiBi": (config(model_type="falcon", alibi=True), "ALiBi"),
    "rope that changes": (config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "dynamic"),
    "heads that do not divide": (config(num_attention_heads=7, num_key_value_heads=7), "multiple of"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "expected weights"),
    "no embedding": (without("model.embed_tokens.weight"), "model.embed_tokens.weight"),
    "no head": (without("lm_head.weight"), "lm_head.weight"),
    "no projection": (without("model.layers.3.mlp.up_proj.weight"), "model.layers.3.mlp.up_proj.weight"),
    "another vocabulary": (config(vocab_size=301), r"\[301, 64\]"),
    "data cut off": (cut, "cut off"),
    "no memory": (no_memory, "fewer layers"),
}


@pytest.mark.parametrize(("spoil", "expected"), BAD.values(), ids=BAD.keys())
def test_a_bad_model_is_named_in_one_line(folder, spoil, expected):
    spoil(folder)
    with pytest.raises(BadModel, match=expected) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_layers_that_fail_on_their_own_are_a_bad_model(variant, monkeypatch):
    def fail(*_, **__):
        raise AttributeError("no such attribute")

    monkeypatch.setattr("transformers.models.gemma.modeling_gemma.GemmaDecoderLayer.forward", fail)
    with pytest.raises(BadModel, match="another version of transformers"):
        load(variant("gemma"))
