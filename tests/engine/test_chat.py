"""Conversations are written as the model's makers write them, and a template that misbehaves is one clear error."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from chat_templates import LLAMA_2, TEMPLATES
from tokenizer_families import FAMILIES, write_folder, write_vocabulary

from pipeinfer.engine.backend import BadModel, Tokenizer
from pipeinfer.engine.chat import ChatError, ChatTemplate
from pipeinfer.engine.huggingface.tokenizer import HfTokenizer

HELLO = {"role": "user", "content": "  Hello, who are you? "}
ANSWER = {"role": "assistant", "content": "I parse arguments."}
AGAIN = {"role": "user", "content": "Naïve café, 日本語 & <b>?"}
TOLD = {"role": "system", "content": "Be brief."}
CONVERSATIONS = {
    "one question": [HELLO],
    "several turns": [HELLO, ANSWER, AGAIN],
    "told before": [TOLD, HELLO, ANSWER, AGAIN],
    "with a field that is empty": [HELLO, {**ANSWER, "tool_calls": None}, AGAIN],
}
ADDED = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}


def settings(style: str) -> dict[str, Any]:
    """The template, and for ChatML the two tokens that are added to GPT-2's."""
    markers = {"600": {"content": "<|im_start|>", **ADDED}, "601": {"content": "<|im_end|>", **ADDED}}
    return {"chat_template": TEMPLATES[style][0]} | ({"added_tokens_decoder": markers} if style == "ChatML" else {})


def ids(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> list[int]:
    template = tokenizer.chat_template()
    assert template is not None
    return tokenizer.encode(template.render(messages), add_special=False)


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@pytest.mark.parametrize("style", TEMPLATES)
def test_the_ids_are_those_of_transformers(tmp_path: Path, style: str, messages: list[dict[str, Any]]) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install pipeinfer[torch]")
    folder = write_folder(tmp_path, TEMPLATES[style][1], **settings(style))
    ours = HfTokenizer(folder)
    if style == "Gemma" and messages[0] is TOLD:
        with pytest.raises(ChatError, match=r"^the model's chat template refuses these messages: System role not s"):
            ids(ours, messages)
        return
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids(ours, messages) == expected
    assert len(expected) > 10


@pytest.mark.parametrize("style", [style for style in TEMPLATES if style != "ChatML"])
def test_a_gguf_file_has_the_same_template(tmp_path: Path, style: str) -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")
    from pipeinfer_llamacpp.gguf_file import GgufFile
    from pipeinfer_llamacpp.tokenizer import GgufTokenizer

    template, family = TEMPLATES[style]
    file = GgufTokenizer(GgufFile(write_vocabulary(tmp_path / "model.gguf", family, chat_template=template)))
    folder = HfTokenizer(write_folder(tmp_path, family, chat_template=template))
    for messages in ([HELLO], [HELLO, ANSWER, AGAIN]):
        assert ids(file, messages) == ids(folder, messages)


def test_where_a_folder_has_its_template(tmp_path: Path) -> None:
    """In a file of its own, among the settings, or one of several there."""
    name = next(iter(FAMILIES))
    assert HfTokenizer(write_folder(tmp_path / "none", name)).chat_template() is None
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    found = HfTokenizer(write_folder(tmp_path / "several", name, chat_template=several)).chat_template()
    assert found is not None
    assert (found.source, found.special_tokens["eos_token"]) == ("plain", FAMILIES[name].eos)
    folder = write_folder(tmp_path / "file", name, chat_template="settings")
    (folder / "chat_template.jinja").write_text("file")
    found = HfTokenizer(folder).chat_template()
    assert found is not None
    assert found.source == "file"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BadModel, match=r"^expected a chat template in .*, came .*: fetch the file again$"):
        HfTokenizer(folder).chat_template()


# Templates that misbehave ---------------------------------------------------------------------------------------------

NO_END = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
WRONG: dict[str, tuple[str, str]] = {
    "loops": (NO_END, "comes to no end: it takes more than 1 s or 1024 MiB"),
    "calls itself": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails: RecursionError: "),
    "counts too far": ("{% for a in range(10 ** 9) %}{% endfor %}", "fails: OverflowError: "),
    "writes without end": ("{% for a in range(99999) %}{{ 'a' * 999 }}{% endfor %}", "writes more than 4000000 char"),
    "fills the memory": ("{{ 'a' * 10 ** 11 }}", "takes more memory than it is given"),
    "raises": (LLAMA_2, "refuses these messages: user and assistant take turns"),
    "reaches for attributes": ("{{ ''.__class__.__mro__ }}", "reaches for what it may not: the attribute '__cl"),
    "reaches for globals": ("{{ raise_exception.__globals__ }}", "reaches for what it may not: the attribute '__"),
    "reaches through format": ("{{ '{0.__class__}'.format(1) }}", "reaches for what it may not: the attribute '__"),
    "reaches for a module": ("{% import 'os' as os %}", "fails: "),
    "changes the messages": ("{{ messages.append(1) }}", "reaches for what it may not: "),
    "is no template": ("{% for %}", "cannot be read, line 1: "),
    "misses a field": ("{{ messages[0].content.name.first }}", "fails: "),
    "divides": ("{{ 1 // 0 }}", "fails: ZeroDivisionError: "),
}


@pytest.mark.parametrize(("source", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_template_that_misbehaves_is_one_clear_error(
    source: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeinfer.engine.chat.CPU_S", 1)
    start = time.monotonic()
    with pytest.raises(ChatError) as problem:
        ChatTemplate(source).render([ANSWER])
    assert time.monotonic() - start < 30
    assert said in str(problem.value)
    assert str(problem.value).startswith("the model's chat template ")
    assert "\n" not in str(problem.value)


def test_what_a_template_may_use() -> None:
    source = (
        "{{ {'a': '<ä>'} | tojson }} {{ [1, 2] | tojson(indent=1) }} {{ strftime_now('%Y') | length }}"
        "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}"
        "{{ missing is defined }}{{ tools is none }}{{ pad_token }}"
    )
    text = ChatTemplate(source, {"pad_token": "<pad>"}).render([HELLO, ANSWER])
    assert text == '{"a": "<ä>"} [\n 1,\n 2\n] 4userFalseTrue<pad>'


def test_a_template_sees_every_field_of_a_message() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "look", "arguments": {"at": [1, 2]}}]}
    source = "{% for m in messages %}{{ m.tool_calls | tojson if m.tool_calls else m.content }}{% endfor %}"
    assert ChatTemplate(source).render([HELLO, call]) == HELLO["content"] + json.dumps(call["tool_calls"])
