"""The doctor tries each engine in a process of its own: one that dies is a line with its name, its death and a cure."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeinfer.cluster import doctor, engines
from pipeinfer.cluster.doctor import Diagnosis
from pipeinfer.plugins import BACKENDS, BrokenPlugin, load

ENGINE = '''
import os, signal, sys
from pipeinfer_numpy import NumpyBackend

class Engine(NumpyBackend):
    REINSTALL = "pip install --force-reinstall engine"

    def trials(self, folder):
        def die():
            print("tile.cpp:9: no such instruction", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGILL)

        def wrong():
            other = write_llama(folder / "other", layers=1, hidden=256, ffn=256, kv_heads=4, seed=1)
            return self, str(other)

        from pipeinfer.testing.models import write_llama
        return {"f32": lambda: (self, str(folder)), "q4_0": {die_or_wrong}}
'''


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A backend called `dying` whose second trial does what `how` says, for this process and its children."""
    (folder / "dying_engine.py").write_text(ENGINE.replace("{die_or_wrong}", how))
    facts = folder / "dying_engine-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: dying-engine\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[{BACKENDS}]\ndying = dying_engine:Engine\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.parametrize("name", ["numpy", "torch", "llamacpp"])
def test_an_engine_that_is_installed_computes_here(name: str, engine_finding: Callable[[str], Diagnosis]) -> None:
    try:
        load(BACKENDS, name)
    except BrokenPlugin:
        pytest.skip(f"{name} is not installed")
    finding = engine_finding(name)
    assert finding.state == "ok", finding
    if name == "llamacpp":
        assert {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_K", "q6_K"} <= set(finding.found.replace(",", "").split())
    if name == "torch":
        assert "float32, bfloat16" in finding.found


def test_an_engine_that_dies_is_named_with_what_it_died_of_and_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "die")
    monkeypatch.setattr(engines, "names", lambda _group: ["dying", "numpy"])
    finding, other = engines.examine_engines()
    assert (finding.what, finding.state, other.state) == ("engine dying", "advice", "ok")
    assert finding.found.startswith("q4_0: killed by SIGILL (usually an instruction that this processor does not have")
    assert finding.found.endswith(": tile.cpp:9: no such instruction")
    assert finding.cure == "pip install --force-reinstall engine"


def test_an_engine_that_computes_something_else_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "wrong")
    finding = engines.finding_of("dying", engines.start("dying"))
    assert (finding.state, finding.cure) == ("advice", "pip install --force-reinstall engine")
    assert finding.found.startswith("q4_0 gives other numbers: 1.")


def test_an_engine_that_is_not_there_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_group: str, name: str) -> None:
        raise BrokenPlugin(f"no {name}")

    monkeypatch.setattr(engines, "load", absent)
    finding = engines.finding_of("torch", engines.start("torch"))
    assert finding == doctor.Diagnosis("engine torch", "unknown", "not installed")


@pytest.mark.parametrize(("ranks", "state"), [(1, "ok"), (1 << 30, "advice")])
def test_shared_memory_that_is_too_little_for_mpi_is_named(ranks: int, state: str) -> None:
    finding = doctor.shared_memory(Path("/"), ranks)
    assert finding.state == state
    assert finding.found.endswith("in /dev/shm")


def test_the_size_of_the_model_cache_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPEINFER_CACHE", str(tmp_path))
    (tmp_path / "llamacpp").mkdir()
    (tmp_path / "llamacpp" / "model-0123456789abcdef-f16.gguf").write_bytes(bytes(3 << 20))
    assert doctor.model_cache().found == f"3.1 MB of at most 64.0 GB in {tmp_path}"
