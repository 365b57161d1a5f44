"""The prompts of a live recipe are fed as the model's own engine would feed them, however long they are wanted."""

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from tokenizers import Tokenizer, processors

from pipeinfer.engine.huggingface.tokenizer import HfTokenizer
from pipeinfer.prompt_sets import prompt_named
from pipeinfer.study.cells import prompt_of
from pipeinfer.study.points import LiveCell
from pipeinfer.study.recipes import Live
from pipeinfer.testing import write_llama

NAME = "date-difference"
LIVE = Live(
    backend="numpy", target="builtin:target", draft="builtin:draft", transport="inproc", stages=1, prompts=[NAME],
    temperatures=[0.0], top_p=1.0, seed=1, tokens=12, repeats=1,
)  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path: Path) -> HfTokenizer:
    """One that puts token 0 before each text and token 299 after it."""
    folder = write_llama(tmp_path)
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    names = [(tokenizer.id_to_token(number), number) for number in (0, 299)]
    template = [names[0][0], "$A", names[1][0]]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=names)
    tokenizer.save(path)
    return HfTokenizer(folder)


@pytest.mark.parametrize("wanted", [0, 2000])
def test_what_is_put_around_a_prompt_is_there_once(tokenizer: HfTokenizer, wanted: int) -> None:
    cell = LiveCell("iterative", {}, NAME, 0.0, 0, msgspec.structs.replace(LIVE, prompt_tokens=wanted))
    ids = prompt_of(SimpleNamespace(tokenizer=tokenizer), cell)
    text = tokenizer.encode(prompt_named(NAME).text, add_special=False)
    assert len(ids) == max(wanted, len(text) + 2)
    assert (ids[0], ids[-1]) == (0, 299)
    assert ids[-len(text) - 1 : -1] == text
    assert ids.count(0) == ids.count(299) == 1
