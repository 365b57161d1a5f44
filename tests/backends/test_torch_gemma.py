"""A real model as a Hugging Face folder: Gemma 3 270M, dequantised, in torch against transformers."""

import pytest

pytest.importorskip("gguf", reason="needs gguf: pip install pipeinfer[llamacpp]")
pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")

from gemma_folder import write_folder
from real_prompts import PROMPTS

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.engine.backend import BadModel
from pipeinfer.plugins import open_backend, open_strategy

TOKENS = 8
SELECTED = ("fact", "german")
FULL = (*SELECTED, "code", "chinese", "windows")


@pytest.fixture(scope="module")
def folder(gemma, tmp_path_factory):
    pytest.importorskip("torch", reason="needs torch: pip install pipeinfer[torch]")
    return write_folder(gemma, tmp_path_factory.mktemp("dequantised") / "gemma")


@pytest.fixture(scope="module")
def prompts(request, folder):
    chosen = FULL if request.config.getoption("--full") else SELECTED
    tokenizer = open_backend("torch", {}).tokenizer(str(folder))
    return {name: tokenizer.encode(PROMPTS[name]) for name in chosen}


@pytest.fixture(scope="module")
def likeliest(folder):
    """What transformers finds likeliest behind each of a text's last tokens, in one forward: where that is always the
    text's own next one, it would have written the text itself."""
    import torch

    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install pipeinfer[torch]")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)

    def after_each(ids, last):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # several wait for one another where other tests have the cores: five times as long
        with torch.inference_mode():
            rows = model(torch.tensor([ids]), logits_to_keep=last).logits[0]
        torch.set_num_threads(threads)
        return rows.argmax(-1).tolist()

    return after_each


def test_stages_write_what_transformers_writes(folder, prompts, likeliest):
    plan = Plan(backend="torch", target=str(folder), draft=None, stages=3, transport="inproc", cells=1024)
    with Cluster(plan) as cluster:
        texts = {
            name: cluster.generate(prompt, open_strategy("iterative", {}), max_tokens=TOKENS, stop_ids=())
            for name, prompt in prompts.items()
        }
        assert " the capital of the country" in cluster.tokenizer.decode(list(texts["fact"].token_ids))
    for name, prompt in prompts.items():
        text = list(texts[name].token_ids)
        assert len(text) == TOKENS
        assert likeliest([*prompt, *text[:-1]], TOKENS) == text


def test_its_tokenizer_is_that_of_the_gguf_file(folder, gemma):
    own, made = open_backend("llamacpp", {}).tokenizer(str(gemma)), open_backend("torch", {}).tokenizer(str(folder))
    for text in PROMPTS.values():
        assert made.encode(text) == own.encode(text)
        assert made.decode(made.encode(text)) == own.decode(own.encode(text))


def test_numpy_says_that_it_does_not_take_it(folder):
    with pytest.raises(BadModel, match=r"^.*expected architectures \['LlamaForCausalLM'\].*Gemma3ForCausalLM.*$"):
        open_backend("numpy", {}).info(str(folder))
