"""A real model as a Hugging Face folder: Gemma 3 270M, dequantised, in torch against transformers' own generation."""

import pytest

pytest.importorskip("torch", reason="needs torch: pip install pipeinfer[torch]")
pytest.importorskip("transformers", reason="needs transformers: pip install pipeinfer[torch]")
pytest.importorskip("gguf", reason="needs gguf: pip install pipeinfer[llamacpp]")
pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")

import torch
from gemma_folder import write_folder
from real_prompts import PROMPTS
from transformers import AutoModelForCausalLM

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.engine.backend import BadModel
from pipeinfer.plugins import open_backend, open_strategy

TOKENS = 12
SELECTED = ("fact", "german")
FULL = (*SELECTED, "code", "chinese", "windows")


@pytest.fixture(scope="module")
def folder(gemma, tmp_path_factory):
    return write_folder(gemma, tmp_path_factory.mktemp("dequantised") / "gemma")


@pytest.fixture(scope="module")
def prompts(request, folder):
    chosen = FULL if request.config.getoption("--full") else SELECTED
    tokenizer = open_backend("torch", {}).tokenizer(str(folder))
    return {name: tokenizer.encode(PROMPTS[name]) for name in chosen}


@pytest.fixture(scope="module")
def expected(folder, prompts):
    """What transformers goes on with."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    found, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for one another where other tests have the cores: five times as long
    for name, prompt in prompts.items():
        rows = torch.tensor([prompt])
        text = model.generate(rows, attention_mask=torch.ones_like(rows), **length)
        found[name] = text[0, len(prompt) :].tolist()
    torch.set_num_threads(threads)
    return found


def test_stages_write_what_transformers_writes(folder, prompts, expected):
    plan = Plan(backend="torch", target=str(folder), draft=None, stages=3, transport="inproc", cells=1024)
    with Cluster(plan) as cluster:
        texts = {
            name: cluster.generate(prompt, open_strategy("iterative", {}), max_tokens=TOKENS, stop_ids=())
            for name, prompt in prompts.items()
        }
        assert " the capital of the country" in cluster.tokenizer.decode(list(texts["fact"].token_ids))
    assert {name: list(text.token_ids) for name, text in texts.items()} == expected


def test_its_tokenizer_is_that_of_the_gguf_file(folder, gemma):
    own, made = open_backend("llamacpp", {}).tokenizer(str(gemma)), open_backend("torch", {}).tokenizer(str(folder))
    for text in PROMPTS.values():
        assert made.encode(text) == own.encode(text)
        assert made.decode(made.encode(text)) == own.decode(own.encode(text))


def test_numpy_says_that_it_does_not_take_it(folder):
    with pytest.raises(BadModel, match=r"^.*expected architectures \['LlamaForCausalLM'\].*Gemma3ForCausalLM.*$"):
        open_backend("numpy", {}).info(str(folder))
