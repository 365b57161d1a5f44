"""Models, pairs and engines that cannot be used: one clear line, exit code 2, and nothing left running."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from forked_commands import ForkedCommand
from processes import alive, start
from safetensors.numpy import load_file, save_file

from pipeinfer.cli import main
from pipeinfer.testing.models import write_llama

Spoil = Callable[[Path], object]


def config(**fields: object) -> Spoil:
    def spoil(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return spoil


def without_a_tensor(model: Path) -> None:
    path = model / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def cut(file: str) -> Spoil:
    """Only two thirds of it are there."""

    def spoil(model: Path) -> None:
        path = model / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])

    return spoil


T5 = config(model_type="t5", architectures=["T5ForConditionalGeneration"])
FOLDERS: dict[str, tuple[str, Spoil, str]] = {
    "numpy, a tensor missing": ("numpy", without_a_tensor, "rank 1 cannot load .*up_proj.weight"),
    "numpy, cut off": ("numpy", cut("model.safetensors"), "the file is cut off"),
    "numpy, encoder and decoder": ("numpy", T5, "T5ForConditionalGeneration"),
    "torch, a tensor missing": ("torch", without_a_tensor, "rank 1 cannot load .*up_proj.weight"),
    "torch, cut off": ("torch", cut("model.safetensors"), "the file is cut off"),
    "torch, encoder and decoder": ("torch", T5, "'t5', which is not split here"),
    "torch, unknown": ("torch", config(model_type="nothing", architectures=["Nothing"]), "model type `nothing`"),
    "torch, too large": ("torch", config(hidden_size=2**20, intermediate_size=2**22), "GB free and needs"),
}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `pipeinfer generate ARGUMENTS` in this process and gives its line of error."""

    def refused(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["pipeinfer", "generate", "x", "--tokens", "4", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        output, errors = capsys.readouterr()
        assert (left.value.code, output) == (2, "")
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        return errors

    return refused


def need(backend: str) -> None:
    missing = {"torch": "transformers", "llamacpp": "llama_cpp", "numpy": "numpy"}[backend]
    if find_spec(missing) is None:
        pytest.skip(f"{missing} is not installed: pip install 'pipeinfer[{backend}]'")


@pytest.mark.parametrize(("backend", "spoil", "line"), FOLDERS.values(), ids=FOLDERS.keys())
def test_a_folder(refused: Any, tmp_path: Path, backend: str, spoil: Spoil, line: str) -> None:
    need(backend)
    good, bad = write_llama(tmp_path / "good"), write_llama(tmp_path / "bad")
    spoil(bad)
    models = ["--target", str(bad), "--draft", str(good)]
    errors = refused("--backend", backend, *models, "--nodes", "3", "--transport", "inproc")
    assert re.search(line, errors), errors


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole GGUF model, good.gguf."""
    need("llamacpp")
    from pipeinfer_llamacpp.export import export_gguf

    folder = tmp_path_factory.mktemp("gguf")
    export_gguf(write_llama(folder / "model"), folder / "good.gguf", "f32")
    return folder


def unknown_architecture(folder: Path) -> None:
    path = folder / "bad.gguf"
    path.write_bytes(path.read_bytes().replace(b"llama", b"zlama"))


GGUF: dict[str, tuple[Spoil, str]] = {
    "cut off": (cut("bad.gguf"), "the file is cut off"),
    "unknown": (unknown_architecture, "unknown model architecture: 'zlama'|came zlama"),
    "absent": (lambda folder: (folder / "bad.gguf").unlink(), "expected a GGUF file"),
}


@pytest.mark.parametrize(("spoil", "line"), GGUF.values(), ids=GGUF.keys())
def test_a_gguf_file(refused: Any, gguf: Path, tmp_path: Path, spoil: Spoil, line: str) -> None:
    shutil.copy(gguf / "good.gguf", tmp_path / "bad.gguf")
    spoil(tmp_path)
    models = ["--target", str(tmp_path / "bad.gguf"), "--draft", str(gguf / "good.gguf")]
    errors = refused("--backend", "llamacpp", *models, "--nodes", "3", "--transport", "inproc")
    assert re.search(line, errors), errors


@pytest.mark.parametrize("backend", ["numpy", "torch", "llamacpp"])
def test_a_draft_that_speaks_other_tokens(refused: Any, tmp_path: Path, backend: str) -> None:
    need(backend)
    target, draft = write_llama(tmp_path / "target"), write_llama(tmp_path / "draft", vocab=400)
    options = ["--backend-option", f"cache={tmp_path}"] if backend == "llamacpp" else []
    errors = refused("--backend", backend, *options, "--target", str(target), "--draft", str(draft))
    assert "have different vocabularies (400 and 300 entries)" in errors


def test_ranks_of_a_model_that_does_not_load_end(tmp_path: Path) -> None:
    """As processes, the first and the last of which could load their share."""
    bad = write_llama(tmp_path / "bad")
    without_a_tensor(bad)
    process = start("generate", "--target", str(bad), "--strategy", "iterative")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert [pid for pid in members(process.pid) if alive(pid)] == []


def members(session: int) -> list[int]:
    """Processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(path.name)) == session:
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("mpi4py", ["--transport", "mpi"], "mpi"),
        ("mpi4py", ["--launcher", "mpi"], "mpi"),
        ("torch", ["--backend", "torch"], "torch"),
        ("transformers", ["--backend", "torch"], "torch"),
        ("llama_cpp", ["--backend", "llamacpp"], "llamacpp"),
        ("gguf", ["--backend", "llamacpp"], "llamacpp"),
    ],
)
def test_an_engine_that_is_not_installed(missing: str, arguments: list[str], extra: str) -> None:
    process = ForkedCommand("generate", *arguments, missing=missing)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "")
    assert errors.count("\n") == 1
    assert f"pip install pipeinfer[{extra}]" in errors
