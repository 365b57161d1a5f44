"""A process that dies of a signal is reported by the signal's name and what it usually means."""

import os
import signal
import subprocess
import sys

import pytest
from processes import generating

from pipeinfer.cluster.process_end import how_it_ended, is_stopped

LLAMA_ABORTS = """
from pipeinfer_llamacpp.library import ggml, llama
llama()
ggml().ggml_abort(b"ops.cpp", 7, b"%s", b"a tensor of no known kind")
"""


def ended(program: str) -> tuple[str, str]:
    """How a Python program has ended, and what it wrote to the error stream."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    return how_it_ended(done.returncode), done.stderr


@pytest.mark.parametrize(
    ("signal_name", "means"),
    [("SIGILL", "built for another one"), ("SIGBUS", "/dev/shm"), ("SIGKILL", "out of memory"), ("SIGSEGV", "native")],
)
def test_a_signal_has_a_name_and_a_usual_meaning(signal_name: str, means: str) -> None:
    how, _ = ended(f"import os, signal; os.kill(os.getpid(), signal.{signal_name})")
    assert how.startswith(f"killed by {signal_name} (usually ")
    assert means in how


def test_a_signal_that_means_nothing_particular_and_an_exit_code() -> None:
    assert ended("import os, signal; os.kill(os.getpid(), signal.SIGUSR1)")[0] == "killed by SIGUSR1"
    assert ended("raise SystemExit(3)")[0] == "ended with exit code 3"


def test_a_child_is_stopped_until_it_is_continued_or_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert not is_stopped(child.pid)
        for _ in range(2):
            os.kill(child.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
            assert is_stopped(child.pid)
            os.kill(child.pid, signal.SIGCONT)
            assert not is_stopped(child.pid)
    assert child.returncode is not None
    assert not is_stopped(child.pid)


def test_a_rank_that_meets_an_instruction_its_processor_has_not_is_named_with_the_cure() -> None:
    with generating() as generation:
        generation.read_some()
        os.kill(generation.ranks[1], signal.SIGILL)
        code, _, errors = generation.end(within=60)
    assert code == 1
    assert errors.startswith("error: lost rank 1: ")
    assert "killed by SIGILL" in errors
    assert "`pipeinfer doctor` names the cure" in errors
    assert len(errors.splitlines()) == 1


def test_when_llama_cpp_aborts_its_own_words_are_the_last_and_not_a_debugger_s() -> None:
    pytest.importorskip("llama_cpp")
    how, said = ended(LLAMA_ABORTS)
    assert how.startswith("killed by SIGABRT")
    assert said.splitlines()[-1] == "ops.cpp:7: a tensor of no known kind"
