"""Ranks that have other weights under the same name are found out before they generate nonsense together."""

import os
from pathlib import Path

import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.cluster.weights import check_weights
from pipeinfer.engine.fingerprint import BLOCK_BYTES, fingerprint, fingerprints
from pipeinfer.errors import LaunchError
from pipeinfer.plugins import open_backend
from pipeinfer.runtime import live
from pipeinfer.runtime.control import Ready, Setup
from pipeinfer.testing.models import write_llama

OLD, NEW = {"model.safetensors": "old"}, {"model.safetensors": "new"}


def rank(number: int, host: str, weights: dict[str, str], model: str = "m") -> tuple[Setup, Ready]:
    setup = Setup(number, "target", "numpy", b"", model, (0, 1), 0, 1, 1, 1, 0, "", "")
    return setup, Ready(number, host, 1, 0.0, 0.0, weights)


def test_ranks_with_the_same_files_may_lack_some() -> None:
    share = {"model-1.safetensors": "a"}
    check_weights([rank(0, "anna", share), rank(1, "berta", {"model-2.safetensors": "b"}), rank(2, "clara", {})],
                  {"m": share})  # fmt: skip
    check_weights([rank(0, "anna", OLD), rank(1, "anna", NEW, "draft")], {"m": {}, "draft": NEW})


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ({}, "rank 1 on berta has other weights in model.safetensors of m than rank 0 on anna: copy "),
        ({"m": NEW}, "rank 0 on anna has other weights in model.safetensors of m than the head: "),
    ],
    ids=["a rank", "the head"],
)
def test_another_file_under_the_same_name_is_named(own: dict[str, dict[str, str]], line: str) -> None:
    with pytest.raises(LaunchError, match=line):
        check_weights([rank(0, "anna", OLD), rank(1, "berta", NEW)], own)


@pytest.mark.parametrize("place", [0, 1000, -1], ids=["beginning", "middle", "end"])
def test_a_fingerprint_sees_the_length_and_a_sample_of_the_bytes(tmp_path: Path, place: int) -> None:
    file = tmp_path / "weights"
    data = bytearray(os.urandom(20 * BLOCK_BYTES))
    file.write_bytes(data)
    first = fingerprint(file)
    assert fingerprint(file) == first
    data[place] ^= 1
    file.write_bytes(data)
    assert fingerprint(file) != first
    file.write_bytes(data[:100])
    assert fingerprint(file) != first


@pytest.mark.parametrize("backend", ["numpy", "torch", "llamacpp"])
def test_backends_say_which_files_a_model_has(tmp_path: Path, backend: str) -> None:
    pytest.importorskip({"torch": "torch", "llamacpp": "llama_cpp", "numpy": "numpy"}[backend])
    folder = write_llama(tmp_path / "m", layers=1)
    assert open_backend(backend, {}).weight_files(str(folder)) == [folder / "model.safetensors"]
    assert fingerprints(open_backend("emulated", {}), "builtin:target") == {}


def test_a_cluster_with_a_rank_of_other_weights_does_not_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the second rank is, another model lies under that name."""
    folder, there = write_llama(tmp_path / "m", layers=2), write_llama(tmp_path / "there/m", layers=2, seed=1)
    read = live.weights_here

    def read_there(rank: int, backend: str, options: bytes, model: str) -> dict[str, str]:
        return read(rank, backend, options, str(there) if rank == 1 else model)

    plan = Plan(target=str(folder), draft=None, stages=2, transport="inproc", cells=64)
    with Cluster(plan) as cluster:
        assert cluster.ready[0].weights == cluster.ready[1].weights != {}
    monkeypatch.setattr(live, "weights_here", read_there)
    with pytest.raises(LaunchError, match=r"rank 1 on .* has other weights in model.safetensors of .* than the head"):
        Cluster(plan).close()
