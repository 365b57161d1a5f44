"""Layers go where they are computed fastest and fit; what fits nowhere is refused before anything is loaded."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.placement import BadSplit
from pipeinfer.cluster.plan import Plan
from pipeinfer.cluster.settings import Settings
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.errors import LaunchError
from pipeinfer.modelling.profile import (
    BadProfile,
    Curve,
    DraftShare,
    ModelProfile,
    Profile,
    RankProfile,
    read_profile,
    write_profile,
)
from pipeinfer.runtime import loading
from pipeinfer_emulated import EmulatedBackend

GB = 10**9
LAYERS, LAYER_BYTES, HEAD_BYTES = 8, GB, GB // 2
LAYER_S, HEAD_S, DRAFT_S = 10e-3, 4e-3, 5e-3


def flat(seconds: float) -> Curve:
    return Curve((1, 2), (1, 2), ((seconds, seconds), (seconds, seconds)))


def profile(path: Path, slower: Sequence[float], memory_gb: Sequence[float] = (100, 100, 100, 100)) -> str:
    """A cluster whose ranks are that many times slower than LAYER_S."""
    ranks = [
        RankProfile(f"node{rank}", round(memory * GB), flat(0), flat(LAYER_S * factor), flat(HEAD_S * factor))
        for rank, (factor, memory) in enumerate(zip(slower, memory_gb, strict=False))
    ]
    target = ModelProfile("big", LAYERS, 64, 512, LAYER_BYTES, HEAD_BYTES)
    draft = ModelProfile("small", 2, 32, 512, GB // 10, GB // 10)
    write_profile(Profile("uneven", "numpy", target, draft, tuple(ranks), flat(DRAFT_S), ()), path)
    return str(path)


def open_cluster(path: str, *, layers: str | None, stages: int = 3, **fields: object) -> Cluster:
    options = {"profile": path, "acceptance": 1.0}
    return Cluster(
        backend="emulated", backend_options=options, transport="inproc", stages=stages, layers=layers, **fields
    )  # fmt: skip


@pytest.mark.parametrize("slow", [0, 1])
def test_a_slow_rank_gets_fewer_layers(slow: int, tmp_path: Path) -> None:
    slower = [6.0 if rank == slow else 1.0 for rank in range(4)]
    with open_cluster(profile(tmp_path / "profile.json", slower), layers="auto") as cluster:
        counts = [stop - start for start, stop in cluster.models.split]
        assert counts[slow] == 1
        assert sum(counts) == LAYERS
        assert len(cluster.generate([1, 2], Iterative(), max_tokens=3).token_ids) == 3


def test_a_rank_without_memory_gets_what_it_can_hold(tmp_path: Path) -> None:
    path = profile(tmp_path / "profile.json", (1, 1, 1, 1), (1.2, 100, 100, 100))
    with open_cluster(path, layers="auto") as cluster:
        assert cluster.models.split[0] == (0, 1)


@pytest.mark.parametrize(
    ("memory_gb", "line"),
    [
        ((100, 0.5, 100, 100), "rank 1 on .* has 0.5 GB free and needs 1.0 GB for one layer of builtin:target"),
        ((2, 2, 2, 2), r"has 8 layers, and the ranks have room for 5: rank 0 for 2 \(2.0 GB free\), rank 1 for 2"),
    ],
)
def test_what_fits_nowhere_is_refused(memory_gb: tuple[float, ...], line: str, tmp_path: Path) -> None:
    path = profile(tmp_path / "profile.json", (1, 1, 1, 1), memory_gb)
    with pytest.raises(BadSplit, match=line):
        open_cluster(path, layers="auto")


@pytest.mark.parametrize("layers", ["2,5,1", None])
def test_a_split_that_does_not_fit_is_refused_before_loading(
    layers: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = profile(tmp_path / "profile.json", (1, 1, 1, 1), (100, 2.5, 100, 100))
    line = "rank 1 on .* has 2.5 GB free and needs [35].0 GB for layers [23]-[56] of builtin:target and 4352 KV cells"
    monkeypatch.setattr(EmulatedBackend, "load", None)
    with pytest.raises(LaunchError, match=line):
        open_cluster(path, layers=layers)


def test_the_draft_needs_memory_too(tmp_path: Path) -> None:
    path = profile(tmp_path / "profile.json", (1, 1, 1, 1), (100, 100, 100, 0.2))
    with pytest.raises(LaunchError, match=r"rank 3 on .* has 0.2 GB free and needs 0.3 GB for builtin:draft"):
        open_cluster(path, layers=None)


def test_ranks_of_one_host_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "free_bytes", lambda: 20_000_000)
    with pytest.raises(LaunchError, match=r"ranks 0, 1, 2, 3 share .*, which has 20.0 MB free and needs [345]\d.\d MB"):
        Cluster(transport="inproc")
    monkeypatch.setattr(loading, "free_bytes", lambda: 5_000_000)
    with pytest.raises(LaunchError, match=r"rank 0 on .* has 5.0 MB free and needs 1\d.\d MB for layers 0-2"):
        Cluster(transport="inproc")


def test_what_ranks_share_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "free_bytes", lambda: 12_000_000)
    line = r"rank 0 on .* has \d.\d MB to itself of 12.0 MB free on its host and needs 6.3 MB for one layer"
    with pytest.raises(BadSplit, match=line):
        Cluster(transport="inproc", layers="auto")


def test_a_real_pair_is_split_by_its_speed() -> None:
    with Cluster(transport="inproc", stages=2, layers="auto") as cluster:
        assert sum(stop - start for start, stop in cluster.models.split) == 8
        assert cluster.generate([1, 2], Iterative(), max_tokens=2).token_ids


def test_a_profile_says_it_instead_of_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeinfer.modelling.rank_survey.Survey.layers", None)
    path = Path(profile(tmp_path / "profile.json", (1, 1, 4, 1)))
    text = path.read_text().replace('"backend": "numpy"', '"backend": "emulated"')
    path.write_text(text)
    with open_cluster(str(path), layers="auto", profile=str(path)) as cluster:
        assert [stop - start for start, stop in cluster.models.split] == [4, 3, 1]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "is a profile of numpy with 8 layers of width 64 and 512 tokens, and the target is numpy with 8 layers"),
        ({"profile": "/nowhere.json"}, "cannot read the profile /nowhere.json: No such file"),
    ],
)
def test_a_profile_of_something_else_is_refused(fields: dict[str, str], line: str, tmp_path: Path) -> None:
    path = profile(tmp_path / "profile.json", (1, 1, 1, 1))
    with pytest.raises(BadProfile, match=line):
        Cluster(**{"transport": "inproc", "layers": "auto", "profile": path, **fields})


def test_a_rank_that_the_profile_does_not_have(tmp_path: Path) -> None:
    path = profile(tmp_path / "profile.json", (1, 1))
    with pytest.raises(LaunchError, match=r"is of 2 ranks, and this is rank [23]"):
        open_cluster(path, layers=None)


def test_the_emulated_backend_takes_what_the_profile_says(tmp_path: Path) -> None:
    path = profile(tmp_path / "profile.json", (1, 3, 1, 1))
    slow = EmulatedBackend(profile=path, rank=1)
    assert slow._seconds("target", 2, 4)(1, 9) == pytest.approx(2 * 3 * LAYER_S)
    assert slow._seconds("target", 6, 8)(1, 9) == pytest.approx(3 * (2 * LAYER_S + HEAD_S))
    assert slow._seconds("draft", 0, 2)(1, 9) == pytest.approx(DRAFT_S)
    assert slow.info("target").layers == LAYERS
    assert slow.info("draft").layers == 2
    assert slow.info("target").hidden_size == 64


def test_a_split_draft_waits_as_long_as_its_ranks_took(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile(path, (1, 1, 1, 1))
    whole = read_profile(path)
    shares = (DraftShare((0, 1), flat(DRAFT_S)), DraftShare((1, 2), flat(3 * DRAFT_S)))
    write_profile(replace(whole, draft=shares), path)
    rank = EmulatedBackend(profile=str(path), rank=2)
    assert rank._seconds("draft", 0, 1)(1, 9) == pytest.approx(DRAFT_S)
    assert rank._seconds("draft", 1, 2)(1, 9) == pytest.approx(3 * DRAFT_S)
    assert rank._seconds("draft", 0, 2)(1, 9) == pytest.approx(4 * DRAFT_S)


def test_auto_splits_the_draft_as_it_was_calibrated(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile(path, (4, 1, 1, 1))
    text = path.read_text().replace('"backend": "numpy"', '"backend": "emulated"')
    path.write_text(text)
    assert auto_plan(path, "auto").draft_layers is None, "one rank holds any draft"
    shares = (DraftShare((0, 1), flat(DRAFT_S)), DraftShare((1, 2), flat(DRAFT_S)))
    write_profile(replace(read_profile(path), draft=shares), path)
    plan = auto_plan(path, "auto")
    assert (plan.stages, plan.draft_layers) == (2, "1,1")
    assert auto_plan(path, "auto/2").draft_layers == "2"
    with Cluster(plan) as cluster:
        assert [stop - start for start, stop in cluster.models.split] == [1, 7]
        assert cluster.models.draft_split == [(0, 1), (1, 2)]


def auto_plan(path: Path, layers: str) -> Plan:
    """Of four ranks like those of the profile."""
    settings = Settings(backend="emulated", backend_options={"profile": str(path)}, layers=layers, profile=str(path))
    return settings.plan("inproc", 4, drafts=True)


def test_a_profile_goes_with_auto() -> None:
    with pytest.raises(ValueError, match="it goes with --layers auto"):
        Settings(layers="2,3,3", profile="profile.json").plan("inproc", 4, drafts=True)
