"""What a model's own engine is fed is what every backend is fed, for the kinds of tokenizers that models have."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_families import FAMILIES, write_folder, write_vocabulary
from tokenizers import Tokenizer as TokenizerFile
from tokenizers import models

from pipeinfer.core.effects import Stop
from pipeinfer.engine.backend import BadModel, Tokenizer
from pipeinfer.engine.huggingface.tokenizer import HfTokenizer, open_tokenizer
from pipeinfer.engine.text_stream import TextStream, continuation
from pipeinfer.testing import write_llama

TEXTS = (
    "def double(x):\n    return 2 * x",
    "The capital of France is",
    "  two spaces,  twice  ",
    "\n\n\tCapitals, 12345 and 1,000.5; don't, it'll",
    "Größe, naïve café 日本語 😀",
    " ",
    "x",
    "",
)


def theirs(folder: Path) -> Any:
    """The tokenizer of transformers."""
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install pipeinfer[torch]")
    return transformers.AutoTokenizer.from_pretrained(folder)


def opened(folder: Path, name: str, kind: str) -> Tokenizer:
    """The tokenizer of that name from a folder, or from a GGUF file."""
    if kind == "folder":
        return HfTokenizer(write_folder(folder, name))
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")
    from pipeinfer_llamacpp.gguf_file import GgufFile
    from pipeinfer_llamacpp.tokenizer import GgufTokenizer

    return GgufTokenizer(GgufFile(write_vocabulary(folder / "vocabulary.gguf", name)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_is_read_as_transformers_reads_it(tmp_path: Path, name: str) -> None:
    folder, family = write_folder(tmp_path, name), FAMILIES[name]
    expected, ours = theirs(folder), HfTokenizer(folder)
    for text in (*TEXTS, f"a {family.eos} b", f"a{family.bos}b", f"  {family.eos} b"):
        assert ours.encode(text) == expected(text).input_ids, text
        assert ours.encode(text, add_special=False) == expected(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gguf_file_gives_the_same_ids(tmp_path: Path, name: str) -> None:
    folder, file = (opened(tmp_path, name, kind) for kind in ("folder", "gguf"))
    # Unigram has no piece for a line break here, and what is unknown swallows a space after it in one of the two.
    for text in TEXTS[name == "Unigram" :]:
        assert file.encode(text) == folder.encode(text), text
        assert file.encode(text, add_special=False) == folder.encode(text, add_special=False)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_stands_in_the_text_already_is_not_put_there_again(tmp_path: Path, name: str, kind: str) -> None:
    tokenizer, family = opened(tmp_path, name, kind), FAMILIES[name]
    before, after = "".join(family.before), "".join(family.after)
    once = tokenizer.encode("The end")
    for text in (f"{before}The end", f"The end{after}", f"{before}The end{after}"):
        assert len(tokenizer.encode(text)) == len(tokenizer.encode(text, add_special=False)) + sum(
            not present for present in (text.startswith(before), text.endswith(after))
        )
        if not before:  # a space that stands before the first word comes after a token there, or not: the tokenizer's
            assert tokenizer.encode(text) == once


@pytest.mark.parametrize("kind", ["folder", "gguf"])
@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_and_text_are_what_all_ids_are(tmp_path: Path, name: str, kind: str) -> None:
    """The space before the first generated word is not lost, wherever the prompt ends."""
    tokenizer = opened(tmp_path, name, kind)
    prompt, after = "The parser takes", " arguments, and a naïve café 日本語 😀 too"
    head, ids = (tokenizer.encode(text, add_special=False) for text in (prompt, prompt + after))
    assert ids[: len(head)] == head
    whole = tokenizer.decode(ids)
    for cut in range(len(head), len(ids)):
        seen = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
        assert seen + continuation(tokenizer, ids[:cut], ids[cut:]) == whole


def test_a_stop_string_may_begin_with_the_space_before_the_first_word(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, "SentencePiece BPE, space before", "folder")
    prompt, whole = (tokenizer.encode(text) for text in ("That is", "That is one"))
    ids = whole[len(prompt) :]
    assert tokenizer.decode(ids) == "one"
    stream = TextStream(tokenizer, [" one"], prompt=prompt)
    assert stream.feed(ids) == Stop(len(ids), "stop")


# Settings that the files leave active ---------------------------------------------------------------------------------


def changed(folder: Path, file: str, **fields: object) -> Path:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 32}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
           "pad_token": "<|endoftext|>"}  # fmt: skip


@pytest.mark.parametrize("setting", [{"truncation": TRUNCATION}, {"padding": PADDING}], ids=["truncation", "padding"])
def test_a_prompt_is_neither_cut_nor_filled_up(tmp_path: Path, setting: dict[str, object]) -> None:
    plain = HfTokenizer(write_folder(tmp_path / "plain", "byte-level BPE"))
    folder = changed(write_folder(tmp_path / "changed", "byte-level BPE"), "tokenizer.json", **setting)
    for text in (TEXTS[0], "x"):
        assert HfTokenizer(folder).encode(text) == plain.encode(text) == theirs(folder)(text).input_ids


def test_the_same_text_is_cut_in_the_same_way_each_time(tmp_path: Path) -> None:
    """BPE that was trained with dropout cuts words at random, unless it is told not to."""
    folder = write_folder(tmp_path, "byte-level BPE")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    plain = HfTokenizer(folder).encode(TEXTS[0])
    changed(folder, "tokenizer.json", model=model | {"dropout": 0.5})
    assert {tuple(HfTokenizer(folder).encode(TEXTS[0])) for _ in range(8)} == {tuple(plain)}


def test_a_tokenizer_is_read_again_where_a_file_has_changed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "byte-level BPE")
    first = open_tokenizer(folder)
    assert open_tokenizer(folder) is first
    changed(folder, "tokenizer_config.json", additional_special_tokens=["<|new|>"])
    again = open_tokenizer(folder)
    assert len(again.encode("<|new|>", add_special=False)) == 1 < len(first.encode("<|new|>", add_special=False))
    assert again.digest() != first.digest()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadModel, match="no such file"):
        open_tokenizer(folder)


ADDED = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
SETTINGS: dict[str, dict[str, object]] = {
    "a named token": {"bos_token": "def"},
    "a token with its properties": {"bos_token": {"__type": "AddedToken", "content": "def", **ADDED, "lstrip": True}},
    "further tokens": {"additional_special_tokens": ["def", "return"]},
    "further tokens by name": {"extra_special_tokens": {"tool_token": "def"}},
    "tokens with ids": {"added_tokens_decoder": {"600": {"content": "<tool>", **ADDED, "rstrip": True}}},
    "other properties": {"added_tokens_decoder": {"0": {"content": "<|endoftext|>", **ADDED, "lstrip": True}}},
    "special tokens are cut": {"split_special_tokens": True},
    "spaces before": {"add_prefix_space": True},
    "flags that count for nothing": {"add_bos_token": True, "add_eos_token": True, "legacy": False},
    "a length": {"model_max_length": 4},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("name", ["byte-level BPE", "of the kind of tiktoken", "SentencePiece BPE, space before"])
def test_what_tokenizer_config_says_counts_as_in_transformers(
    tmp_path: Path, name: str, settings: dict[str, object]
) -> None:
    folder = write_folder(tmp_path, name, **settings)
    expected, ours = theirs(folder), HfTokenizer(folder)
    for text in (TEXTS[0], "a  <tool>  b", "a <|endoftext|> b", "my def x", f"a {FAMILIES[name].eos} b"):
        assert ours.encode(text) == expected(text).input_ids, text


def test_no_space_is_taken_out_of_what_is_shown(tmp_path: Path) -> None:
    """Which transformers does for people where the setting says so: prompt and text would not be what all ids are."""
    folder = write_llama(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text('{"clean_up_tokenization_spaces": true}')
    tokenizer = HfTokenizer(folder)
    text = "it is n't , I 'm afraid ."
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokens_that_another_file_names_are_found_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "byte-level BPE")
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "def"}))
    assert HfTokenizer(folder).encode("def") == theirs(folder)("def").input_ids
    assert len(HfTokenizer(folder).encode("def")) == 1


def test_wordpiece_is_refused(tmp_path: Path) -> None:
    words = TokenizerFile(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadModel, match=r"expected BPE or Unigram in .*, came WordPiece, .* a model that generates$"):
        HfTokenizer(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_broken_settings_are_named_in_one_line(tmp_path: Path, file: str, content: str) -> None:
    folder = write_folder(tmp_path, "byte-level BPE")
    (folder / file).write_text(content, "latin-1")
    with pytest.raises(BadModel, match=f"^expected a tokenizer's settings in .*{file}, came .*: fetch the file again$"):
        HfTokenizer(folder)


def test_what_llama_cpp_finds_wrong_with_a_vocabulary_is_handed_on(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")
    from pipeinfer_llamacpp.gguf_file import GgufFile
    from pipeinfer_llamacpp.tokenizer import GgufTokenizer

    name = "of the kind of tiktoken"
    good, bad = (
        GgufTokenizer(GgufFile(write_vocabulary(tmp_path / f"{pre}.gguf", name, pre=pre))) for pre in (True, False)
    )
    assert good.warnings == ()
    assert bad.warnings[0] == "missing pre-tokenizer type, using: 'default'"
    assert any("QUALITY WILL BE DEGRADED" in warning for warning in bad.warnings)
    assert not any("***" in warning for warning in bad.warnings)


def test_wordpiece_in_a_gguf_file_is_refused(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install pipeinfer[llamacpp]")
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")
    from pipeinfer_llamacpp.gguf_file import GgufFile
    from pipeinfer_llamacpp.tokenizer import GgufTokenizer

    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("bert")
    writer.add_tensor("token_embd.weight", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadModel, match=r"expected BPE or Unigram in .*, came WordPiece, .* a model that generates$"):
        GgufTokenizer(GgufFile(tmp_path / "model.gguf"))
