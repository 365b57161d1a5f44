"""What is made once per machine and kept: bounded, never what is in use, and not where no home is."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeinfer.engine import model_cache
from pipeinfer.engine.backend import BadModel
from pipeinfer.engine.model_cache import cache_folder, cache_size, made_once

KIB = 1024


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIPEINFER_CACHE_BYTES", str(100 * KIB))
    yield tmp_path / "cache"
    forget()


def forget():
    """As if this process had ended: what it used is free."""
    for descriptor in model_cache._locks.values():
        os.close(descriptor)
    model_cache._locks.clear()


def make(number, *, kib=40, part="stages"):
    return made_once(cache_folder(part) / f"model-{number:016x}.gguf", lambda path: path.write_bytes(bytes(kib * KIB)))


def kept():
    return sorted(int(path.stem[-16:], 16) for path in cache_folder("stages").iterdir())


def test_what_was_used_longest_ago_goes_first():
    for number in (1, 2):
        make(number)
        forget()
    make(1)
    forget()
    make(3)
    assert kept() == [1, 3]
    assert cache_size() == 80 * KIB


def test_what_this_process_uses_stays_whatever_the_bound():
    for number in (1, 2, 3):
        make(number)
    assert kept() == [1, 2, 3]


def test_what_another_process_uses_stays():
    code = """
from pipeinfer.engine.model_cache import cache_folder, made_once
made_once(cache_folder("stages") / f"model-{1:016x}.gguf", None)
print("uses it", flush=True)
input()"""
    make(1)
    forget()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as user:
        assert user.stdout.readline() == "uses it\n"
        make(2)
        forget()
        make(3)
        assert kept() == [1, 3]
        user.communicate("\n")
    forget()
    make(4)
    assert kept() == [3, 4]


def test_all_parts_count_and_holes_do_not(cache):
    make(1, part="models")
    forget()

    def punch(path):
        path.touch()
        os.truncate(path, 1 << 30)

    sparse = made_once(cache_folder("stages") / f"holes-{2:016x}.gguf", punch)
    assert sparse.stat().st_size == 1 << 30
    assert cache_size() == 40 * KIB
    make(3, kib=80)
    assert not list((cache / "models").iterdir())


def test_files_of_other_origin_in_a_chosen_folder_stay(tmp_path):
    mine = tmp_path / "chosen" / "my-model.gguf"
    mine.parent.mkdir()
    mine.write_bytes(bytes(200 * KIB))
    made_once(mine.with_name(f"stage-{1:016x}.gguf"), lambda path: path.write_bytes(bytes(KIB)))
    assert mine.exists()


def test_what_a_killed_process_left_unfinished_is_removed(cache):
    left = cache / "stages" / ".making-abc"
    left.mkdir(parents=True)
    (left / "model.gguf").write_bytes(bytes(90 * KIB))
    make(1)
    assert not left.exists()


@pytest.mark.parametrize("setting", ["much", "-1", "nan", "inf"])
def test_a_bound_that_is_no_number_is_named_in_one_line(monkeypatch, setting):
    monkeypatch.setenv("PIPEINFER_CACHE_BYTES", setting)
    with pytest.raises(BadModel, match=r"number of bytes in \$PIPEINFER_CACHE_BYTES"):
        make(1)


# No home -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    for name in ("PIPEINFER_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def refuse(path):
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", refuse)
    return tmp_path


def test_without_a_home_the_cache_is_in_the_temporary_folder(no_home):
    made = make(1)
    assert made.is_relative_to(no_home / f"pipeinfer-cache-{os.getuid()}")
    assert made.parent.stat().st_mode & 0o077 == 0


def test_a_temporary_folder_of_somebody_else_is_not_used(no_home, monkeypatch):
    (no_home / f"pipeinfer-cache-{os.getuid() + 1}").mkdir()
    another = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    with pytest.raises(BadModel, match=r"came a folder of user .*PIPEINFER_CACHE"):
        make(1)


@pytest.mark.usefixtures("no_home")
def test_a_path_from_a_home_that_is_not_there_is_one_line():
    with pytest.raises(BadModel, match=r"a home folder for ~/m"):
        cache_folder("stages", "~/m")
