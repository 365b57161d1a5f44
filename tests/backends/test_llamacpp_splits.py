"""llama.cpp models cut into stages: quantisations, forms of a model, several files, and the files that are cut."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gguf_models import Type, write_gguf
from llamacpp_stages import (
    TOKENS,
    aborts_in_mid_compute,
    backend,
    chain,
    close,
    llama_cpp,
    logits,
    never,
    open_stages,
    run,
)

from pipeinfer.engine.backend import BadModel
from pipeinfer.testing import write_llama
from pipeinfer_llamacpp import LlamaCppBackend, hidden, native
from pipeinfer_llamacpp.gguf_file import GgufFile
from pipeinfer_llamacpp.library import everything_said, first_error, forget_errors
from pipeinfer_llamacpp.model import LoadedModel


@pytest.mark.parametrize(
    "kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_K, Type.Q6_K], ids=lambda kind: kind.name
)
@pytest.mark.parametrize("model", ["llama", "mixtral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "falcon"])
def test_a_split_changes_no_bit(tmp_path, model, kind):
    path = write_gguf(tmp_path / "model.gguf", model, kind, hidden=256 if kind.name.endswith("K") else 64)
    opener = backend(tmp_path)
    whole, split = open_stages(opener, path), open_stages(opener, path, 4)
    for batch in (chain(TOKENS), chain([5], start=24), chain([6, 7, 8], start=25, outputs=1)):
        expected = run(whole, batch)
        assert expected.std() > 0.1
        np.testing.assert_array_equal(run(split, batch), expected)
    close(whole, split)


def test_what_llama_cpp_says_is_heard_by_the_thread_that_asked_it(tmp_path):
    """Ranks may be threads that load their models at the same time, and each reads which layers its own has windows in
    and what is wrong with its own file."""
    path, broken = write_gguf(tmp_path / "model.gguf"), tmp_path / "broken.gguf"
    broken.write_bytes(path.read_bytes()[:-4096])
    forget_errors()
    with ThreadPoolExecutor(1) as other, everything_said() as lines:
        other.submit(LoadedModel, path).result().close()
        with pytest.raises(BadModel, match="broken"):
            other.submit(LoadedModel, broken).result()
        assert (lines, first_error()) == ([], "nothing more")
        LoadedModel(path).close()
        assert lines


@pytest.mark.parametrize("form", [{"tied": True}, {"per_layer": True}, {"layers": 1}, {"layers": 7}], ids=str)
def test_other_forms_of_a_model_are_split_as_well(tmp_path, form):
    path = write_gguf(tmp_path / "model.gguf", **form)
    opener = backend(tmp_path)
    split = open_stages(opener, path, min(form.get("layers", 4), 3))
    np.testing.assert_array_equal(run(split, chain(TOKENS)), logits(opener, path))
    close(split)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_model_in_several_files_is_read_as_it_is(tmp_path, small, count):
    path = write_gguf(tmp_path / "sharded.gguf", per_file=9)
    assert path.name == "sharded-00001-of-00005.gguf"
    opener = backend(tmp_path)
    stages = open_stages(opener, path, count)
    np.testing.assert_array_equal(run(stages, chain(TOKENS)), logits(opener, small))
    described = opener.info(str(path))
    assert described == opener.info(str(small))
    assert len(opener.weight_files(str(path))) == 5
    assert opener.tokenizer(str(path)).encode("def") == opener.tokenizer(str(small)).encode("def")
    close(stages)


def test_a_model_of_which_a_file_is_missing_or_not_the_first_is_one_line(tmp_path):
    path = write_gguf(tmp_path / "sharded.gguf", per_file=20)
    second = path.with_name("sharded-00002-of-00002.gguf")
    with pytest.raises(BadModel, match=r"the first of 2 files of a model, named \.\.\.-00001-of-00002\.gguf"):
        backend(tmp_path).info(str(second))
    with pytest.raises(BadModel, match="under its own name"):
        backend(tmp_path).info(str(shutil.copy(path, tmp_path / "first.gguf")))
    second.unlink()
    with pytest.raises(BadModel, match=r"expected a GGUF file at .*sharded-00002-of-00002\.gguf"):
        backend(tmp_path).info(str(path))


def test_a_file_that_was_changed_among_several_is_cut_anew(tmp_path):
    path = write_gguf(tmp_path / "sharded.gguf", per_file=20)
    close(open_stages(backend(tmp_path), path, 2))
    os.utime(path.with_name("sharded-00002-of-00002.gguf"))
    close(open_stages(backend(tmp_path), path, 2))
    assert len(stage_files(tmp_path)) == 4


def test_a_token_that_is_no_utf_8_is_a_token(tmp_path):
    path, opener = write_gguf(tmp_path / "model.gguf"), backend(tmp_path)
    digest = opener.info(str(path)).vocabulary_digest
    word = GgufFile(path).value("tokenizer.ggml.tokens")[300].encode()
    content = path.read_bytes()
    assert content.count(word) == 1
    path.write_bytes(content.replace(word, b"\xff\xfe" + word[2:]))
    assert GgufFile(path).value("tokenizer.ggml.tokens")[300] == r"\xff\xfe" + word[2:].decode()
    assert opener.info(str(path)).vocabulary_digest != digest
    close(open_stages(opener, path, 2))


def test_a_prompt_of_several_micro_batches_is_split(shared, small):
    tokens = [step % 300 for step in range(1100)]
    whole, split = (open_stages(backend(shared), small, count, cells=1100) for count in (1, 2))
    np.testing.assert_array_equal(run(split, chain(tokens)), run(whole, chain(tokens)))
    close(whole, split)


def test_a_whole_model_is_its_own_stage_file(tmp_path, small):
    close(open_stages(backend(tmp_path), small))
    assert not (tmp_path / "cache").exists()


def test_logits_are_those_of_llama_cpp_python(shared, small):
    model = llama_cpp.Llama(
        str(small), n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, flash_attn=True, verbose=False
    )
    model.eval(TOKENS)
    np.testing.assert_array_equal(logits(backend(shared), small), model.scores[: len(TOKENS)])
    model.close()


def test_without_a_compiler_python_looks_at_the_nodes(shared, small, monkeypatch):
    compiled = open_stages(backend(shared), small, 3)
    monkeypatch.setattr(hidden, "compiled_callback", lambda: None)
    plain = open_stages(backend(shared), small, 3)
    assert compiled[1]._hidden.callback is not plain[1]._hidden.callback
    np.testing.assert_array_equal(run(plain, chain(TOKENS)), run(compiled, chain(TOKENS)))
    close(compiled, plain)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_callback_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path))
    first = native.compiled.__wrapped__("hidden")
    (kept,) = (tmp_path / "native").iterdir()
    made = kept.stat().st_mtime_ns
    assert first
    assert native.compiled.__wrapped__("hidden")
    assert kept.stat().st_mtime_ns == made
    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path / "empty"))
    assert native.compiled.__wrapped__("hidden") is None


def test_a_node_that_is_not_met_is_an_error(shared, small):
    stage = backend(shared).load(str(small), (1, 3), cells=64, sequences=1)
    stage._hidden._fields.exit = b"no such node"
    with pytest.raises(RuntimeError, match=r"of no such node from llama\.cpp, came none"):
        stage.forward(chain([1]), np.zeros((1, 64), np.float32), never)
    stage.close()


def test_the_library_is_silent(tmp_path, capfd, small):
    stages = open_stages(backend(tmp_path), small, 2)
    run(stages, chain(TOKENS))
    stages[0].forward(chain([1], start=24), None, aborts_in_mid_compute())
    backend(tmp_path).tokenizer(str(small)).encode("x")
    close(stages)
    assert capfd.readouterr() == ("", "")


def test_describing_a_folder_loads_no_engine(tmp_path):
    folder = write_llama(tmp_path / "model")
    code = f"""
import sys
from pipeinfer_llamacpp import LlamaCppBackend
LlamaCppBackend(cache={str(tmp_path)!r}).info({str(folder)!r})
assert "llama_cpp" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


# Stage files -------------------------------------------------------------------------------------------------------


def stage_files(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cache").iterdir()}


def test_a_stage_file_is_cut_once_and_anew_when_the_model_changes(tmp_path):
    path = write_gguf(tmp_path / "model.gguf")
    close(open_stages(backend(tmp_path), path, 2))
    first = stage_files(tmp_path)
    assert len(first) == 2
    close(open_stages(backend(tmp_path), path, 2))
    assert stage_files(tmp_path) == first

    status = path.stat()
    write_gguf(path, change=lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    close(open_stages(backend(tmp_path), path, 2))
    assert len(stage_files(tmp_path)) == 4
    np.testing.assert_array_equal(run(open_stages(backend(tmp_path), path, 3), chain(TOKENS)),
                                  logits(backend(tmp_path), path))


def test_ranks_that_cut_the_same_file_at_once_get_whole_ones(tmp_path, small):
    with ThreadPoolExecutor(8) as pool:
        stages = list(pool.map(lambda _: backend(tmp_path).load(str(small), (1, 3), cells=8, sequences=1), range(8)))
    close(stages)
    assert len(stage_files(tmp_path)) == 1


def test_the_cache_is_where_the_environment_says(tmp_path, small, monkeypatch):
    monkeypatch.delenv("PIPEINFER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    LlamaCppBackend().load(str(small), (0, 1), cells=8, sequences=1).close()
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path / "own"))
    LlamaCppBackend().load(str(small), (0, 1), cells=8, sequences=1).close()
    for folder in ("xdg/pipeinfer", "own"):
        assert len(list((tmp_path / folder / "llamacpp").iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path, small):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(BadModel, match=r"expected to write .*cache.*PIPEINFER_CACHE"):
        open_stages(backend(tmp_path), small, 2)
