"""`pipeinfer record`: traces of texts that fit, and what does not fit in one line."""

import errno
import os
from pathlib import Path

import pytest

from pipeinfer.cli import run
from pipeinfer.files import check_writable, write_whole
from pipeinfer.runtime.oracle import read_trace
from pipeinfer.testing.models import write_llama

LONGEST_PROMPT = 76
"""Of the suite's first prompt, in the built-in pair's tokens."""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


def test_a_text_ends_where_the_models_hold_no_more(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = LONGEST_PROMPT + 5
    assert run(["record", "--prompts", "1", "--tokens", "9", "--cells", str(cells), "--out", str(trace)]) == 0
    assert read_trace(trace).lengths == [5]
    assert "1 of 1 texts ended before 9 tokens" in capsys.readouterr().out
    assert run(["record", "--prompts", "1", "--tokens", "5", "--out", str(trace)]) == 0
    assert read_trace(trace).lengths == [5]
    assert "ended before" not in capsys.readouterr().out


def test_the_context_ends_a_text_as_it_does_in_generate(trace: Path, tmp_path: Path) -> None:
    """Of 2048 tokens a prompt in single bytes leaves some."""
    folder = write_llama(tmp_path / "model", layers=1, hidden=16, heads=2, kv_heads=1, ffn=16)
    models = ["--target", str(folder), "--draft", str(folder)]
    assert run(["record", *models, "--prompts", "1", "--tokens", "5000", "--out", str(trace)]) == 0
    (length,) = read_trace(trace).lengths
    assert 1000 < length < 2048


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cells", "40"], f"a prompt has {LONGEST_PROMPT} tokens, and the models hold 40"),
        (["--backend-option", "threds=2", "--backend", "emulated"], 'no option "threds"'),
        (["--temperature", "nan"], "temperature = nan"),
        (["--seed", str(2**64)], f"seed = {2**64}: expected 0 to {2**64 - 1}"),
    ],
)
def test_what_cannot_be_is_one_line_and_no_file(
    trace: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert run(["record", "--prompts", "1", "--tokens", "9", *options, "--out", str(trace)]) == 2
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert said in errors
    assert not trace.exists()


def test_a_folder_that_is_not_there_is_known_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["record", "--out", "/nonexistent/trace.json"]) == 2
    assert "/nonexistent/trace.json" in capsys.readouterr().err


# Files written at the end --------------------------------------------------------------------------------------------


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(file)
    write_whole(link, b"first")
    assert (file.read_bytes(), link.is_symlink()) == (b"first", True)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left on device") as problem:
        write_whole(file, b"second")
    assert problem.value.filename == str(file)
    assert file.read_bytes() == b"first"
    assert sorted(tmp_path.iterdir()) == [file, link]


def test_looking_whether_a_file_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").write_bytes(b"old")
    check_writable(tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"old"
    for wrong in (tmp_path, tmp_path / "no" / "folder"):
        with pytest.raises(OSError, match="directory"):
            check_writable(wrong)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_device_is_written_and_not_replaced() -> None:
    check_writable(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left on device"):
        write_whole(Path("/dev/full"), b"x" * 10)
    assert Path("/dev/full").is_char_device()
