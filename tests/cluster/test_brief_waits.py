"""Threads of ranks that share cores leave them to whoever computes; other threads wait as they always did."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import rank_on_the_core_of_its_head

from pipeinfer.cluster.python_process import BRIEF_WAITS, python_environment

MANY = 10**6
"""More ranks than there are cores."""

IDLE = """
import time
from statistics import median
from pipeinfer.engine.backend import Batch
from pipeinfer_llamacpp import LlamaCppBackend

backend = LlamaCppBackend(threads=2)
stage = backend.load("builtin:draft", (0, backend.info("builtin:draft").layers), cells=64, sequences=1)
used = []
for position in range(15):
    stage.forward(Batch((1,), (position,), ((0,),), 1), None, lambda: False)
    before = time.process_time()
    time.sleep(0.02)
    used.append(time.process_time() - before)
print(median(used))
"""
"""Seconds of processors that a stage of two threads uses in 20 ms in which it has nothing to do."""


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that does not say how threads wait."""
    for name in (*BRIEF_WAITS, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("unsaid")
def test_only_threads_of_ranks_that_share_cores_wait_briefly() -> None:
    assert python_environment(MANY).items() >= BRIEF_WAITS.items()
    assert not python_environment().keys() & BRIEF_WAITS.keys()


@pytest.mark.usefixtures("unsaid")
@pytest.mark.parametrize("said", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_what_the_environment_says_of_waiting_counts(said: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    found = python_environment(MANY)
    assert {name: found[name] for name in (*BRIEF_WAITS, "OMP_WAIT_POLICY") if name in found} == said


@pytest.mark.usefixtures("unsaid", "own_parents_of_ranks")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds nobody to cores")
def test_ranks_that_share_a_core_with_the_head_are_started_so() -> None:
    with rank_on_the_core_of_its_head() as pid:
        found = Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert {f"{name}={value}" for name, value in BRIEF_WAITS.items()} <= set(found)


@pytest.mark.usefixtures("unsaid")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another OpenMP has other settings")
def test_a_stage_of_two_threads_leaves_the_cores_alone_while_it_waits() -> None:
    if find_spec("llama_cpp") is None:
        pytest.skip("needs llama-cpp-python: pip install pipeinfer[llamacpp]")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    said = subprocess.run(
        [sys.executable, "-c", IDLE], env=python_environment(MANY), capture_output=True, text=True, check=True
    ).stdout
    assert float(said) < 0.5e-3, "50 us of it are Python's"
