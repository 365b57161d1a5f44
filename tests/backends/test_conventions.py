"""A model's own conventions, end to end: what it is fed, where its text begins and where it ends, for every backend."""

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors

from pipeinfer import Pipeline
from pipeinfer.cli import main, run
from pipeinfer.engine.backend import BadModel
from pipeinfer.plugins import open_backend
from pipeinfer.testing import write_llama
from pipeinfer.testing.backends import chain, never

BACKENDS = {"numpy": "numpy", "torch": "transformers", "llamacpp": "llama_cpp"}
Generate = Callable[..., dict[str, Any]]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if find_spec(BACKENDS[name]) is None:
        pytest.skip(f"{name} is not installed: pip install 'pipeinfer[{name}]'")
    return name


@pytest.fixture
def generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generate:
    """`pipeinfer generate --json`, on one stage unless told otherwise: what it prints, and its standard error."""

    def generate(backend: str, model: Path, prompt: str, *options: str) -> dict[str, Any]:
        cache = ["--backend-option", f"cache={tmp_path}"] if backend == "llamacpp" else []
        chosen = ["--backend", backend, *cache, "--target", str(model), "--strategy", "iterative"]
        sizes = ["--transport", "inproc", "--cells", "256", "--tokens", "12", "--json"]
        nodes = [] if "--layers" in options or "--nodes" in options else ["--nodes", "1"]
        monkeypatch.setattr(sys, "argv", ["pipeinfer", "generate", prompt, *chosen, *sizes, *nodes, *options])
        with pytest.raises(SystemExit, match="0"):
            main()
        output, errors = capsys.readouterr()
        found: dict[str, Any] = json.loads(output)
        return found | {"errors": errors}

    return generate


def edit(folder: Path, file: str, **fields: object) -> Path:
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))
    return folder


def with_beginning(folder: Path) -> Path:
    """Its tokenizer puts token 0 before each text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    beginning = tokenizer.id_to_token(0)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{beginning} $A", special_tokens=[(beginning, 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """What the model writes after `def f(` where nothing ends it; no id twice before the sixth."""
    return said(write_llama(tmp_path_factory.mktemp("plain") / "model"))


def said(folder: Path) -> list[int]:
    stage = open_backend("numpy", {}).load(str(folder), (0, 4), cells=64, sequences=1)
    ids = open_backend("numpy", {}).tokenizer(str(folder)).encode("def f(")
    start = len(ids)
    while len(ids) < start + 12:
        stage.clear()
        ids.append(int(np.argmax(stage.forward(chain(ids, outputs=1), None, never)[0])))
    return ids[start:]


def test_what_was_fed_is_said(tmp_path: Path, backend: str, generate: Generate) -> None:
    folder = with_beginning(write_llama(tmp_path / "model"))
    plain = generate(backend, folder, "def f(", "--raw")
    fed = generate(backend, folder, "def f(")
    assert fed["prompt_ids"] == [0, *plain["prompt_ids"]]
    assert (fed["prompt_tokens"], plain["prompt_tokens"]) == (7, 6)
    beginning = Tokenizer.from_file(str(folder / "tokenizer.json")).id_to_token(0)
    assert generate(backend, folder, f"{beginning}def f(")["prompt_ids"] == fed["prompt_ids"]
    assert generate(backend, folder, f"{beginning}def f(", "--raw")["prompt_ids"] == fed["prompt_ids"]


def test_every_backend_is_fed_the_same(tmp_path: Path, backend: str, generate: Generate) -> None:
    folder = with_beginning(write_llama(tmp_path / "model"))
    edit(folder, "tokenizer_config.json", additional_special_tokens=["<|unused 7|>"])
    text = "naïve <|unused 7|>  x"
    assert generate(backend, folder, text)["prompt_ids"] == generate("numpy", folder, text)["prompt_ids"]


def test_a_token_that_the_model_has_no_row_for_is_one_line(
    tmp_path: Path, backend: str, generate: Generate, refused: Any
) -> None:
    """Some fine-tuned models name a token for padding that their embedding was never made larger for."""
    folder = edit(write_llama(tmp_path / "model"), "tokenizer_config.json", pad_token="[PAD]")
    assert generate(backend, folder, "def f(")["prompt_tokens"] == 6
    cache = ["--backend-option", f"cache={tmp_path}"] if backend == "llamacpp" else []
    errors = refused("a[PAD]", "--backend", backend, *cache, "--target", str(folder), "--strategy", "iterative",
                     "--nodes", "1")  # fmt: skip
    assert f"the prompt has token 300, and {folder} knows 0..299 alone" in errors


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_ends_of_both_files_end_a_text(
    tmp_path: Path, backend: str, generate: Generate, file: str, written: list[int]
) -> None:
    """A fourth end is one as well, and the end is no part of the text."""
    end = written[5]
    assert end not in written[:5]
    folder = edit(write_llama(tmp_path / "model"), file, eos_token_id=[0, 297, 298, end])
    came = generate(backend, folder, "def f(")
    assert (came["reason"], came["token_ids"]) == ("eos", written[:6])
    tokenizer = open_backend("numpy", {}).tokenizer(str(folder))
    assert came["text"] == tokenizer.decode(written[:5]).rstrip("\ufffd")
    onward = generate(backend, folder, "def f(", "--ignore-eos")
    assert (onward["reason"], onward["token_ids"]) == ("length", written)


def test_a_file_without_ends_leaves_those_of_the_other(tmp_path: Path, backend: str) -> None:
    folder = edit(write_llama(tmp_path / "model"), "generation_config.json", do_sample=True)
    options = {"cache": str(tmp_path)} if backend == "llamacpp" else {}
    assert open_backend(backend, options).info(str(folder)).eos == (0,)
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(BadModel, match=r"^expected the settings of a generation in .*json, came .*: fetch"):
        open_backend(backend, options).info(str(folder))


# Pairs ---------------------------------------------------------------------------------------------------------------


def filled_up(folder: Path, rows: int) -> Path:
    """So many rows more than its tokenizer has tokens, and as likely."""
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.concatenate([tensors[name], tensors[name][:rows]])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return edit(folder, "config.json", vocab_size=vocabulary + rows)


@pytest.mark.parametrize("larger", ["target", "draft"])
@pytest.mark.parametrize("draft_layers", ["4", "2,2"])
def test_a_pair_that_is_filled_up_unequally_goes_together(
    tmp_path: Path, backend: str, generate: Generate, larger: str, draft_layers: str
) -> None:
    """Hot enough for every id: what the draft lacks is in the text, what the target lacks among the guesses."""
    folders = {role: write_llama(tmp_path / role) for role in ("target", "draft")}
    filled_up(folders[larger], 200)
    ranks = str(3 + draft_layers.count(","))
    pair = ["--draft", str(folders["draft"]), "--strategy", "speculative", "--layers", f"2,2/{draft_layers}"]
    exact = ["--backend-option", "kv_type=f32"] if backend == "llamacpp" else []
    hot = ["--temperature", "4", "--seed", "1", "--check", "--ignore-eos", "--tokens", "40"]
    came = generate(backend, folders["target"], "def f(", *pair, "--nodes", ranks, *exact, *hot)
    assert came["check"]["passed"]
    assert len(came["token_ids"]) == 40
    assert (max(came["token_ids"]) >= 300) == (larger == "target")
    assert came["acceptance_rate"] > 0.2  # the same model drafts, and its noise is that of the shared ids


NOTE = "token 299 is '<tool>' in the target and none in the draft: the draft guesses worse"


@pytest.fixture
def pair_with_a_note(tmp_path: Path) -> tuple[Path, Path]:
    """Target and draft; the target has a token that the draft lacks."""
    target, draft = (write_llama(tmp_path / role) for role in ("target", "draft"))
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    vocabulary = {token: number for token, number in tokenizer["model"]["vocab"].items() if number != 299}
    added = [*tokenizer["added_tokens"], {**tokenizer["added_tokens"][0], "id": 299, "content": "<tool>"}]
    edit(target, "tokenizer.json", model=tokenizer["model"] | {"vocab": vocabulary}, added_tokens=added)
    edit(draft, "tokenizer.json", model=tokenizer["model"] | {"vocab": vocabulary})
    return target, draft


def test_a_token_more_in_one_of_them_is_a_note(
    pair_with_a_note: tuple[Path, Path], backend: str, generate: Generate
) -> None:
    target, draft = pair_with_a_note
    came = generate(backend, target, "a<tool>b", "--draft", str(draft), "--strategy", "pipeinfer", "--nodes", "2")
    assert came["prompt_ids"][1] == 299
    assert came["errors"].startswith(f"note: {NOTE}")


def test_from_python_a_note_is_a_logged_warning(
    pair_with_a_note: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    target, draft = map(str, pair_with_a_note)
    with Pipeline(target=target, draft=draft, nodes=2, transport="inproc"):
        pass
    (record,) = caplog.records
    assert (record.levelname, record.name.partition(".")[0]) == ("WARNING", "pipeinfer")
    assert record.getMessage().startswith(NOTE)


def test_calibrate_says_it_before_it_measures(
    pair_with_a_note: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in pair_with_a_note:
        edit(folder, "config.json", max_position_embeddings=16)  # too short to measure in, so that it ends there
    target, draft = map(str, pair_with_a_note)
    pair = ["--target", target, "--draft", draft, "--nodes", "2", "--transport", "inproc"]
    assert run(["calibrate", *pair, "--out", str(tmp_path / "profile.json")]) == 2
    note, error = capsys.readouterr().err.splitlines()
    assert note.startswith(f"note: {NOTE}")
    assert error.startswith("error: the models have a context of 16: expected at least 32")


# GGUF files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def export(tmp_path: Path) -> Callable[[Path], Path]:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")
    from pipeinfer_llamacpp.export import export_gguf

    def export(folder: Path) -> Path:
        export_gguf(folder, tmp_path / "model.gguf", "f32")
        return tmp_path / "model.gguf"

    return export


def test_an_export_keeps_every_end_and_what_is_put_before_a_text(
    tmp_path: Path, export: Any, generate: Generate
) -> None:
    folder = with_beginning(edit(write_llama(tmp_path / "model"), "config.json", eos_token_id=[0, 290, 291, 292, 293]))
    file = export(folder)
    info = open_backend("llamacpp", {}).info(str(file))
    assert info.eos == (0, 290, 291, 292, 293)
    assert info.vocabulary_digest == open_backend("numpy", {}).info(str(folder)).vocabulary_digest
    fed = [generate("llamacpp", model, "def f(")["prompt_ids"] for model in (folder, file)]
    assert fed[0] == fed[1] == open_backend("numpy", {}).tokenizer(str(folder)).encode("def f(")
    assert fed[0][0] == 0


def test_what_gguf_has_no_words_for_is_refused(tmp_path: Path, export: Any) -> None:
    folder = write_llama(tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    beginning = tokenizer.id_to_token(0)
    twice = [beginning, beginning, "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=twice, special_tokens=[(beginning, 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(BadModel, match=r"expected at most one token before a text in .*backend numpy or torch$"):
        export(folder)


def test_what_llama_cpp_takes_for_an_end_ends_a_text(
    tmp_path: Path, export: Any, generate: Generate, written: list[int]
) -> None:
    """By its name, where the file says nothing of it."""
    folder = write_llama(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    end = written[5]
    names = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    vocabulary = {"<|im_end|>" if number == end else name: number for number, name in names.items()}
    added = [*tokenizer["added_tokens"], {**tokenizer["added_tokens"][0], "id": end, "content": "<|im_end|>"}]
    edit(folder, "tokenizer.json", model=tokenizer["model"] | {"vocab": vocabulary}, added_tokens=added)
    came = generate("llamacpp", export(folder), "def f(", "--backend-option", "kv_type=f32")
    assert (came["reason"], came["token_ids"][-1]) == ("eos", end)
    assert "<|im_end|>" not in came["text"]


# Conversations -------------------------------------------------------------------------------------------------------

TEMPLATE = """\
{%- for message in messages %}{{ '<|' + message.role + '|>' + message.content + eos_token }}{% endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


@pytest.fixture
def chatty(tmp_path: Path) -> Path:
    """A model with a chat template, whose tokenizer puts token 0 before other texts."""
    folder = with_beginning(write_llama(tmp_path / "model"))
    return edit(folder, "tokenizer_config.json", chat_template=TEMPLATE, eos_token="<|unused 7|>")


def fed(folder: Path, text: str) -> list[int]:
    return open_backend("numpy", {}).tokenizer(str(folder)).encode(text, add_special=False)


def test_a_conversation_is_fed_as_its_template_writes_it(
    tmp_path: Path, backend: str, generate: Generate, chatty: Path
) -> None:
    told = ["--system", "Be brief."]
    came = generate(backend, chatty, "Hello", "--chat", *told, "--ignore-eos", "--check")
    assert came["prompt_ids"] == fed(chatty, "<|system|>Be brief.<|unused 7|><|user|>Hello<|unused 7|><|assistant|>")
    assert came["prompt_tokens"] == len(came["prompt_ids"])
    assert came["check"]["passed"]
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]
    (tmp_path / "turns.json").write_text(json.dumps(turns))
    more = generate(backend, chatty, "Bye", "--messages", str(tmp_path / "turns.json"), *told)
    assert more["prompt_ids"] == fed(
        chatty,
        "<|system|>Be brief.<|unused 7|><|user|>Hello<|unused 7|><|assistant|>Yes?<|unused 7|><|user|>Bye<|unused 7|>"
        "<|assistant|>",
    )


WRONG_TURNS = {
    "no JSON": (b"{", "expected a JSON list of messages in "),
    "no list": (b"{}", "expected a JSON list of messages in "),
    "no role": (b'[{"content": "x"}]', "missing required field `role`"),
    "a number": (b'[{"role": "user", "content": 3}]', "$[0].content"),
    "no text": (b"[\xff]", "expected UTF-8 text, came byte 0xff"),
    "nothing": (b"[]", "the user has the last word of a conversation"),
    "the model's turn": (b'[{"role": "assistant", "content": "x"}]', "the user has the last word of a conversation"),
    "told twice": (b'[{"role": "system", "content": "x"}]', "begins with a system message: leave out --system"),
}


@pytest.mark.parametrize(("content", "said"), WRONG_TURNS.values(), ids=WRONG_TURNS.keys())
def test_messages_that_are_none_are_one_line(refused: Any, tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "turns.json").write_bytes(content)
    system = ["--system", "Be brief."] if "--system" in said else []
    assert said in refused("--messages", str(tmp_path / "turns.json"), *system)


def test_options_that_go_with_conversations_alone(refused: Any, tmp_path: Path, chatty: Path) -> None:
    assert "--system is for conversations" in refused("x", "--system", "Be brief.")
    assert "--raw is for a prompt as it is" in refused("x", "--chat", "--raw")
    assert "the user has the last word" in refused("--chat")
    assert "cannot read" in refused("--messages", str(tmp_path / "none"))
    assert "builtin:target has no chat template" in refused("x", "--chat")
    assert "target has no chat template" in refused("x", "--chat", "--backend", "emulated")
    edit(chatty, "tokenizer_config.json", chat_template="{{ raise_exception('not for you') }}")
    errors = refused("x", "--chat", "--target", str(chatty))
    assert errors == "error: the model's chat template refuses these messages: not for you\n"


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `pipeinfer generate ARGUMENTS` in this process and gives its line of error."""

    def refused(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["pipeinfer", "generate", "--transport", "inproc", *arguments])
        with pytest.raises(SystemExit, match="2"):
            main()
        output, errors = capsys.readouterr()
        assert output == ""
        assert errors.count("\n") == 1
        return errors

    return refused


def test_a_gguf_file_without_a_template_is_refused(refused: Any, export: Any, tmp_path: Path) -> None:
    file = export(write_llama(tmp_path / "model"))
    assert f"{file} has no chat template" in refused("x", "--chat", "--backend", "llamacpp", "--target", str(file))
